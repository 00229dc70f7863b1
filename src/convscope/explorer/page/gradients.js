// Backward through the network: Grad-CAM, occlusion, and the gradients of a little training.

import { slope } from "./activations.js";
import { broadcastPlaces, volume } from "./network.js";

/**
 * @typedef {import("./network.js").Network} Network
 * @typedef {import("./network.js").Layer} Layer
 * @typedef {import("./network.js").Changes} Changes
 * @typedef {import("./network.js").Outputs} Outputs
 * @typedef {Object<string, Float64Array>} WeightGradients by the weight's name
 * What a layer's backward pass works on: `out` is the gradient of its sums; it gives that of each input.
 * @typedef {{layer: Layer, entering: Float32Array[], shapes: number[][], n: number, weights: Object<string, import("./network.js").Weight>,
 *   output: Float32Array, out: Float32Array, into: boolean, learned: WeightGradients | null}} Back
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
      const through = BACKWARD[layer.kind];
      if (!through) throw new Error(`${layer.name} has no gradient in this page`);
      given = through({ layer, entering: inputs, shapes, n, weights: network.weightsOf(layer, changes), output, out, into, learned });
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

/** Kinds of layers through which gradients go back. @type {Object<string, (back: Back) => Float32Array[]>} */
const BACKWARD = {
  dense: denseBack,
  convolution: (back) => convolutionBack(back),
  depthwise: (back) => convolutionBack(back, true),
  max: (back) => poolBack(back, true),
  average: (back) => poolBack(back, false),
  normalization: ({ layer, weights, out }) => {
    const { axis, epsilon } = layer.settings;
    const inner = volume(layer.shape.slice(axis + 1));
    const { gamma, variance } = weights;
    return [out.map((value, at) => {
      const z = Math.floor(at / inner) % layer.shape[axis];
      return (value * (gamma ? gamma.values[z] : 1)) / Math.sqrt(variance.values[z] + epsilon);
    })];
  },
  activation: ({ out }) => [out],
  scale: ({ layer, out }) => {
    const { scale } = layer.settings;
    return [out.map((value, at) => value * scale[at % scale.length])];
  },
  same: ({ layer, shapes, out }) => {
    if (!layer.settings.channelsFirst) return [out];
    const [height, width, channels] = shapes[0];
    const places = height * width;
    const made = new Float32Array(out.length);
    out.forEach((value, at) => {
      const image = Math.floor(at / (places * channels));
      made[(image * places + (at % places)) * channels + (Math.floor(at / places) % channels)] = value;
    });
    return [made];
  },
  add: (back) => back.shapes.map((shape) => gathered(back, shape, () => 1)),
  subtract: (back) => back.shapes.map((shape, which) => gathered(back, shape, () => (which === 0 ? 1 : -1))),
  mean: (back) => back.shapes.map((shape) => gathered(back, shape, () => 1 / back.shapes.length)),
  multiply: (back) => back.shapes.map((shape, which) => {
    const size = volume(back.layer.shape);
    const others = back.shapes.map((other) => (volume(other) === size ? null : broadcastPlaces(other, back.layer.shape)));
    return gathered(back, shape, (image, at) =>
      back.entering.reduce((product, values, other) => {
        const places = others[other];
        return other === which ? product : product * values[image * volume(back.shapes[other]) + (places ? places[at] : at)];
      }, 1));
  }),
  concatenate: ({ layer, shapes, n, out }) => {
    const { axis } = layer.settings;
    const inner = volume(layer.shape.slice(axis + 1));
    const outer = n * volume(layer.shape.slice(0, axis));
    const stride = layer.shape[axis] * inner;
    let from = 0;
    return shapes.map((shape) => {
      const length = shape[axis] * inner;
      const made = new Float32Array(outer * length);
      for (let row = 0; row < outer; row += 1) made.set(out.subarray(row * stride + from, row * stride + from + length), row * length);
      from += length;
      return made;
    });
  },
  zero_padding: ({ layer, shapes, n, out }) => {
    const [height, width, channels] = shapes[0];
    const [top, left] = layer.settings.margins;
    const made = new Float32Array(n * volume(shapes[0]));
    for (let image = 0; image < n; image += 1) {
      for (let row = 0; row < height; row += 1) {
        const from = ((image * layer.shape[0] + row + top) * layer.shape[1] + left) * channels;
        made.set(out.subarray(from, from + width * channels), (image * height + row) * width * channels);
      }
    }
    return [made];
  },
};

export const WITH_GRADIENT = Object.keys(BACKWARD);

/**
 * Adds up a merged gradient in the shape of one input, each value times a factor.
 * @param {Back} back @param {number[]} shape @param {(image: number, at: number) => number} factor
 */
function gathered({ layer, n, out }, shape, factor) {
  const size = volume(layer.shape);
  const own = volume(shape);
  const places = own === size ? null : broadcastPlaces(shape, layer.shape);
  const made = new Float32Array(n * own);
  for (let image = 0; image < n; image += 1) {
    for (let at = 0; at < size; at += 1) made[image * own + (places ? places[at] : at)] += out[image * size + at] * factor(image, at);
  }
  return made;
}

/** @param {Back} back */
function denseBack({ layer, entering, out, weights, into, learned }) {
  const units = layer.shape[layer.shape.length - 1];
  const kernel = weights.kernel.values;
  const depth = kernel.length / units;
  const rows = out.length / units;
  const values = entering[0];
  if (learned) {
    const own = (learned.kernel = new Float64Array(kernel.length));
    const bias = weights.bias && (learned.bias = new Float64Array(units));
    for (let row = 0; row < rows; row += 1) {
      if (bias) for (let unit = 0; unit < units; unit += 1) bias[unit] += out[row * units + unit];
      for (let place = 0; place < depth; place += 1) {
        const value = values[row * depth + place];
        if (value === 0) continue;
        for (let unit = 0; unit < units; unit += 1) own[place * units + unit] += value * out[row * units + unit];
      }
    }
  }
  if (!into) return [];
  const made = new Float32Array(values.length);
  for (let row = 0; row < rows; row += 1) {
    for (let place = 0; place < depth; place += 1) {
      let sum = 0;
      for (let unit = 0; unit < units; unit += 1) sum += out[row * units + unit] * kernel[place * units + unit];
      made[row * depth + place] = sum;
    }
  }
  return [made];
}

/** @param {Back} back @param {boolean} [depthwise] */
function convolutionBack({ layer, entering, shapes, n, out, weights, into, learned }, depthwise = false) {
  const { strides, padding, dilation, groups } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns, filters] = layer.shape;
  const [down, across, each] = weights.kernel.shape;
  const kernel = weights.kernel.values;
  const multiplier = depthwise ? weights.kernel.shape[3] : 1;
  const own = filters / groups; // filters of a group
  const values = entering[0];
  const made = into ? new Float64Array(values.length) : null;
  const forKernel = learned && (learned.kernel = new Float64Array(kernel.length));
  const forBias = learned && weights.bias ? (learned.bias = new Float64Array(filters)) : null;
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const to = ((image * rows + row) * columns + column) * filters;
        if (forBias) for (let filter = 0; filter < filters; filter += 1) forBias[filter] += out[to + filter];
        for (let y = 0; y < down; y += 1) {
          const inY = row * strides[0] - padding[0] + y * dilation[0];
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < across; x += 1) {
            const inX = column * strides[1] - padding[1] + x * dilation[1];
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            const place = y * across + x;
            if (depthwise) {
              for (let filter = 0; filter < filters; filter += 1) {
                const z = Math.floor(filter / multiplier);
                if (made) made[from + z] += out[to + filter] * kernel[place * filters + filter];
                if (forKernel) forKernel[place * filters + filter] += out[to + filter] * values[from + z];
              }
              continue;
            }
            for (let group = 0; group < groups; group += 1) {
              for (let z = 0; z < each; z += 1) {
                const first = (place * each + z) * filters + group * own;
                const value = values[from + group * each + z];
                if (forKernel) for (let filter = 0; filter < own; filter += 1) forKernel[first + filter] += value * out[to + group * own + filter];
                if (!made) continue;
                let sum = 0;
                for (let filter = 0; filter < own; filter += 1) sum += out[to + group * own + filter] * kernel[first + filter];
                made[from + group * each + z] += sum;
              }
            }
          }
        }
      }
    }
  }
  return made ? [Float32Array.from(made)] : [];
}

/** @param {Back} back @param {boolean} largest */
function poolBack({ layer, entering, shapes, n, out }, largest) {
  const { window, strides, padding } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns] = layer.shape.length === 3 ? layer.shape : [1, 1];
  const values = entering[0];
  const made = new Float32Array(values.length);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const places = [];
        for (let y = 0; y < window[0]; y += 1) {
          const inY = row * strides[0] - padding[0] + y;
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < window[1]; x += 1) {
            const inX = column * strides[1] - padding[1] + x;
            if (inX >= 0 && inX < width) places.push(((image * height + inY) * width + inX) * channels);
          }
        }
        const to = ((image * rows + row) * columns + column) * channels;
        for (let z = 0; z < channels; z += 1) {
          if (largest) {
            let best = places[0];
            for (const place of places) if (values[place + z] > values[best + z]) best = place; // of equal ones the first
            made[best + z] += out[to + z];
          } else for (const place of places) made[place + z] += out[to + z] / places.length;
        }
      }
    }
  }
  return [made];
}

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
export function lastMaps(network) {
  const maps = network.layers.filter(({ shape }) => shape.length === 3);
  const convolutions = maps.filter(({ kind }) => ["convolution", "depthwise", "separable"].includes(kind));
  return (convolutions.at(-1) ?? maps.at(-1))?.index ?? -1;
}

/** Between the middles of neighbours, in straight lines. @param {Float64Array} values @param {number} height @param {number} width @param {number} high @param {number} wide */
function enlarge(values, height, width, high, wide) {
  const made = new Float32Array(high * wide);
  const between = (/** @type {number} */ at, /** @type {number} */ from, /** @type {number} */ to) => {
    const place = Math.max(0, ((at + 0.5) * from) / to - 0.5);
    const first = Math.min(from - 1, Math.floor(place));
    return [first, Math.min(from - 1, first + 1), place - first];
  };
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
  const simple = network.layers.every(({ kind, shares, inputs }) => WITH_GRADIENT.includes(kind) && shares === null && inputs.length === 1);
  const known = weighted.every(({ kind }) => ["dense", "convolution"].includes(kind));
  return simple && known ? weighted.map(({ index }) => index) : [];
}
