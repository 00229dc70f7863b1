// Where in the image a class's evidence lies: Grad-CAM, occlusion.

import { backward } from "./gradients.js";
import { between } from "./kinds.js";

/** @typedef {import("./network.js").Network} Network */
/** @typedef {import("./network.js").Changes} Changes */
/** @typedef {import("./network.js").Outputs} Outputs */

/**
 * Where a class's evidence lies in a layer's maps, brought to the size of the image: (h·w), not negative
 * (Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2).
 * @param {Network} network @param {Float32Array} image @param {number} target @param {{changes?: Changes, layer?: number, known?: Outputs}} [options]
 */
export function gradCam(network, image, target, { changes = {}, layer, known } = {}) {
  const index = layer ?? lastMaps(network);
  const outputs = network.forward(image, 1, changes, { known });
  const scores = network.logits(outputs, 1, changes);
  const maps = outputs[index];
  if (!scores || !maps) throw new Error("not every layer up to the classes is computed");
  const gradient = new Float32Array(scores.length);
  gradient[target] = 1;
  const found = backward(network, image, 1, outputs, gradient, { changes, layer: index }).outputs[index];
  const [height, width, channels] = network.shape(index);
  const weights = new Float64Array(channels);
  const coarse = new Float64Array(height * width);
  if (found) for (let at = 0; at < found.length; at += 1) weights[at % channels] += found[at] / (height * width);
  for (let at = 0; at < maps.length; at += 1) coarse[Math.floor(at / channels)] += maps[at] * weights[at % channels];
  return enlarge(coarse.map((value) => Math.max(value, 0)), height, width, network.input[0], network.input[1]);
}

/** The last convolution, or else the last layer with maps. @param {Network} network */
function lastMaps(network) {
  const maps = network.layers.filter(({ shape }) => shape.length === 3);
  const convolutions = maps.filter(({ kind }) => ["convolution", "transposed", "depthwise", "separable"].includes(kind));
  return (convolutions.at(-1) ?? maps.at(-1))?.index ?? -1;
}

/** Between the middles of neighbours, in straight lines. @param {Float64Array} values @param {number} height @param {number} width @param {number} high @param {number} wide */
function enlarge(values, height, width, high, wide) {
  const made = new Float32Array(high * wide);
  for (let row = 0; row < high; row += 1) {
    const [top, bottom, down] = between(row, height, high);
    for (let column = 0; column < wide; column += 1) {
      const [left, right, over] = between(column, width, wide);
      const upper = values[top * width + left] * (1 - over) + values[top * width + right] * over;
      const lower = values[bottom * width + left] * (1 - over) + values[bottom * width + right] * over;
      made[row * wide + column] = upper * (1 - down) + lower * down;
    }
  }
  return made;
}

/**
 * How far a class's score falls where a square of zeros covers the image, averaged over the squares that cover a pixel
 * (Zeiler and Fergus, 2014, section 4.2): (h·w), negative where covering helps.
 * @param {Network} network @param {Float32Array} image @param {number} target @param {{changes?: Changes, window?: number, stride?: number}} [options]
 */
export function occlusion(network, image, target, { changes = {}, window, stride } = {}) {
  const [height, width, channels] = network.input;
  const side = window ?? Math.max(4, Math.floor(Math.min(height, width) / 7));
  const step = stride ?? Math.max(1, Math.floor(side / 2));
  const score = (/** @type {Float32Array} */ images, /** @type {number} */ n) => {
    const inputs = network.layers[network.last].inputs.filter((input) => input >= 0);
    const outputs = network.forward(images, n, changes, { only: [...inputs, network.last] });
    const scores = network.logits(outputs, n, changes);
    if (!scores) throw new Error("not every layer up to the classes is computed");
    return scores;
  };
  const classes = network.layers[network.last].shape[0];
  const whole = score(image, 1)[target];
  const corners = [];
  for (let row = 0; row < Math.ceil((height - side) / step) + 1; row += 1) {
    for (let column = 0; column < Math.ceil((width - side) / step) + 1; column += 1) corners.push([row * step, column * step]);
  }
  const sums = new Float64Array(height * width);
  const counts = new Float64Array(height * width);
  for (let first = 0; first < corners.length; first += 8) {
    const some = corners.slice(first, first + 8);
    const images = new Float32Array(some.length * image.length);
    some.forEach(([top, left], which) => {
      const own = images.subarray(which * image.length, (which + 1) * image.length);
      own.set(image);
      for (let row = top; row < Math.min(height, top + side); row += 1) {
        own.fill(0, (row * width + left) * channels, (row * width + Math.min(width, left + side)) * channels);
      }
    });
    const scores = score(images, some.length);
    some.forEach(([top, left], which) => {
      const fall = whole - scores[which * classes + target];
      for (let row = top; row < Math.min(height, top + side); row += 1) {
        for (let column = left; column < Math.min(width, left + side); column += 1) {
          sums[row * width + column] += fall;
          counts[row * width + column] += 1;
        }
      }
    });
  }
  return Float32Array.from(sums, (sum, at) => (counts[at] ? sum / counts[at] : 0));
}
