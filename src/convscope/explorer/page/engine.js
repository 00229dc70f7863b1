// The page's side of the Worker: every question is a promise.

import { unpack, unpackWeights, volume } from "./arrays.js";
import { Network } from "./network.js";
import { scale } from "./preprocess.js";

/**
 * @typedef {import("./network.js").Changes} Changes
 * @typedef {import("./sgd.js").TrainingState} TrainingState
 */

/** A layer whose largest difference from Python's values is more, as a fraction of its largest value, differs. */
const AGREES = 1e-4;

export class Engine {
  /**
   * Unpacks a payload and starts a Worker with it.
   * @param {any} payload
   * @param {string} [source] of the Worker; the page carries it
   */
  static async start(payload, source = document.getElementById("worker-source")?.textContent ?? "") {
    const engine = new Engine();
    await engine.#prepare(payload, source);
    return engine;
  }

  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  #waiting = new Map();
  #count = 0;
  /** @type {Worker} */
  #worker = /** @type {any} */ (null);
  /** The newest run that waits until the one before it is done. @type {any} */
  #next = null;
  #busy = false;

  /** @type {any} */
  payload;
  /** @type {Network} */
  network = /** @type {any} */ (null);
  /** @type {import("./preprocess.js").Preprocessing} */
  preprocessing = /** @type {any} */ (null);
  /** The test images as pixels, uint8 (n·h·w·c). */
  pixels = new Uint8Array();
  /** Their probabilities, as Python recorded them (n·classes). */
  recorded = new Float32Array();
  /** @type {any} */
  references;
  /** The weights of the run, whatever training makes of them. */
  original = new Float32Array();

  /** @param {any} payload @param {string} source */
  async #prepare(payload, source) {
    this.payload = payload;
    const { network, weights, preprocess, images, references } = payload;
    const values = await unpackWeights(weights, network.layers);
    this.network = new Network(network, values);
    this.original = values.slice();
    this.preprocessing = { ...preprocess, scale: await unpack(preprocess.scale), offset: await unpack(preprocess.offset) };
    const size = volume(network.input);
    this.pixels = images.pixels ? await unpack(images.pixels) : await decode(images.jpegs ?? [], payload.input);
    this.recorded = images.probabilities ? await unpack(images.probabilities) : new Float32Array();
    const pixels = await unpack(references.pixels);
    const inputs = new Float32Array(pixels.length);
    for (let from = 0; from < pixels.length; from += size) inputs.set(scale(pixels.subarray(from, from + size), this.preprocessing), from);
    this.references = { ...references, inputs, pixels, values: await unpack(references.values) };
    const count = images.sample ?? 0;
    const prepared = new Float32Array(count * size);
    for (let index = 0; index < count; index += 1) prepared.set(this.image(index), index * size);
    // What comes into an image from outside when it is moved: black, in the middle of the image.
    const middle = (Math.floor(payload.input.height / 2) * payload.input.width + Math.floor(payload.input.width / 2)) * payload.input.channels;
    const ground = scale(new Uint8Array(size), this.preprocessing).slice(middle, middle + payload.input.channels);
    this.ground = ground;
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.#worker = new Worker(url);
    this.#worker.onmessage = ({ data: { id, result, error } }) => {
      const one = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error) one?.reject(new Error(error));
      else one?.resolve(result);
    };
    this.#worker.onerror = (event) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(event.message));
    };
    await this.ask("start", { description: network, weights: values, images: prepared, labels: (images.labels ?? []).slice(0, count), ground, temperature: payload.temperature });
    URL.revokeObjectURL(url);
  }

  /**
   * Asks the Worker for something.
   * @param {string} task @param {any} given
   * @returns {Promise<any>}
   */
  ask(task, given) {
    const id = (this.#count += 1);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, task, given });
    });
  }

  /** A test image as the network takes it. @param {number} index */
  image(index) {
    const size = volume(this.network.input);
    return scale(this.pixels.subarray(index * size, (index + 1) * size), this.preprocessing);
  }

  /**
   * What the network makes of a prepared image. Of several that wait only the newest is computed; those that it
   * takes the place of give null.
   * @param {Float32Array} image
   * @param {{changes?: Changes, all?: boolean}} [options]
   * @returns {Promise<{probabilities: Float32Array | null, logits: Float32Array | null, image: Float32Array, features: Float32Array | null, outputs?: import("./network.js").Outputs} | null>}
   */
  async run(image, { changes = {}, all = false } = {}) {
    const known = this.knownFor(image);
    if (this.#busy) {
      this.#next?.resolve(null);
      const go = await new Promise((resolve) => (this.#next = { resolve }));
      if (!go) return null;
    }
    this.#busy = true;
    try {
      return await this.ask("run", { image, changes, all, known });
    } finally {
      this.#busy = false;
      const next = this.#next;
      this.#next = null;
      next?.resolve(true);
    }
  }

  /** What Python recorded of layers that are not live, if an image is one of the references. @param {Float32Array} image */
  knownFor(image) {
    const size = volume(this.network.input);
    const { inputs } = this.references;
    for (let which = 0; which * size < inputs.length; which += 1) {
      if (image.every((value, at) => value === inputs[which * size + at])) return this.recordedOutputs(which);
    }
    return [];
  }

  /** The outputs that a reference image's layers that are not live have. @param {number} which */
  recordedOutputs(which) {
    /** @type {import("./network.js").Outputs} */
    const known = this.network.layers.map(() => null);
    this.#eachRecorded(which, (layer, values) => {
      if (!layer.live) known[layer.index] = values;
    });
    return known;
  }

  /** @param {number} which @param {(layer: import("./network.js").Layer, values: Float32Array) => void} visit */
  #eachRecorded(which, visit) {
    const { counts, values } = this.references;
    const all = counts.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
    let from = which * all;
    this.network.layers.forEach((layer, index) => visit(layer, values.subarray(from, (from += counts[index]))));
  }

  /**
   * Holds every layer against what Python recorded for the reference images: the largest difference, as a fraction
   * of the layer's largest value; of the first layer that differs, or else the largest of all.
   * @returns {Promise<{worst: number, layer: string, perLayer: number[], images: number}>}
   */
  async check() {
    const size = volume(this.network.input);
    const { inputs } = this.references;
    const perLayer = this.network.layers.map(() => 0);
    const images = inputs.length / size;
    for (let which = 0; which < images; which += 1) {
      const image = inputs.slice(which * size, (which + 1) * size);
      const { outputs } = await this.ask("run", { image, changes: {}, all: true, known: this.recordedOutputs(which) });
      this.#eachRecorded(which, (layer, values) => {
        const own = outputs[layer.index];
        if (!layer.live) return;
        const difference = own ? relativeDifference(own, values) : Infinity;
        perLayer[layer.index] = Math.max(perLayer[layer.index], difference);
      });
    }
    // What stands behind a layer that differs, differs too.
    const first = perLayer.findIndex((difference) => !(difference <= AGREES));
    return { worst: first < 0 ? Math.max(0, ...perLayer) : perLayer[first], layer: this.network.layers[first]?.name ?? "", perLayer, images };
  }

  /**
   * How many of the embedded test images are right with these changes.
   * @param {{changes?: Changes}} [options]
   * @returns {Promise<{accuracy: number, count: number, confusion: number[][], probabilities: Float32Array} | null>}
   */
  evaluate({ changes = {} } = {}) {
    return this.ask("evaluate", { changes });
  }

  /**
   * Where a class's evidence lies: (h·w), not negative.
   * @param {Float32Array} image @param {number} target the class
   * @param {{changes?: Changes, layer?: number}} [options] without a layer, the last convolution
   * @returns {Promise<Float32Array>}
   */
  gradCam(image, target, { changes = {}, layer } = {}) {
    return this.ask("gradCam", { image, target, changes, layer, known: this.knownFor(image) });
  }

  /**
   * How far a class's score falls where a square covers the image: (h·w).
   * @param {Float32Array} image @param {number} target the class
   * @param {{changes?: Changes, window?: number, stride?: number}} [options]
   * @returns {Promise<Float32Array>}
   */
  occlusion(image, target, { changes = {}, window, stride } = {}) {
    return this.ask("occlusion", { image, target, changes, window, stride });
  }

  /**
   * Begins a training of the last layer, or of all, on the embedded test images; its first state.
   * @param {{what?: "last" | "all", rate?: number, batch?: number, seed?: number, fresh?: boolean, order?: number[][]}} [options]
   *   `fresh`: begin with new weights; `order`: the images of each step, in the place of a shuffle
   * @returns {Promise<TrainingState>}
   */
  async beginTraining(options = {}) {
    return this.#adopt(await this.ask("beginTraining", options));
  }

  /**
   * Makes steps of the training that was begun. With `look`, a step also says how one weight changed, and why.
   * @param {number} steps
   * @param {{layer: number, name: string, index: number} | null} [look]
   * @returns {Promise<TrainingState>}
   */
  async step(steps = 1, look = null) {
    return this.#adopt(await this.ask("trainSteps", { steps, look }));
  }

  /** Takes the weights of the run again. */
  async resetWeights() {
    const weights = [];
    for (const { index, weights: own } of this.network.layers) {
      for (const [name, { values }] of Object.entries(own)) {
        const start = values.byteOffset / 4;
        const before = this.original.subarray(start, start + values.length);
        if (values.some((value, at) => value !== before[at])) weights.push({ layer: index, name, values: before.slice() });
      }
    }
    for (const { layer, name, values } of weights) this.network.layers[layer].weights[name].values.set(values);
    await this.ask("setWeights", { weights });
  }

  /** The weights of the page are those of the Worker. @param {TrainingState} state */
  #adopt(state) {
    for (const { layer, name, values } of state.weights) this.network.layers[layer].weights[name].values.set(values);
    return state;
  }
}

/**
 * The pixels of photographs (n·h·w·c), as the browser decodes them.
 * @param {string[]} jpegs in base64 @param {{height: number, width: number, channels: number}} size
 */
async function decode(jpegs, { height, width, channels }) {
  const pixels = new Uint8Array(jpegs.length * height * width * channels);
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  let to = 0;
  for (const jpeg of jpegs) {
    const bytes = Uint8Array.from(atob(jpeg), (character) => character.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }), { colorSpaceConversion: "none" });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const { data } = context.getImageData(0, 0, width, height);
    for (let place = 0; place < data.length; place += 4) {
      for (let channel = 0; channel < channels; channel += 1, to += 1) pixels[to] = data[place + channel];
    }
  }
  return pixels;
}

/** @param {Float32Array} own @param {Float32Array} recorded evenly spread over it */
function relativeDifference(own, recorded) {
  let largest = 0;
  let difference = 0;
  for (let place = 0; place < recorded.length; place += 1) {
    const value = own[Math.floor((place * own.length) / recorded.length)];
    largest = Math.max(largest, Math.abs(recorded[place]));
    const gap = Math.abs(value - recorded[place]);
    difference = gap > difference || Number.isNaN(gap) ? gap : difference;
  }
  return difference / Math.max(largest, 1e-6);
}
