// Change the network or the image; what that does to the accuracy stands in `accuracy.js`.

import { accuracyPart } from "./accuracy.js";
import { element } from "./dom.js";
import { number, t, translate } from "./texts.js";

/** @typedef {import("./main.js").App} App
 *  @typedef {import("./state.js").Changes} Changes */

// More channels than this are chosen by number.
const CHIPS = 128;
// A kernel of more places is edited one number at a time.
const LARGEST_KERNEL = 7;

// Filters that a student knows, as weights of a 3×3 window; larger windows have them in the middle.
/** @type {Record<string, number[]>} */
const FILTERS = {
  zero: [0, 0, 0, 0, 0, 0, 0, 0, 0],
  same: [0, 0, 0, 0, 1, 0, 0, 0, 0],
  blur: [1, 1, 1, 1, 1, 1, 1, 1, 1].map((value) => value / 9),
  horizontal: [1, 2, 1, 0, 0, 0, -1, -2, -1].map((value) => value / 4),
  vertical: [1, 0, -1, 2, 0, -2, 1, 0, -1].map((value) => value / 4),
  outline: [0, -1, 0, -1, 4, -1, 0, -1, 0].map((value) => value / 4),
};

/**
 * @param {HTMLElement} root
 * @param {App} app
 */
export function mountChange(root, app) {
  root.append(
    element("h2", { "data-t": "change.title" }),
    element("p", { "data-t": "change.lead" }),
    element(
      "div",
      { class: "workbench" },
      element("div", { class: "bench" }, networkPart(app), imagePart(app)),
      element("div", { class: "outcome" }, accuracyPart(app), listPart(app)),
    ),
  );
  translate(root);
}

/** Replace a part of the changes; what is empty is left out. @param {App} app @param {Changes} part @param {string} [merge] */
function change(app, part, merge) {
  /** @type {Record<string, unknown>} */
  const all = { ...app.store.state.changes, ...part };
  for (const [name, value] of Object.entries(all)) {
    const nothing = Array.isArray(value) ? (name === "shift" ? !value.some(Boolean) : !value.length) : !value;
    if (nothing || (name === "noise" && !(/** @type {any} */ (value).sigma))) delete all[name];
  }
  app.store.set({ changes: /** @type {Changes} */ (all) }, merge);
}

/** Set some weights, in place of what was set before. @param {App} app @param {import("./state.js").WeightChange[]} made @param {string} [merge] */
function setWeights(app, made, merge) {
  const key = (/** @type {import("./state.js").WeightChange} */ one) => `${one.layer},${one.name},${one.index}`;
  const own = app.engine.network.layers;
  const given = new Map((app.store.state.changes.weights ?? []).map((one) => [key(one), one]));
  for (const one of made) {
    if (own[one.layer].weights[one.name].values[one.index] === Math.fround(one.value)) given.delete(key(one));
    else given.set(key(one), one);
  }
  change(app, { weights: [...given.values()] }, merge);
}

/** Layer, channel, weights. @param {App} app */
function networkPart(app) {
  const { store } = app;
  const { layers } = app.engine.network;
  const select = element("select", { id: "change-layer", change: () => store.set({ layer: Number(select.value), channel: 0 }) });
  const off = element("input", { type: "checkbox", id: "change-off" });
  off.addEventListener("change", () => {
    const { layer, changes } = store.state;
    const others = (changes.off ?? []).filter((one) => one !== layer);
    change(app, { off: off.checked ? [...others, layer] : others });
  });
  const channels = element("div", { class: "chips", role: "group" });
  const weights = element("div", { class: "weights" });
  const part = element(
    "section",
    { class: "card" },
    element("h3", { "data-t": "change.network" }),
    element("div", { class: "tools" }, element("label", {}, element("span", { "data-t": "change.layer" }), select)),
    element("p", { class: "hint", id: "change-layer-hint" }),
    element("label", { class: "check" }, off, element("span", { "data-t": "change.off", "data-t-title": "change.off-hint" })),
    channels,
    weights,
  );

  const showLayers = () => {
    select.replaceChildren(
      ...layers.map((layer) => element("option", { value: layer.index, disabled: !layer.live }, `${layer.index + 1}. ${layer.name} (${layer.shape.join(" × ")})`)),
    );
    select.value = String(store.state.layer);
  };
  const show = () => {
    const { layer: index, changes } = store.state;
    const layer = layers[index];
    select.value = String(index);
    off.checked = (changes.off ?? []).includes(index);
    /** @type {HTMLElement} */ (part.querySelector("#change-layer-hint")).textContent = layer.live
      ? t("change.layer-hint", { type: layer.type ?? layer.kind })
      : t(layer.reason);
    showChannels(app, channels);
    showWeights(app, weights);
  };
  store.subscribe((_, changed) => {
    if (changed.has("language")) showLayers();
    if (["language", "layer", "channel", "changes"].some((key) => changed.has(key))) keepFocus(part, show);
  });
  showLayers();
  show();
  return part;
}

/** Rebuild a part of the page; the control that had the focus has it again. @param {HTMLElement} part @param {() => void} show */
function keepFocus(part, show) {
  const active = document.activeElement;
  const id = active && part.contains(active) ? active.id : "";
  show();
  const again = id && document.getElementById(id);
  if (again && again !== document.activeElement) again.focus();
}

/** A chip for each channel: choose it, or zero it. @param {App} app @param {HTMLElement} root */
function showChannels(app, root) {
  const { store } = app;
  const { layer: index, channel: chosen, changes } = store.state;
  const count = app.engine.network.layers[index].shape.at(-1) ?? 0;
  const zeroed = new Set((changes.zeroed ?? []).filter((one) => one.layer === index).map((one) => one.channel));
  const toggle = (/** @type {number} */ channel) => {
    const others = (store.state.changes.zeroed ?? []).filter((one) => one.layer !== index || one.channel !== channel);
    change(app, { zeroed: zeroed.has(channel) ? others : [...others, { layer: index, channel }] });
  };
  const zero = element(
    "button",
    { type: "button", id: "change-zero", "aria-pressed": String(zeroed.has(chosen)), click: () => toggle(chosen) },
    t(zeroed.has(chosen) ? "change.restore" : "change.zero", { channel: chosen }),
  );
  const field = element("input", { type: "number", id: "change-channel", min: 0, max: count - 1, value: chosen });
  field.addEventListener("change", () => {
    const value = Math.min(count - 1, Math.max(0, Math.round(Number(field.value) || 0)));
    store.set({ channel: value });
  });
  const choice = element("div", { class: "tools" }, element("label", {}, t("change.channel", { count }), field), zero);
  const chips = element("div", { class: "chip-row" });
  for (let channel = 0; channel < Math.min(count, CHIPS); channel++) {
    const off = zeroed.has(channel);
    chips.append(
      element(
        "button",
        {
          type: "button",
          tabindex: "-1",
          class: `chip${off ? " off" : ""}${channel === chosen ? " chosen" : ""}`,
          "aria-label": t(off ? "change.chip-off" : "change.chip", { channel }),
          title: t("change.chip-hint"),
          click: () => store.set({ channel }),
          dblclick: () => toggle(channel),
        },
        String(channel),
      ),
    );
  }
  root.setAttribute("aria-label", t("change.channels"));
  root.replaceChildren(choice, count > 1 ? chips : "");
}

/** The weights of the chosen channel. @param {App} app @param {HTMLElement} root */
function showWeights(app, root) {
  const { store } = app;
  const { layer: index, channel, changes } = store.state;
  const layer = app.engine.network.layers[index];
  const now = app.engine.network.weightsOf(layer, changes);
  const parts = Object.entries(now).map(([name, { shape, values }]) => {
    const edit = (/** @type {number} */ place, /** @type {number} */ value) =>
      setWeights(app, [{ layer: index, name, index: place, value }], `weight ${index} ${name} ${place}`);
    const own = layer.weights[name].values;
    const cell = (/** @type {number} */ place, /** @type {string} */ label) => numberField(`w-${name}-${place}`, values[place], own[place], label, (value) => edit(place, value));
    const units = shape.at(-1) ?? 1;
    if (shape.length === 1 && channel < units) return element("label", { class: "weight-line" }, element("span", {}, name), cell(channel, `${name} ${channel}`));
    if (shape.length === 4) return windowOf(app, layer, name, shape, cell);
    if (shape.length === 2) return column(name, shape, channel, cell, root);
    return "";
  });
  root.replaceChildren(...(parts.length ? parts : [element("p", { class: "hint" }, t("change.no-weights"))]));
}

/** A field for one number; changed ones are marked. @param {string} id @param {number} value @param {number} own @param {string} label @param {(value: number) => void} edit */
function numberField(id, value, own, label, edit) {
  const strength = Math.min(4, Math.ceil(Math.abs(value) * 8));
  const sign = value > 0 ? "positive" : value < 0 ? "negative" : "";
  const field = element("input", {
    type: "number",
    step: "0.05",
    id,
    class: `weight ${sign} shade-${strength}${value === own ? "" : " changed"}`,
    "aria-label": label,
    value: String(Number(value.toPrecision(3))),
  });
  field.addEventListener("change", () => {
    const wanted = field.value === "" ? own : Number(field.value);
    if (Number.isFinite(wanted)) edit(wanted);
  });
  return field;
}

// The input channel whose window is shown, for each layer.
const inputChannel = new Map();

/** A window of a convolution for one input channel. @param {App} app @param {any} layer @param {string} name @param {number[]} shape @param {(place: number, label: string) => HTMLElement} cell */
function windowOf(app, layer, name, shape, cell) {
  const { store } = app;
  const [rows, columns, inputs, outputs] = shape;
  const depthwise = layer.kind === "depthwise" || name === "depthwise";
  const channel = store.state.channel;
  const key = `${layer.index} ${name}`;
  const from = depthwise ? Math.floor(channel / outputs) : Math.min(inputChannel.get(key) ?? 0, inputs - 1);
  const to = depthwise ? channel % outputs : channel;
  if (from >= inputs || to >= outputs) return "";
  const place = (/** @type {number} */ row, /** @type {number} */ column_, /** @type {number} */ input = from) => ((row * columns + column_) * inputs + input) * outputs + to;
  const tools = element("div", { class: "tools" }, element("b", {}, name));
  if (!depthwise && inputs > 1) {
    const field = element("input", { type: "number", id: `in-${name}`, min: 0, max: inputs - 1, value: from });
    field.addEventListener("change", () => {
      inputChannel.set(key, Math.min(inputs - 1, Math.max(0, Math.round(Number(field.value) || 0))));
      store.set({ channel: -1 });
      store.set({ channel });
    });
    tools.append(element("label", {}, t("change.input-channel", { count: inputs }), field));
  }
  if (rows >= 3 && columns >= 3) {
    const select = element("select", { id: `filter-${name}`, "aria-label": t("change.filter") }, element("option", { value: "" }, t("change.filter")));
    for (const filter of Object.keys(FILTERS)) select.append(element("option", { value: filter }, t(`change.filter.${filter}`)));
    select.append(element("option", { value: "negative" }, t("change.filter.negative")));
    select.addEventListener("change", () => {
      const values = app.engine.network.weightsOf(layer, store.state.changes)[name].values;
      const made = [];
      for (let row = 0; row < rows; row++) {
        for (let column_ = 0; column_ < columns; column_++) {
          const [y, x] = [row - ((rows - 3) >> 1), column_ - ((columns - 3) >> 1)];
          const inside = y >= 0 && y < 3 && x >= 0 && x < 3;
          const value = select.value === "negative" ? -values[place(row, column_)] : inside ? FILTERS[select.value][3 * y + x] : 0;
          made.push({ layer: layer.index, name, index: place(row, column_), value });
        }
      }
      setWeights(app, made);
    });
    tools.append(element("label", {}, select));
  }
  if (Math.max(rows, columns) > LARGEST_KERNEL) return element("div", {}, tools);
  const grid = element("div", { class: "window" });
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 4.6rem))`;
  for (let row = 0; row < rows; row++)
    for (let column_ = 0; column_ < columns; column_++) grid.append(cell(place(row, column_), t("change.weight", { name, row, column: column_ })));
  return element("div", {}, tools, grid);
}

// The input unit whose weight is shown, for each layer's name.
const inputUnit = new Map();

/** One weight of a unit, chosen by number. @param {string} name @param {number[]} shape @param {number} channel @param {(place: number, label: string) => HTMLElement} cell @param {HTMLElement} root */
function column(name, [inputs, units], channel, cell, root) {
  if (channel >= units) return "";
  const from = Math.min(inputUnit.get(name) ?? 0, inputs - 1);
  const holder = element("span", {}, cell(from * units + channel, t("change.unit-weight", { name, from, channel })));
  const field = element("input", { type: "number", id: `unit-${name}`, min: 0, max: inputs - 1, value: from });
  field.addEventListener("change", () => {
    const chosen = Math.min(inputs - 1, Math.max(0, Math.round(Number(field.value) || 0)));
    inputUnit.set(name, chosen);
    field.value = String(chosen);
    holder.replaceChildren(cell(chosen * units + channel, t("change.unit-weight", { name, from: chosen, channel })));
  });
  return element("div", { class: "tools" }, element("b", {}, name), element("label", {}, t("change.from-unit", { count: inputs }), field), holder);
}

/** Noise, shift, turn. @param {App} app */
function imagePart(app) {
  const { store } = app;
  const { height, width } = app.size;
  const slider = (/** @type {string} */ key, /** @type {Record<string, number>} */ range, /** @type {(changes: Changes) => number} */ read, /** @type {(value: number) => Changes} */ write, /** @type {(value: number) => string} */ show) => {
    const input = element("input", { type: "range", id: `change-${key}`, ...range });
    const output = element("output", { for: `change-${key}` });
    input.addEventListener("input", () => change(app, write(Number(input.value)), key));
    input.addEventListener("change", () => store.settle());
    const update = () => {
      const value = read(store.state.changes);
      input.value = String(value);
      output.textContent = show(value);
    };
    store.subscribe((_, changed) => {
      if (changed.has("changes") || changed.has("language")) update();
    });
    update();
    return element("label", { class: "slider" }, element("span", { "data-t": `change.${key}` }), input, output);
  };
  const shift = (/** @type {Changes} */ changes) => changes.shift ?? [0, 0];
  const pixels = (/** @type {number} */ value) => t("change.pixels", { value });
  return element(
    "section",
    { class: "card" },
    element("h3", { "data-t": "change.image" }),
    slider("noise", { min: 0, max: 1, step: 0.02 }, (changes) => changes.noise?.sigma ?? 0, (sigma) => ({ noise: { sigma, seed: store.state.changes.noise?.seed ?? 1 } }), (value) => number(value)),
    slider("right", { min: -Math.ceil(width / 2), max: Math.ceil(width / 2), step: 1 }, (changes) => shift(changes)[0], (value) => ({ shift: [value, shift(store.state.changes)[1]] }), pixels),
    slider("down", { min: -Math.ceil(height / 2), max: Math.ceil(height / 2), step: 1 }, (changes) => shift(changes)[1], (value) => ({ shift: [shift(store.state.changes)[0], value] }), pixels),
    slider("turn", { min: -180, max: 180, step: 1 }, (changes) => changes.turn ?? 0, (turn) => ({ turn }), (value) => `${value}°`),
    element("button", { type: "button", "data-t": "change.other-noise", click: () => {
      const { noise } = store.state.changes;
      if (noise) change(app, { noise: { ...noise, seed: (noise.seed + 1) % 1000 } });
    } }),
  );
}

/** What was changed, one line each, and the way back. @param {App} app */
function listPart(app) {
  const { store } = app;
  const list = element("ul", { class: "changes" });
  const undo = element("button", { type: "button", id: "undo", "data-t": "draw.undo", click: () => store.undo() });
  const redo = element("button", { type: "button", id: "redo", "data-t": "draw.redo", click: () => store.redo() });
  const reset = element("button", { type: "button", id: "reset", "data-t": "change.reset", click: () => store.set({ changes: {} }) });
  const copy = element("button", { type: "button", id: "copy", "data-t": "change.copy", click: async () => {
    app.writeLink();
    try {
      await navigator.clipboard.writeText(location.href);
      said.textContent = t("change.copied");
    } catch {
      said.textContent = t("change.in-address");
    }
  } });
  const said = element("p", { class: "hint", role: "status" });
  const part = element("section", { class: "card" }, element("h3", { "data-t": "change.list" }), element("div", { class: "tools" }, undo, redo, reset, copy), said, list);
  const show = () => {
    const { changes } = store.state;
    undo.disabled = !store.past.length;
    redo.disabled = !store.future.length;
    reset.disabled = !Object.keys(changes).length;
    const lines = describe(app, changes);
    list.replaceChildren(
      ...lines.map(({ text, without }) => element("li", {}, element("span", {}, text), element("button", { type: "button", "aria-label": t("change.remove", { what: text }), click: () => change(app, without) }, "×"))),
    );
    if (!lines.length) list.append(element("li", { class: "hint" }, t("change.none")));
  };
  store.subscribe((_, changed) => {
    if (["changes", "image", "language"].some((key) => changed.has(key))) show();
    if (changed.has("changes")) said.textContent = "";
  });
  show();
  return part;
}

/** Each change in words, and what the changes are without it. @param {App} app @param {Changes} changes */
function describe(app, changes) {
  const { layers } = app.engine.network;
  /** @type {{text: string, without: Changes}[]} */
  const lines = [];
  const groups = new Map();
  for (const one of changes.weights ?? []) {
    const key = `${one.layer} ${one.name}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  for (const group of groups.values()) {
    const [{ layer, name, index, value }] = group;
    const without = { weights: (changes.weights ?? []).filter((one) => !group.includes(one)) };
    const text = group.length === 1 ? t("change.said.weight", { layer: layers[layer].name, name, index, from: number(layers[layer].weights[name].values[index], 3), value: number(value, 3) }) : t("change.said.weights", { layer: layers[layer].name, name, count: group.length });
    lines.push({ text, without });
  }
  for (const one of changes.zeroed ?? [])
    lines.push({ text: t("change.said.zeroed", { layer: layers[one.layer].name, channel: one.channel }), without: { zeroed: (changes.zeroed ?? []).filter((other) => other !== one) } });
  for (const one of changes.off ?? [])
    lines.push({ text: t("change.said.off", { layer: layers[one].name }), without: { off: (changes.off ?? []).filter((other) => other !== one) } });
  if (changes.noise) lines.push({ text: t("change.said.noise", { sigma: number(changes.noise.sigma) }), without: { noise: undefined } });
  if (changes.shift) lines.push({ text: t("change.said.shift", { right: changes.shift[0], down: changes.shift[1] }), without: { shift: undefined } });
  if (changes.turn) lines.push({ text: t("change.said.turn", { degrees: changes.turn }), without: { turn: undefined } });
  return lines;
}
