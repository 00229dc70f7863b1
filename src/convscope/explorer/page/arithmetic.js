// One number of a network, recomputed from the numbers that entered its layer, the layer's kernel and its bias; and which
// number before it counts most. Sums are made in double precision.

import { activateOne, FUNCTIONS } from "./activations.js";
import { attend, between, reducedPlaces, REDUCTIONS } from "./kinds.js";
import { enteringPlace, flatIndex, joinedFrom, mapsOf, originOf, placeAt, reachOf, stretched, windowBox } from "./places.js";

/** @typedef {import("./network.js").Network} Network */
/** @typedef {import("./network.js").Layer} Layer */
/** @typedef {import("./network.js").Changes} Changes */
/** @typedef {import("./places.js").Place} Place */
/** @typedef {import("./places.js").Spot} Spot */
/** @typedef {import("./places.js").Reach} Reach */

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

/** @typedef {{unit: number, value: number, weight: number, product: number, spot?: Spot}} Product `spot`: where the value is, if anywhere */

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
 * @property {Spot} [source]  Which of the numbers that enter counts most, where nothing above says it.
 * @property {Float32Array} [looks]  How much an attention takes from each place of what enters, its heads together.
 * @property {[string, number][]} [steps]  Anything else: what each number is (the key of a text), and the number.
 */

/** @typedef {Pick<Recomputed, "sum" | "result"> & Partial<Recomputed>} Found */

/** @type {(pass: Pass, index: number) => Float32Array | null} */
export const valuesOf = (pass, index) => (index < 0 ? pass.image : pass.outputs[index]);

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
  const own = outputs[flatIndex(mapsOf(layer), place)];
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
  transposed,
  separable,
  dense,
  attention,
  max: pooling,
  average: pooling,
  normalization,
  layer_normalization: normalizationOfImage,
  group_normalization: normalizationOfImage,
  activation: (pass, layer, place) => activated(pass, layer, place, entering(pass, layer)[flatIndex(mapsOf(layer), place)], null),
  prelu: (pass, layer, place) => {
    const sum = entering(pass, layer)[flatIndex(mapsOf(layer), place)];
    const { shape, values } = pass.network.weightsOf(layer, pass.changes).alpha;
    const own = shape.reduce((at, length, axis) => at * length + (length > 1 ? [place.row, place.column, place.channel].slice(-shape.length)[axis] : 0), 0);
    return { sum, result: sum >= 0 ? sum : sum * values[own], steps: [["walk.enters", sum], ["alpha", values[own]]] };
  },
  scale: (pass, layer, place) => {
    const sum = entering(pass, layer)[flatIndex(mapsOf(layer), place)];
    const [scale, offset] = [layer.settings.scale, layer.settings.offset].map((one) => one[one.length > 1 ? place.channel : 0]);
    return { sum, result: sum * scale + offset, steps: [["walk.enters", sum], ["walk.timesScale", scale], ["walk.plusOffset", offset]] };
  },
  same: moved,
  zero_padding: moved,
  cropping: moved,
  upsampling: moved,
  strided: moved,
  resize,
  reduce,
  add: merged((values) => values.reduce((all, one) => all + one, 0)),
  subtract: merged((values) => values.reduce((all, one) => all - one)),
  multiply: merged((values) => values.reduce((all, one) => all * one, 1)),
  divide: merged((values) => values.reduce((all, one) => all / one)),
  mean: merged((values) => values.reduce((all, one) => all + one, 0) / values.length),
  maximum: merged((values) => Math.max(...values)),
  minimum: merged((values) => Math.min(...values)),
  concatenate: (pass, layer, place) => {
    const source = joinedFrom(pass.network, layer, place);
    const value = /** @type {Float32Array} */ (valuesOf(pass, source.layer))[flatIndex(pass.network.maps(source.layer), source.place)];
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
  if (!name || name in FUNCTIONS) return { sum, bias, result: activateOne(name, total, layer.settings) };
  const sums = sumsOf(pass, layer, place); // a softmax looks at all units
  return sums && { sum, bias, result: activateOne(name, total, layer.settings, sums, place.channel) };
}

/** What enters the softmax of a layer, for all units at a place. @param {Pass} pass @param {Layer} layer @param {Place} place */
function sumsOf(pass, layer, place) {
  const units = layer.shape[layer.shape.length - 1];
  const first = flatIndex(mapsOf(layer), { ...place, channel: 0 });
  if (layer.kind === "activation") return entering(pass, layer).subarray(first, first + units);
  if (layer.kind !== "dense") return null;
  if (layer.settings.units) return pass.scores ?? null;
  return Float64Array.from({ length: units }, (_, unit) => {
    const { sum, bias } = productsOf(pass, layer, { ...place, channel: unit });
    return sum + (bias ?? 0);
  });
}

/** @type {(unit: number, value: number, weight: number, spot?: Spot) => Product} */
const productOf = (unit, value, weight, spot) => ({ unit, value, weight, product: value * weight, spot });

/** @param {Product[]} products */
const addUp = (products) => products.reduce((all, one) => all + one.product, 0);

/** Adds up, then as above. @type {(pass: Pass, layer: Layer, place: Place, products: Product[], bias: number | null) => Found | null} */
function weighted(pass, layer, place, products, bias) {
  const found = activated(pass, layer, place, addUp(products), bias);
  return found && { ...found, products };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => {products: Product[], sum: number, bias: number | null}} */
function productsOf(pass, layer, place) {
  const { shape, values: kernel } = pass.network.weightsOf(layer, pass.changes).kernel;
  const column = columnOf(layer, place.channel);
  const [input] = layer.inputs;
  const maps = pass.network.maps(input);
  const first = Math.floor(flatIndex(mapsOf(layer), place) / layer.shape[layer.shape.length - 1]) * shape[0];
  const values = entering(pass, layer).subarray(first, first + shape[0]);
  const products = Array.from(values, (value, unit) =>
    productOf(unit, value, kernel[unit * shape[1] + column], { layer: input, place: placeAt(maps, first + unit) }),
  );
  return { products, sum: addUp(products), bias: weightOf(pass, layer, "bias", column) };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function dense(pass, layer, place) {
  const { products, bias } = productsOf(pass, layer, place);
  return weighted(pass, layer, place, products, bias);
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

/** Each number of the input that is laid on a place, times its weight. @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function transposed(pass, layer, place) {
  const [input] = layer.inputs;
  const [height, width, channels] = pass.network.shape(input);
  const { strides, crop, dilation } = layer.settings;
  const { shape, values: kernel } = pass.network.weightsOf(layer, pass.changes).kernel;
  const [down, across, filters] = shape;
  /** @type {Product[]} */
  const products = [];
  for (let ky = 0; ky < down; ky += 1) {
    for (let kx = 0; kx < across; kx += 1) {
      const [row, column] = [(place.row + crop[0] - ky * dilation[0]) / strides[0], (place.column + crop[1] - kx * dilation[1]) / strides[1]];
      if (!Number.isInteger(row) || !Number.isInteger(column) || row < 0 || column < 0 || row >= height || column >= width) continue;
      for (let channel = 0; channel < channels; channel += 1) {
        const value = entering(pass, layer)[(row * width + column) * channels + channel];
        const weight = kernel[((ky * across + kx) * filters + place.channel) * channels + channel];
        products.push(productOf(products.length, value, weight, { layer: input, place: { row, column, channel } }));
      }
    }
  }
  return weighted(pass, layer, place, products, weightOf(pass, layer, "bias", place.channel));
}

/** The four pixels around a place, by how near they are. @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function resize(pass, layer, place) {
  const [input] = layer.inputs;
  const [height, width, channels] = pass.network.shape(input);
  const [top, bottom, down] = between(place.row, height, layer.shape[0]);
  const [left, right, over] = between(place.column, width, layer.shape[1]);
  const corners = [[top, left, (1 - down) * (1 - over)], [top, right, (1 - down) * over], [bottom, left, down * (1 - over)], [bottom, right, down * over]];
  const products = corners.map(([row, column, weight], unit) => {
    const value = entering(pass, layer)[(row * width + column) * channels + place.channel];
    return productOf(unit, value, weight, { layer: input, place: { row, column, channel: place.channel } });
  });
  const sum = addUp(products);
  return { sum, result: sum, products };
}

/** Over some axes: a mean, a sum, the largest or smallest. @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function reduce(pass, layer, place) {
  const places = reducedPlaces(layer, pass.network.shape(layer.inputs[0]));
  const flat = flatIndex(mapsOf(layer), place);
  const values = entering(pass, layer);
  const inside = [...values.keys()].filter((at) => places[at] === flat);
  const { how } = layer.settings;
  const { first, add, last } = REDUCTIONS[how];
  const sum = inside.reduce((all, at) => add(all, values[at]), first);
  const most = largest(inside, (at) => (how === "min" ? -values[at] : how === "max" ? values[at] : Math.abs(values[at])));
  const source = { layer: layer.inputs[0], place: placeAt(pass.network.maps(layer.inputs[0]), most) };
  return { sum, result: last(sum, inside.length), count: inside.length, source };
}

/** What the heads have gathered at a place, times the last kernel. @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function attention(pass, layer, place) {
  const weights = pass.network.weightsOf(layer, pass.changes);
  const shapes = layer.inputs.map((input) => pass.network.shape(input));
  const { mixed, shares } = attend({ layer, entering: layer.inputs.map((_, position) => entering(pass, layer, position)), shapes, n: 1, weights });
  const [tokens, units] = layer.shape;
  const { values: kernel } = weights.output_kernel;
  const depth = kernel.length / units;
  const token = Math.floor(flatIndex(mapsOf(layer), place) / units);
  const products = Array.from(mixed.subarray(token * depth, (token + 1) * depth), (value, unit) =>
    productOf(unit, value, kernel[unit * units + place.channel]),
  );
  const sum = addUp(products);
  const bias = weightOf(pass, layer, "output_bias", place.channel);
  const { heads, roles } = layer.settings;
  const others = shapes[roles[2]][0];
  const looks = new Float32Array(others);
  for (let head = 0; head < heads; head += 1) for (let other = 0; other < others; other += 1) looks[other] += shares[(head * tokens + token) * others + other] / heads;
  // From the place that it looks at most, the largest number.
  const gathered = entering(pass, layer, roles[1]);
  const size = shapes[roles[1]][1];
  const seen = looks.indexOf(looks.reduce((most, one) => Math.max(most, one)));
  const strongest = largest([...Array(size).keys()], (at) => Math.abs(gathered[seen * size + at]));
  const source = { layer: layer.inputs[roles[1]], place: placeAt(pass.network.maps(layer.inputs[roles[1]]), seen * size + strongest) };
  return { sum, bias, result: sum + (bias ?? 0), products, looks, source };
}

/** First a sum for each channel, then the weighted sum of those. @type {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function separable(pass, layer, place) {
  const { depthwise, pointwise } = pass.network.weightsOf(layer, pass.changes);
  const products = Array.from({ length: depthwise.shape[2] * depthwise.shape[3] }, (_, unit) =>
    productOf(unit, depthwiseTerm(pass, layer, place, unit).subtotal, pointwise.values[unit * layer.shape[2] + place.channel]),
  );
  return weighted(pass, layer, place, products, weightOf(pass, layer, "bias", place.channel));
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
  const flat = flatIndex(mapsOf(layer), place);
  const values = entering(pass, layer);
  const channels = layer.shape[layer.shape.length - 1];
  const { rows, groups, centred = true } = layer.settings;
  const of = layer.kind === "layer_normalization" ? (/** @type {number} */ at) => Math.floor(at / rows) : (/** @type {number} */ at) => Math.floor((at % channels) / (channels / groups));
  const among = values.filter((_, at) => of(at) === of(flat));
  const mean = centred ? among.reduce((all, one) => all + one, 0) / among.length : 0;
  const variance = among.reduce((all, one) => all + (one - mean) ** 2, 0) / among.length;
  return normalized(pass, layer, place, layer.kind === "layer_normalization" ? flat % rows : place.channel, mean, variance);
}

/** @type {(pass: Pass, layer: Layer, place: Place, unit: number, mean: number, variance: number) => Found} */
function normalized(pass, layer, place, unit, mean, variance) {
  const sum = entering(pass, layer)[flatIndex(mapsOf(layer), place)];
  const scaled = (sum - mean) / Math.sqrt(variance + layer.settings.epsilon);
  const gamma = weightOf(pass, layer, "gamma", unit) ?? 1;
  const beta = weightOf(pass, layer, "beta", unit) ?? 0;
  return { sum, result: gamma * scaled + beta, steps: [["x", sum], ["walk.mean", mean], ["walk.variance", variance], ["walk.scaled", scaled], ["× gamma", gamma], ["+ beta", beta]] };
}

/** @type {(pass: Pass, layer: Layer, place: Place) => Found} */
function moved(pass, layer, place) {
  const shape = pass.network.maps(layer.inputs[0]);
  const from = /** @type {Place} */ (enteringPlace(pass.network, layer, place));
  const outside = shape.length === 3 && (from.row < 0 || from.column < 0 || from.row >= shape[0] || from.column >= shape[1]);
  const value = outside ? 0 : entering(pass, layer)[flatIndex(shape, from)];
  return { sum: value, result: value };
}

/** @param {(values: number[]) => number} combine @returns {(pass: Pass, layer: Layer, place: Place) => Found | null} */
function merged(combine) {
  return (pass, layer, place) => {
    const values = layer.inputs.map((input, position) => entering(pass, layer, position)[stretched(pass.network.shape(input), layer, place)]);
    const result = combine(values);
    return { sum: result, result, steps: values.map((value, position) => [pass.network.layers[layer.inputs[position]]?.name ?? "walk.image", value]) };
  };
}

/**
 * The number before a place that counts most for it: where its largest product is, or where its maximum comes from.
 * @param {Pass} pass
 * @param {number} index
 * @param {Place} place
 * @returns {Spot | null}
 */
function strongestSource(pass, index, place) {
  const { network } = pass;
  const layer = network.layers[index];
  const found = recompute(pass, index, place);
  if (!found) return null;
  const [input] = layer.inputs;
  if (layer.kind === "separable") return underWindow(layer, place, [depthwiseTerm(pass, layer, place, largest(found.products ?? [], (one) => Math.abs(one.product)).unit)]);
  if (layer.kind === "concatenate") return joinedFrom(network, layer, place);
  if (found.source) return found.source;
  if (found.products) return largest(found.products, (one) => Math.abs(one.product)).spot ?? null;
  if (found.terms) return underWindow(layer, place, found.terms);
  if (layer.inputs.length > 1) {
    const values = layer.inputs.map((one, position) => ({ one, size: Math.abs(/** @type {[string, number][]} */ (found.steps)[position][1]) }));
    const source = largest(values, ({ size }) => size).one;
    return { layer: source, place: placeAt(network.maps(source), stretched(network.shape(source), layer, place)) };
  }
  const from = enteringPlace(network, layer, place);
  const [height, width] = network.maps(input);
  const inside = from && (network.maps(input).length !== 3 || (from.row >= 0 && from.column >= 0 && from.row < height && from.column < width));
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
  const { products, sum, bias } = productsOf(pass, layer, { row: 0, column: 0, channel: unit });
  /** @type {Map<number, {spot: Spot, product: number, most: number}>} */
  const groups = new Map();
  for (const { product, spot: entered } of products) {
    const spot = originOf(network, /** @type {Spot} */ (entered));
    const group = groups.get(spot.place.channel) ?? { spot, product: 0, most: 0 };
    if (Math.abs(product) > group.most) Object.assign(group, { spot, most: Math.abs(product) });
    group.product += product;
    groups.set(spot.place.channel, group);
  }
  const sorted = [...groups.values()].sort((one, other) => Math.abs(other.product) - Math.abs(one.product));
  return { layer: index, groups: sorted, bias: bias ?? 0, score: sum + (bias ?? 0) };
}
