// One number of a network, recomputed from the numbers that entered its layer, the layer's kernel and its bias; where
// it looks in the image, and which number before it counts most. Sums are made in double precision.

import { ACTIVATIONS, activateOne } from "./activations.js";

/** @typedef {import("./network.js").Network} Network */
/** @typedef {import("./network.js").Layer} Layer */
/** @typedef {import("./network.js").Changes} Changes */
/** @typedef {{row: number, column: number, channel: number}} Place  Row and column are 0 in a layer that gives a row. */
/** @typedef {{layer: number, place: Place}} Spot */
/** @typedef {{size: number[], strides: number[], dilation: number[], padding: number[]}} Reach */
/** @typedef {{top: number, left: number, height: number, width: number}} Box */

/**
 * One image's way through a network, as it is after some changes.
 * @typedef {object} Pass
 * @property {Network} network
 * @property {Float32Array} image  As it enters, (h·w·c).
 * @property {(Float32Array | null)[]} outputs  What every layer gives; null where it is not known.
 * @property {Changes} changes
 * @property {number[]} [scores]  What enters a last softmax, where not all of its weights are at hand.
 */

/**
 * What one input channel adds: the patch under the window (null outside the image) and its weights.
 * @typedef {object} Term
 * @property {number} channel
 * @property {(number | null)[][]} patch
 * @property {number[][] | null} weights
 * @property {number} subtotal
 */

/** @typedef {{unit: number, value: number, weight: number, product: number}} Product */

/**
 * A number with its arithmetic.
 * @typedef {object} Recomputed
 * @property {number} own  The network's own number.
 * @property {number} result  The number recomputed here.
 * @property {number} difference
 * @property {number} sum  What was added up, before the bias; what enters, where nothing is added up.
 * @property {number | null} bias
 * @property {Term[]} [terms]  Of a convolution or pooling.
 * @property {Product[]} [products]  Of a dense layer, or of the second step of a separable convolution.
 * @property {number} [count]  How many numbers a pooling saw.
 * @property {[string, number][]} [steps]  Anything else: what each number is (the key of a text), and the number.
 */

/** @typedef {Pick<Recomputed, "sum" | "result"> & Partial<Recomputed>} Found */

/** @type {(pass: Pass, index: number) => Float32Array | null} */
export const valuesOf = (pass, index) => (index < 0 ? pass.image : pass.outputs[index]);

/** @param {readonly number[]} shape @param {Place} place */
export function flatIndex(shape, { row, column, channel }) {
  return shape.length === 3 ? (row * shape[1] + column) * shape[2] + channel : channel;
}

/** @param {readonly number[]} shape @param {number} flat @returns {Place} */
export function placeAt(shape, flat) {
  if (shape.length !== 3) return { row: 0, column: 0, channel: flat };
  const pixel = Math.floor(flat / shape[2]);
  return { row: Math.floor(pixel / shape[1]), column: pixel % shape[1], channel: flat % shape[2] };
}

/** The window that a layer moves over its input; null for a layer without one. @param {Layer} layer @returns {Reach | null} */
export function reachOf(layer) {
  const { window, strides, padding, dilation } = layer.settings;
  return window ? { size: window, strides, padding, dilation } : null;
}

/** The part of a layer's input that one place of it sees; it may stand over the edge. @param {Reach} reach @param {Place} place @returns {Box} */
export function windowBox({ size, strides, dilation, padding }, { row, column }) {
  return {
    top: row * strides[0] - padding[0],
    left: column * strides[1] - padding[1],
    height: (size[0] - 1) * dilation[0] + 1,
    width: (size[1] - 1) * dilation[1] + 1,
  };
}

/**
 * The part of the image that a number depends on, cut at the image's edge.
 * @param {Network} network
 * @param {number} index
 * @param {Place} place
 * @returns {Box}
 */
export function receptiveField(network, index, place) {
  const [height, width] = network.input;
  /** @type {(index: number, box: Box) => Box} */
  const back = (at, box) => {
    if (at < 0) return box;
    const layer = network.layers[at];
    return layer.inputs.map((input) => back(input, seen(network, layer, input, box))).reduce(around);
  };
  const spatial = network.shape(index).length === 3;
  const start = { top: spatial ? place.row : 0, left: spatial ? place.column : place.channel, height: 1, width: 1 };
  const box = back(index, start);
  const top = Math.max(0, box.top);
  const left = Math.max(0, box.left);
  const bottom = Math.min(height, box.top + box.height);
  const right = Math.min(width, box.left + box.width);
  return { top, left, height: Math.max(0, bottom - top), width: Math.max(0, right - left) };
}

/** @type {(one: Box, other: Box) => Box} */
function around(one, other) {
  const top = Math.min(one.top, other.top);
  const left = Math.min(one.left, other.left);
  const bottom = Math.max(one.top + one.height, other.top + other.height);
  const right = Math.max(one.left + one.width, other.left + other.width);
  return { top, left, height: bottom - top, width: right - left };
}

/**
 * What a box of a layer needs of one of its inputs; a row of units lies in a box of height 1.
 * @param {Network} network @param {Layer} layer @param {number} input @param {Box} box
 * @returns {Box}
 */
function seen(network, layer, input, box) {
  const shape = network.shape(input);
  const whole = shape.length === 3 ? { top: 0, left: 0, height: shape[0], width: shape[1] } : { top: 0, left: 0, height: 1, width: shape[0] };
  const reach = reachOf(layer);
  if (reach) {
    const first = windowBox(reach, { row: layer.shape.length === 3 ? box.top : 0, column: layer.shape.length === 3 ? box.left : 0, channel: 0 });
    if (layer.shape.length !== 3) return first;
    return { ...first, height: first.height + (box.height - 1) * reach.strides[0], width: first.width + (box.width - 1) * reach.strides[1] };
  }
  if (layer.kind === "dense" || layer.kind.endsWith("_normalization")) return whole;
  if (layer.kind === "concatenate") return layer.settings.axis === layer.shape.length - 1 ? (layer.shape.length === 3 ? box : whole) : whole;
  const corners = [
    { row: box.top, column: box.left, channel: box.left },
    { row: box.top + box.height - 1, column: box.left + box.width - 1, channel: box.left + box.width - 1 },
  ].map((place) => enteringPlace(network, layer, place));
  if (corners.some((place) => !place)) return whole;
  const [one, other] = /** @type {Place[]} */ (corners);
  if (shape.length !== 3) return { top: 0, left: one.channel, height: 1, width: other.channel - one.channel + 1 };
  if (layer.shape.length !== 3 && box.width > 1) return whole; // several units of what was flattened
  return { top: one.row, left: one.column, height: other.row - one.row + 1, width: other.column - one.column + 1 };
}

/**
 * Which number of its first input a layer takes to a place, where it takes one; null where none does (a margin), and
 * for a layer that takes several.
 * @param {Network} network @param {Layer} layer @param {Place} place
 * @returns {Place | null}
 */
function enteringPlace(network, layer, place) {
  const shape = network.shape(layer.inputs[0]);
  const { row, column, channel } = place;
  if (layer.kind === "zero_padding" || layer.kind === "cropping") {
    const sign = layer.kind === "cropping" ? 1 : -1;
    const [top, left] = layer.settings.margins;
    return { row: row + sign * top, column: column + sign * left, channel };
  }
  if (layer.kind === "upsampling") {
    const [down, across] = layer.settings.size;
    return { row: Math.floor(row / down), column: Math.floor(column / across), channel };
  }
  if (layer.kind !== "same") return shape.length === layer.shape.length ? place : null;
  const flat = flatIndex(layer.shape, place);
  if (!layer.settings.channelsFirst) return placeAt(shape, flat);
  const places = shape[0] * shape[1]; // such a network flattens (c, h, w)
  return { row: Math.floor((flat % places) / shape[1]), column: flat % shape[1], channel: Math.floor(flat / places) };
}

/**
 * Recomputes one number of a layer; null where its arithmetic or the numbers that enter are not at hand.
 * @param {Pass} pass
 * @param {number} index
 * @param {Place} place
 * @returns {Recomputed | null}
 */
export function recompute(pass, index, place) {
  const layer = pass.network.layers[index];
  const rule = RULES[layer.kind];
  const outputs = pass.outputs[index];
  if (!rule || !outputs || layer.inputs.some((input) => !valuesOf(pass, input))) return null;
  if (pass.changes.off?.includes(index) || pass.changes.zeroed?.some((one) => one.layer === index && one.channel === place.channel)) return null;
  if (columnOf(layer, place.channel) < 0) return null;
  const found = rule(pass, layer, place);
  if (!found) return null;
  const own = outputs[flatIndex(layer.shape, place)];
  return { bias: null, ...found, own, difference: Math.abs(found.result - own) };
}

/** @type {(pass: Pass, layer: Layer, position?: number) => Float32Array} */
const entering = (pass, layer, position = 0) => /** @type {Float32Array} */ (valuesOf(pass, layer.inputs[position]));

/**
 * Where a unit's weights stand: of a large layer, a report carries those of a few units only. −1 for none.
 * @param {Layer} layer @param {number} unit
 */
function columnOf(layer, unit) {
  if (layer.settings.missing) return -1;
  return layer.settings.units ? layer.settings.units.indexOf(unit) : unit;
}

/** @type {(pass: Pass, layer: Layer, name: string, unit: number) => number | null} */
const weightOf = (pass, layer, name, unit) => pass.network.weightsOf(layer, pass.changes)[name]?.values[unit] ?? null;

/** @type {Record<string, (pass: Pass, layer: Layer, place: Place) => Found | null>} */
const RULES = {
  convolution,
  depthwise: convolution,
  separable,
  dense,
  max: pooling,
  average: pooling,
  normalization,
  layer_normalization: normalizationOfImage,
  group_normalization: normalizationOfImage,
  activation: (pass, layer, place) => activated(pass, layer, place, entering(pass, layer)[flatIndex(layer.shape, place)], null),
  prelu: (pass, layer, place) => {
    const flat = flatIndex(layer.shape, place);
    const sum = entering(pass, layer)[flat];
    const { shape, values } = pass.network.weightsOf(layer, pass.changes).alpha;
    const own = shape.reduce((at, length, axis) => at * length + (length > 1 ? [place.row, place.column, place.channel].slice(-shape.length)[axis] : 0), 0);
    return { sum, result: sum >= 0 ? sum : sum * values[own], steps: [["walk.enters", sum], ["alpha", values[own]]] };
  },
  scale: (pass, layer, place) => {
    const sum = entering(pass, layer)[flatIndex(layer.shape, place)];
    const [scale, offset] = [layer.settings.scale, layer.settings.offset].map((one) => one[one.length > 1 ? place.channel : 0]);
    return { sum, result: sum * scale + offset, steps: [["walk.enters", sum], ["walk.timesScale", scale], ["walk.plusOffset", offset]] };
  },
  same: moved,
  zero_padding: moved,
  cropping: moved,
  upsampling: moved,
  add: merged((values) => values.reduce((all, one) => all + one, 0)),
  subtract: merged((values) => values.reduce((all, one) => all - one)),
  multiply: merged((values) => values.reduce((all, one) => all * one, 1)),
  mean: merged((values) => values.reduce((all, one) => all + one, 0) / values.length),
  maximum: merged((values) => Math.max(...values)),
  minimum: merged((values) => Math.min(...values)),
  concatenate: (pass, layer, place) => {
    const source = joinedFrom(pass.network, layer, place);
    const value = /** @type {Float32Array} */ (valuesOf(pass, source.layer))[flatIndex(pass.network.shape(source.layer), source.place)];
    return { sum: value, result: value };
  },
};

/**
 * The place's sum, and what the layer's activation function makes of it.
 * @param {Pass} pass @param {Layer} layer @param {Place} place @param {number} sum @param {number | null} bias
 * @returns {Found | null}
 */
function activated(pass, layer, place, sum, bias) {
  const name = layer.activation;
  const total = sum + (bias ?? 0);
  if (!name || name in ACTIVATIONS) return { sum, bias, result: activateOne(name, total, layer.settings) };
  const sums = layer.shape.length === 1 ? sumsOf(pass, layer) : null; // a softmax looks at all units
  return sums && { sum, bias, result: activateOne(name, total, layer.settings, sums, place.channel) };
}

/** What enters the softmax of a layer, for all units. @param {Pass} pass @param {Layer} layer */
function sumsOf(pass, layer) {
  if (layer.kind === "activation") return entering(pass, layer);
  if (layer.kind !== "dense") return null;
  if (layer.settings.units) return pass.scores ?? null;
  return Float64Array.from({ length: layer.shape[0] }, (_, unit) => {
    const { sum, bias } = productsOf(pass, layer, unit);
    return sum + (bias ?? 0);
  });
}

/** @type {(pass: Pass, layer: Layer, unit: number) => {products: Product[], sum: number, bias: number | null}} */
function productsOf(pass, layer, unit) {
  const { shape, values: kernel } = pass.network.weightsOf(layer, pass.changes).kernel;
  const column = columnOf(layer, unit);
  let sum = 0;
  const products = Array.from(entering(pass, layer), (value, input) => {
    const weight = kernel[input * shape[1] + column];
    sum += value * weight;
    return { unit: input, value, weight, product: value * weight };
  });
  return { products, sum, bias: weightOf(pass, layer, "bias", column) };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function dense(pass, layer, place) {
  if (layer.shape.length !== 1) return null;
  const { products, sum, bias } = productsOf(pass, layer, place.channel);
  const found = activated(pass, layer, place, sum, bias);
  return found && { ...found, products };
}

/**
 * What stands under the window, a table for each channel; null outside the image.
 * @param {Pass} pass @param {Layer} layer @param {Place} place @param {number[]} channels
 * @returns {(number | null)[][][]}
 */
function patches(pass, layer, place, channels) {
  const [height, width, depth] = pass.network.shape(layer.inputs[0]);
  const values = entering(pass, layer);
  const reach = /** @type {Reach} */ (reachOf(layer));
  const { top, left } = windowBox(reach, place);
  const lines = Array.from({ length: reach.size[0] }, (_, y) => top + y * reach.dilation[0]);
  const columns = Array.from({ length: reach.size[1] }, (_, x) => left + x * reach.dilation[1]);
  /** @type {(y: number, x: number, channel: number) => number | null} */
  const at = (y, x, channel) => (y < 0 || x < 0 || y >= height || x >= width ? null : values[(y * width + x) * depth + channel]);
  return channels.map((channel) => lines.map((y) => columns.map((x) => at(y, x, channel))));
}

/** @param {number} channel @param {(number | null)[][]} patch @param {(y: number, x: number) => number} weight @returns {Term} */
function termOf(channel, patch, weight) {
  const weights = patch.map((line, y) => line.map((_, x) => weight(y, x)));
  let subtotal = 0;
  patch.forEach((line, y) => line.forEach((value, x) => (subtotal += (value ?? 0) * weights[y][x])));
  return { channel, patch, weights, subtotal };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function convolution(pass, layer, place) {
  const { shape, values: kernel } = pass.network.weightsOf(layer, pass.changes).kernel;
  const [, columns, inputs, outputs] = shape;
  const { channel } = place;
  const apart = layer.kind === "depthwise"; // each channel has filters of its own
  const each = layer.shape[2] / (layer.settings.groups ?? 1); // filters of a group
  const first = apart ? Math.floor(channel / outputs) : Math.floor(channel / each) * inputs;
  const column = apart ? channel % outputs : columnOf(layer, channel);
  const channels = apart ? [first] : Array.from({ length: inputs }, (_, input) => first + input);
  const terms = patches(pass, layer, place, channels).map((patch, z) =>
    termOf(channels[z], patch, (y, x) => kernel[((y * columns + x) * inputs + (apart ? first : z)) * outputs + column]),
  );
  const sum = terms.reduce((all, one) => all + one.subtotal, 0);
  const found = activated(pass, layer, place, sum, weightOf(pass, layer, "bias", apart ? channel : column));
  return found && { ...found, terms };
}

/** First a sum for each channel, then the weighted sum of those. @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function separable(pass, layer, place) {
  const { depthwise, pointwise } = pass.network.weightsOf(layer, pass.changes);
  const products = Array.from({ length: depthwise.shape[2] * depthwise.shape[3] }, (_, unit) => {
    const value = depthwiseTerm(pass, layer, place, unit).subtotal;
    const weight = pointwise.values[unit * layer.shape[2] + place.channel];
    return { unit, value, weight, product: value * weight };
  });
  const sum = products.reduce((all, one) => all + one.product, 0);
  const found = activated(pass, layer, place, sum, weightOf(pass, layer, "bias", place.channel));
  return found && { ...found, products };
}

/** @type {(pass: Pass, layer: Layer, place: Place, unit: number) => Term} */
function depthwiseTerm(pass, layer, place, unit) {
  const { shape, values } = pass.network.weightsOf(layer, pass.changes).depthwise;
  const [, columns, inputs, multiplier] = shape;
  const channel = Math.floor(unit / multiplier);
  const [patch] = patches(pass, layer, place, [channel]);
  return termOf(channel, patch, (y, x) => values[((y * columns + x) * inputs + channel) * multiplier + (unit % multiplier)]);
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function pooling(pass, layer, place) {
  const [patch] = patches(pass, layer, place, [place.channel]);
  const inside = /** @type {number[]} */ (patch.flat().filter((value) => value !== null));
  const sum = inside.reduce((all, one) => all + one, 0);
  const result = layer.kind === "max" ? inside.reduce((most, one) => Math.max(most, one), -Infinity) : sum / inside.length;
  return { sum, result, count: inside.length, terms: [{ channel: place.channel, patch, weights: null, subtotal: sum }] };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function normalization(pass, layer, place) {
  const unit = layer.settings.axis === layer.shape.length - 1 ? place.channel : [place.row, place.column][layer.settings.axis];
  const [mean, variance] = ["mean", "variance"].map((name) => /** @type {number} */ (weightOf(pass, layer, name, unit)));
  return normalized(pass, layer, place, unit, mean, variance);
}

/** By the mean and variance of this image: of a row, or of a group of channels. @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function normalizationOfImage(pass, layer, place) {
  const flat = flatIndex(layer.shape, place);
  const values = entering(pass, layer);
  const channels = layer.shape[layer.shape.length - 1];
  const { rows, groups } = layer.settings;
  const of = layer.kind === "layer_normalization" ? (/** @type {number} */ at) => Math.floor(at / rows) : (/** @type {number} */ at) => Math.floor((at % channels) / (channels / groups));
  const among = values.filter((_, at) => of(at) === of(flat));
  const mean = among.reduce((all, one) => all + one, 0) / among.length;
  const variance = among.reduce((all, one) => all + (one - mean) ** 2, 0) / among.length;
  return normalized(pass, layer, place, layer.kind === "layer_normalization" ? flat % rows : place.channel, mean, variance);
}

/** @type {(pass: Pass, layer: Layer, place: Place, unit: number, mean: number, variance: number) => Found} */
function normalized(pass, layer, place, unit, mean, variance) {
  const sum = entering(pass, layer)[flatIndex(layer.shape, place)];
  const scaled = (sum - mean) / Math.sqrt(variance + layer.settings.epsilon);
  const gamma = weightOf(pass, layer, "gamma", unit) ?? 1;
  const beta = weightOf(pass, layer, "beta", unit) ?? 0;
  return { sum, result: gamma * scaled + beta, steps: [["x", sum], ["walk.mean", mean], ["walk.variance", variance], ["walk.scaled", scaled], ["× gamma", gamma], ["+ beta", beta]] };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function moved(pass, layer, place) {
  const shape = pass.network.shape(layer.inputs[0]);
  const from = /** @type {Place} */ (enteringPlace(pass.network, layer, place));
  const outside = shape.length === 3 && (from.row < 0 || from.column < 0 || from.row >= shape[0] || from.column >= shape[1]);
  const value = outside ? 0 : entering(pass, layer)[flatIndex(shape, from)];
  return { sum: value, result: value };
}

/** @param {(values: number[]) => number} combine @returns {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function merged(combine) {
  return (pass, layer, place) => {
    const values = layer.inputs.map((input, position) => entering(pass, layer, position)[stretched(pass.network.shape(input), layer.shape, place)]);
    const result = combine(values);
    return { sum: result, result, steps: values.map((value, position) => [pass.network.layers[layer.inputs[position]]?.name ?? "walk.image", value]) };
  };
}

/** The place in an array whose axes of length 1 are repeated. @param {number[]} shape @param {number[]} whole @param {Place} place */
function stretched(shape, whole, place) {
  const at = whole.length === 3 ? [place.row, place.column, place.channel] : [place.channel];
  return shape.reduce((flat, length, axis) => flat * length + (length > 1 ? at[axis + whole.length - shape.length] : 0), 0);
}

/** Which input a number of joined inputs comes from. @param {Network} network @param {Layer} layer @param {Place} place @returns {Spot} */
function joinedFrom(network, layer, place) {
  const spatial = layer.shape.length === 3;
  const key = /** @type {const} */ (["row", "column", "channel"])[layer.settings.axis + (spatial ? 0 : 2)];
  let at = place[key];
  for (const input of layer.inputs) {
    const length = network.shape(input)[layer.settings.axis];
    if (at < length) return { layer: input, place: { ...place, [key]: at } };
    at -= length;
  }
  throw new RangeError(`${layer.name} has no ${key} ${place[key]}`);
}

/**
 * The number before a place that counts most for it: where its largest product is, or where its maximum comes from.
 * @param {Pass} pass
 * @param {number} index
 * @param {Place} place
 * @returns {Spot | null}
 */
export function strongestSource(pass, index, place) {
  const { network } = pass;
  const layer = network.layers[index];
  const found = recompute(pass, index, place);
  if (!found) return null;
  const [input] = layer.inputs;
  if (layer.kind === "separable") return underWindow(layer, place, [depthwiseTerm(pass, layer, place, largest(found.products ?? [], (one) => Math.abs(one.product)).unit)]);
  if (layer.kind === "concatenate") return joinedFrom(network, layer, place);
  if (found.products) return { layer: input, place: placeAt(network.shape(input), largest(found.products, (one) => Math.abs(one.product)).unit) };
  if (found.terms) return underWindow(layer, place, found.terms);
  if (layer.inputs.length > 1) {
    const values = layer.inputs.map((one, position) => ({ one, size: Math.abs(/** @type {[string, number][]} */ (found.steps)[position][1]) }));
    const source = largest(values, ({ size }) => size).one;
    return { layer: source, place: placeAt(network.shape(source), stretched(network.shape(source), layer.shape, place)) };
  }
  const from = enteringPlace(network, layer, place);
  const [height, width] = network.shape(input);
  const inside = from && (network.shape(input).length !== 3 || (from.row >= 0 && from.column >= 0 && from.row < height && from.column < width));
  return inside ? { layer: input, place: from } : null;
}

/** @template T @param {T[]} items @param {(item: T) => number} size */
const largest = (items, size) => items.reduce((most, one) => (size(one) > size(most) ? one : most));

/** @param {Layer} layer @param {Place} place @param {Term[]} terms @returns {Spot | null} */
function underWindow(layer, place, terms) {
  const reach = /** @type {Reach} */ (reachOf(layer));
  const { top, left } = windowBox(reach, place);
  const spots = terms.flatMap(({ channel, patch, weights }) =>
    patch.flatMap((line, y) =>
      line.flatMap((value, x) => (value === null ? [] : [{ size: weights ? Math.abs(value * weights[y][x]) : value, row: top + y * reach.dilation[0], column: left + x * reach.dilation[1], channel }])),
    ),
  );
  if (!spots.length) return null;
  const { row, column, channel } = largest(spots, ({ size }) => size);
  return { layer: layer.inputs[0], place: { row, column, channel } };
}

/**
 * The way back from a place to the image, each step to the number that counts most; begins with the place itself.
 * @param {Pass} pass
 * @param {number} index
 * @param {Place} place
 */
export function wayBack(pass, index, place) {
  /** @type {Spot[]} */
  const steps = [{ layer: index, place }];
  for (let step = steps[0]; step.layer >= 0; step = steps[steps.length - 1]) {
    const next = strongestSource(pass, step.layer, step.place);
    if (!next || !valuesOf(pass, next.layer)) break;
    steps.push(next);
  }
  return steps;
}

/**
 * Where a unit of a row comes from, seen through flattening and through what changes nothing.
 * @param {Network} network
 * @param {Spot} spot
 * @returns {Spot}
 */
export function originOf(network, { layer: index, place }) {
  const layer = network.layers[index];
  if (index < 0 || layer.kind !== "same") return { layer: index, place };
  const from = /** @type {Place} */ (enteringPlace(network, layer, place));
  return originOf(network, { layer: layer.inputs[0], place: from });
}

/**
 * What speaks for and against a class: what each feature map (or unit, where none were flattened) before the last
 * dense layer adds to its score, the largest first, and the place of the map that adds most. With the bias they add up
 * to the score before the softmax. Null for a network whose last weights are not those of a dense layer.
 * @param {Pass} pass
 * @param {number} unit  The class.
 */
export function contributions(pass, unit) {
  const { network } = pass;
  let index = network.last;
  while (index >= 0 && ["activation", "same"].includes(network.layers[index].kind)) [index] = network.layers[index].inputs;
  const layer = network.layers[index];
  if (layer?.kind !== "dense" || layer.shape.length !== 1 || !valuesOf(pass, layer.inputs[0]) || pass.changes.off?.includes(index)) return null;
  if (layer.activation && !["softmax", "sigmoid"].includes(layer.activation)) return null;
  if (columnOf(layer, unit) < 0) return null;
  const { products, sum, bias } = productsOf(pass, layer, unit);
  /** @type {Map<number, {spot: Spot, product: number, most: number}>} */
  const groups = new Map();
  for (const { unit: input, product } of products) {
    const spot = originOf(network, { layer: layer.inputs[0], place: { row: 0, column: 0, channel: input } });
    const group = groups.get(spot.place.channel) ?? { spot, product: 0, most: 0 };
    if (Math.abs(product) > group.most) Object.assign(group, { spot, most: Math.abs(product) });
    group.product += product;
    groups.set(spot.place.channel, group);
  }
  const sorted = [...groups.values()].sort((one, other) => Math.abs(other.product) - Math.abs(one.product));
  return { layer: index, groups: sorted, bias: bias ?? 0, score: sum + (bias ?? 0) };
}
