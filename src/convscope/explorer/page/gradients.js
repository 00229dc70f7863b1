// Backward through the network, layer by layer: the gradients of Grad-CAM and of a little training. What goes back through
// a kind of layer stands in `backward.js`.

import { slope } from "./activations.js";
import { BACKWARD } from "./backward.js";
import { volume } from "./arrays.js";

/**
 * @typedef {import("./network.js").Network} Network
 * @typedef {import("./network.js").Layer} Layer
 * @typedef {import("./network.js").Changes} Changes
 * @typedef {import("./network.js").Outputs} Outputs
 * @typedef {import("./backward.js").WeightGradients} WeightGradients
 */

/**
 * Gradients of a sum of scores, from the scores of the last layer backwards, as far as they are wanted.
 * @param {Network} network @param {Float32Array} images @param {number} n @param {Outputs} outputs
 * @param {Float32Array} gradient of what the classes score before the last softmax: (n, classes)
 * @param {{changes?: Changes, layer?: number, learning?: number[]}} options `layer`: the one whose output's gradient is
 *   wanted; `learning`: those whose weights' gradients are
 * @returns {{outputs: (Float32Array | null)[], weights: Map<number, WeightGradients>}}
 */
export function backward(network, images, n, outputs, gradient, { changes = {}, layer: target = -2, learning = [] }) {
  /** Whether a layer's output leads back to something that is wanted. @type {boolean[]} */
  const leads = [];
  for (const { index, inputs } of network.layers) {
    leads.push(index === target || learning.includes(index) || inputs.some((input) => (input < 0 ? target === -1 : leads[input])));
  }
  /** @type {(Float32Array | null)[]} */
  const gradients = network.layers.map(() => null);
  /** @type {Map<number, WeightGradients>} */
  const weights = new Map();
  gradients[network.last] = gradient;
  for (let index = network.last; index >= 0; index -= 1) {
    const layer = network.layers[index];
    const own = gradients[index];
    if (!own || !leads[index] || index === target) continue;
    const entering = layer.inputs.map((input) => (input < 0 ? images : outputs[input]));
    if (!layer.live || !entering.every(Boolean)) throw new Error(`${layer.name} has no gradient in this page`);
    const inputs = /** @type {Float32Array[]} */ (entering);
    const isScore = index === network.last && squashes(layer);
    const into = layer.inputs.some((input) => input >= 0 && leads[input]) || (target === -1 && layer.inputs.includes(-1));
    const shapes = layer.inputs.map((input) => network.shape(input));
    let given;
    if (changes.off?.includes(index)) {
      given = [volume(shapes[0]) === volume(layer.shape) ? own : new Float32Array(inputs[0].length)];
    } else if (isScore && layer.kind === "activation") {
      given = [own];
    } else {
      const learned = learning.includes(index) ? {} : null;
      const output = /** @type {Float32Array} */ (outputs[index]);
      const open = unzeroed(layer, own, changes);
      const out = isScore ? open : throughActivation(network, layer, inputs, n, changes, output, open);
      given = BACKWARD[layer.kind]({ layer, entering: inputs, shapes, n, weights: network.weightsOf(layer, changes), output, out, into, learned });
      if (learned) weights.set(index, learned);
    }
    layer.inputs.forEach((input, which) => {
      if (input < 0 || !given?.[which]) return;
      const sum = gradients[input];
      if (sum) for (let at = 0; at < sum.length; at += 1) sum[at] += given[which][at];
      else gradients[input] = given[which].slice();
    });
  }
  return { outputs: gradients, weights };
}

/** Whether what a last layer gives is a softmax or sigmoid of scores. @param {Layer} layer */
function squashes(layer) {
  return (layer.activation === "softmax" || layer.activation === "sigmoid") && ["dense", "activation"].includes(layer.kind);
}

/** @param {Layer} layer @param {Float32Array} gradient @param {Changes} changes */
function unzeroed(layer, gradient, changes) {
  const zeroed = (changes.zeroed ?? []).filter((one) => one.layer === layer.index);
  if (zeroed.length === 0) return gradient;
  const open = gradient.slice();
  const channels = layer.shape[layer.shape.length - 1];
  for (const { channel } of zeroed) for (let at = channel; at < open.length; at += channels) open[at] = 0;
  return open;
}

/** @param {Network} network @param {Layer} layer @param {Float32Array[]} entering @param {number} n @param {Changes} changes @param {Float32Array} output @param {Float32Array} gradient */
function throughActivation(network, layer, entering, n, changes, output, gradient) {
  const { activation, settings } = layer;
  if (!activation) return gradient;
  const made = new Float32Array(gradient.length);
  if (activation === "softmax" || activation === "log_softmax") {
    const length = layer.shape[layer.shape.length - 1];
    for (let first = 0; first < made.length; first += length) {
      let sum = 0;
      for (let at = first; at < first + length; at += 1) sum += gradient[at] * (activation === "softmax" ? output[at] : 1);
      for (let at = first; at < first + length; at += 1) {
        made[at] = activation === "softmax" ? output[at] * (gradient[at] - sum) : gradient[at] - Math.exp(output[at]) * sum;
      }
    }
    return made;
  }
  const sums = network.compute({ ...layer, activation: null }, entering, n, changes);
  for (let at = 0; at < made.length; at += 1) if (gradient[at]) made[at] = gradient[at] * slope(activation, sums[at], settings);
  return made;
}

/**
 * The mean cross-entropy of a softmax's scores, and its gradient: (probability − target) / n.
 * @param {Float32Array} probabilities (n, classes) @param {number[]} labels
 */
export function crossEntropy(probabilities, labels) {
  const classes = probabilities.length / labels.length;
  const gradient = new Float32Array(probabilities.length);
  let loss = 0;
  labels.forEach((label, image) => {
    loss -= Math.log(Math.max(probabilities[image * classes + label], 1.17549435e-38));
    for (let unit = 0; unit < classes; unit += 1) {
      const at = image * classes + unit;
      gradient[at] = (probabilities[at] - Number(unit === label)) / labels.length;
    }
  });
  return { loss: loss / labels.length, gradient };
}

/**
 * The layers that a little training may change; an empty list where it cannot.
 * @param {Network} network @param {"last" | "all"} what
 */
export function trainable(network, what) {
  const last = network.layers[network.last];
  if (last.kind !== "dense" || last.activation !== "softmax" || last.shape.length !== 1 || !network.layers.every(({ live }) => live)) return [];
  if (what === "last") return [network.last];
  const weighted = network.layers.filter(({ weights }) => Object.keys(weights).length > 0);
  const simple = network.layers.every(({ shares, inputs }) => shares === null && inputs.length === 1);
  const known = weighted.every(({ kind }) => ["dense", "convolution"].includes(kind));
  return simple && known ? weighted.map(({ index }) => index) : [];
}
