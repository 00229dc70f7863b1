// What speaks for and against a class: what the last feature maps add to its score, and where in the image.

import { contributions } from "./arithmetic.js";
import { element } from "./dom.js";
import { choice, drawInput, figure, frame, listed, overlay, precise, short } from "./figures.js";
import { term } from "./learn.js";
import { percent, t } from "./texts.js";

/** @typedef {import("./arithmetic.js").Pass} Pass */
/** @typedef {import("./places.js").Spot} Spot */

const LIST = 8;
const FEW_CLASSES = 12;

export class ClassView {
  /**
   * @param {HTMLElement} home
   * @param {import("./walk.js").Guide} guide
   * @param {(spot: Spot) => HTMLElement | string} link  What leads to a number of the walk.
   */
  constructor(home, guide, link) {
    this.home = home;
    this.guide = guide;
    this.link = link;
  }

  /** The class that was chosen, or the most probable one. */
  get target() {
    const { class: chosen, result } = this.guide.store.state;
    if (chosen !== null) return chosen;
    const probabilities = [...(result?.probabilities ?? [0])];
    return probabilities.indexOf(Math.max(...probabilities));
  }

  show() {
    const { classes, gradCam, occlusion } = this.guide;
    const { target } = this;
    const pass = this.guide.pass();
    const found = pass && contributions(pass, target);
    const any = found || gradCam || occlusion || (pass && classes.some((_, other) => contributions(pass, other)));
    if (!pass || !any) {
      this.home.replaceChildren();
      return;
    }
    const set = (/** @type {number} */ value) => this.guide.store.set({ class: value });
    const options = classes.map((name, value) => ({ value, content: [name], label: null }));
    const choose =
      classes.length <= FEW_CLASSES
        ? choice(t("walk.chooseClass"), "walk-class", "classes", options, target, set)
        : element("p", { class: "controls" }, element("label", {}, `${t("walk.chooseClass")} `, listed(classes, target, set)));
    const parts = [element("h3", {}, t("walk.forAndAgainst", { name: classes[target] })), choose];
    const reasons = found ? [this.table(found), this.score(found)] : [element("p", { class: "hint" }, t("walk.noContributions"))];
    const heats = [gradCam && this.heat(pass, "gradCam", gradCam, true), occlusion && this.heat(pass, "occlusion", occlusion, false)];
    const focused = this.home.contains(document.activeElement);
    this.home.replaceChildren(...parts, element("div", { class: "contributions" }, ...reasons, element("div", { class: "places" }, ...heats)));
    if (focused) /** @type {HTMLElement | null} */ (this.home.querySelector("input:checked, select"))?.focus({ preventScroll: true });
  }

  /** @param {NonNullable<ReturnType<typeof contributions>>} found */
  table({ groups, bias, score }) {
    const shown = groups.slice(0, LIST);
    const rest = groups.length - shown.length;
    const other = score - bias - shown.reduce((all, one) => all + one.product, 0);
    const largest = Math.abs(shown[0]?.product) || 1;
    const row = (/** @type {HTMLElement | string} */ what, /** @type {number} */ product) => {
      const bar = element("span", { class: `amount ${product < 0 ? "against" : "for"}`, "aria-hidden": "true" });
      bar.style.width = `${(6 * Math.min(Math.abs(product), largest)) / largest}rem`;
      return element("tr", {}, element("th", { scope: "row" }, what), element("td", { "data-value": product }, short(product)), element("td", { class: "amounts" }, bar));
    };
    const rows = shown.map(({ spot, product }) => row(this.link(spot), product));
    if (rest > 0) rows.push(row(t("walk.others", { count: rest }), other));
    return element("table", { class: "terms" }, element("caption", {}, t("walk.contributions"), " ", term("contribution")), element("tbody", {}, ...rows));
  }

  /** @param {NonNullable<ReturnType<typeof contributions>>} found */
  score({ groups, bias, score }) {
    const add = (/** @type {number} */ sign) => groups.reduce((all, { product }) => all + (sign * product > 0 ? product : 0), 0);
    const probability = this.guide.store.state.result?.probabilities?.[this.target];
    const lines = /** @type {[string, number][]} */ ([["walk.for", add(1)], ["walk.against", add(-1)], ["walk.bias", bias], ["walk.score", score]]);
    const parts = lines.flatMap(([key, value]) => [element("dt", {}, t(key)), element("dd", { "data-value": value, "data-what": key }, precise(value))]);
    if (probability !== undefined) parts.push(element("dt", {}, t("walk.probability")), element("dd", {}, percent(probability)));
    return element("dl", { class: "equation" }, ...parts);
  }

  /**
   * An image with heat over it. What takes long is computed when it is asked for.
   * @param {Pass} pass
   * @param {"gradCam" | "occlusion"} name
   * @param {(target: number) => Promise<ArrayLike<number>>} compute
   * @param {boolean} atOnce
   */
  heat(pass, name, compute, atOnce) {
    const { target } = this;
    const canvas = element("canvas");
    drawInput(canvas, pass.network.input, pass.image);
    const words = t(`walk.${name}`, { name: this.guide.classes[target] });
    const status = element("span", { role: "status" });
    const made = figure(frame(canvas, null, words), words, " ", term(name), status);
    made.dataset.heat = name;
    const show = async () => {
      status.textContent = ` ${t("walk.computing")}`;
      const heat = await compute(target).catch(() => null);
      if (!canvas.isConnected) return; // another image or class was chosen meanwhile
      const nothing = heat && !Array.from(heat).some(Boolean);
      const shown = pass.network.layers.find(({ live }) => !live);
      const obstacle = shown ? t("walk.noHeat", { layer: shown.name }) : t("walk.noMaps");
      status.textContent = nothing ? ` ${t("walk.noEvidence")}` : heat ? "" : ` ${obstacle}`;
      if (!heat) return;
      if (!nothing) overlay(canvas, heat);
      /** @type {any} */ (made).heat = heat; // for who wants the numbers
      made.dataset.ready = "";
    };
    if (atOnce) {
      queueMicrotask(show);
      return made;
    }
    const button = element("button", { type: "button" }, t("walk.compute"));
    button.addEventListener("click", () => {
      button.remove();
      show();
    });
    made.append(button);
    return made;
  }
}
