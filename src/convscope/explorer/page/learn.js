// Words that a newcomer may not know, each with one sentence; and a quiz that hides numbers until they are guessed.

import { element } from "./dom.js";
import { mapsOf, placeAt } from "./places.js";
import { t } from "./texts.js";

/** The words of the page; a word's text is `term.WORD`, its sentence `term.WORD.is`. */
export const TERMS = [
  "activation", "attention", "bias", "channel", "contribution", "convolution", "crossEntropy", "dense", "depthwise", "dropout",
  "featureMap", "flatten", "gradCam", "gradient", "kernel", "layer", "learningRate", "normalization", "occlusion",
  "padding", "parameter", "patch", "pooling", "product", "receptiveField", "relu", "score", "softmax", "stride",
];

/** A word of the page that folds its sentence out. @param {string} word @returns {HTMLElement} */
export function term(word) {
  return element("details", { class: "term" }, element("summary", {}, t(`term.${word}`)), element("span", {}, t(`term.${word}.is`)));
}

/** All words with their sentences, in the order of the language's alphabet. @returns {HTMLElement} */
function terms() {
  const sorted = TERMS.map((word) => [t(`term.${word}`), t(`term.${word}.is`)]).sort(([one], [other]) => one.localeCompare(other));
  return element("dl", { class: "term-list" }, ...sorted.map(([word, sentence]) => element("div", {}, element("dt", {}, word), element("dd", {}, sentence))));
}

/** A guess may be off by 2 %, or by half a hundredth. @param {number} guess @param {number} expected */
const isNear = (guess, expected) => Math.abs(guess - expected) <= Math.max(0.005, 0.02 * Math.abs(expected));

/**
 * Reads an answer as a person types it: `26x26x32`, `(26, 26, 32)`, `1,600`, `−0.25`, `0,25`.
 * @param {string} text
 * @param {number | number[]} expected  Whole numbers in a list have to be met exactly.
 * @returns {boolean | null} whether it is right; null for what is no number
 */
export function isRight(text, expected) {
  const plain = text.trim().replace("\u2212", "-");
  if (!Array.isArray(expected)) {
    const guess = Number(plain.replace(",", "."));
    return plain === "" || Number.isNaN(guess) ? null : isNear(guess, expected);
  }
  const whole = expected.length > 1 ? plain : plain.replace(/(?<=\d)[ ,.'\u2019](?=\d{3}\b)/g, "");
  const guesses = whole.split(/[\s,x×X()[\]]+/).filter(Boolean).map(Number);
  if (!guesses.length || guesses.some(Number.isNaN)) return null;
  return guesses.length === expected.length && guesses.every((one, axis) => one === expected[axis]);
}

/** Which numbers are hidden, which were guessed, and the score. */
export class Quiz {
  constructor() {
    this.on = false;
    this.right = 0;
    /** @type {Set<string>} keys of the numbers that were guessed or shown */
    this.known = new Set();
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** @param {() => void} listener */
  subscribe(listener) {
    this.listeners.add(listener);
  }

  notify() {
    for (const listener of [...this.listeners]) listener();
  }

  /** Begin, or end and show every number. @param {boolean} on */
  turn(on) {
    this.on = on;
    this.right = 0;
    this.known.clear();
    this.notify();
  }

  score() {
    return t("quiz.score", { right: this.right, asked: this.known.size });
  }

  /**
   * What stands in the place of a number until it is guessed; null where the number is to be seen.
   * @param {string} key
   * @param {string} what
   * @param {number | number[]} expected
   * @returns {HTMLElement | null}
   */
  ask(key, what, expected) {
    if (!hidden(this, key)) return null;
    const input = element("input", { type: "text", autocomplete: "off", "aria-label": t("quiz.guess", { what }), "data-focus": key });
    const said = element("span", { role: "status" });
    const finish = (/** @type {boolean} */ right) => {
      this.known.add(key);
      this.right += Number(right);
      this.notify();
    };
    const show = element("button", { type: "button", click: () => finish(false) }, t("quiz.show"));
    const form = element("form", { class: "guess" }, Array.isArray(expected) ? `${what}: ` : null, input, " ", element("button", {}, t("quiz.check")), " ", show, " ", said);
    form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      const right = isRight(input.value, expected);
      if (right) finish(true);
      else said.textContent = t(right === null ? "quiz.noNumber" : "quiz.wrong");
    });
    return form;
  }
}

/** The page has one quiz: what is hidden on the walk is turned on beside the words. */
export const quiz = new Quiz();

/** @param {Quiz} quiz @param {string} key */
export function hidden(quiz, key) {
  return quiz.on && !quiz.known.has(key);
}

/**
 * The section: the path of the first two minutes, the quiz, the words.
 * @param {HTMLElement} root
 * @param {import("./main.js").App} app
 */
export function mountLearn(root, { engine, store }) {
  const { layers } = engine.network;
  const first = Math.max(0, layers.findIndex((layer) => layer.live && layer.kind === "convolution"));
  // To the largest number of a layer: there is something to see.
  const walkTo = (/** @type {number} */ layer, /** @type {string} */ part) => () => {
    const values = store.state.result?.outputs?.[layer];
    const largest = values ? values.reduce((best, value, at) => (value > values[best] ? at : best), 0) : 0;
    const { row, column, channel } = placeAt(mapsOf(layers[layer]), largest);
    store.set({ section: "walk", layer, channel, place: [row, column] });
    lead(part);
  };
  // The tabulator goes on from where the reader looks.
  const lead = (/** @type {string} */ part) => {
    const shown = /** @type {HTMLElement | null} */ (document.querySelector(part));
    shown?.focus({ preventScroll: true });
    (shown?.closest(".walk-maps, .walk-places, .walk-back, .walk-classes") ?? shown)?.scrollIntoView({ block: "center" });
  };
  const path = [
    () => {
      store.set({ section: "draw" });
      lead("#canvas");
    },
    walkTo(first, ".walk-maps input:checked"),
    walkTo(first, ".walk-places .clickable"),
    walkTo(first, "#walk-pane"),
    walkTo(layers.length - 1, ".walk-back button"),
    walkTo(layers.length - 1, ".walk-classes :is(input:checked, select)"),
  ];
  const show = () => {
    const turn = element("input", { type: "checkbox", checked: quiz.on, change: () => quiz.turn(turn.checked) });
    const steps = path.map((go, step) => element("li", {}, t(`learn.path.${step + 1}`), " ", element("button", { type: "button", class: "link", click: go, "aria-label": t("learn.showStep", { step: step + 1 }) }, t("learn.show"))));
    root.replaceChildren(
      element("h2", {}, t("learn.path")),
      element("ol", { class: "path" }, ...steps),
      element("h2", {}, t("quiz.title")),
      element("p", {}, t("quiz.about")),
      element("p", {}, element("label", {}, turn, " ", t("quiz.on"))),
      element("p", { role: "status", class: "quiz-score" }, quiz.on ? quiz.score() : ""),
      element("h2", {}, t("learn.terms")),
      terms(),
    );
  };
  show();
  quiz.subscribe(() => {
    const score = root.querySelector(".quiz-score");
    if (score) score.textContent = quiz.on ? quiz.score() : "";
  });
  store.subscribe((_, changed) => {
    if (changed.has("language")) show();
  });
}
