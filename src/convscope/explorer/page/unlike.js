// What about an image is unlike the training images: the numbers and limits of `convscope predict`.

import { unpack } from "./arrays.js";
import { number, t } from "./texts.js";

// Percentiles of an image of more pixels than this are those of some of them.
const RANKED = 16_384;
const TONES = ["brightness", "darkest", "brightest", "border"];
// What is said when a feature is too low, and when it is too high; the first ones are the most telling.
const ORDER = ["spread", "colour", "brightness", "border", "darkest", "brightest", "contrast", "sharpness"];

/**
 * @typedef {object} Unlike
 * @property {Record<string, [number, number, number]>} ranges  one training image in a thousand lies below the
 *   first, half below the second, all but one in a thousand below the third
 * @property {Record<string, number>} floors  what is never noticed, in the feature's own unit
 * @property {number} margin  how far beyond the range an image may lie, as a fraction of it
 * @property {number} flat  the contrast of an empty image
 * @property {number} dark  of the brightness that nearly every training image reaches
 * @property {any} novelty  training images in feature space, packed; null where they were not recorded
 * @typedef {{height: number, width: number, channels: number}} Size
 */

/**
 * Say what about uint8 pixels (h, w, c) is unlike the training images, the most telling first.
 * @param {ArrayLike<number>} pixels
 * @param {Size} size
 * @param {Unlike} unlike
 * @returns {string[]}
 */
export function driftWarnings(pixels, size, unlike) {
  const values = measure(pixels, size);
  const side = (/** @type {string} */ name, now = values) => {
    const [low, , high] = unlike.ranges[name];
    const margin = unlike.margin * (high - low) + unlike.floors[name];
    return Number(now[name] > high + margin) - Number(now[name] < low - margin);
  };
  const say = (/** @type {string} */ word, /** @type {string} */ name) => {
    const [low, , high] = unlike.ranges[name];
    const share = unlike.floors[name] < 1;
    const [value, least, most] = [values[name], low, high].map((one) => rounded(share ? 100 * one : one, share));
    return t(`unlike.${word}`, { what: t(`unlike.of.${name}`, { value, least, most }) });
  };
  if (side("border")) {
    const inverted = measure(Array.from(pixels, (value) => 255 - value), size);
    if (!TONES.some((name) => side(name, inverted))) return [say("inverted", "border")];
  }
  if (side("contrast") < 0 && values.contrast < unlike.flat) return [say("empty", "contrast")];
  if (values.brightest < unlike.dark * unlike.ranges.brightest[0]) return [say("range", "brightest")];
  const place = ["row", "column"].find((name) => side(name));
  const found = place ? [say(place, place)] : [];
  for (const name of ORDER) if (side(name)) found.push(say(`${name}.${side(name) < 0 ? "low" : "high"}`, name));
  return found;
}

/** How far an image is from the training images in the network's features: `convscope.evaluation.novelty`. */
export class Novelty {
  /** @param {any} packed @returns {Promise<Novelty | null>} */
  static async unpack(packed) {
    if (!packed) return null;
    return new Novelty(packed, await unpack(packed.known), packed.signs && (await unpack(packed.signs)));
  }

  /**
   * @param {{dimensions: number, features: number, neighbours: number, limit: number}} settings
   * @param {Float32Array} known  (images, dimensions), each of length 1
   * @param {Int8Array | null} signs  (sums, dimensions), where longer features are added up
   */
  constructor(settings, known, signs) {
    this.settings = settings;
    this.known = known;
    this.signs = signs;
  }

  /** The mean distance from the nearest training images, 0 to 2. @param {Float32Array} features */
  distance(features) {
    const { dimensions, neighbours } = this.settings;
    const point = new Float64Array(dimensions);
    features.forEach((value, at) => (point[at % dimensions] += this.signs ? value * this.signs[at] : value));
    const length = Math.max(Math.hypot(...point), 1e-12);
    const cosines = new Float64Array(this.known.length / dimensions);
    for (let image = 0; image < cosines.length; image += 1) {
      let sum = 0;
      for (let at = 0; at < dimensions; at += 1) sum += this.known[image * dimensions + at] * point[at];
      cosines[image] = sum / length;
    }
    const nearest = cosines.sort().slice(-neighbours);
    return nearest.reduce((sum, cosine) => sum + Math.sqrt(Math.max(2 - 2 * cosine, 0)), 0) / nearest.length;
  }

  /** What is said of an image at a distance; nothing where it is like the others. @param {number} distance */
  warning(distance) {
    const { limit } = this.settings;
    return distance <= limit ? "" : t("unlike.unfamiliar", { distance: number(distance), limit: number(limit) });
  }
}

/**
 * Measure the features of uint8 pixels (h, w, c), as `convscope.data.drift` does.
 * @param {ArrayLike<number>} pixels
 * @param {Size} size
 * @returns {Record<string, number>}
 */
export function measure(pixels, { height, width, channels }) {
  const count = height * width;
  const grey = new Float32Array(count);
  let colour = 0;
  for (let pixel = 0; pixel < count; pixel++) {
    let [sum, least, most] = [0, 255, 0];
    for (let channel = 0; channel < channels; channel++) {
      const value = pixels[pixel * channels + channel];
      sum += value;
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    grey[pixel] = sum / channels;
    colour += most - least;
  }
  const mean = grey.reduce((sum, value) => sum + value, 0) / count;
  const variance = grey.reduce((sum, value) => sum + (value - mean) ** 2, 0) / count;
  const step = 2 * Math.floor(count / RANKED) + 1; // odd, so that it takes every column
  const ordered = grey.filter((_, pixel) => pixel % step === 0).sort();
  const last = ordered.length - 1;
  const border = grey.filter((_, pixel) => {
    const [row, column] = [Math.floor(pixel / width), pixel % width];
    return row === 0 || row === height - 1 || column === 0 || column === width - 1;
  });
  return {
    brightness: mean,
    contrast: Math.sqrt(variance),
    darkest: ordered[halfToEven(0.02 * last)],
    brightest: ordered[halfToEven(0.98 * last)],
    border: border.reduce((sum, value) => sum + value, 0) / border.length,
    sharpness: sharpness(grey, height, width),
    ...place(grey, height, width, median(border)),
    colour: colour / count,
  };
}

/**
 * @param {Float32Array} grey
 * @param {number} height
 * @param {number} width
 */
function sharpness(grey, height, width) {
  let [down, across] = [0, 0];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const here = grey[row * width + column];
      if (row + 1 < height) down += Math.abs(grey[(row + 1) * width + column] - here);
      if (column + 1 < width) across += Math.abs(grey[row * width + column + 1] - here);
    }
  }
  return down / Math.max(1, (height - 1) * width) + across / Math.max(1, height * (width - 1));
}

/**
 * Centre and spread of what differs from the ground, as fractions of the size.
 * @param {ArrayLike<number>} grey
 * @param {number} height
 * @param {number} width
 * @param {number} ground
 */
export function place(grey, height, width, ground) {
  let [total, row, column, rows, columns] = [0, 0, 0, 0, 0];
  for (let pixel = 0; pixel < height * width; pixel++) {
    const weight = Math.abs(grey[pixel] - ground);
    const y = (Math.floor(pixel / width) + 0.5) / height;
    const x = ((pixel % width) + 0.5) / width;
    total += weight;
    row += weight * y;
    rows += weight * y * y;
    column += weight * x;
    columns += weight * x * x;
  }
  if (total === 0) return { row: 0.5, column: 0.5, spread: 0 };
  row /= total;
  column /= total;
  const square = rows / total - row ** 2 + columns / total - column ** 2;
  return { row, column, spread: Math.sqrt(Math.max(0, square)) };
}

/** @param {Float32Array} values */
export function median(values) {
  const ordered = Float32Array.from(values).sort();
  const middle = ordered.length >> 1;
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

/** Round as Python does: half to even. @param {number} value */
function halfToEven(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 ? down + 1 : down;
}

/**
 * @param {number} value
 * @param {boolean} share
 */
function rounded(value, share) {
  return `${halfToEven(value)}${share ? " %" : ""}`;
}
