// What the Worker does for the page: the network's work, away from the page, so that the page never stops.

import { gradCam, occlusion } from "./attribution.js";
import { Network } from "./network.js";
import { alter } from "./preprocess.js";
import { Training } from "./sgd.js";
import { volume } from "./arrays.js";

/** @type {Network} */
let network;
/** @type {{images: Float32Array, labels: number[], count: number, ground: Float32Array, temperature: number}} */
let test;
/** The inputs of the layers that a change reaches, of all test images. @type {{key: string, known: import("./network.js").Outputs}} */
let kept = { key: "", known: [] };

const KEPT_VALUES = 2 ** 26;
// How many images are computed at a time: about half a second's work at most.
const BATCH = 32;
const BATCH_PRODUCTS = 1e9;

/** How often the weights were changed: what was computed before holds no more. */
let weightsSet = 0;
function forget() {
  weightsSet += 1;
  kept = { key: "", known: [] };
}

/** @type {Training} */
let training;

const TASKS = {
  /** @param {any} given */
  start({ description, weights, images, labels, ground, temperature }) {
    network = new Network(description, weights);
    test = { images, labels, count: labels.length, ground, temperature };
    return true;
  },

  /** @param {any} given */
  run({ image, changes, all, known }) {
    const altered = alter(image, network.input, test.ground, changes);
    const outputs = network.forward(altered, 1, changes, { known });
    const last = outputs[network.last];
    return {
      image: altered,
      logits: network.logits(outputs, 1, changes),
      probabilities: last && calibrated(last),
      features: network.features < 0 ? altered : outputs[network.features],
      outputs: all ? outputs : undefined,
    };
  },

  /** @param {any} given */
  async evaluate({ changes }) {
    const { count } = test;
    const classes = network.layers[network.last].shape[0];
    const confusion = Array.from({ length: classes }, () => new Array(classes).fill(0));
    const probabilities = await predict(changes);
    if (!probabilities) return null;
    let right = 0;
    for (let index = 0; index < count; index += 1) {
      const row = probabilities.subarray(index * classes, (index + 1) * classes);
      const guess = row.indexOf(row.reduce((a, b) => Math.max(a, b)));
      confusion[test.labels[index]][guess] += 1;
      right += Number(guess === test.labels[index]);
    }
    return { accuracy: right / count, count, confusion, probabilities };
  },

  /** @param {any} given */
  gradCam({ image, target, changes, layer, known }) {
    return gradCam(network, alter(image, network.input, test.ground, changes), target, { changes, layer, known });
  },

  /** @param {any} given */
  occlusion({ image, target, changes, window, stride }) {
    return occlusion(network, alter(image, network.input, test.ground, changes), target, { changes, window, stride });
  },

  /** Begins a training on the test images; the weights are those of now, or new ones. @param {any} options */
  beginTraining(options) {
    training = new Training(network, test.images, test.labels, options);
    forget();
    return training.state();
  },

  /** @param {any} given */
  trainSteps({ steps, look }) {
    forget();
    return training.steps(steps, look);
  },

  /** Puts weights into their places, those of the run or others. @param {any} given */
  setWeights({ weights }) {
    forget();
    for (const { layer, name, values } of weights) network.layers[layer].weights[name].values.set(values);
    return true;
  },
};

/** Softer or sharper probabilities, as the run's calibration decided. @param {Float32Array} probabilities */
function calibrated(probabilities) {
  const classes = network.layers[network.last].shape[0];
  if (test.temperature === 1) return probabilities.slice();
  const made = new Float32Array(probabilities.length);
  for (let first = 0; first < made.length; first += classes) {
    const row = Array.from(probabilities.subarray(first, first + classes), (value) => Math.log(Math.max(value, 1.17549435e-38)) / test.temperature);
    const highest = Math.max(...row);
    const powers = row.map((value) => Math.exp(value - highest));
    const total = powers.reduce((a, b) => a + b, 0);
    made.set(powers.map((power) => power / total), first);
  }
  return made;
}

/** Lets what came in the meantime be done: an image that is drawn does not wait for all the others. */
const others = () => new Promise((go) => setTimeout(go));

/** The probabilities of the test images; only what the changes reach is computed again. @param {any} changes */
async function predict(changes) {
  const { count } = test;
  const size = volume(network.input);
  const images = new Float32Array(count * size);
  const altersImage = Boolean(changes.noise?.sigma || changes.turn || changes.shift?.some(Boolean));
  for (let index = 0; index < count; index += 1) {
    const image = test.images.subarray(index * size, (index + 1) * size);
    images.set(altersImage ? alter(image, network.input, test.ground, changes, index) : image, index * size);
  }
  const affected = network.affected(changes);
  const entering = new Set(network.layers.flatMap((layer) => (affected[layer.index] ? layer.inputs : [])).filter((input) => input >= 0 && !affected[input]));
  if (!affected.some(Boolean)) entering.add(network.last);
  const frontier = [...entering].sort((a, b) => a - b);
  const values = frontier.reduce((sum, index) => sum + volume(network.shape(index)), 0) * count;
  const cost = network.layers.reduce((sum, layer) => sum + layer.cost, 0);
  const batch = Math.max(1, Math.min(BATCH, Math.floor(BATCH_PRODUCTS / Math.max(cost, 1))));
  const classes = network.layers[network.last].shape[0];
  const made = new Float32Array(count * classes);
  const keep = frontier.length > 0 && values <= KEPT_VALUES;
  const key = JSON.stringify(frontier);
  const version = weightsSet;
  let { known: ready } = kept;
  if (keep && kept.key !== key) {
    ready = network.layers.map(() => null);
    for (const index of frontier) ready[index] = new Float32Array(count * volume(network.shape(index)));
    for (let first = 0; first < count; first += batch) {
      await others();
      const some = Math.min(batch, count - first);
      const outputs = network.forward(test.images.subarray(first * size, (first + some) * size), some, {}, { only: frontier });
      for (const index of frontier) {
        const own = outputs[index];
        if (!own) return null;
        ready[index]?.set(own, first * volume(network.shape(index)));
      }
    }
    if (weightsSet === version) kept = { key, known: ready };
  }
  for (let first = 0; first < count; first += batch) {
    await others();
    const some = Math.min(batch, count - first);
    /** @type {import("./network.js").Outputs} */
    const known = [];
    if (keep) {
      for (const index of frontier) {
        const length = volume(network.shape(index));
        known[index] = /** @type {Float32Array} */ (ready[index]).subarray(first * length, (first + some) * length);
      }
    }
    const outputs = network.forward(images.subarray(first * size, (first + some) * size), some, changes, { known, only: [network.last] });
    const last = outputs[network.last];
    if (!last) return null;
    made.set(calibrated(last), first * classes);
  }
  return made;
}

self.onmessage = async ({ data: { id, task, given } }) => {
  try {
    self.postMessage({ id, result: await TASKS[/** @type {keyof TASKS} */ (task)](given) });
  } catch (error) {
    self.postMessage({ id, error: String(/** @type {any} */ (error)?.stack ?? error) });
  }
};
