// A little training in the Worker: SGD on the embedded images, one step after the other.

import { backward, crossEntropy, trainable } from "./gradients.js";
import { volume } from "./arrays.js";
import { random } from "./preprocess.js";

/**
 * One weight of a step: its gradient is the sum of the terms, its new value `before − rate · gradient`. Terms are there
 * for a kernel of the last layer: the value that entered, times (probability − target), divided by the batch.
 * @typedef {{layer: number, name: string, index: number, before: number, gradient: number, after: number, rate: number,
 *   terms: {image: number, value: number, probability: number, target: number, product: number}[] | null}} Look
 * An index of −1 − u asks for the weight to unit u with the largest gradient.
 * The state of a training: `losses` of all steps so far, each of its own batch before the step; `measured` after each
 * epoch on all images that are learned from and on those held out; `weights` as they are now.
 * @typedef {{step: number, epoch: number, perEpoch: number, losses: number[], images: number[], heldOut: number[],
 *   measured: {step: number, loss: number, accuracy: number, heldOutLoss: number, heldOutAccuracy: number}[],
 *   batch: number[], look: Look | null, weights: {layer: number, name: string, values: Float32Array}[]}} TrainingState
 */

/** The place of the largest gradient among the weights to one unit. @param {Float64Array} gradients @param {number} unit @param {number} units */
function strongest(gradients, unit, units) {
  let best = unit;
  for (let at = unit; at < gradients.length; at += units) if (Math.abs(gradients[at]) > Math.abs(gradients[best])) best = at;
  return best;
}

// Of four images one is held out, so that the page can show what was only learned by heart.
const HELD_OUT = 4;

export class Training {
  /**
   * @param {import("./network.js").Network} network whose weights it changes
   * @param {Float32Array} images @param {number[]} labels
   * @param {{what?: "last" | "all", rate?: number, batch?: number, seed?: number, fresh?: boolean, order?: number[][] | null}} options
   */
  constructor(network, images, labels, { what = "last", rate = 0.1, batch = 16, seed = 0, fresh = false, order = null }) {
    this.network = network;
    this.images = images;
    this.labels = labels;
    this.learning = trainable(network, what);
    if (this.learning.length === 0) throw new Error("this network's layers cannot be trained in the page");
    this.rate = rate;
    this.order = order;
    this.random = random(seed);
    const places = labels.map((_, image) => image);
    this.heldOut = order ? [] : places.filter((image) => image % HELD_OUT === HELD_OUT - 1);
    this.learned = order ? places : places.filter((image) => image % HELD_OUT !== HELD_OUT - 1);
    this.batch = Math.min(batch, this.learned.length);
    this.perEpoch = order ? order.length : Math.floor(this.learned.length / this.batch);
    /** @type {number[]} */
    this.shuffled = [];
    this.step = 0;
    /** @type {number[]} */
    this.losses = [];
    /** @type {TrainingState["measured"]} */
    this.measured = [];
    if (fresh) this.#forget(seed);
    // What only the last layer learns from never changes: it is computed once.
    this.features = what === "last" ? this.#featuresOf() : null;
    if (!order) this.#measure();
  }

  /** New weights as Keras draws them: Glorot's uniform for kernels, zeros for biases. @param {number} seed */
  #forget(seed) {
    const next = random(seed + 1);
    for (const index of this.learning) {
      const { kernel, bias } = this.network.layers[index].weights;
      const { shape, values } = kernel;
      const field = volume(shape.slice(0, -2));
      const limit = Math.sqrt(6 / (field * (shape[shape.length - 2] + shape[shape.length - 1])));
      for (let at = 0; at < values.length; at += 1) values[at] = limit * (2 * next() - 1);
      bias?.values.fill(0);
    }
  }

  #featuresOf() {
    const { network } = this;
    const [input] = network.layers[network.last].inputs;
    if (input < 0) return this.images;
    const each = volume(network.shape(input));
    const size = volume(network.input);
    const features = new Float32Array(this.labels.length * each);
    for (let first = 0; first < this.labels.length; first += 8) {
      const some = Math.min(8, this.labels.length - first);
      const outputs = network.forward(this.images.subarray(first * size, (first + some) * size), some, {}, { only: [input] });
      features.set(/** @type {Float32Array} */ (outputs[input]), first * each);
    }
    return features;
  }

  /** The images of a step. @returns {number[]} */
  #next() {
    if (this.order) return this.order[this.step % this.order.length];
    const position = this.step % this.perEpoch;
    if (position === 0) {
      this.shuffled = [...this.learned];
      for (let at = this.shuffled.length - 1; at > 0; at -= 1) {
        const other = Math.floor(this.random() * (at + 1));
        [this.shuffled[at], this.shuffled[other]] = [this.shuffled[other], this.shuffled[at]];
      }
    }
    return this.shuffled.slice(position * this.batch, (position + 1) * this.batch);
  }

  /** The outputs of all layers for some images; of the last layer alone where only that learns. @param {number[]} places */
  #forward(places) {
    const { network } = this;
    const [input] = network.layers[network.last].inputs;
    const shape = this.features ? network.shape(input) : network.input;
    const source = this.features ?? this.images;
    const each = volume(shape);
    const entering = new Float32Array(places.length * each);
    places.forEach((image, which) => entering.set(source.subarray(image * each, (image + 1) * each), which * each));
    if (!this.features || input < 0) return { images: entering, outputs: network.forward(entering, places.length) };
    /** @type {import("./network.js").Outputs} */
    const known = [];
    known[input] = entering;
    return { images: new Float32Array(0), outputs: network.forward(new Float32Array(0), places.length, {}, { known, only: [input, network.last] }) };
  }

  /**
   * @param {number} count
   * @param {{layer: number, name: string, index: number} | null} [look]
   */
  steps(count, look = null) {
    /** @type {Look | null} */
    let seen = null;
    /** @type {number[]} */
    let batch = [];
    for (let one = 0; one < count; one += 1) {
      batch = this.#next();
      seen = this.#one(batch, look);
      this.step += 1;
      if (!this.order && this.step % this.perEpoch === 0) this.#measure();
    }
    return { ...this.state(), batch, look: seen };
  }

  /** @param {number[]} batch @param {{layer: number, name: string, index: number} | null} look */
  #one(batch, look) {
    const { network, rate } = this;
    const { images, outputs } = this.#forward(batch);
    const labels = batch.map((image) => this.labels[image]);
    const probabilities = /** @type {Float32Array} */ (outputs[network.last]);
    const { loss, gradient } = crossEntropy(probabilities, labels);
    this.losses.push(loss);
    const { weights } = backward(network, images, batch.length, outputs, gradient, { learning: this.learning });
    /** @type {Look | null} */
    let seen = null;
    const seenGradients = look && weights.get(look.layer)?.[look.name];
    if (look && seenGradients) {
      const index = look.index < 0 ? strongest(seenGradients, -1 - look.index, probabilities.length / batch.length) : look.index;
      const own = seenGradients[index];
      const before = network.layers[look.layer].weights[look.name].values[index];
      const chosen = { ...look, index };
      seen = { ...chosen, before, gradient: own, after: Math.fround(before - rate * own), rate, terms: this.#terms(batch, outputs, chosen) };
    }
    for (const [index, gradients] of weights) {
      for (const [name, own] of Object.entries(gradients)) {
        const { values } = network.layers[index].weights[name];
        for (let at = 0; at < values.length; at += 1) values[at] -= rate * own[at];
      }
    }
    return seen;
  }

  /** What each image adds to the gradient of a weight of the last layer. @param {number[]} batch @param {import("./network.js").Outputs} outputs @param {{layer: number, name: string, index: number}} look */
  #terms(batch, outputs, look) {
    const { network } = this;
    const [input] = network.layers[network.last].inputs;
    if (look.layer !== network.last || input < 0) return null;
    const classes = network.layers[network.last].shape[0];
    const depth = volume(network.shape(input));
    const unit = look.index % classes;
    const place = Math.floor(look.index / classes);
    return batch.map((image, which) => {
      const value = look.name === "bias" ? 1 : /** @type {Float32Array} */ (outputs[input])[which * depth + place];
      const probability = /** @type {Float32Array} */ (outputs[network.last])[which * classes + unit];
      const target = Number(this.labels[image] === unit);
      return { image, value, probability, target, product: (value * (probability - target)) / batch.length };
    });
  }

  #measure() {
    const measure = (/** @type {number[]} */ places) => {
      let loss = 0;
      let right = 0;
      for (let first = 0; first < places.length; first += 16) {
        const some = places.slice(first, first + 16);
        const { outputs } = this.#forward(some);
        const probabilities = /** @type {Float32Array} */ (outputs[this.network.last]);
        const labels = some.map((image) => this.labels[image]);
        loss += crossEntropy(probabilities, labels).loss * some.length;
        const classes = probabilities.length / some.length;
        labels.forEach((label, which) => {
          const row = probabilities.subarray(which * classes, (which + 1) * classes);
          right += Number(row.indexOf(row.reduce((a, b) => Math.max(a, b))) === label);
        });
      }
      return [loss / places.length, right / places.length];
    };
    const [loss, accuracy] = measure(this.learned);
    const [heldOutLoss, heldOutAccuracy] = measure(this.heldOut);
    this.measured.push({ step: this.step, loss, accuracy, heldOutLoss, heldOutAccuracy });
  }

  /** @returns {TrainingState} */
  state() {
    return {
      step: this.step,
      epoch: Math.floor(this.step / this.perEpoch),
      perEpoch: this.perEpoch,
      losses: [...this.losses],
      images: this.learned,
      heldOut: this.heldOut,
      measured: [...this.measured],
      batch: [],
      look: null,
      weights: this.learning.flatMap((index) =>
        Object.entries(this.network.layers[index].weights).map(([name, { values }]) => ({ layer: index, name, values: values.slice() })),
      ),
    };
  }
}
