// What the network makes of the current image: beside every section.

import { element, paint } from "./dom.js";
import { percent, t, translate } from "./texts.js";
import { driftWarnings } from "./unlike.js";

/** @typedef {import("./main.js").App} App */

// Up to so many classes all stand in their order, so that a bar moves and not its place; of more, the first ones.
const ALL = 12;
const RANKED = 8;
// A probability that the changes moved by less has no mark.
const MOVED = 0.005;
// The screen reader hears what stays for so long, in milliseconds.
const CALM = 700;

/**
 * @param {HTMLElement} root
 * @param {App} app
 */
export function mountNow(root, app) {
  const { store, classes } = app;
  const seen = element("canvas", { role: "img" });
  const size = `${app.size.height} × ${app.size.width} × ${app.size.channels}`;
  const caption = element("figcaption", {}, element("span", { "data-t": "now.seen" }), ` ${size}`);
  const top = element("p", { class: "top" });
  const truth = element("p", { class: "truth-line" });
  const changed = element("p", { class: "changed-now" });
  const list = element("ol", { class: "bars" });
  const rows = Array.from({ length: Math.min(classes.length, classes.length > ALL ? RANKED : ALL) }, () => {
    const [name, bar, was, share] = [element("span", { class: "class" }), element("i"), element("u"), element("b")];
    const row = element("li", {}, name, element("span", { class: "bar", "aria-hidden": "true" }, bar, was), share);
    list.append(row);
    return { row, name, bar, was, share };
  });
  const warnings = element("ul", { class: "warnings", id: "warnings" });
  root.append(
    element("figure", { class: "seen" }, seen, caption),
    element("div", { class: "verdict-now" }, top, truth, changed),
    list,
    warnings,
  );

  let announcing = 0;
  const announce = (/** @type {string} */ sentence) => {
    clearTimeout(announcing);
    announcing = window.setTimeout(() => {
      const live = /** @type {HTMLElement} */ (document.getElementById("live"));
      if (live.textContent !== sentence) live.textContent = sentence;
    }, CALM);
  };

  const showImage = () => {
    const { pixels } = store.state;
    if (!pixels) return;
    paint(seen, alteredPixels(app) ?? pixels, app.size);
    seen.setAttribute("aria-label", t("now.seen-label", { size }));
  };

  // What is visibly wrong with an image is also why the network does not know it: said once.
  const showWarnings = () => {
    const { pixels, image, changes, result } = store.state;
    let found = blank(image) || !pixels || !app.unlike ? [] : driftWarnings(pixels, app.size, app.unlike);
    if (!found.length && !blank(image) && app.novelty && result?.features && !Object.keys(changes).length)
      found = [app.novelty.warning(app.novelty.distance(result.features))].filter(Boolean);
    warnings.replaceChildren(...found.map((sentence) => element("li", {}, sentence)));
    warnings.hidden = found.length === 0;
  };

  const showResult = () => {
    const { result, image, changes, before, trained } = store.state;
    if (!result) return;
    const altered = Object.keys(changes).length > 0;
    const note = (/** @type {string} */ section, /** @type {string} */ text) => element("button", { type: "button", class: "link", click: () => store.set({ section }) }, t(text));
    changed.replaceChildren(...(altered ? [note("change", "now.changed")] : []), ...(trained ? [note("train", "now.trained")] : []));
    const { probabilities } = result;
    list.hidden = !probabilities;
    if (!probabilities) {
      // A layer that only shows what was recorded has nothing to say about another image.
      top.textContent = t("now.not-live");
      truth.textContent = "";
      return;
    }
    const order = Array.from(probabilities.keys()).sort((one, other) => probabilities[other] - probabilities[one]);
    const best = order[0];
    const shown = classes.length > ALL ? order.slice(0, RANKED) : [...order].sort((one, other) => one - other);
    shown.forEach((index, place) => {
      const { row, name, bar, was, share } = rows[place];
      was.hidden = !altered || !before || Math.abs(before[index] - probabilities[index]) < MOVED;
      if (before) was.style.left = `${100 * before[index]}%`;
      name.textContent = classes[index];
      name.title = classes[index];
      bar.style.width = `${100 * probabilities[index]}%`;
      share.textContent = percent(probabilities[index]);
      row.classList.toggle("best", index === best && !blank(image));
    });
    list.setAttribute("aria-label", t("now.probabilities"));
    if (blank(image)) {
      top.textContent = t("now.blank");
      truth.textContent = "";
      announce("");
      return;
    }
    top.replaceChildren(element("strong", {}, classes[best]), ` ${percent(probabilities[best])}`);
    truth.textContent = "";
    truth.className = "truth-line";
    if (image.kind === "test") {
      const name = classes[app.images.labels[image.index]];
      const right = app.images.labels[image.index] === best;
      truth.textContent = right ? t("now.right", { name }) : t("now.wrong", { name });
      truth.classList.add(right ? "right" : "wrong");
    }
    announce(t("now.announce", { name: classes[best], share: percent(probabilities[best]) }));
  };

  translate(root);
  const title = () => root.setAttribute("aria-label", t("now.title"));
  store.subscribe((_, changed) => {
    if (changed.has("result") || changed.has("language")) showWarnings();
    if (changed.has("language")) title();
    if (["pixels", "result", "language"].some((key) => changed.has(key))) showImage();
    if (["result", "before", "changes", "trained", "language"].some((key) => changed.has(key))) showResult();
  });
  title();
  showImage();
  showResult();
  mountCorrection(root, app);
}

/** The image with its noise, shift and turn, in grey levels; null for one as it was. @param {App} app */
function alteredPixels({ store, engine }) {
  const { result, changes } = store.state;
  if (!result || !(changes.noise || changes.shift || changes.turn)) return null;
  const { scale, offset, limits, channels } = engine.preprocessing;
  return Uint8ClampedArray.from(result.image, (value, at) =>
    scale.length > channels && limits
      ? (255 * (value - limits[0])) / (limits[1] - limits[0])
      : (value - offset[at % offset.length]) / scale[at % scale.length],
  );
}

/** Tell whether nothing was drawn yet. @param {import("./state.js").ImageChoice} image */
function blank(image) {
  return image.kind === "drawing" && image.strokes.length === 0;
}

/**
 * "That is a 7": kept by the server of this page, for the next training. A page from a file has none.
 * @param {HTMLElement} root
 * @param {App} app
 */
async function mountCorrection(root, app) {
  if (!location.protocol.startsWith("http")) return;
  const answer = await fetch("corrections").catch(() => null);
  if (!answer?.ok || (await answer.json()).kept === null) return;
  const choice = /** @type {HTMLSelectElement} */ (element("select"));
  choice.append(new Option("–", ""), ...app.classes.map((name) => new Option(name, name)));
  const told = element("span", { role: "status" });
  root.append(element("p", { class: "correction" }, element("label", {}, element("span", { "data-t": "correct.label" }), " ", choice), " ", told));
  document.querySelector('[data-t="draw.private"]')?.setAttribute("data-t", "correct.sent");
  translate(document.body);
  app.store.subscribe((_, changed) => {
    if (changed.has("pixels")) told.textContent = choice.value = "";
  });
  choice.addEventListener("change", async () => {
    const { pixels } = app.store.state;
    const label = choice.value;
    if (!label || !pixels) return;
    const canvas = document.createElement("canvas");
    paint(canvas, pixels, app.size);
    const body = JSON.stringify({ image: canvas.toDataURL("image/png"), label });
    const headers = { "Content-Type": "application/json" };
    const sent = await fetch("corrections", { method: "POST", headers, body }).catch(() => null);
    const { kept, detail } = (await sent?.json().catch(() => null)) ?? {};
    told.textContent = sent?.ok ? t("correct.kept", { label, kept }) : String(detail ?? t("correct.lost"));
  });
}
