// The one store: what is shown, what was changed, how to undo it, and the link that leads back here.

/**
 * @typedef {{layer: number, name: string, index: number, value: number}} WeightChange
 * @typedef {object} Changes
 * @property {WeightChange[]} [weights]
 * @property {{layer: number, channel: number}[]} [zeroed]
 * @property {number[]} [off]
 * @property {{sigma: number, seed: number}} [noise]
 * @property {[number, number]} [shift]
 * @property {number} [turn]
 *
 * A stroke is [pen width, x, y, x, y, …] in thousandths of the longer side.
 * @typedef {{kind: "test", index: number}} TestImage
 * @typedef {{kind: "drawing", strokes: number[][], fitted: boolean}} Drawing
 * @typedef {{kind: "picture", name: string, pixels: string}} DroppedPicture
 * @typedef {TestImage | Drawing | DroppedPicture} ImageChoice
 *
 * What a link and a step back restore is plain JSON; `input`, `pixels` and `result` follow from it.
 * @typedef {object} State
 * @property {ImageChoice} image
 * @property {Changes} changes
 * @property {string} section
 * @property {number} layer
 * @property {number} channel
 * @property {[number, number]} place  row and column
 * @property {number | null} class  null follows the most probable one
 * @property {string} language
 * @property {string} theme
 * @property {Uint8Array | null} pixels  the image in the network's size, (h, w, c)
 * @property {Float32Array | null} input  the same, scaled as the network takes it
 * @property {{probabilities: Float32Array | null, logits: Float32Array | null, image: Float32Array,
 *   features: Float32Array | null, outputs?: (Float32Array | null)[]} | null} result  with the image as the changes made it
 * @property {import("./sgd.js").TrainingState | null} trained  where a training in the page has brought the weights; null: they are the run's
 * @property {Float32Array | null} before  probabilities without the changes, where there are some
 */

/** @type {(keyof State)[]} */
const UNDONE = ["image", "changes"];
const STEPS = 200;
// A link that is longer is refused by chat programs and mail; a dropped picture beyond it is left out.
const LONGEST_PICTURE = 24_000;

export class Store {
  /** @param {State} initial */
  constructor(initial) {
    this.state = initial;
    /** @type {Set<(state: State, changed: Set<string>) => void>} */
    this.listeners = new Set();
    /** @type {{image: ImageChoice, changes: Changes}[]} */
    this.past = [];
    /** @type {{image: ImageChoice, changes: Changes}[]} */
    this.future = [];
    this.merging = "";
  }

  /**
   * Change parts of the state. Steps with the same `merge` after one another are undone as one: a stroke, a
   * slider that is dragged.
   * @param {Partial<State>} part
   * @param {string} [merge]
   */
  set(part, merge = "") {
    const changed = this.#changed(part);
    if (UNDONE.some((key) => changed.has(key))) {
      if (!merge || merge !== this.merging) {
        this.past.push({ image: this.state.image, changes: this.state.changes });
        if (this.past.length > STEPS) this.past.shift();
      }
      this.future = [];
      this.merging = merge;
    }
    this.#apply(part, changed);
  }

  /** Begin with a state: there is no way back behind it. @param {Partial<State>} part */
  begin(part) {
    this.past = [];
    this.future = [];
    this.merging = "";
    this.#apply(part, new Set(Object.keys(part)));
  }

  /** End a merged step: the next one is a step of its own. */
  settle() {
    this.merging = "";
  }

  undo() {
    this.#travel(this.past, this.future);
  }

  redo() {
    this.#travel(this.future, this.past);
  }

  /**
   * Call back after each change with the state and the names of what changed.
   * @param {(state: State, changed: Set<string>) => void} listener
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * @param {{image: ImageChoice, changes: Changes}[]} from
   * @param {{image: ImageChoice, changes: Changes}[]} to
   */
  #travel(from, to) {
    const step = from.pop();
    if (!step) return;
    to.push({ image: this.state.image, changes: this.state.changes });
    this.merging = "";
    this.#apply(step, this.#changed(step));
  }

  /** @param {Partial<State>} part */
  #changed(part) {
    const now = /** @type {Record<string, unknown>} */ (this.state);
    const differs = (/** @type {[string, unknown]} */ [key, value]) =>
      ["image", "changes", "place"].includes(key)
        ? JSON.stringify(value) !== JSON.stringify(now[key])
        : value !== now[key];
    return new Set(
      Object.entries(part)
        .filter(differs)
        .map(([key]) => key),
    );
  }

  /**
   * @param {Partial<State>} part
   * @param {Set<string>} changed
   */
  #apply(part, changed) {
    if (changed.size === 0) return;
    this.state = { ...this.state, ...part };
    for (const listener of [...this.listeners]) listener(this.state, changed);
  }
}

/**
 * Write the state as a URL's fragment, without what is as it would be anyway.
 * @param {State} state
 * @param {State} initial
 */
export function toFragment(state, initial) {
  const { image, changes } = state;
  /** @type {[string, string][]} */
  const parts = [];
  const add = (/** @type {string} */ name, /** @type {string} */ value) => parts.push([name, value]);
  if (state.section !== initial.section) add("section", state.section);
  if (image.kind === "test") add("test", String(image.index));
  if (image.kind === "drawing") {
    add("drawing", image.strokes.map((stroke) => stroke.join(",")).join(";"));
    if (!image.fitted) add("fitted", "0");
  }
  if (image.kind === "picture" && image.pixels.length <= LONGEST_PICTURE) {
    add("picture", `${encodeURIComponent(image.name)},${image.pixels.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`);
  }
  if (changes.weights?.length)
    add("weights", changes.weights.map((one) => [one.layer, one.name, one.index, one.value].join(",")).join(";"));
  if (changes.zeroed?.length) add("zeroed", changes.zeroed.map((one) => `${one.layer},${one.channel}`).join(";"));
  if (changes.off?.length) add("off", changes.off.join(","));
  if (changes.noise?.sigma) add("noise", `${changes.noise.sigma},${changes.noise.seed}`);
  if (changes.shift?.some(Boolean)) add("shift", changes.shift.join(","));
  if (changes.turn) add("turn", String(changes.turn));
  if (state.layer !== initial.layer) add("layer", String(state.layer));
  if (state.channel !== initial.channel) add("channel", String(state.channel));
  if (state.place.some((value, axis) => value !== initial.place[axis])) add("place", state.place.join(","));
  if (state.class !== null) add("class", String(state.class));
  if (state.language !== initial.language) add("language", state.language);
  return parts.map(([name, value]) => `${name}=${value}`).join("&");
}

/**
 * Read a fragment. Anybody can write a link: what names nothing that is here, is left out.
 * @param {string} fragment  without its #
 * @param {Limits} limits
 * @returns {Partial<State>}
 *
 * @typedef {object} Limits
 * @property {string[]} sections
 * @property {string[]} languages
 * @property {number} images
 * @property {number} classes
 * @property {number} pixels  bytes of an image in the network's size
 * @property {{shape: number[], weights: Record<string, {values: {length: number}}>}[]} layers
 */
export function fromFragment(fragment, limits) {
  const given = new Map(
    fragment
      .split("&")
      .filter((part) => part.includes("="))
      .map((part) => [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)]),
  );
  const { layers } = limits;
  const below = (/** @type {number} */ value, /** @type {number} */ end) =>
    Number.isInteger(value) && value >= 0 && value < end;
  const lists = (/** @type {string} */ name) =>
    (given.get(name) ?? "").split(";").filter(Boolean).map((one) => one.split(","));
  const numbers = (/** @type {string} */ name) =>
    (given.get(name) ?? "").split(",").filter(Boolean).map(Number);

  /** @type {Partial<State>} */
  const found = {};
  const image = readImage(given, limits);
  if (image) found.image = image;

  /** @type {Changes} */
  const changes = {};
  const weights = lists("weights")
    .map(([layer, name, index, value]) => ({ layer: Number(layer), name, index: Number(index), value: Number(value) }))
    .filter(
      ({ layer, name, index, value }) =>
        below(layer, layers.length) &&
        Object.hasOwn(layers[layer].weights, name) &&
        below(index, layers[layer].weights[name].values.length) &&
        Number.isFinite(value),
    );
  if (weights.length) changes.weights = weights;
  const zeroed = lists("zeroed")
    .map(([layer, channel]) => ({ layer: Number(layer), channel: Number(channel) }))
    .filter(({ layer, channel }) => below(layer, layers.length) && below(channel, layers[layer].shape.at(-1) ?? 0));
  if (zeroed.length) changes.zeroed = zeroed;
  const off = numbers("off").filter((layer) => below(layer, layers.length));
  if (off.length) changes.off = off;
  const [sigma, seed] = numbers("noise");
  if (sigma > 0 && sigma <= 10 && below(seed, 2 ** 31)) changes.noise = { sigma, seed };
  const shift = numbers("shift");
  if (shift.length === 2 && shift.every((value) => Number.isInteger(value) && Math.abs(value) < 10_000))
    changes.shift = [shift[0], shift[1]];
  const turn = Number(given.get("turn"));
  if (Number.isFinite(turn) && turn && Math.abs(turn) <= 180) changes.turn = turn;
  if (Object.keys(changes).length) found.changes = changes;

  const section = given.get("section");
  if (section && limits.sections.includes(section)) found.section = section;
  const language = given.get("language");
  if (language && limits.languages.includes(language)) found.language = language;
  if (given.has("layer") && below(Number(given.get("layer")), layers.length)) found.layer = Number(given.get("layer"));
  const channels = layers[found.layer ?? 0]?.shape.at(-1) ?? 0;
  if (given.has("channel") && below(Number(given.get("channel")), channels)) found.channel = Number(given.get("channel"));
  const place = numbers("place");
  if (place.length === 2 && place.every((value) => below(value, 10_000))) found.place = [place[0], place[1]];
  if (given.has("class") && below(Number(given.get("class")), limits.classes)) found.class = Number(given.get("class"));
  return found;
}

/**
 * @param {Map<string, string>} given
 * @param {Limits} limits
 * @returns {ImageChoice | null}
 */
function readImage(given, limits) {
  const test = Number(given.get("test"));
  if (given.has("test") && Number.isInteger(test) && test >= 0 && test < limits.images) return { kind: "test", index: test };
  if (given.has("drawing")) {
    const strokes = (given.get("drawing") ?? "")
      .split(";")
      .map((stroke) => stroke.split(",").map(Number))
      .filter((stroke) => stroke.length >= 3 && stroke.length % 2 === 1 && stroke.every(Number.isFinite));
    return { kind: "drawing", strokes, fitted: given.get("fitted") !== "0" };
  }
  const picture = given.get("picture")?.split(",");
  if (picture?.length === 2) {
    try {
      const name = decodeURIComponent(picture[0]);
      const pixels = btoa(atob(picture[1].replaceAll("-", "+").replaceAll("_", "/")));
      if (atob(pixels).length === limits.pixels) return { kind: "picture", name, pixels };
    } catch {
      // not base64: no picture
    }
  }
  return null;
}
