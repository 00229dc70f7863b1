// Every sentence of the page, in one table: a row for each, sorted by key, and a column for each language.

/** The columns: what a browser calls each language, and what the language calls itself. */
export const LANGUAGES = [
  ["en", "English"],
  ["de", "Deutsch"],
];

/** Names in braces are filled in.
 * @type {Record<string, string[]>} */
export const TEXTS = {
};

let column = 0;
let numbers = new Intl.NumberFormat("en");

/**
 * Choose the language; an unknown one is English.
 * @param {string} language
 */
export function setLanguage(language) {
  column = Math.max(
    0,
    LANGUAGES.findIndex(([code]) => language.toLowerCase().split("-")[0] === code),
  );
  numbers = new Intl.NumberFormat(LANGUAGES[column][0]);
  document.documentElement.lang = LANGUAGES[column][0];
}

/** The chosen language. */
export function language() {
  return LANGUAGES[column][0];
}

/**
 * The text for a key; numbers among the values are written as the language writes them.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const text = TEXTS[key]?.[column] ?? TEXTS[key]?.[0] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? numbers.format(value) : String(value ?? "");
  });
}

/**
 * A number with so many digits behind the point.
 * @param {number} value
 * @param {number} [digits]
 */
export function number(value, digits = 2) {
  return new Intl.NumberFormat(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/**
 * A share as a percentage: 100 only when nothing is missing, 0 only when nothing is there.
 * @param {number} share
 * @param {number} [digits]
 */
export function percent(share, digits = 1) {
  const step = 10 ** -digits;
  let shown = 100 * share;
  if (share < 1) shown = Math.min(shown, 100 - step);
  if (share > 0) shown = Math.max(shown, step);
  return `${number(shown, digits)} %`;
}

/**
 * Fill every element that names its text (`data-t`), its label (`data-t-label`) or its title (`data-t-title`).
 * @param {ParentNode} root
 */
export function translate(root) {
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = t(one.getAttribute("data-t") ?? "");
  for (const one of root.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.getAttribute("data-t-label") ?? ""));
  for (const one of root.querySelectorAll("[data-t-title]")) one.setAttribute("title", t(one.getAttribute("data-t-title") ?? ""));
}
