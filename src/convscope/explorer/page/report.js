// The walk of a run's report: the explorer's, of a few test images. Small layers come with the page; large ones are
// computed here, and held against some of the network's own numbers.

import { valuesOf } from "./arithmetic.js";
import { unpack, unpackWeights, volume } from "./arrays.js";
import { element } from "./dom.js";
import { choice, precise, scientific } from "./figures.js";
import { Quiz } from "./learn.js";
import { Network } from "./network.js";
import { flatIndex } from "./places.js";
import { Store } from "./state.js";
import { t } from "./texts.js";
import { compared, judged, TOLERANCE, Walk } from "./walk.js";

/** @typedef {import("./arithmetic.js").Pass} Pass */

/**
 * An image's way through the network, and of the layers that the page computed some of the network's own numbers.
 * @typedef {Pass & {checks: Map<number, Map<number, number>>}} Passage
 */

/**
 * @param {Network} network
 * @param {any} image  The report's: its numbers, and the sums before a last softmax.
 * @returns {Promise<Passage>}
 */
async function passage(network, { values, scores }) {
  /** @type {Float32Array} */
  const all = await unpack(values);
  let start = 0;
  const take = (/** @type {number} */ count) => all.subarray(start, (start += count));
  const entering = take(volume(network.input));
  const supplied = (/** @type {string} */ how) => /** @type {any[]} */ (network.layers).filter(({ supply }) => supply === how);
  /** @type {(Float32Array | null)[]} */
  const known = network.layers.map(() => null);
  for (const { index, shape } of supplied("carried")) known[index] = take(volume(shape));
  const checks = new Map();
  for (const { index, shape } of supplied("computed")) {
    const places = take(shape.at(-1));
    const own = take(shape.at(-1));
    checks.set(index, new Map(Array.from(places, (flat, channel) => [flat, own[channel]])));
  }
  return { network, image: entering, outputs: network.forward(entering, 1, {}, { known }), changes: {}, scores, checks };
}

/** How far the values that the page computed are from those of the network's own that it carries. @param {Passage} pass @param {number} index */
export function agreement(pass, index) {
  const values = /** @type {Float32Array} */ (valuesOf(pass, index));
  const checks = [.../** @type {Map<number, number>} */ (pass.checks.get(index))];
  const largest = Math.max(...checks.map(([flat, own]) => Math.abs(values[flat] - own)));
  const worst = Math.max(...checks.map(([flat, own]) => Math.abs(values[flat] - own) / Math.max(1, Math.abs(own))));
  return { count: checks.length, largest, worst };
}

/**
 * A recomputed number is held against the network's own, where the page carries it; elsewhere the numbers of the
 * layer's own that are here decide.
 * @param {Pass} pass @param {number} index @param {import("./arithmetic.js").Recomputed} found
 * @param {import("./places.js").Place} place
 */
function judge(pass, index, found, place) {
  const { network, checks } = /** @type {Passage} */ (pass);
  const own = checks.get(index)?.get(flatIndex(network.maps(index), place));
  if (own !== undefined) return compared({ ...found, own, difference: Math.abs(found.result - own) });
  let layer = network.layers[index];
  while (layer?.kind === "same") layer = network.layers[layer.inputs[0]];
  if (!layer || !checks.has(layer.index)) return compared(found);
  const { count, largest, worst } = agreement(/** @type {Passage} */ (pass), layer.index);
  const equal = worst <= TOLERANCE && found.difference <= TOLERANCE * Math.max(1, Math.abs(found.result));
  return judged(equal, t(equal ? "report.agrees" : "report.differs", { result: precise(found.result), count, largest: largest ? scientific(largest) : "0" }), found);
}

async function start() {
  const source = document.getElementById("walk-data");
  const home = document.getElementById("walk");
  if (!source || !home) return;
  if (typeof DecompressionStream === "undefined") {
    home.replaceChildren(element("p", {}, t("report.tooOld")));
    return;
  }
  const data = JSON.parse(source.textContent ?? "");
  const network = new Network(data.network, await unpackWeights(data.weights, data.network.layers));
  /** @type {Map<number, Passage>} */
  const passages = new Map();
  let shown = 0;
  const store = new Store(/** @type {any} */ ({ changes: {}, layer: 0, channel: 0, place: [0, 0], class: null, result: null }));
  const images = element("div");
  const walk = element("div", { class: "walk" });
  home.replaceChildren(images, walk);
  new Walk(walk, { store, classes: data.classes, quiz: new Quiz(), pass: () => passages.get(shown) ?? null, gradCam: null, occlusion: null, judge });

  const show = async (/** @type {number} */ image) => {
    const pass = passages.get(image) ?? (await passage(network, data.images[image]));
    passages.set(image, pass);
    shown = image;
    const probabilities = pass.outputs[network.last];
    store.set({ result: /** @type {any} */ ({ image: pass.image, outputs: pass.outputs, probabilities }) });
    home.dataset.ready = String(image);
  };
  const options = data.images.map((/** @type {any} */ image, /** @type {number} */ value) => {
    const [name, other] = [data.classes[image.true], data.classes[image.predicted]];
    const words = image.true === image.predicted ? t("report.recognised", { name }) : t("report.taken", { name, other });
    return { value, content: [element("img", { src: image.picture, alt: "", width: 56, height: 56 }), element("span", {}, words)], label: `${image.name}: ${words}` };
  });
  images.replaceChildren(choice(t("report.chooseImage"), "walk-image", "pictures", options, 0, show));
  await show(0);
  /** @type {any} */ (window).reportWalk = { network, store, pass: () => passages.get(shown) };
}

start();
