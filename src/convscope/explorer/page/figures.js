// Feature maps as shades of grey, heat over an image, boxes around pixels, numbers as tables.

import { element } from "./dom.js";
import { language, t } from "./texts.js";

/** @typedef {import("./places.js").Box} Box */

/** What the arrow keys move by: rows and columns. @type {Record<string, number[]>} */
export const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** @type {(text: string) => string} */
const minus = (text) => text.replace("-", "\u2212");

/**
 * @param {number} value
 * @param {Intl.NumberFormatOptions} options
 */
function written(value, options) {
  return minus(new Intl.NumberFormat(language(), { useGrouping: false, ...options }).format(value));
}

/**
 * A small number as 1.2·10⁻⁵.
 * @param {number} value
 * @param {number} [digits]
 */
export function scientific(value, digits = 1) {
  const [mantissa, exponent] = value.toExponential(digits).split("e");
  const raised = [...exponent.replace("+", "")].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)] ?? "⁻").join("");
  return `${written(Number(mantissa), { minimumFractionDigits: digits, maximumFractionDigits: digits })}·10${raised}`;
}

/** A number in a table. @param {number} value @param {number} [digits] */
export function short(value, digits = 4) {
  if (value === 0) return written(0, { minimumFractionDigits: digits }); // no sign
  if (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits) return scientific(value);
  return written(value, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A number to compare with another. @param {number} value */
export function precise(value) {
  if (value !== 0 && Math.abs(value) < 1e-4) return scientific(value, 6);
  return written(value, { minimumSignificantDigits: 8, maximumSignificantDigits: 8 });
}

/** A whole number, large ones in thousands and millions. @param {number} value */
export function counted(value) {
  return new Intl.NumberFormat(language(), value >= 1e5 ? { notation: "compact", maximumSignificantDigits: 3 } : {}).format(value);
}

/**
 * Draws numbers as shades of grey, black for the lowest and white for the highest; a pixel without a number stays open.
 * @param {HTMLCanvasElement} canvas
 * @param {number} height
 * @param {number} width
 * @param {(pixel: number) => number | undefined} at
 */
function drawGrey(canvas, height, width, at) {
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const pixels = context.createImageData(width, height);
  let low = Infinity;
  let high = -Infinity;
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    const value = at(pixel);
    if (value === undefined) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const span = high - low || 1;
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    const value = at(pixel);
    const shade = value === undefined ? 0 : ((value - low) / span) * 255;
    pixels.data.set([shade, shade, shade, value === undefined ? 0 : 255], 4 * pixel);
  }
  context.putImageData(pixels, 0, 0);
  return { low, high };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {readonly number[]} shape  (h, w, c)
 * @param {Float32Array} values
 * @param {number} channel
 */
export function drawChannel(canvas, [height, width, depth], values, channel) {
  return drawGrey(canvas, height, width, (pixel) => values[pixel * depth + channel]);
}

/** Units in rows of so many. @param {number} count */
export function unitsAcross(count) {
  return count > 1024 ? 128 : count > 256 ? 32 : Math.min(count, 16);
}

/** @param {HTMLCanvasElement} canvas @param {Float32Array} values */
export function drawUnits(canvas, values) {
  const across = unitsAcross(values.length);
  return drawGrey(canvas, Math.ceil(values.length / across), across, (unit) => values[unit]);
}

/**
 * Draws the image as it enters the network, grey or in colours.
 * @param {HTMLCanvasElement} canvas
 * @param {readonly number[]} shape  (h, w, c)
 * @param {Float32Array} values
 */
export function drawInput(canvas, [height, width, depth], values) {
  if (depth !== 3) return drawChannel(canvas, [height, width, depth], values, 0);
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const pixels = context.createImageData(width, height);
  const low = values.reduce((least, one) => Math.min(least, one), Infinity);
  const high = values.reduce((most, one) => Math.max(most, one), -Infinity);
  values.forEach((value, flat) => {
    pixels.data[4 * Math.floor(flat / 3) + (flat % 3)] = ((value - low) / (high - low || 1)) * 255;
  });
  for (let pixel = 0; pixel < height * width; pixel += 1) pixels.data[4 * pixel + 3] = 255;
  context.putImageData(pixels, 0, 0);
  return { low, high };
}

// Orange speaks for, blue against: two colours that colour-blind eyes tell apart.
const FOR = [240, 138, 60];
const AGAINST = [66, 153, 225];

/**
 * Lays heat over what a canvas shows: orange where values are positive, blue where they are negative.
 * @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} heat  one number for each pixel
 */
export function overlay(canvas, heat) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  let largest = 0;
  for (let pixel = 0; pixel < heat.length; pixel += 1) largest = Math.max(largest, Math.abs(heat[pixel]));
  for (let pixel = 0; pixel < heat.length; pixel += 1) {
    const strength = 0.85 * (Math.abs(heat[pixel]) / (largest || 1));
    const colour = heat[pixel] >= 0 ? FOR : AGAINST;
    for (let channel = 0; channel < 3; channel += 1) {
      // Dimmed, so that heat is seen on white strokes too.
      const ground = 0.6 * pixels.data[4 * pixel + channel];
      pixels.data[4 * pixel + channel] = ground + (colour[channel] - ground) * strength;
    }
  }
  context.putImageData(pixels, 0, 0);
}

/**
 * A canvas in a frame that can hold a box around some of its pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {Box | null} box
 * @param {string} words  for those who do not see it
 * @returns {HTMLElement}
 */
export function frame(canvas, box, words) {
  const { width, height } = canvas;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", words);
  const framed = element("span", { class: "frame" }, canvas);
  framed.style.aspectRatio = `${width} / ${height}`;
  if (!box) return framed;
  const mark = element("span", { class: "box" });
  const part = (/** @type {number} */ length, /** @type {number} */ whole) => `${(100 * length) / whole}%`;
  Object.assign(mark.style, {
    left: part(box.left, width),
    top: part(box.top, height),
    width: part(box.width, width),
    height: part(box.height, height),
  });
  framed.append(mark);
  return framed;
}

/**
 * Numbers in rows, the larger the more colour. What lies outside the image is a zero of the padding. Numbers that can be
 * chosen are one stop for the tabulator, with arrow keys inside.
 * @param {string} caption
 * @param {(number | null)[][]} rows
 * @param {number | null} [highlight]  the number to mark
 * @param {((row: number, column: number) => void) | null} [choose]
 */
export function numbers(caption, rows, highlight = null, choose = null) {
  const largest = Math.max(...rows.flat().map((value) => Math.abs(value ?? 0))) || 1;
  /** @type {Map<string, HTMLButtonElement>} */
  const cells = new Map();
  const cell = (/** @type {number | null} */ value, /** @type {number} */ row, /** @type {number} */ column) => {
    const sign = value === null ? "outside" : value < 0 ? "negative" : "positive";
    const chosen = value !== null && value === highlight ? " chosen" : "";
    const text = value === null ? "0" : short(value, 3);
    const made = element("td", { class: `${sign}${chosen}`, "data-value": value ?? 0, title: value === null ? t("walk.padding") : null });
    made.style.setProperty("--strength", `${Math.round((45 * Math.abs(value ?? 0)) / largest)}%`);
    if (choose && value !== null) {
      const button = element("button", { type: "button", class: "cell", "data-focus": "patch", tabindex: cells.size ? -1 : 0, click: () => choose(row, column) }, text);
      button.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
        const [y, x] = STEPS[event.key] ?? [0, 0];
        const next = cells.get(`${row + y} ${column + x}`);
        if (!next || next === button) return;
        event.preventDefault();
        [button.tabIndex, next.tabIndex] = [-1, 0];
        next.focus();
      });
      cells.set(`${row} ${column}`, button);
      made.append(button);
    } else made.append(text);
    return made;
  };
  const body = rows.map((line, row) => element("tr", {}, ...line.map((value, column) => cell(value, row, column))));
  return element("table", { class: "numbers" }, element("caption", {}, caption), element("tbody", {}, ...body));
}

/**
 * A choice among things, as radio buttons: one stop for the tabulator, arrow keys inside.
 * @param {string} legend
 * @param {string} name
 * @param {string} style
 * @param {{value: number, content: (Node | string)[], label: string | null}[]} options
 * @param {number} chosen
 * @param {(value: number) => void} choose
 */
export function choice(legend, name, style, options, chosen, choose) {
  const list = options.map(({ value, content, label }) => {
    const input = element("input", { type: "radio", name, value, "aria-label": label, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    return element("label", {}, input, ...content);
  });
  return element("fieldset", { class: `choice ${style}` }, element("legend", {}, legend), ...list);
}

/**
 * @param {string[]} names
 * @param {number} chosen
 * @param {(value: number) => void} choose
 */
export function listed(names, chosen, choose) {
  const select = element("select", {}, ...names.map((name, value) => element("option", { value, selected: value === chosen }, name)));
  select.addEventListener("change", () => choose(Number(select.value)));
  return select;
}

/** @param {HTMLElement} framed @param {...(string | Node)} caption */
export function figure(framed, ...caption) {
  return element("figure", {}, framed, element("figcaption", {}, ...caption));
}
