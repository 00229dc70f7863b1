// The page: reads what it carries, starts the network, and keeps image, prediction and link up to date.

import { mountChange } from "./change.js";
import { element } from "./dom.js";
import { findConvention, layStrokes, paintStrokes } from "./drawing.js";
import { mountDraw } from "./draw.js";
import { Engine } from "./engine.js";
import { mountLearn } from "./learn.js";
import { mountNow } from "./now.js";
import { resize, scale } from "./preprocess.js";
import { fromFragment, Store, toFragment } from "./state.js";
import { LANGUAGES, language, number, setLanguage, t, translate } from "./texts.js";
import { mountTrain } from "./train.js";
import { Novelty } from "./unlike.js";
import { mountWalk } from "./walk.js";

/**
 * What every section is given.
 * @typedef {object} App
 * @property {any} payload
 * @property {Engine} engine
 * @property {Store} store
 * @property {string[]} classes
 * @property {{height: number, width: number, channels: number}} size
 * @property {TestImages} images
 * @property {import("./drawing.js").Convention | null} convention
 * @property {boolean} dark  whether one draws light on dark
 * @property {import("./unlike.js").Unlike | null} unlike
 * @property {import("./unlike.js").Novelty | null} novelty
 * @property {(file: Blob & {name?: string}) => Promise<void>} takePicture
 * @property {(video: HTMLVideoElement) => void} takeFrame
 * @property {(sentence: string) => void} complain
 * @property {() => void} writeLink
 * @property {() => Promise<void>} settled  waits until the prediction is that of the state
 *
 * @typedef {object} TestImages
 * @property {number} count
 * @property {ArrayLike<number>} labels
 * @property {string[]} ids
 * @property {(index: number) => Uint8Array} pixels
 * @property {(index: number) => number} truth  recorded probability of the true class
 * @property {(index: number) => boolean} wrong
 */

/** The sections in their order: a tab each, filled when it is first opened.
 * @type {Record<string, (root: HTMLElement, app: App) => void>} */
const SECTIONS = { draw: mountDraw, walk: mountWalk, change: mountChange, train: mountTrain, learn: mountLearn };

const THEMES = ["auto", "light", "dark"];
// A browser allows about a hundred changes of the address in half a minute.
const LINK_PAUSE = 400;
// Pixels on each side of a network's pixel in the canvas that a drawing is measured and resized from.
const DETAIL = 280;

async function start() {
  const payload = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("payload")).textContent ?? "");
  const size = payload.input;
  const each = size.height * size.width * size.channels;
  const initial = firstState();
  const store = new Store({ ...initial });
  applyLanguage(store);
  applyTheme(store);

  const engine = await Engine.start(payload);
  const images = testImages(engine, each);
  const convention = findConvention(Array.from({ length: images.count }, (_, index) => images.pixels(index)), size);
  const limits = {
    sections: Object.keys(SECTIONS),
    languages: LANGUAGES.map(([code]) => code),
    images: images.count,
    classes: payload.classes.length,
    pixels: each,
    layers: engine.network.layers,
  };
  initial.layer = store.state.layer = engine.network.layers.findIndex((layer) => Object.keys(layer.weights).length > 0 && layer.live);
  if (initial.layer < 0) initial.layer = store.state.layer = 0;
  if (images.count) initial.image = store.state.image = { kind: "test", index: 0 };

  const complain = (/** @type {string} */ sentence) => {
    const place = document.getElementById("picture-problem");
    if (!place) return;
    place.textContent = sentence;
    place.hidden = !sentence;
  };
  const unlike = payload.unlike ?? null;
  const dark = convention?.dark ?? (!unlike || unlike.ranges.border[1] < 128);
  const toPixels = pixelMaker(engine, images, size, convention, dark);
  const writeLink = () => {
    const fragment = toFragment(store.state, initial);
    try {
      history.replaceState(null, "", `#${fragment}`);
    } catch {
      // some browsers refuse it to a page from a file: the page works without
    }
  };
  const keepPicture = (/** @type {CanvasImageSource} */ source, /** @type {number} */ wide, /** @type {number} */ high, /** @type {string} */ name, merge = "") => {
    const canvas = element("canvas");
    canvas.width = wide;
    canvas.height = high;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff"; // what is transparent lies on white
    context.fillRect(0, 0, wide, high);
    context.drawImage(source, 0, 0);
    const pixels = resize(context.getImageData(0, 0, wide, high).data, wide, high, engine.preprocessing);
    store.set({ image: { kind: "picture", name, pixels: toBase64(pixels) } }, merge);
  };
  /** @type {App} */
  const app = {
    payload,
    engine,
    store,
    classes: payload.classes,
    size,
    images,
    convention,
    dark,
    unlike,
    novelty: await Novelty.unpack(unlike?.novelty),
    complain,
    writeLink,
    settled: async () => {},
    takePicture: async (file) => {
      complain("");
      try {
        const bitmap = await createImageBitmap(file, {
          imageOrientation: "from-image",
          colorSpaceConversion: "none",
          premultiplyAlpha: "none", // else some formats are rounded once more
        });
        store.settle();
        keepPicture(bitmap, bitmap.width, bitmap.height, file.name || t("draw.pasted"));
        bitmap.close();
      } catch {
        complain(t("draw.unreadable", { name: file.name || t("draw.pasted") }));
      }
    },
    takeFrame: (video) => {
      if (video.videoWidth) keepPicture(video, video.videoWidth, video.videoHeight, t("draw.camera"), "camera");
    },
  };

  store.subscribe((state, changed) => {
    if (!changed.has("image")) return;
    complain("");
    const pixels = toPixels(state.image);
    store.set({ pixels, input: scale(pixels, engine.preprocessing) });
  });
  app.settled = keepPredicting(app);
  fillTabs(app);
  mountNow(/** @type {HTMLElement} */ (document.getElementById("now")), app);
  followKeys(app);
  followDrops(app);
  /** @type {any} */ (window).explorer = app;

  const arrive = () => store.set({ changes: {}, ...fromFragment(location.hash.slice(1), limits) });
  let waiting = 0;
  store.subscribe((_, changed) => {
    if (["pixels", "input", "result", "before", "trained", "theme"].some((key) => changed.has(key))) return;
    clearTimeout(waiting);
    waiting = window.setTimeout(writeLink, LINK_PAUSE);
  });
  window.addEventListener("hashchange", arrive);
  const { image, changes } = store.state;
  store.begin({ image, changes, ...fromFragment(location.hash.slice(1), limits) });
  show(app, store.state.section);
  showNotes(app);
  await showBadge(app);
  document.documentElement.dataset.ready = "true";
}

/** @param {Engine} engine @param {number} each  bytes of an image @returns {TestImages} */
function testImages({ payload, pixels, recorded }, each) {
  const { labels = [], names = [] } = payload.images;
  const classes = payload.classes.length;
  const row = (/** @type {number} */ index) => recorded.subarray(index * classes, (index + 1) * classes);
  return {
    count: labels.length,
    labels,
    ids: names,
    pixels: (index) => pixels.subarray(index * each, (index + 1) * each),
    truth: (index) => row(index)[labels[index]],
    wrong: (index) => row(index).indexOf(Math.max(...row(index))) !== labels[index],
  };
}

/** @returns {import("./state.js").State} */
function firstState() {
  return {
    image: { kind: "drawing", strokes: [], fitted: true },
    changes: {},
    section: "draw",
    layer: 0,
    channel: 0,
    place: [0, 0],
    class: null,
    language: navigator.language?.toLowerCase().startsWith("de") ? "de" : "en",
    theme: "auto",
    pixels: null,
    input: null,
    result: null,
    before: null,
    trained: null,
  };
}

/**
 * Make a function from what is chosen to uint8 pixels in the network's size.
 * @param {Engine} engine
 * @param {TestImages} images
 * @param {App["size"]} size
 * @param {App["convention"]} convention
 * @param {boolean} dark
 */
function pixelMaker(engine, images, size, convention, dark) {
  const { height, width } = size;
  const detail = Math.ceil(DETAIL / Math.max(height, width));
  const canvas = element("canvas");
  canvas.width = detail * width;
  canvas.height = detail * height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  return (/** @type {import("./state.js").ImageChoice} */ image) => {
    if (image.kind === "test") return images.pixels(image.index);
    if (image.kind === "picture") return fromBase64(image.pixels);
    const laid = convention && image.fitted ? layStrokes(image.strokes, convention, size, context) : undefined;
    paintStrokes(context, image.strokes, dark, laid);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return resize(data, canvas.width, canvas.height, engine.preprocessing);
  };
}

/**
 * Predict whenever image or network changes: one run at a time, the newest state next.
 * @param {App} app
 * @returns {() => Promise<void>} waits until the prediction is that of the state
 */
function keepPredicting({ store, engine }) {
  let wanted = false;
  /** @type {Promise<void> | null} */
  let running = null;
  const predict = async () => {
    while (wanted) {
      wanted = false;
      const { input, changes, section } = store.state;
      if (!input) continue;
      const all = section === "walk" || section === "learn";
      const result = await engine.run(input, { changes, all });
      if (result) store.set({ result });
      // What the network made of the image before it was changed can wait until nothing else does.
      if (wanted || !Object.keys(changes).length) continue;
      const before = await engine.run(input);
      if (before) store.set({ before: before.probabilities });
    }
    running = null;
  };
  store.subscribe((_, changed) => {
    if (!["input", "changes", "section", "trained"].some((key) => changed.has(key))) return;
    wanted = true;
    running ??= predict();
  });
  return async () => {
    while (running) await running;
  };
}

/** A tab for each section. @param {App} app */
function fillTabs(app) {
  const { store } = app;
  const tabs = /** @type {HTMLElement} */ (document.getElementById("tabs"));
  const panels = /** @type {HTMLElement} */ (document.getElementById("panels"));
  const names = Object.keys(SECTIONS);
  for (const name of names) {
    const tab = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": name, "data-t": `tab.${name}`, click: () => store.set({ section: name }) });
    tab.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const at = names.indexOf(name);
      const next = step ? names[(at + step + names.length) % names.length] : { Home: names[0], End: names[names.length - 1] }[event.key];
      if (!next) return;
      event.preventDefault();
      store.set({ section: next });
      document.getElementById(`tab-${next}`)?.focus();
    });
    tabs.append(tab);
    panels.append(element("section", { role: "tabpanel", id: name, "aria-labelledby": `tab-${name}`, hidden: true, class: "panel" }));
  }
  translate(document);
  store.subscribe((state, changed) => {
    if (changed.has("section")) show(app, state.section);
  });
}

/** Show a section. @param {App} app @param {string} section */
function show(app, section) {
  for (const name of Object.keys(SECTIONS)) {
    const [tab, panel] = [document.getElementById(`tab-${name}`), document.getElementById(name)];
    if (!tab || !panel) continue;
    const chosen = name === section;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    panel.hidden = !chosen;
    if (chosen && !panel.hasChildNodes()) SECTIONS[name](panel, app);
  }
}

/** Compare every layer with Python, and say how well they agree. @param {App} app */
async function showBadge({ engine, store }) {
  const badge = /** @type {HTMLElement} */ (document.getElementById("badge"));
  const found = await engine.check();
  const say = () => {
    const good = !found.layer;
    const worst = found.worst === 0 ? "0" : found.worst.toExponential(0);
    badge.classList.toggle("good", good);
    badge.classList.toggle("bad", !good);
    badge.replaceChildren(element("span", { "aria-hidden": "true", class: "mark" }, good ? "✓" : "✗"), t(good ? "badge.agrees" : "badge.differs", { worst, layer: found.layer }));
    badge.title = t("badge.hint");
  };
  say();
  store.subscribe((_, changed) => {
    if (changed.has("language")) say();
  });
}

/** Say in what the page is less exact than the run, to keep its file small. @param {App} app */
function showNotes({ payload, store }) {
  const notes = /** @type {HTMLElement} */ (document.getElementById("notes"));
  const { weights, rounding, images } = payload;
  const say = () => {
    const said = [];
    if (weights.bits < 32) said.push(t("frame.rounded", { bits: weights.bits }));
    if (rounding) said.push(t("frame.rounding", { same: rounding.same, images: rounding.images, largest: number(100 * rounding.largest, 2) }));
    if (images.jpegs?.length) said.push(t("frame.jpegs"));
    notes.textContent = said.join(" ");
  };
  say();
  store.subscribe((_, changed) => {
    if (changed.has("language")) say();
  });
}

/** @param {Store} store */
function applyTheme(store) {
  const root = document.documentElement;
  const button = /** @type {HTMLElement} */ (document.getElementById("theme"));
  const key = "convscope-explorer-theme";
  const apply = () => {
    const { theme } = store.state;
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    button.textContent = t(`frame.theme.${theme}`);
  };
  try {
    const kept = localStorage.getItem(key) ?? "auto";
    if (THEMES.includes(kept)) store.state.theme = kept;
  } catch {
    // a browser may refuse storage to a page opened from a file; the choice then lasts as long as the page
  }
  button.addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(store.state.theme) + 1) % THEMES.length];
    store.set({ theme });
    try {
      localStorage.setItem(key, theme);
    } catch {
      // as above
    }
  });
  store.subscribe((_, changed) => {
    if (changed.has("theme") || changed.has("language")) apply();
  });
  apply();
}

/** @param {Store} store */
function applyLanguage(store) {
  const select = /** @type {HTMLSelectElement} */ (document.getElementById("language"));
  for (const [code, name] of LANGUAGES) select.append(element("option", { value: code, lang: code }, name));
  const apply = () => {
    setLanguage(store.state.language);
    select.value = language();
    translate(document);
  };
  select.addEventListener("change", () => store.set({ language: select.value }));
  store.subscribe((_, changed) => {
    if (changed.has("language")) apply();
  });
  apply();
}

/** Undo and redo by the keys that everybody knows; a field keeps its own. @param {App} app */
function followKeys({ store }) {
  document.addEventListener("keydown", (event) => {
    const writing = event.target instanceof HTMLInputElement && ["text", "number"].includes(event.target.type);
    if (writing || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "z" && !event.shiftKey) store.undo();
    else if (key === "y" || key === "z") store.redo();
    else return;
    event.preventDefault();
  });
}

/** A picture may be dropped anywhere on the page, or pasted. @param {App} app */
function followDrops(app) {
  const take = (/** @type {FileList | undefined} */ files) => {
    const file = files?.[0];
    if (!file) return false;
    app.store.set({ section: "draw" });
    app.takePicture(file);
    return true;
  };
  const root = document.documentElement;
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    root.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) root.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("dropping");
    if (!take(event.dataTransfer?.files)) app.complain(t("draw.no-file"));
  });
  document.addEventListener("paste", (event) => {
    if (take(event.clipboardData?.files)) event.preventDefault();
  });
}

/** @param {string} text */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** @param {ArrayLike<number>} bytes */
function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at++) text += String.fromCharCode(bytes[at]);
  return btoa(text);
}

start();
