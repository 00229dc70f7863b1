// The network of the run, layer by layer, in plain JavaScript; what a layer computes stands in `kinds.js`.
// Runs in the Worker, on the page and in node alike, and touches neither.

import { activate } from "./activations.js";
import { KINDS } from "./kinds.js";
import { asMaps, volume } from "./arrays.js";

/**
 * @typedef {import("./kinds.js").Layer} Layer
 * @typedef {{layer: number, name: string, index: number, value: number}} ChangedWeight
 * @typedef {{weights?: ChangedWeight[], zeroed?: {layer: number, channel: number}[], off?: number[],
 *   noise?: {sigma: number, seed: number}, shift?: number[], turn?: number}} Changes
 * @typedef {(Float32Array | null)[]} Outputs
 */

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

  /** The same as maps (rows, columns, channels), or as a row of units. @param {number} index */
  maps(index) {
    return asMaps(this.shape(index));
  }

  get last() {
    return this.layers.length - 1;
  }

  /** The layer whose output enters the last sum of products: its features. −1 is the image. */
  get features() {
    const summing = ["convolution", "transposed", "depthwise", "separable", "dense"];
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
