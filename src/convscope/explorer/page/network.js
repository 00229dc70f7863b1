// The network of the run, layer by layer, in plain JavaScript. Values lie in the order (n, height, width, channels)
// or (n, units); sums are made in double precision and stored in single precision, as the values of Python are.
// Runs in the Worker, on the page and in node alike, and touches neither.

import { activate } from "./activations.js";

/**
 * @typedef {{shape: number[], values: Float32Array}} Weight
 * @typedef {{index: number, name: string, type: string, kind: string, shape: number[], inputs: number[],
 *   weights: Object<string, Weight>, activation: string | null, settings: Object<string, any>, live: boolean,
 *   reason: string, cost: number, parameters: number, shares: number | null}} Layer
 * @typedef {{layer: number, name: string, index: number, value: number}} ChangedWeight
 * @typedef {{weights?: ChangedWeight[], zeroed?: {layer: number, channel: number}[], off?: number[],
 *   noise?: {sigma: number, seed: number}, shift?: number[], turn?: number}} Changes
 * @typedef {(Float32Array | null)[]} Outputs
 */

/** @param {number[]} shape */
export function volume(shape) {
  return shape.reduce((product, length) => product * length, 1);
}

export class Network {
  /**
   * @param {{input: number[], layers: any[], channelsFirst?: boolean}} description
   * @param {Float32Array} weights all weights behind each other; a layer's `weights` say where its own begin
   */
  constructor(description, weights) {
    this.input = description.input;
    /** @type {Layer[]} */
    this.layers = description.layers.map((layer) => ({
      ...layer,
      weights: Object.fromEntries(
        Object.entries(layer.weights).map(([name, { shape, start }]) => [
          name,
          { shape, values: weights.subarray(start, start + volume(shape)) },
        ]),
      ),
    }));
  }

  /** The shape of what a layer gives, without the batch axis; of the image for −1. @param {number} index */
  shape(index) {
    return index < 0 ? this.input : this.layers[index].shape;
  }

  get last() {
    return this.layers.length - 1;
  }

  /** The layer whose output enters the last sum of products: its features. −1 is the image. */
  get features() {
    const summing = ["convolution", "depthwise", "separable", "dense"];
    const deciding = this.layers.findLast(({ kind }) => summing.includes(kind)) ?? this.layers[this.last];
    return deciding.inputs[0];
  }

  /**
   * Which layers compute something else once these changes are made.
   * @param {Changes} changes
   * @returns {boolean[]}
   */
  affected(changes = {}) {
    const home = (/** @type {number} */ index) => this.layers[index].shares ?? index;
    const changed = new Set((changes.weights ?? []).map(({ layer }) => home(layer)));
    const own = new Set([...(changes.zeroed ?? []).map(({ layer }) => layer), ...(changes.off ?? [])]);
    /** @type {boolean[]} */
    const found = [];
    const image = Boolean(changes.noise?.sigma || changes.turn || changes.shift?.some(Boolean));
    for (const layer of this.layers) {
      const entered = layer.inputs.some((input) => (input < 0 ? image : found[input]));
      found.push(entered || changed.has(home(layer.index)) || own.has(layer.index));
    }
    return found;
  }

  /**
   * The outputs of every layer for `n` images; null for a layer that is not live and for what stands behind it.
   * `known` holds outputs that need no computing; with `only`, what the layers named there do not need is left out,
   * and of the rest only they are kept.
   * @param {Float32Array} images
   * @param {number} n
   * @param {Changes} changes
   * @param {{known?: Outputs, only?: number[]}} [options]
   * @returns {Outputs}
   */
  forward(images, n, changes = {}, { known = [], only } = {}) {
    const wanted = only ? this.needed(only, known) : this.layers.map(() => true);
    const uses = this.layers.map(() => 0);
    for (const layer of this.layers) {
      if (wanted[layer.index] && !known[layer.index]) for (const input of layer.inputs) if (input >= 0) uses[input] += 1;
    }
    /** @type {Outputs} */
    const outputs = this.layers.map(() => null);
    for (const layer of this.layers) {
      const { index, inputs } = layer;
      if (!wanted[index]) continue;
      if (known[index]) {
        outputs[index] = known[index];
        continue;
      }
      const entering = inputs.map((input) => (input < 0 ? images : outputs[input]));
      if (layer.live && entering.every(Boolean)) {
        outputs[index] = this.compute(layer, /** @type {Float32Array[]} */ (entering), n, changes);
      }
      if (!only) continue;
      for (const input of inputs) if (input >= 0 && (uses[input] -= 1) === 0 && !only.includes(input)) outputs[input] = null;
    }
    return outputs;
  }

  /** Which layers have to be there for some others. @param {number[]} targets @param {Outputs} known */
  needed(targets, known = []) {
    const needed = this.layers.map(() => false);
    for (const target of targets) needed[target] = true;
    for (let index = this.last; index >= 0; index -= 1) {
      if (needed[index] && !known[index]) for (const input of this.layers[index].inputs) if (input >= 0) needed[input] = true;
    }
    return needed;
  }

  /**
   * What the classes score before the last softmax or sigmoid: (n, classes).
   * @param {Outputs} outputs
   * @param {number} n
   * @param {Changes} changes
   */
  logits(outputs, n, changes = {}) {
    const layer = this.layers[this.last];
    const squashed = layer.activation === "softmax" || layer.activation === "sigmoid";
    const entered = layer.inputs.length === 1 && layer.inputs[0] >= 0 ? outputs[layer.inputs[0]] : null;
    if (!squashed || !entered || !layer.live) return outputs[this.last];
    if (layer.kind === "activation") return entered;
    return layer.kind === "dense" ? this.compute({ ...layer, activation: null }, [entered], n, changes) : outputs[this.last];
  }

  /** A layer's weight as it is after the changes. @param {Layer} layer @param {Changes} changes */
  weightsOf(layer, changes = {}) {
    const home = layer.shares ?? layer.index;
    const own = (changes.weights ?? []).filter((one) => (this.layers[one.layer].shares ?? one.layer) === home);
    if (own.length === 0) return layer.weights;
    const changed = { ...layer.weights };
    for (const { name, index, value } of own) {
      if (changed[name] === layer.weights[name]) changed[name] = { ...changed[name], values: changed[name].values.slice() };
      changed[name].values[index] = value;
    }
    return changed;
  }

  /**
   * One layer's output from what enters it.
   * @param {Layer} layer
   * @param {Float32Array[]} entering
   * @param {number} n
   * @param {Changes} changes
   */
  compute(layer, entering, n, changes = {}) {
    const shapes = layer.inputs.map((input) => this.shape(input));
    const size = n * volume(layer.shape);
    let out;
    if (changes.off?.includes(layer.index)) {
      // What is off lets its input through where that has its shape, and is zero elsewhere.
      out = volume(shapes[0]) === volume(layer.shape) ? entering[0].slice() : new Float32Array(size);
    } else {
      const weights = this.weightsOf(layer, changes);
      out = KINDS[layer.kind]({ layer, entering, shapes, n, weights, out: new Float32Array(size) });
      if (layer.activation) activate(layer.activation, out, layer.shape[layer.shape.length - 1], layer.settings);
    }
    const channels = layer.shape[layer.shape.length - 1];
    for (const { layer: index, channel } of changes.zeroed ?? []) {
      if (index === layer.index) for (let at = channel; at < size; at += channels) out[at] = 0;
    }
    return out;
  }
}

/**
 * What a layer is computed from.
 * @typedef {{layer: Layer, entering: Float32Array[], shapes: number[][], n: number, weights: Object<string, Weight>,
 *   out: Float32Array}} Work
 */

/** The kinds of layers that are known: each fills `out` and returns it. @type {Object<string, (work: Work) => Float32Array>} */
const KINDS = {
  convolution: (work) => convolve(work, work.entering[0], work.shapes[0], work.weights.kernel, work.weights.bias, work.out, work.layer.shape),
  depthwise: (work) => depthwise(work, work.weights.kernel, work.weights.bias, work.out),
  separable: (work) => {
    const [height, width] = work.layer.shape;
    const { shape } = work.weights.depthwise;
    const middle = [height, width, shape[2] * shape[3]];
    const between = depthwise(work, work.weights.depthwise, undefined, new Float32Array(work.n * volume(middle)));
    return dense(between, work.n * height * width, work.weights.pointwise.values, work.layer.shape[2], work.weights.bias, work.out);
  },
  dense: ({ layer, entering, n, weights, out }) => {
    const units = layer.shape[layer.shape.length - 1];
    return dense(entering[0], (n * volume(layer.shape)) / units, weights.kernel.values, units, weights.bias, out);
  },
  max: (work) => pool(work, true),
  average: (work) => pool(work, false),
  normalization: normalizeBatch,
  layer_normalization: (work) => normalizeGroups(work, "layer"),
  group_normalization: (work) => normalizeGroups(work, "group"),
  same: ({ layer, entering, shapes, n, out }) => {
    if (layer.settings.channelsFirst) return toChannelsFirst(entering[0], n, shapes[0], out);
    out.set(entering[0]);
    return out;
  },
  activation: ({ entering, out }) => {
    out.set(entering[0]);
    return out;
  },
  prelu: ({ layer, entering, shapes, n, weights, out }) => {
    const { shape, values } = weights.alpha;
    const places = broadcastPlaces(shape, layer.shape);
    const size = volume(shapes[0]);
    for (let at = 0; at < n * size; at += 1) {
      const x = entering[0][at];
      out[at] = x >= 0 ? x : x * values[places[at % size]];
    }
    return out;
  },
  scale: ({ layer, entering, out }) => {
    const { scale, offset } = layer.settings;
    const channels = layer.shape[layer.shape.length - 1];
    for (let at = 0; at < out.length; at += 1) {
      const channel = at % channels;
      out[at] = entering[0][at] * (scale.length > 1 ? scale[channel] : scale[0]) + (offset.length > 1 ? offset[channel] : offset[0]);
    }
    return out;
  },
  add: (work) => merge(work, (a, b) => a + b),
  subtract: (work) => merge(work, (a, b) => a - b),
  multiply: (work) => merge(work, (a, b) => a * b),
  maximum: (work) => merge(work, (a, b) => Math.max(a, b)),
  minimum: (work) => merge(work, (a, b) => Math.min(a, b)),
  mean: (work) => {
    const count = work.entering.length;
    return merge(work, (a, b) => a + b).map((sum) => sum / count);
  },
  concatenate,
  zero_padding: ({ layer, entering, shapes, n, out }) => shifted(entering[0], n, shapes[0], layer.shape, layer.settings.margins, out),
  cropping: ({ layer, entering, shapes, n, out }) =>
    shifted(entering[0], n, shapes[0], layer.shape, layer.settings.margins.map((/** @type {number} */ margin) => -margin), out),
  upsampling: ({ layer, entering, shapes, n, out }) => {
    const [height, width, channels] = layer.shape;
    const [down, across] = layer.settings.size;
    for (let at = 0, image = 0; image < n; image += 1) {
      for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) {
          const from = ((image * shapes[0][0] + Math.floor(y / down)) * shapes[0][1] + Math.floor(x / across)) * channels;
          for (let z = 0; z < channels; z += 1, at += 1) out[at] = entering[0][from + z];
        }
      }
    }
    return out;
  },
};

export const KNOWN_KINDS = Object.keys(KINDS);

/**
 * Four rows of `a` times four columns of `b`, both packed by four, each product into its place of `sums`.
 * @param {Float64Array} a @param {number} fromA @param {Float64Array} b @param {number} fromB @param {number} depth
 * @param {Float64Array} sums
 */
function block(a, fromA, b, fromB, depth, sums) {
  let c00 = 0, c01 = 0, c02 = 0, c03 = 0;
  let c10 = 0, c11 = 0, c12 = 0, c13 = 0;
  let c20 = 0, c21 = 0, c22 = 0, c23 = 0;
  let c30 = 0, c31 = 0, c32 = 0, c33 = 0;
  for (let end = fromA + 4 * depth, i = fromA, j = fromB; i < end; i += 4, j += 4) {
    const a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    let x = b[j];
    c00 += a0 * x; c10 += a1 * x; c20 += a2 * x; c30 += a3 * x;
    x = b[j + 1];
    c01 += a0 * x; c11 += a1 * x; c21 += a2 * x; c31 += a3 * x;
    x = b[j + 2];
    c02 += a0 * x; c12 += a1 * x; c22 += a2 * x; c32 += a3 * x;
    x = b[j + 3];
    c03 += a0 * x; c13 += a1 * x; c23 += a2 * x; c33 += a3 * x;
  }
  sums[0] = c00; sums[1] = c01; sums[2] = c02; sums[3] = c03;
  sums[4] = c10; sums[5] = c11; sums[6] = c12; sums[7] = c13;
  sums[8] = c20; sums[9] = c21; sums[10] = c22; sums[11] = c23;
  sums[12] = c30; sums[13] = c31; sums[14] = c32; sums[15] = c33;
}

const SUMS = new Float64Array(16);

/**
 * Packs columns of a matrix (depth, width) by four, those beyond the last as zeros.
 * @param {ArrayLike<number>} values @param {number} depth @param {number} width @param {number} first @param {number} count
 */
function packColumns(values, depth, width, first, count) {
  const blocks = Math.ceil(count / 4);
  const packed = new Float64Array(blocks * depth * 4);
  for (let at = 0, one = 0; one < blocks; one += 1) {
    for (let row = 0; row < depth; row += 1) {
      for (let column = 0; column < 4; column += 1, at += 1) {
        const place = 4 * one + column;
        packed[at] = place < count ? values[row * width + first + place] : 0;
      }
    }
  }
  return packed;
}

/**
 * A strip of up to four packed rows times all packed columns, stored from `to` on with `stride` between the rows.
 * @param {Float64Array} strip @param {number} rows @param {Float64Array} columns @param {number} depth
 * @param {Float64Array | Float32Array | undefined} bias @param {number} first @param {number} count
 * @param {Float32Array} out @param {number} to @param {number} stride
 */
function multiplyStrip(strip, rows, columns, depth, bias, first, count, out, to, stride) {
  for (let one = 0; 4 * one < count; one += 1) {
    block(strip, 0, columns, one * 4 * depth, depth, SUMS);
    const most = Math.min(4, count - 4 * one);
    for (let column = 0; column < most; column += 1) {
      const added = bias ? bias[first + 4 * one + column] : 0;
      for (let row = 0; row < rows; row += 1) out[to + row * stride + 4 * one + column] = SUMS[4 * row + column] + added;
    }
  }
}

/**
 * Rows (rows, depth) times a kernel (depth, units), plus a bias.
 * @param {Float32Array} values @param {number} rows @param {Float32Array} kernel @param {number} units
 * @param {Weight | undefined} bias @param {Float32Array} out
 */
export function dense(values, rows, kernel, units, bias, out) {
  const depth = kernel.length / units;
  if (rows < 4) {
    const sums = new Float64Array(units);
    for (let row = 0; row < rows; row += 1) {
      if (bias) sums.set(bias.values);
      else sums.fill(0);
      for (let place = 0; place < depth; place += 1) {
        const value = values[row * depth + place];
        if (value === 0) continue; // behind a ReLU, half of them are
        const from = place * units;
        for (let unit = 0; unit < units; unit += 1) sums[unit] += value * kernel[from + unit];
      }
      out.set(sums, row * units);
    }
    return out;
  }
  const columns = packColumns(kernel, depth, units, 0, units);
  const strip = new Float64Array(4 * depth);
  for (let first = 0; first < rows; first += 4) {
    const some = Math.min(4, rows - first);
    for (let row = 0; row < some; row += 1) {
      const from = (first + row) * depth;
      for (let place = 0; place < depth; place += 1) strip[4 * place + row] = values[from + place];
    }
    multiplyStrip(strip, some, columns, depth, bias?.values, 0, units, out, first * units, units);
  }
  return out;
}

/**
 * @param {Work} work @param {Float32Array} values @param {number[]} shape @param {Weight} kernel
 * @param {Weight | undefined} bias @param {Float32Array} out @param {number[]} made
 */
function convolve({ layer, n }, values, shape, kernel, bias, out, made) {
  const { strides, padding, dilation, groups } = layer.settings;
  const [height, width, channels] = shape;
  const [rows, columns, filters] = made;
  const [down, across, each] = kernel.shape; // `each`: input channels of a group
  const depth = down * across * each;
  const own = filters / groups;
  const strip = new Float64Array(4 * depth);
  const places = rows * columns;
  for (let group = 0; group < groups; group += 1) {
    const packed = packColumns(kernel.values, depth, filters, group * own, own);
    for (let image = 0; image < n; image += 1) {
      for (let first = 0; first < places; first += 4) {
        const some = Math.min(4, places - first);
        for (let row = 0; row < some; row += 1) {
          const place = first + row;
          const top = Math.floor(place / columns) * strides[0] - padding[0];
          const left = (place % columns) * strides[1] - padding[1];
          let at = row;
          for (let y = 0; y < down; y += 1) {
            const inY = top + y * dilation[0];
            const outside = inY < 0 || inY >= height;
            for (let x = 0; x < across; x += 1) {
              const inX = left + x * dilation[1];
              if (outside || inX < 0 || inX >= width) {
                for (let z = 0; z < each; z += 1, at += 4) strip[at] = 0;
              } else {
                const from = ((image * height + inY) * width + inX) * channels + group * each;
                for (let z = 0; z < each; z += 1, at += 4) strip[at] = values[from + z];
              }
            }
          }
        }
        const to = (image * places + first) * filters + group * own;
        multiplyStrip(strip, some, packed, depth, bias?.values, group * own, own, out, to, filters);
      }
    }
  }
  return out;
}

/** @param {Work} work @param {Weight} kernel @param {Weight | undefined} bias @param {Float32Array} out */
function depthwise({ layer, entering, shapes, n }, kernel, bias, out) {
  const { strides, padding, dilation } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [down, across, , multiplier] = kernel.shape;
  const [rows, columns] = layer.shape;
  const filters = channels * multiplier;
  const values = entering[0];
  const sums = new Float64Array(filters);
  const weights = Float64Array.from(kernel.values);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        if (bias) sums.set(bias.values);
        else sums.fill(0);
        for (let y = 0; y < down; y += 1) {
          const inY = row * strides[0] - padding[0] + y * dilation[0];
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < across; x += 1) {
            const inX = column * strides[1] - padding[1] + x * dilation[1];
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            const own = (y * across + x) * filters;
            if (multiplier === 1) for (let z = 0; z < channels; z += 1) sums[z] += values[from + z] * weights[own + z];
            else for (let z = 0; z < filters; z += 1) sums[z] += values[from + Math.floor(z / multiplier)] * weights[own + z];
          }
        }
        out.set(sums, ((image * rows + row) * columns + column) * filters);
      }
    }
  }
  return out;
}

/** @param {Work} work @param {boolean} largest */
function pool({ layer, entering, shapes, n, out }, largest) {
  const { window, strides, padding } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns] = layer.shape.length === 3 ? layer.shape : [1, 1];
  const values = entering[0];
  const sums = new Float64Array(channels);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        let count = 0;
        sums.fill(largest ? -Infinity : 0);
        for (let y = 0; y < window[0]; y += 1) {
          const inY = row * strides[0] - padding[0] + y;
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < window[1]; x += 1) {
            const inX = column * strides[1] - padding[1] + x;
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            count += 1;
            if (largest) {
              for (let z = 0; z < channels; z += 1) if (values[from + z] > sums[z]) sums[z] = values[from + z];
            } else for (let z = 0; z < channels; z += 1) sums[z] += values[from + z];
          }
        }
        if (!largest) for (let z = 0; z < channels; z += 1) sums[z] /= count;
        out.set(sums, ((image * rows + row) * columns + column) * channels);
      }
    }
  }
  return out;
}

/** By the moving statistics, along any axis. @param {Work} work */
function normalizeBatch({ layer, entering, weights, out }) {
  const { axis, epsilon } = layer.settings;
  const length = layer.shape[axis];
  const inner = volume(layer.shape.slice(axis + 1));
  const { gamma, beta, mean, variance } = weights;
  const scale = new Float64Array(length);
  const offset = new Float64Array(length);
  for (let z = 0; z < length; z += 1) {
    scale[z] = (gamma ? gamma.values[z] : 1) / Math.sqrt(variance.values[z] + epsilon);
    offset[z] = (beta ? beta.values[z] : 0) - mean.values[z] * scale[z];
  }
  const values = entering[0];
  if (inner === 1) {
    for (let first = 0; first < out.length; first += length) {
      for (let z = 0; z < length; z += 1) out[first + z] = values[first + z] * scale[z] + offset[z];
    }
  } else {
    for (let at = 0; at < out.length; at += 1) {
      const z = Math.floor(at / inner) % length;
      out[at] = values[at] * scale[z] + offset[z];
    }
  }
  return out;
}

/** Over the last axes of each image, or over groups of its channels. @param {Work} work @param {string} what */
function normalizeGroups({ layer, entering, n, weights, out }, what) {
  const { epsilon, groups, rows } = layer.settings; // rows: values that a layer normalization averages over
  const values = entering[0];
  const size = volume(layer.shape);
  const channels = layer.shape[layer.shape.length - 1];
  const { gamma, beta } = weights;
  const each = channels / (groups ?? 1);
  const count = what === "layer" ? rows : size / groups;
  /** The place of a group's value in its image. @type {(group: number, at: number) => number} */
  const place = what === "layer" ? (group, at) => group * rows + at : (group, at) => Math.floor(at / each) * channels + group * each + (at % each);
  const learned = what === "layer" ? rows : channels;
  for (let image = 0; image < n; image += 1) {
    for (let group = 0; group < size / count; group += 1) {
      let sum = 0;
      for (let at = 0; at < count; at += 1) sum += values[image * size + place(group, at)];
      const mean = sum / count;
      let squares = 0;
      for (let at = 0; at < count; at += 1) squares += (values[image * size + place(group, at)] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / count + epsilon);
      for (let at = 0; at < count; at += 1) {
        const own = place(group, at);
        const unit = own % learned;
        out[image * size + own] = (values[image * size + own] - mean) * scale * (gamma ? gamma.values[unit] : 1) + (beta ? beta.values[unit] : 0);
      }
    }
  }
  return out;
}

/**
 * For each value of a shape, its place in a smaller one whose axes of length 1 are repeated.
 * @param {number[]} shape @param {number[]} whole
 */
export function broadcastPlaces(shape, whole) {
  const places = new Int32Array(volume(whole));
  for (let at = 0; at < places.length; at += 1) {
    let rest = at, place = 0, step = 1;
    for (let axis = whole.length - 1; axis >= 0; axis -= 1) {
      if (shape[axis] > 1) place += (rest % whole[axis]) * step;
      rest = Math.floor(rest / whole[axis]);
      step *= shape[axis];
    }
    places[at] = place;
  }
  return places;
}

/** @param {Work} work @param {(a: number, b: number) => number} combine */
function merge({ layer, entering, shapes, n, out }, combine) {
  const size = volume(layer.shape);
  entering.forEach((values, which) => {
    const own = volume(shapes[which]);
    const places = own === size ? null : broadcastPlaces(shapes[which], layer.shape);
    for (let image = 0; image < n; image += 1) {
      for (let at = 0; at < size; at += 1) {
        const value = values[image * own + (places ? places[at] : at)];
        out[image * size + at] = which === 0 ? value : combine(out[image * size + at], value);
      }
    }
  });
  return out;
}

/** @param {Work} work */
function concatenate({ layer, entering, shapes, n, out }) {
  const { axis } = layer.settings;
  const inner = volume(layer.shape.slice(axis + 1));
  const outer = n * volume(layer.shape.slice(0, axis));
  const stride = layer.shape[axis] * inner;
  let from = 0;
  entering.forEach((values, which) => {
    const length = shapes[which][axis] * inner;
    for (let row = 0; row < outer; row += 1) out.set(values.subarray(row * length, (row + 1) * length), row * stride + from);
    from += length;
  });
  return out;
}

/** (h, w, c) → (c, h, w), as a network of that order flattens it. @param {Float32Array} values @param {number} n @param {number[]} shape @param {Float32Array} out */
function toChannelsFirst(values, n, [height, width, channels], out) {
  const places = height * width;
  for (let at = 0; at < out.length; at += 1) {
    const image = Math.floor(at / (places * channels));
    const place = at % places;
    const channel = Math.floor(at / places) % channels;
    out[at] = values[(image * places + place) * channels + channel];
  }
  return out;
}

/** Moves images down and right by margins, onto zeros. @param {Float32Array} values @param {number} n @param {number[]} shape @param {number[]} made @param {number[]} margins @param {Float32Array} out */
function shifted(values, n, [height, width, channels], made, [top, left], out) {
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < made[0]; row += 1) {
      const inY = row - top;
      if (inY < 0 || inY >= height) continue;
      const first = Math.max(0, left);
      const last = Math.min(made[1], left + width);
      const from = ((image * height + inY) * width + first - left) * channels;
      const to = ((image * made[0] + row) * made[1] + first) * channels;
      out.set(values.subarray(from, from + (last - first) * channels), to);
    }
  }
  return out;
}

