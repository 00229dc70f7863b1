// The walk: the network as a row of layers; a layer, a map of it and a pixel of the map are chosen, and the page shows
// where the number there comes from, back to the image, and what speaks for and against a class.

import { recompute, valuesOf, wayBack } from "./arithmetic.js";
import { ClassView } from "./classes.js";
import { element } from "./dom.js";
import { STEPS, choice, counted, drawChannel, drawInput, drawUnits, figure, frame, numbers, precise, scientific, short, unitsAcross } from "./figures.js";
import { hidden, quiz, term } from "./learn.js";
import { flatIndex, mapsOf, originOf, placeAt, reachOf, receptiveField, windowBox } from "./places.js";
import { asMaps } from "./arrays.js";
import { t, translate } from "./texts.js";

/** @typedef {import("./arithmetic.js").Pass} Pass */
/** @typedef {import("./places.js").Place} Place */
/** @typedef {import("./arithmetic.js").Recomputed} Recomputed */
/** @typedef {import("./places.js").Spot} Spot */
/** @typedef {import("./learn.js").Quiz} Quiz */
/** @typedef {import("./network.js").Layer} Layer */
/** @typedef {import("./state.js").Store} Store */

/**
 * What the walk is a view of.
 * @typedef {object} Guide
 * @property {Store} store
 * @property {string[]} classes
 * @property {() => Pass | null} pass  The image's way through the network as it is now; null before it is known.
 * @property {Quiz} quiz
 * @property {((target: number) => Promise<ArrayLike<number>>) | null} gradCam  (h·w); null where it cannot be computed.
 * @property {((target: number) => Promise<ArrayLike<number>>) | null} occlusion
 * @property {((pass: Pass, index: number, found: Recomputed, place: Place) => HTMLElement)} [judge]  Another verdict than `compared`.
 */

export const TOLERANCE = 1e-5;
const MOST_MAPS = 128;
const THUMBNAILS = 4;
const LARGEST_GRID = 49;
const LIST = 8;
// What the quiz asks for in an equation.
const HIDDEN = ["sum", "result"];

/** @type {(shape: readonly number[]) => string} */
const shapeText = (shape) => shape.join("×");

/** Scrolls a row until one of its cards is seen; the page stays where its reader is. @param {HTMLElement} card */
function showInRow(card) {
  const row = card.closest(".layer-row");
  if (!row) return;
  const { left, right } = card.getBoundingClientRect();
  const around = row.getBoundingClientRect();
  row.scrollLeft += Math.max(0, right - around.right) || Math.min(0, left - around.left);
}

export class Walk {
  /**
   * @param {HTMLElement} home
   * @param {Guide} guide
   */
  constructor(home, guide) {
    this.home = home;
    this.guide = guide;
    this.input = /** @type {number | null} */ (null); // the input channel whose patch is shown
    this.maps = /** @type {Map<number, HTMLCanvasElement>} */ (new Map());
    this.thumbnails = /** @type {(() => void)[]} */ ([]);
    this.parts = {
      layers: element("div", { class: "walk-layers" }),
      maps: element("div", { class: "walk-maps" }),
      places: element("div", { class: "walk-places" }),
      pane: element("div", { class: "pane", id: "walk-pane", tabindex: "-1" }),
      back: element("div", { class: "walk-back" }),
      classes: element("div", { class: "walk-classes" }),
      said: element("p", { class: "hidden", "aria-live": "polite" }),
    };
    const { layers, maps, places, pane, back, classes, said } = this.parts;
    home.replaceChildren(layers, maps, element("div", { class: "walk-number" }, places, element("div", {}, pane, back)), classes, said);
    this.classes = new ClassView(classes, guide, (spot) => this.link(spot));
    guide.store.subscribe((_, changed) => this.follow(changed));
    guide.quiz.subscribe(() => this.rebuild());
    this.rebuild();
  }

  get state() {
    return this.guide.store.state;
  }

  get pass() {
    return this.guide.pass();
  }

  get layer() {
    return /** @type {Pass} */ (this.pass).network.layers[this.state.layer];
  }

  /** @returns {Place} */
  get place() {
    const shape = mapsOf(this.layer);
    const { place, channel } = this.state;
    // Another section may have chosen another layer, and left the place as it was.
    const within = (/** @type {number} */ value, /** @type {number} */ length) => Math.min(value, length - 1);
    if (shape.length !== 3) return { row: 0, column: 0, channel: within(channel, shape[0]) };
    return { row: within(place[0], shape[0]), column: within(place[1], shape[1]), channel: within(channel, shape[2]) };
  }

  // By what the quiz knows the number that is shown.
  get key() {
    return `${this.state.layer} ${Object.values(this.place).join(" ")}`;
  }

  /** @param {Set<string>} changed */
  follow(changed) {
    if (!this.home.checkVisibility()) {
      this.thumbnails = []; // drawn anew when it is seen again
      return;
    }
    if (changed.has("language") || changed.has("section")) this.rebuild();
    else if (changed.has("result")) this.refresh();
    else if (changed.has("layer")) this.showLayer();
    else if (changed.has("channel") || changed.has("place")) this.showNumber();
    if (changed.has("class") && !changed.has("language")) this.classes.show();
  }

  // Everything anew: the language or the quiz changed.
  rebuild() {
    if (!this.pass) return;
    this.showLayers();
    this.showLayer();
    this.classes.show();
  }

  // Where there is something to see, unless a link or another section has chosen a place.
  begin() {
    const { channel, place } = this.state;
    if (this.pass && !channel && !place[0] && !place[1]) this.chooseLayer(this.state.layer);
  }

  // The same layers with other numbers: pictures are drawn into the canvases that are there, so that nothing jumps.
  refresh() {
    if (!this.pass) return;
    if (!this.thumbnails.length) {
      this.begin();
      this.rebuild();
      return;
    }
    for (const draw of this.thumbnails) draw();
    for (const [channel, canvas] of this.maps) this.drawMap(canvas, this.state.layer, channel);
    this.showNumber();
    this.classes.show();
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} index
   * @param {number} channel
   */
  drawMap(canvas, index, channel) {
    const pass = /** @type {Pass} */ (this.pass);
    const values = valuesOf(pass, index);
    if (values) drawChannel(canvas, pass.network.maps(index), values, channel);
  }

  /** @param {number} index */
  title(index) {
    return index < 0 ? t("walk.image") : /** @type {Pass} */ (this.pass).network.layers[index].name;
  }

  /**
   * Goes to a number of a layer; the image is shown where it is, so there is nothing to go to.
   * @param {number} index
   * @param {Place} place
   */
  go(index, { row, column, channel }) {
    if (index < 0) return;
    this.input = null;
    this.guide.store.set({ layer: index, channel, place: [row, column] });
  }

  showLayers() {
    const { network } = /** @type {Pass} */ (this.pass);
    this.thumbnails = [];
    const options = network.layers.map((layer, value) => ({
      value,
      label: this.describe(layer),
      content: [
        element("strong", {}, layer.name),
        element("span", { class: "thumbnails", "aria-hidden": "true" }, ...this.thumbnailsOf(layer)),
        element("span", { class: "kind" }, layer.type),
        element("span", { class: "fact" }, hidden(this.guide.quiz, `shape ${value}`) ? "?" : shapeText(layer.shape)),
        element("span", { class: "fact" }, this.sizes(layer)),
      ],
    }));
    this.parts.layers.replaceChildren(
      choice(t("walk.chooseLayer"), "walk-layer", "layer-row", options, this.state.layer, (index) => this.chooseLayer(index)),
    );
  }

  /** @param {Layer} layer */
  describe(layer) {
    const facts = { name: layer.name, type: layer.type, shape: shapeText(layer.shape), parameters: layer.parameters, products: layer.cost };
    return this.guide.quiz.on ? `${layer.name}, ${facts.type}` : t("walk.layerLabel", facts);
  }

  /** @param {Layer} layer */
  sizes(layer) {
    const { parameters } = layer;
    if (!parameters && !layer.cost) return t("walk.nothingLearnt");
    const shown = hidden(this.guide.quiz, `parameters ${layer.index}`) ? "?" : counted(parameters);
    return t("walk.sizes", { parameters: shown, products: counted(layer.cost) });
  }

  /** @param {Layer} layer */
  thumbnailsOf(layer) {
    const shape = mapsOf(layer);
    const maps = shape.length === 3 ? Math.min(THUMBNAILS, shape[2]) : 1;
    return Array.from({ length: maps }, (_, channel) => {
      const canvas = element("canvas", { width: 1, height: 1 });
      const draw = () => {
        const values = valuesOf(/** @type {Pass} */ (this.pass), layer.index);
        if (!values) return;
        if (shape.length === 3) drawChannel(canvas, shape, values, channel);
        else drawUnits(canvas, values);
      };
      this.thumbnails.push(draw);
      draw();
      return canvas;
    });
  }

  // Begins where there is something to see: at the largest value of the layer, or of one of its maps.
  /** @param {number} index @param {number | null} [only] */
  chooseLayer(index, only = null) {
    const pass = /** @type {Pass} */ (this.pass);
    const values = valuesOf(pass, index);
    const shape = pass.network.maps(index);
    const depth = shape[shape.length - 1];
    const units = pass.network.layers[index].settings.units;
    let best = only ?? units?.[0] ?? 0;
    values?.forEach((value, flat) => {
      const channel = flat % depth;
      if (units && only === null && !units.includes(channel)) return;
      if (only === null ? shape.length === 3 && channel >= MOST_MAPS : channel !== only) return;
      if (value > values[best]) best = flat;
    });
    this.go(index, placeAt(shape, best));
  }

  showLayer() {
    if (!this.pass) return;
    const radio = this.parts.layers.querySelector(`input[value="${this.state.layer}"]`);
    if (radio) /** @type {HTMLInputElement} */ (radio).checked = true;
    const card = radio?.closest("label");
    if (card) showInRow(card);
    this.input = null;
    this.showMaps();
    this.showNumber();
  }

  showMaps() {
    this.maps.clear();
    const shape = mapsOf(this.layer);
    if (shape.length !== 3 || !valuesOf(/** @type {Pass} */ (this.pass), this.state.layer)) {
      this.parts.maps.replaceChildren();
      return;
    }
    const options = Array.from({ length: Math.min(shape[2], MOST_MAPS) }, (_, channel) => {
      const canvas = element("canvas");
      this.maps.set(channel, canvas);
      this.drawMap(canvas, this.state.layer, channel);
      return { value: channel, content: [canvas], label: t("walk.map", { channel }) };
    });
    const legend = t(shape[2] > MOST_MAPS ? "walk.chooseFirstMaps" : "walk.chooseMap", { count: shape[2], layer: this.layer.name, shown: MOST_MAPS });
    this.parts.maps.replaceChildren(
      choice(legend, "walk-map", "grid", options, this.state.channel, (channel) => this.chooseLayer(this.state.layer, channel)),
      element("p", { class: "hint" }, t("walk.grey"), " ", term("featureMap")),
    );
  }

  showNumber() {
    if (!this.pass) return;
    const radio = this.parts.maps.querySelector(`input[value="${this.state.channel}"]`);
    if (radio) /** @type {HTMLInputElement} */ (radio).checked = true;
    const found = recompute(this.pass, this.state.layer, this.place);
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const inside = this.home.contains(focused);
    this.showPlaces(found);
    this.showArithmetic(found);
    this.showWayBack();
    if (!focused || !inside || focused.isConnected) return;
    // What led here is drawn anew, or gone: the reader goes on from the number.
    const again = /** @type {HTMLElement | null} */ (this.home.querySelector(`[data-focus="${focused.dataset.focus}"]`));
    (again ?? this.parts.pane).focus({ preventScroll: true });
  }

  // The image with what the number depends on, what enters the layer with the window, and the map with the place.
  /** @param {Recomputed | null} found */
  showPlaces(found) {
    const pass = /** @type {Pass} */ (this.pass);
    const { layer, place } = this;
    const image = element("canvas");
    drawInput(image, pass.network.input, pass.image);
    const field = receptiveField(pass.network, layer.index, place);
    const size = { height: field.height, width: field.width };
    const figures = [figure(frame(image, field, t("walk.fieldLabel", size)), t("walk.field", size), " ", term("receptiveField"))];
    const [input] = layer.inputs;
    const window = reachOf(layer);
    const values = valuesOf(pass, input);
    if (window && values && pass.network.shape(input).length === 3 && input >= 0) {
      const channel = this.enteringChannel(found);
      const canvas = element("canvas");
      drawChannel(canvas, pass.network.shape(input), values, channel);
      const words = t("walk.mapOf", { channel, layer: this.title(input) });
      figures.push(figure(frame(canvas, windowBox(window, place), words), `${t("walk.enters")}: ${words}`));
    }
    if (valuesOf(pass, layer.index)) figures.push(this.chosenMap());
    this.parts.places.replaceChildren(
      element("p", { class: "step" }, t(mapsOf(layer).length === 3 ? "walk.choosePixel" : "walk.chooseUnit")),
      element("div", { class: "places" }, ...figures),
      this.controls(),
    );
  }

  // Which channel of what enters is shown: the one asked for, or the one that adds most.
  /** @param {Recomputed | null} found */
  enteringChannel(found) {
    if (!found?.terms) return 0;
    return this.termShown(found).channel;
  }

  /** @param {Recomputed} found */
  termShown(found) {
    const terms = found.terms ?? [];
    const asked = terms.find((one) => one.channel === this.input);
    return asked ?? terms.reduce((most, one) => (Math.abs(one.subtotal) > Math.abs(most.subtotal) ? one : most));
  }

  // A box around one number, as its layer is drawn.
  /** @param {readonly number[]} shape @param {Place} place */
  boxAround(shape, { row, column, channel }) {
    const across = unitsAcross(shape[0]);
    const [top, left] = shape.length === 3 ? [row, column] : [Math.floor(channel / across), channel % across];
    return { top, left, height: 1, width: 1 };
  }

  // The map that was chosen, enlarged; a click or the arrow keys choose a pixel of it.
  chosenMap() {
    const pass = /** @type {Pass} */ (this.pass);
    const { layer, place } = this;
    const values = /** @type {Float32Array} */ (valuesOf(pass, layer.index));
    const shape = mapsOf(layer);
    const spatial = shape.length === 3;
    const canvas = element("canvas");
    const { low, high } = spatial ? drawChannel(canvas, shape, values, place.channel) : drawUnits(canvas, values);
    const across = spatial ? shape[1] : unitsAcross(values.length);
    const down = spatial ? shape[0] : Math.ceil(values.length / across);
    const box = this.boxAround(shape, place);
    const words = spatial ? t("walk.mapOf", { channel: place.channel, layer: layer.name }) : t("walk.unitsOf", { layer: layer.name });
    const framed = frame(canvas, box, words);
    const choose = (/** @type {number} */ row, /** @type {number} */ column) => {
      if (row < 0 || column < 0 || row >= down || column >= across) return;
      if (!spatial && row * across + column >= values.length) return;
      this.go(layer.index, spatial ? { row, column, channel: place.channel } : { row: 0, column: 0, channel: row * across + column });
    };
    framed.classList.add("clickable");
    framed.tabIndex = 0;
    framed.dataset.focus = "map";
    framed.setAttribute("role", "application");
    framed.setAttribute("aria-label", t("walk.mapKeys", { what: words, where: this.where() }));
    framed.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      const area = framed.getBoundingClientRect();
      choose(Math.min(Math.floor(((event.clientY - area.top) / area.height) * down), down - 1), Math.min(Math.floor(((event.clientX - area.left) / area.width) * across), across - 1));
    });
    framed.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const [y, x] = STEPS[event.key] ?? [0, 0];
      if (!x && !y) return;
      event.preventDefault();
      choose(box.top + y, box.left + x);
    });
    return figure(framed, t("walk.comesOut", { what: words, low: short(low), high: short(high) }));
  }

  controls() {
    const shape = mapsOf(this.layer);
    const control = (/** @type {string} */ name, /** @type {number} */ value, /** @type {number} */ most, /** @type {(value: number) => void} */ choose) => {
      const input = element("input", { type: "number", min: 0, max: most - 1, value, inputmode: "numeric", "data-focus": name });
      input.addEventListener("input", () => {
        const typed = Number.parseInt(input.value, 10);
        if (typed >= 0 && typed < most) choose(typed);
      });
      return element("label", {}, `${t(`walk.${name}`)} `, input);
    };
    const { row, column, channel } = this.place;
    const { index } = this.layer;
    const parts =
      shape.length === 3
        ? [control("row", row, shape[0], (value) => this.go(index, { row: value, column, channel })), control("column", column, shape[1], (value) => this.go(index, { row, column: value, channel }))]
        : [control("unit", channel, shape[0], (value) => this.go(index, { row, column, channel: value }))];
    return element("p", { class: "controls" }, ...parts);
  }

  where() {
    const { row, column, channel } = this.place;
    if (mapsOf(this.layer).length === 3) return t("walk.wherePixel", { row, column, channel });
    const { layers } = /** @type {Pass} */ (this.pass).network;
    const name = this.layer.index === layers.length - 1 ? this.guide.classes[channel] : undefined;
    return t("walk.whereUnit", { unit: channel }) + (name === undefined ? "" : ` (${name})`);
  }

  /** @param {Recomputed | null} found */
  showArithmetic(found) {
    const pass = /** @type {Pass} */ (this.pass);
    const { layer } = this;
    const heading = element("h3", {}, `${layer.name}: ${this.where()}`);
    if (!found) {
      const own = valuesOf(pass, layer.index)?.[flatIndex(mapsOf(layer), this.place)];
      const words = own === undefined ? t("walk.leftOut", { layer: layer.name }) : t("walk.ownNumber", { value: precise(own) });
      this.parts.pane.replaceChildren(heading, element("p", {}, `${words} ${this.obstacle()}`));
      return;
    }
    this.parts.said.textContent = `${layer.name}, ${this.where()}: ${this.guide.quiz.on ? "?" : short(found.own)}`;
    this.parts.pane.replaceChildren(heading, ...this.questions(), ...this.explain(found), this.verdict(found));
  }

  // Why a number cannot be recomputed.
  obstacle() {
    const { layer, place } = this;
    const { changes } = /** @type {Pass} */ (this.pass);
    if (changes.off?.includes(layer.index)) return t("walk.off");
    if (changes.zeroed?.some((one) => one.layer === layer.index && one.channel === place.channel)) return t("walk.zeroed");
    const { units, missing } = layer.settings;
    if (missing) return t("walk.missing");
    if (units && !units.includes(place.channel)) return t("walk.someUnits", { count: units.length, units: units.join(", ") });
    if (!valuesOf(/** @type {Pass} */ (this.pass), layer.inputs[0])) return t("walk.tooMany");
    return layer.reason ? t(layer.reason) : t("walk.noArithmetic", { type: layer.type });
  }

  // In the quiz, a layer asks for its shape and its parameters.
  questions() {
    const { quiz } = this.guide;
    const { layer } = this;
    const asked = [
      quiz.ask(`shape ${layer.index}`, t("quiz.shape"), layer.shape),
      layer.parameters ? quiz.ask(`parameters ${layer.index}`, t("quiz.parameters"), [layer.parameters]) : null,
    ].filter(Boolean);
    return asked.length ? [element("div", { class: "questions" }, ...asked)] : [];
  }

  /**
   * @param {Recomputed} found
   * @returns {HTMLElement[]}
   */
  explain(found) {
    const { layer } = this;
    if (found.steps) return this.explainSteps(found);
    if (found.products) return [...this.looks(found), this.largestProducts(found), this.sumUp(found)];
    if (found.count !== undefined) return this.explainPooling(found);
    if (found.terms) return this.explainConvolution(found);
    if (layer.kind === "activation") return [this.equation([[t("walk.enters"), found.sum], [layer.activation ?? "", found.result, "result"]])];
    return [element("p", {}, t("walk.unchanged", { type: layer.type }))];
  }

  /** @param {Recomputed} found */
  explainPooling(found) {
    const { layer } = this;
    const [patch] = (found.terms ?? []).map((term_) => term_.patch);
    const how = { max: "max", average: "mean" }[layer.kind] ?? layer.settings.how;
    const largest = how === "max";
    const table = patch && patch.flat().length <= LARGEST_GRID ? [element("div", { class: "tables" }, numbers(t("walk.patch"), patch, largest && !this.guide.quiz.on ? found.result : null, this.into(found)))] : [];
    const lines = /** @type {Line[]} */ (how === "mean" ? [["Σ", found.sum], [`Σ / ${found.count}`, found.result, "result"]] : [[how === "sum" ? "Σ" : how, found.result, "result"]]);
    return [element("p", {}, t(`walk.${patch ? "window" : "reduce"}.${how}`, { count: found.count ?? 0 })), ...table, this.equation(lines)];
  }

  // Where an attention looks: how much it takes from each place of the sequence.
  /** @param {Recomputed} found */
  looks({ looks }) {
    if (!looks) return [];
    const { layer } = this;
    const shape = asMaps([looks.length, 1]);
    const canvas = element("canvas");
    const { low, high } = drawChannel(canvas, shape, looks, 0);
    const words = t("walk.looks", { low: short(low), high: short(high) });
    const from = /** @type {Pass} */ (this.pass).network.maps(layer.inputs[layer.settings.roles[1]]);
    const box = shape[0] === from[0] && layer.inputs[0] === layer.inputs[layer.settings.roles[1]] ? this.boxAround(shape, { ...this.place, channel: 0 }) : null;
    return [element("div", { class: "places" }, figure(frame(canvas, box, words), words, " ", term("attention")))];
  }

  /** @param {Recomputed} found */
  explainSteps(found) {
    const { layer } = this;
    const lines = (found.steps ?? []).map(([what, value]) => /** @type {Line} */ ([t(what), value]));
    const merge = layer.inputs.length > 1 ? [element("p", {}, t(`walk.merge.${layer.kind}`))] : [];
    const normal = layer.kind.endsWith("normalization") && layer.settings.centred !== false ? [element("p", {}, t("walk.normalized", { epsilon: scientific(layer.settings.epsilon) }), " ", term("normalization"))] : [];
    return [...merge, ...normal, this.equation([...lines, ["=", found.result, "result"]])];
  }

  /** @param {Recomputed} found */
  explainConvolution(found) {
    const term_ = this.termShown(found);
    const weights = /** @type {number[][]} */ (term_.weights);
    const parts = [];
    if ((found.terms?.length ?? 0) > 1) parts.push(this.channelChoice(found));
    if (weights.flat().length <= LARGEST_GRID) {
      const products = term_.patch.map((line, y) => line.map((value, x) => (value ?? 0) * weights[y][x]));
      const behind = (/** @type {string} */ sign, /** @type {HTMLElement} */ table) => element("span", { class: "behind" }, element("span", { class: "sign", "aria-hidden": "true" }, sign), table);
      parts.push(element("div", { class: "tables" }, numbers(t("walk.patch"), term_.patch, null, this.into(found)), behind("×", numbers(t("walk.kernel"), weights)), behind("=", numbers(t("walk.products"), products))));
    }
    parts.push(this.sumUp(found));
    return parts;
  }

  // A number of the patch leads to the number of the layer before that it is; none leads into the image.
  /** @param {Recomputed} found */
  into(found) {
    const [input] = this.layer.inputs;
    if (input < 0) return null;
    const window = /** @type {import("./places.js").Reach} */ (reachOf(this.layer));
    const { top, left } = windowBox(window, this.place);
    const { channel } = this.termShown(found);
    return (/** @type {number} */ row, /** @type {number} */ column) => this.go(input, { row: top + row * window.dilation[0], column: left + column * window.dilation[1], channel });
  }

  /** @param {Recomputed} found */
  channelChoice(found) {
    const terms = found.terms ?? [];
    const shown = this.termShown(found);
    const options = terms.map((one) => element("option", { value: one.channel, selected: one === shown }, `${one.channel}: ${short(one.subtotal)}`));
    const select = element("select", { "data-focus": "input channel" }, ...options);
    select.addEventListener("change", () => {
      this.input = Number(select.value);
      this.showNumber();
    });
    return element("p", { class: "controls" }, element("label", {}, `${t("walk.inputChannel", { count: terms.length })} `, select));
  }

  /** @param {Recomputed} found */
  sumUp(found) {
    const { layer } = this;
    const count = found.products?.length ?? (found.terms ?? []).reduce((all, one) => all + one.patch.flat().length, 0);
    /** @type {Line[]} */
    const lines = [];
    if ((found.terms?.length ?? 0) > 1) lines.push([t("walk.sumOfChannel", { channel: this.termShown(found).channel }), this.termShown(found).subtotal]);
    const plain = found.bias === null && !layer.activation;
    lines.push([t("walk.sumOfAll", { count }), found.sum, plain ? "result" : "sum"]);
    if (found.bias !== null) {
      lines.push([t("walk.bias"), found.bias, "bias"]);
      // With it, the sum above it would be no riddle.
      const told = layer.activation && !hidden(this.guide.quiz, `sum ${this.key}`);
      if (told || !layer.activation) lines.push(["=", found.sum + found.bias, told ? undefined : "result"]);
    }
    if (layer.activation) lines.push([layer.activation === "softmax" ? t("walk.softmax") : (layer.activation ?? ""), found.result, "result"]);
    return this.equation(lines);
  }

  // A dense layer has too many products for a table; the largest ones carry the sum.
  /** @param {Recomputed} found */
  largestProducts(found) {
    const { layer } = this;
    const products = [...(found.products ?? [])].sort((one, other) => Math.abs(other.product) - Math.abs(one.product));
    const shown = products.slice(0, LIST);
    const rest = products.length - shown.length;
    const other = found.sum - shown.reduce((all, one) => all + one.product, 0);
    const source = (/** @type {import("./arithmetic.js").Product} */ { unit, spot }) => (spot ? this.link(spot) : t(layer.kind === "attention" ? "walk.sourceGathered" : "walk.sourceChannel", { unit }));
    const rows = shown.map((one) => element("tr", {}, element("th", { scope: "row" }, source(one)), ...[one.value, one.weight, one.product].map((number) => element("td", {}, short(number)))));
    if (rest > 0) rows.push(element("tr", {}, element("th", { scope: "row", colspan: 3 }, t("walk.others", { count: rest })), element("td", {}, short(other))));
    const head = element("tr", {}, ...["walk.input", "walk.value", "walk.weight", "walk.product"].map((key) => element("th", { scope: "col" }, t(key))));
    return element("table", { class: "terms" }, element("caption", {}, t("walk.largest")), element("thead", {}, head), element("tbody", {}, ...rows));
  }

  // What leads to a number: where it comes from, seen through flattening. The image is shown, not walked to.
  /** @param {Spot} spot @param {string} [after] */
  link(spot, after = "") {
    const { network } = /** @type {Pass} */ (this.pass);
    const { layer, place } = originOf(network, spot);
    const { row, column, channel } = place;
    if (layer < 0) return t("walk.sourceImage", { row, column, channel }) + after;
    const where = network.maps(layer).length === 3 ? t("walk.sourcePixel", { row, column, channel }) : t("walk.sourceUnit", { unit: channel });
    const words = `${this.title(layer)} ${where}${after}`;
    return element("button", { type: "button", class: "link", click: () => this.go(layer, place) }, words);
  }

  /** @typedef {[string, number, string?]} Line  What it is, the number, and the name that the quiz knows it by. */

  /** @param {Line[]} lines */
  equation(lines) {
    const { quiz } = this.guide;
    const { key } = this;
    const parts = lines.flatMap(([what, value, name = ""]) => {
      const shown = (HIDDEN.includes(name) && quiz.ask(`${name} ${key}`, what, value)) || precise(value);
      const answered = shown instanceof HTMLElement;
      return [element("dt", {}, what), element("dd", { "data-value": answered ? null : value, "data-what": name || null }, shown)];
    });
    return element("dl", { class: "equation" }, ...parts);
  }

  /** @param {Recomputed} found */
  verdict(found) {
    const { quiz } = this.guide;
    if (quiz.on && hidden(quiz, `result ${this.key}`)) return element("p", { class: "hint" }, t("quiz.hint"));
    return (this.guide.judge ?? ((_, __, one) => compared(one)))(/** @type {Pass} */ (this.pass), this.state.layer, found, this.place);
  }

  // Layer after layer backwards to the image, each step to the number that counts most.
  showWayBack() {
    const pass = /** @type {Pass} */ (this.pass);
    const [, ...all] = wayBack(pass, this.state.layer, this.place);
    const steps = all.filter(({ layer }) => pass.network.layers[layer]?.kind !== "same"); // it is the number before
    const items = steps.map((spot) => {
      const shape = pass.network.maps(spot.layer);
      const values = /** @type {Float32Array} */ (valuesOf(pass, spot.layer));
      const canvas = element("canvas");
      if (shape.length === 3) drawChannel(canvas, shape, values, spot.place.channel);
      else drawUnits(canvas, values);
      const picture = frame(canvas, this.boxAround(shape, spot.place), this.title(spot.layer));
      const link = this.link(spot, `: ${short(values[flatIndex(shape, spot.place)])}`);
      if (link instanceof HTMLElement) link.dataset.focus = "back"; // Enter goes on, step after step
      return element("li", {}, picture, link);
    });
    this.parts.back.replaceChildren(...(items.length ? [element("h4", {}, t("walk.back")), element("p", { class: "hint" }, t("walk.backHint")), element("ol", { class: "chain" }, ...items)] : []));
  }
}

/** @param {Recomputed} found @returns {HTMLElement} */
export function compared(found) {
  const equal = found.difference <= TOLERANCE * Math.max(1, Math.abs(found.own));
  const words = t(equal ? "walk.equal" : "walk.different", { result: precise(found.result), own: precise(found.own), difference: found.difference ? scientific(found.difference) : "0" });
  return judged(equal, words, found);
}

/** @param {boolean} equal @param {string} words @param {Recomputed} found @returns {HTMLElement} */
export function judged(equal, words, found) {
  return element("p", { class: `verdict ${equal ? "equal" : "different"}`, "data-difference": found.difference }, `${equal ? "✓" : "✗"} ${words}`);
}

/**
 * The section of the explorer.
 * @param {HTMLElement} root
 * @param {import("./main.js").App} app
 */
export function mountWalk(root, { engine, store, classes }) {
  const home = element("div", { class: "walk" });
  const score = element("p", { class: "quiz-score", role: "status" });
  root.append(element("h2", { "data-t": "walk.title" }), element("p", { "data-t": "walk.lead" }), score, home);
  translate(root);
  const pass = () => {
    const { result, changes } = store.state;
    return result?.outputs && result.image ? { network: engine.network, image: result.image, outputs: result.outputs, changes } : null;
  };
  const input = () => /** @type {Float32Array} */ (store.state.input);
  quiz.subscribe(() => (score.textContent = quiz.on ? quiz.score() : ""));
  new Walk(home, {
    store,
    classes,
    quiz,
    pass,
    gradCam: (target) => engine.gradCam(input(), target, { changes: store.state.changes }),
    occlusion: (target) => engine.occlusion(input(), target, { changes: store.state.changes }),
  });
}
