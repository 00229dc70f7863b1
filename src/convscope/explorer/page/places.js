// Where a number lies in its layer, what it sees of the layer before and of the image, where it was moved from.

import { between, stridedPlaces } from "./kinds.js";
import { asMaps, broadcastPlaces, volume } from "./arrays.js";

/** @typedef {import("./network.js").Network} Network */
/** @typedef {import("./network.js").Layer} Layer */
/** @typedef {{row: number, column: number, channel: number}} Place  Row and column are 0 in a layer that gives a row. */
/** @typedef {{layer: number, place: Place}} Spot */
/** @typedef {{size: number[], strides: number[], dilation: number[], padding: number[]}} Reach */
/** @typedef {{top: number, left: number, height: number, width: number}} Box */

/** @type {(layer: Layer) => number[]} */
export const mapsOf = (layer) => asMaps(layer.shape);

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
  const spatial = network.maps(index).length === 3;
  /** What is needed of each layer, from the place backwards. @type {Box[]} */
  const needed = [];
  needed[index] = { top: spatial ? place.row : 0, left: spatial ? place.column : place.channel, height: 1, width: 1 };
  /** @type {Box | undefined} */
  let box;
  for (let at = index; at >= 0; at -= 1) {
    const layer = network.layers[at];
    for (const input of needed[at] ? layer.inputs : []) {
      const own = seen(network, layer, input, needed[at]);
      if (input < 0) box = box ? around(box, own) : own;
      else needed[input] = needed[input] ? around(needed[input], own) : own;
    }
  }
  if (!box) return { top: 0, left: 0, height: 0, width: 0 };
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
  const shape = network.maps(input);
  const own = mapsOf(layer);
  const whole = shape.length === 3 ? { top: 0, left: 0, height: shape[0], width: shape[1] } : { top: 0, left: 0, height: 1, width: shape[0] };
  const reach = reachOf(layer);
  if (reach) {
    const first = windowBox(reach, { row: layer.shape.length === 3 ? box.top : 0, column: layer.shape.length === 3 ? box.left : 0, channel: 0 });
    if (layer.shape.length !== 3) return first;
    return { ...first, height: first.height + (box.height - 1) * reach.strides[0], width: first.width + (box.width - 1) * reach.strides[1] };
  }
  if (layer.kind === "transposed") return laidBy(layer, shape, box);
  if (layer.kind === "resize") return resizedFrom(shape, own, box);
  const overPlaces = layer.kind === "layer_normalization" ? layer.settings.rows !== layer.shape[layer.shape.length - 1] : layer.kind === "group_normalization";
  if (layer.kind === "dense" && own.length === 3) return box; // at each place alone
  if (layer.kind === "reduce" && own.length === 3 && layer.shape.length === 3 && shape.length === 3) {
    const { axes } = layer.settings;
    const [top, height] = axes.includes(0) ? [0, shape[0]] : [box.top, box.height];
    const [left, width] = axes.includes(1) ? [0, shape[1]] : [box.left, box.width];
    return { top, left, height, width };
  }
  if (["dense", "attention", "reduce"].includes(layer.kind) || overPlaces || (own.length !== 3 && layer.kind === "layer_normalization")) return whole;
  if (layer.kind === "concatenate") return layer.settings.axis === layer.shape.length - 1 ? (own.length === 3 ? box : whole) : whole;
  if (layer.inputs.length > 1 && shape.length === 3 && own.length === 3) {
    // An axis of length 1 is repeated.
    const [top, height] = shape[0] === 1 ? [0, 1] : [box.top, box.height];
    const [left, width] = shape[1] === 1 ? [0, 1] : [box.left, box.width];
    return { top, left, height, width };
  }
  if (layer.kind === "same" && String(own) === String(shape)) return box;
  if (layer.kind === "same" && box.width * box.height > 1) return whole; // several numbers, laid in another order
  const ends = [
    [box.top, box.top + box.height - 1],
    [box.left, box.left + box.width - 1],
    own.length === 3 ? [0, ["same", "strided"].includes(layer.kind) ? own[2] - 1 : 0] : [box.left, box.left + box.width - 1],
  ];
  const corners = ends[0].flatMap((row) => ends[1].flatMap((column) => ends[2].map((channel) => enteringPlace(network, layer, { row, column, channel }))));
  if (corners.some((place) => !place)) return whole;
  const boxes = /** @type {Place[]} */ (corners).map(({ row, column, channel }) => (shape.length === 3 ? { top: row, left: column, height: 1, width: 1 } : { top: 0, left: channel, height: 1, width: 1 }));
  return boxes.reduce(around);
}

/**
 * Which number of its first input a layer takes to a place, where it takes one; null where none does (a margin), and
 * for a layer that takes several.
 * @param {Network} network @param {Layer} layer @param {Place} place
 * @returns {Place | null}
 */
export function enteringPlace(network, layer, place) {
  const shape = network.maps(layer.inputs[0]);
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
  if (layer.kind === "strided") return placeAt(shape, stridedPlaces(layer)[flatIndex(mapsOf(layer), place)]);
  if (layer.kind !== "same") return shape.length === mapsOf(layer).length ? place : null;
  const flat = flatIndex(mapsOf(layer), place);
  if (!layer.settings.channelsFirst) return placeAt(shape, flat);
  const places = shape[0] * shape[1]; // such a network flattens (c, h, w)
  return { row: Math.floor((flat % places) / shape[1]), column: flat % shape[1], channel: Math.floor(flat / places) };
}

/** What a box of a transposed convolution needs of its input. @param {Layer} layer @param {number[]} shape @param {Box} box @returns {Box} */
function laidBy({ settings, weights }, shape, box) {
  const { strides, crop, dilation } = settings;
  const [first, last] = [[box.top, box.left], [box.top + box.height - 1, box.left + box.width - 1]];
  const ends = [0, 1].map((axis) => {
    const reach = ((weights.kernel?.shape[axis] ?? 1) - 1) * dilation[axis];
    const low = Math.max(0, Math.ceil((first[axis] + crop[axis] - reach) / strides[axis]));
    return [low, Math.max(low, Math.min(shape[axis] - 1, Math.floor((last[axis] + crop[axis]) / strides[axis])))];
  });
  return { top: ends[0][0], left: ends[1][0], height: ends[0][1] - ends[0][0] + 1, width: ends[1][1] - ends[1][0] + 1 };
}

/** What a box of a picture of another size needs of the one before. @param {number[]} shape @param {number[]} made @param {Box} box @returns {Box} */
function resizedFrom(shape, made, box) {
  const [top] = between(box.top, shape[0], made[0]);
  const [, bottom] = between(box.top + box.height - 1, shape[0], made[0]);
  const [left] = between(box.left, shape[1], made[1]);
  const [, right] = between(box.left + box.width - 1, shape[1], made[1]);
  return { top, left, height: bottom - top + 1, width: right - left + 1 };
}

/** The place in an array whose axes of length 1 are repeated. @param {number[]} shape @param {Layer} layer @param {Place} place */
export function stretched(shape, layer, place) {
  const flat = flatIndex(mapsOf(layer), place);
  return volume(shape) === volume(layer.shape) ? flat : broadcastPlaces(shape, layer.shape)[flat];
}

/** Which input a number of joined inputs comes from. @param {Network} network @param {Layer} layer @param {Place} place @returns {Spot} */
export function joinedFrom(network, layer, place) {
  const { axis } = layer.settings;
  const inner = volume(layer.shape.slice(axis + 1));
  const flat = flatIndex(mapsOf(layer), place);
  const outer = Math.floor(flat / (inner * layer.shape[axis]));
  let at = Math.floor(flat / inner) % layer.shape[axis];
  for (const input of layer.inputs) {
    const length = network.shape(input)[axis];
    if (at < length) return { layer: input, place: placeAt(network.maps(input), (outer * length + at) * inner + (flat % inner)) };
    at -= length;
  }
  throw new RangeError(`${layer.name} has no ${at} along axis ${axis}`);
}

/**
 * Where a unit of a row comes from, seen through flattening and through what changes nothing.
 * @param {Network} network
 * @param {Spot} spot
 * @returns {Spot}
 */
export function originOf(network, { layer: index, place }) {
  const layer = network.layers[index];
  if (index < 0 || !["same", "strided"].includes(layer.kind)) return { layer: index, place };
  const from = /** @type {Place} */ (enteringPlace(network, layer, place));
  return originOf(network, { layer: layer.inputs[0], place: from });
}
