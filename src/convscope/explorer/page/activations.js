// Activation functions by their Keras names: x → y, with a layer's settings.

/** @typedef {(x: number, settings: Object<string, any>) => number} Activation */

const sigmoid = (/** @type {number} */ x) => 1 / (1 + Math.exp(-x));
const softplus = (/** @type {number} */ x) => Math.log1p(Math.exp(-Math.abs(x))) + Math.max(x, 0);
const hardSigmoid = (/** @type {number} */ x) => Math.min(Math.max(x / 6 + 0.5, 0), 1);
const SELU_SCALE = 1.0507009873554805;
const SELU_ALPHA = 1.6732632423543772;

/** The error function by its series, without cancellation. @param {number} x */
function erf(x) {
  if (Math.abs(x) > 5) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** @type {Object<string, Activation>} */
export const ACTIVATIONS = {
  linear: (x) => x,
  relu: (x, { negative_slope: slope = 0, max_value: most = null, threshold = 0 }) =>
    x >= threshold ? Math.min(x, most ?? Infinity) : slope * (x - threshold),
  relu6: (x) => Math.min(Math.max(x, 0), 6),
  leaky_relu: (x, { negative_slope: slope = 0.2 }) => (x > 0 ? x : slope * x),
  elu: (x, { alpha = 1 }) => (x > 0 ? x : alpha * Math.expm1(x)),
  selu: (x) => SELU_SCALE * (x > 0 ? x : SELU_ALPHA * Math.expm1(x)),
  celu: (x, { alpha = 1 }) => (x > 0 ? x : alpha * Math.expm1(x / alpha)),
  gelu: (x, { approximate = false }) =>
    approximate ? (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))) : (x / 2) * (1 + erf(x / Math.SQRT2)),
  silu: (x) => x * sigmoid(x),
  mish: (x) => x * Math.tanh(softplus(x)),
  softplus,
  softsign: (x) => x / (1 + Math.abs(x)),
  soft_shrink: (x) => Math.sign(x) * Math.max(Math.abs(x) - 0.5, 0),
  sparse_plus: (x) => (x <= -1 ? 0 : x < 1 ? (x + 1) ** 2 / 4 : x),
  squareplus: (x) => (x + Math.sqrt(x * x + 4)) / 2,
  tanh: Math.tanh,
  tanh_shrink: (x) => x - Math.tanh(x),
  hard_tanh: (x) => Math.min(Math.max(x, -1), 1),
  hard_shrink: (x) => (Math.abs(x) > 0.5 ? x : 0),
  sigmoid,
  hard_sigmoid: hardSigmoid,
  log_sigmoid: (x) => -softplus(-x),
  sparse_sigmoid: (x) => (x <= -1 ? 0 : x >= 1 ? 1 : (x + 1) / 2),
  hard_silu: (x) => x * hardSigmoid(x),
  exponential: Math.exp,
};

/** The same and others of `keras.ops`. @type {Object<string, Activation>} */
export const FUNCTIONS = {
  ...ACTIVATIONS,
  absolute: Math.abs,
  clip: (x, { low = -Infinity, high = Infinity }) => Math.min(Math.max(x, low), high),
  log: Math.log,
  negative: (x) => -x,
  power: (x, { power }) => x ** power,
  rsqrt: (x) => 1 / Math.sqrt(x),
  sqrt: Math.sqrt,
  square: (x) => x * x,
};

/** Those that look at a row of values at once. */
const OVER_ROW = ["softmax", "log_softmax"];


/**
 * Computes a function of every value, in place; softmax for each row of `length` values.
 * @param {string} name @param {Float32Array} values @param {number} length @param {Object<string, any>} settings
 */
export function activate(name, values, length, settings = {}) {
  if (OVER_ROW.includes(name)) {
    for (let first = 0; first < values.length; first += length) softmax(values.subarray(first, first + length), name === "log_softmax");
  } else if (name === "relu" && !settings.negative_slope && !settings.threshold && settings.max_value == null) {
    for (let at = 0; at < values.length; at += 1) if (values[at] < 0) values[at] = 0;
  } else if (name !== "linear") {
    const apply = FUNCTIONS[name];
    for (let at = 0; at < values.length; at += 1) values[at] = apply(values[at], settings);
  }
}

/** @param {Float32Array} row @param {boolean} logarithm */
function softmax(row, logarithm) {
  let highest = -Infinity;
  for (const value of row) if (value > highest) highest = value;
  let total = 0;
  for (const value of row) total += Math.exp(value - highest);
  for (let at = 0; at < row.length; at += 1) {
    row[at] = logarithm ? row[at] - highest - Math.log(total) : Math.exp(row[at] - highest) / total;
  }
}

/**
 * One value of a layer from its sum; of a softmax from all the row's sums.
 * @param {string | null} name @param {number} sum @param {Object<string, any>} settings @param {ArrayLike<number>} [row]
 * @param {number} [place]
 */
export function activateOne(name, sum, settings = {}, row = [sum], place = 0) {
  if (!name) return sum;
  if (!OVER_ROW.includes(name)) return FUNCTIONS[name](sum, settings);
  const sums = Float64Array.from(row);
  sums[place] = sum;
  const highest = sums.reduce((a, b) => Math.max(a, b));
  const total = sums.reduce((all, one) => all + Math.exp(one - highest), 0);
  return name === "softmax" ? Math.exp(sum - highest) / total : sum - highest - Math.log(total);
}

/**
 * The slope of a function at x, from both sides in double precision where no formula stands here.
 * @param {string | null} name @param {number} x @param {Object<string, any>} settings
 */
export function slope(name, x, settings = {}) {
  if (!name || name === "linear") return 1;
  if (name === "relu" && !settings.negative_slope && !settings.threshold && settings.max_value == null) return x > 0 ? 1 : 0;
  if (name === "relu6") return x > 0 && x < 6 ? 1 : 0;
  const apply = FUNCTIONS[name];
  const step = 1e-5;
  return (apply(x + step, settings) - apply(x - step, settings)) / (2 * step);
}
