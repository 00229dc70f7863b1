// The section "Train": a little training in the page, its losses, and one weight's step with the arithmetic.

import { element, paint } from "./dom.js";
import { short } from "./figures.js";
import { trainable } from "./gradients.js";
import { number, t } from "./texts.js";

/**
 * @typedef {import("./main.js").App} App
 * @typedef {import("./sgd.js").TrainingState} TrainingState
 */

// All layers are trained only of a network with so few parameters; the last one where its input takes little to compute.
const MOST_PARAMETERS = 300_000;
const MOST_PRODUCTS = 6e9;
const EPOCHS = 5;
// So few losses are dots too.
const FEW_POINTS = 8;

/**
 * What can be trained in the page, and what the reason is where nothing can.
 * @param {App} app
 */
function choices({ engine, payload }) {
  const { network } = engine;
  const total = (/** @type {string} */ key) => payload.network.layers.reduce((/** @type {number} */ sum, /** @type {any} */ layer) => sum + layer[key], 0);
  if (!(payload.images.sample > 0)) return { found: [], reason: "train.none.images" };
  const found = [];
  if (trainable(network, "last").length && total("cost") * payload.images.sample <= MOST_PRODUCTS) found.push("last");
  if (trainable(network, "all").length && total("parameters") < MOST_PARAMETERS) found.push("all");
  return { found, reason: "train.none.network" };
}

/**
 * @param {HTMLElement} root
 * @param {App} app
 */
export function mountTrain(root, app) {
  const { engine, store, classes } = app;
  const { network } = engine;
  const { found, reason } = choices(app);
  /** @type {TrainingState | null} */
  let state = null;
  let running = false;
  let stopped = false;
  const chosen = { what: found[0], fresh: true, rate: 0.05, batch: 16, unit: -1, target: 0 };
  /** @type {HTMLElement} */
  let result;
  /** @type {HTMLElement} */
  let status;
  /** @type {any[]} */
  let buttons = [];

  const options = () => ({ what: /** @type {"last" | "all"} */ (chosen.what), fresh: chosen.fresh, rate: chosen.rate, batch: chosen.batch });
  const look = () => ({ layer: network.last, name: "kernel", index: chosen.unit < 0 ? -1 - chosen.target : chosen.unit * classes.length + chosen.target });
  /** @param {() => Promise<void>} work */
  const busy = (work) => async () => {
    if (running) return;
    running = true;
    for (const button of buttons) button.disabled = !button.classList.contains("stop");
    try {
      await work();
      status.textContent = state ? summary(state) : t("train.reset.done");
    } catch (error) {
      status.textContent = String(error);
    } finally {
      running = false;
      for (const button of buttons) button.disabled = button.classList.contains("stop");
    }
  };

  const train = busy(async () => {
    stopped = false;
    status.textContent = t("train.preparing");
    state ??= await engine.beginTraining(options());
    const end = state.step + EPOCHS * state.perEpoch;
    while (state.step < end && !stopped) await go(Math.min(Math.max(1, Math.floor(state.perEpoch / 3)), end - state.step));
  });
  const oneStep = busy(async () => {
    state ??= await engine.beginTraining(options());
    await go(1);
  });
  /** @param {number} steps */
  const go = async (steps) => {
    state = await engine.step(steps, look());
    store.set({ trained: state });
    show();
  };
  const reset = busy(async () => {
    state = null;
    await engine.resetWeights();
    store.set({ trained: null });
    show();
  });
  // Other settings begin another training.
  const again = () => {
    state = null;
    show();
  };

  function show() {
    result.replaceChildren();
    if (!state) return;
    const latest = state.measured[state.measured.length - 1];
    result.append(
      curve(state),
      element("p", { class: "hint" }, t("train.curve.about", { images: state.images.length, held: state.heldOut.length })),
      element(
        "table",
        { class: "numbers" },
        element("thead", {}, element("tr", {}, element("td"), element("th", { scope: "col" }, t("train.learned")), element("th", { scope: "col" }, t("train.heldOut")))),
        element(
          "tbody",
          {},
          element("tr", {}, element("th", { scope: "row" }, t("train.loss")), element("td", {}, number(latest.loss, 3)), element("td", {}, number(latest.heldOutLoss, 3))),
          element("tr", {}, element("th", { scope: "row" }, t("train.accuracy")), element("td", {}, `${number(100 * latest.accuracy, 1)} %`), element("td", {}, `${number(100 * latest.heldOutAccuracy, 1)} %`)),
        ),
      ),
    );
    if (state.look) result.append(...arithmetic(state.look, app));
  }

  function build() {
    if (found.length === 0) {
      root.replaceChildren(element("h2", {}, t("train.title")), element("p", {}, t(reason)));
      return;
    }
    const depth = network.layers[network.last].weights.kernel.shape[0];
    const what = element(
      "select",
      { change: () => { chosen.what = what.value; again(); } },
      ...found.map((one) => element("option", { value: one, selected: one === chosen.what }, t(`train.what.${one}`, { layer: network.layers[network.last].name }))),
    );
    const fresh = element("input", { type: "checkbox", checked: chosen.fresh, change: () => { chosen.fresh = fresh.checked; again(); } });
    const rate = element("input", { type: "number", min: 0.001, max: 1, step: 0.001, value: chosen.rate, change: () => { chosen.rate = clamp(rate, 0.001, 1); again(); } });
    const batch = element("input", { type: "number", min: 1, max: 64, step: 1, value: chosen.batch, change: () => { chosen.batch = Math.round(clamp(batch, 1, 64)); again(); } });
    const unit = element("input", { type: "number", min: 0, max: depth - 1, step: 1, placeholder: t("train.strongest"), value: chosen.unit < 0 ? "" : chosen.unit, change: () => { chosen.unit = unit.value === "" ? -1 : Math.round(clamp(unit, 0, depth - 1)); } });
    const target = element(
      "select",
      { change: () => { chosen.target = Number(target.value); } },
      ...classes.map((name, value) => element("option", { value, selected: value === chosen.target }, name)),
    );
    buttons = [
      element("button", { type: "button", click: train, class: "go" }, t("train.go", { epochs: EPOCHS })),
      element("button", { type: "button", click: oneStep }, t("train.step")),
      element("button", { type: "button", class: "stop", disabled: true, click: () => { stopped = true; } }, t("train.stop")),
      element("button", { type: "button", click: reset }, t("train.reset")),
    ];
    status = element("p", { role: "status", class: "hint" });
    result = element("div", {});
    root.replaceChildren(
      element("h2", {}, t("train.title")),
      element("p", {}, t("train.about")),
      element(
        "div",
        { class: "card" },
        element(
          "div",
          { class: "tools" },
          element("label", {}, t("train.what"), what),
          element("label", {}, t("train.rate"), rate),
          element("label", {}, t("train.batch"), batch),
        ),
        element("label", { class: "check" }, fresh, t("train.fresh")),
        element("div", { class: "tools" }, element("label", {}, t("train.unit", { last: depth - 1 }), unit), element("label", {}, t("train.target"), target)),
        element("div", { class: "tools" }, ...buttons),
        status,
      ),
      result,
      element("p", { class: "hint" }, t("train.honest")),
    );
    show();
  }

  build();
  store.subscribe((_, changed) => {
    if (changed.has("language")) build();
  });
}

/** @param {HTMLInputElement} input @param {number} least @param {number} most */
function clamp(input, least, most) {
  const value = Math.min(most, Math.max(least, Number(input.value) || least));
  input.value = String(value);
  return value;
}

/** @param {TrainingState} state */
function summary(state) {
  const latest = state.measured[state.measured.length - 1];
  return t("train.summary", { step: state.step, epoch: state.epoch, loss: number(state.losses[state.losses.length - 1] ?? latest.loss, 3) });
}

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text] */
function drawn(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.textContent = text;
  return made;
}

/** The losses: of each step's batch as a line, of all images after each epoch as dots. @param {TrainingState} state */
function curve(state) {
  const [wide, high, left, bottom] = [640, 240, 46, 26];
  const { losses, measured } = state;
  const last = Math.max(1, state.step);
  const highest = Math.max(0.1, ...losses, ...measured.flatMap((one) => [one.loss, one.heldOutLoss]));
  const x = (/** @type {number} */ step) => left + (step / last) * (wide - left - 8);
  const y = (/** @type {number} */ loss) => 8 + (1 - loss / highest) * (high - bottom - 8);
  const line = (/** @type {[number, number][]} */ points) => points.map(([step, loss], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const latest = measured[measured.length - 1];
  const made = drawn("svg", { viewBox: `0 0 ${wide} ${high}`, class: "losses", role: "img", "aria-label": t("train.curve", { steps: state.step, loss: number(latest.loss, 3), held: number(latest.heldOutLoss, 3) }) });
  for (const level of [0, 0.5, 1]) {
    made.append(drawn("line", { x1: left, x2: wide - 8, y1: y(level * highest), y2: y(level * highest), class: "grid" }));
    made.append(drawn("text", { x: left - 6, y: y(level * highest) + 4, "text-anchor": "end" }, number(level * highest, highest < 1 ? 2 : 1)));
  }
  made.append(drawn("text", { x: left, y: high - 6 }, "0"), drawn("text", { x: wide - 8, y: high - 6, "text-anchor": "end" }, t("train.steps", { steps: state.step })));
  const series = /** @type {[string, [number, number][]][]} */ ([
    ["batch", losses.map((loss, step) => [step, loss])],
    ["learned", measured.map((one) => [one.step, one.loss])],
    ["held", measured.map((one) => [one.step, one.heldOutLoss])],
  ]);
  for (const [kind, points] of series) {
    made.append(drawn("path", { d: line(points), class: kind }));
    // The first points alone make no line.
    if (points.length <= FEW_POINTS) for (const [step, loss] of points) made.append(drawn("circle", { cx: x(step), cy: y(loss), r: 3.5, class: kind }));
  }
  return element("figure", { class: "curve" }, made, element("figcaption", {}, key("batch", "train.key.batch"), key("learned", "train.key.learned"), key("held", "train.key.held")));
}

/** @param {string} kind @param {string} text */
function key(kind, text) {
  const mark = drawn("svg", { viewBox: "0 0 26 8", class: "losses mark", "aria-hidden": "true" });
  mark.append(drawn("path", { d: "M0 4L26 4", class: kind }));
  return element("span", {}, mark, ` ${t(text)}`);
}

/** One weight's gradient and update, with the numbers. @param {import("./sgd.js").Look} look @param {App} app */
function arithmetic(look, { classes, images, size }) {
  const target = look.index % classes.length;
  const unit = Math.floor(look.index / classes.length);
  const written = (/** @type {number} */ value) => (Number.isInteger(value) ? String(value) : short(value, 5));
  const terms = look.terms ?? [];
  const rows = terms.map(({ image, value, probability, target: wanted, product }) => {
    const small = element("canvas", { "aria-hidden": "true" });
    paint(small, images.pixels(image), size);
    return element("tr", {}, element("th", { scope: "row" }, small, classes[images.labels[image]]), ...[value, probability, wanted, product].map((one) => element("td", {}, written(one))));
  });
  const head = ["train.input", "train.probability", "train.wanted", "train.share"].map((name) => element("th", { scope: "col" }, t(name, { batch: terms.length })));
  return [
    element("h3", {}, t("train.weight", { unit, target: classes[target] })),
    element("p", {}, t("train.why", { batch: terms.length })),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("train.weight", { unit, target: classes[target] }) }, element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, element("td"), ...head)), element("tbody", {}, ...rows))),
    element("p", { class: "sum" }, t("train.gradient", { gradient: written(look.gradient) })),
    element("p", { class: "sum" }, t("train.update", { before: written(look.before), rate: number(look.rate, 3), gradient: written(look.gradient), after: written(look.after) })),
  ];
}
