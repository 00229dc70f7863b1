// What the changes do: the accuracy on the test images before and after, and which class is taken for which.

import { element } from "./dom.js";
import { percent, t } from "./texts.js";

/** @typedef {import("./main.js").App} App
 *  @typedef {{accuracy: number, count: number, confusion: ArrayLike<number>[]}} Accuracy */

// Of more classes the matrix would be unreadable, and the most frequent confusions are listed.
const MOST_CLASSES = 20;
const MOST_PAIRS = 12;
// Quiet time before the accuracy is computed anew, in milliseconds.
const CALM = 60;

/**
 * The 95 % interval of a share (Wilson 1927), as everywhere in convscope.
 * @param {number} successes
 * @param {number} trials
 * @returns {[number, number]}
 */
function wilsonInterval(successes, trials) {
  const z = 1.959963984540054;
  const share = successes / trials;
  const scale = 1 + (z * z) / trials;
  const centre = share + (z * z) / (2 * trials);
  const reach = z * Math.sqrt((share * (1 - share)) / trials + (z / (2 * trials)) ** 2);
  return [successes === 0 ? 0 : (centre - reach) / scale, successes === trials ? 1 : (centre + reach) / scale];
}

/** Accuracy before and after, and who is taken for whom. @param {App} app */
export function accuracyPart(app) {
  const { store, engine, classes } = app;
  const body = element("div", { class: "accuracy" });
  const part = element("section", { class: "card", "aria-live": "polite" }, element("h3", { "data-t": "change.accuracy" }), body);
  if (!app.images.count) {
    body.append(element("p", { class: "hint", "data-t": "change.no-images" }));
    return part;
  }
  /** @type {Accuracy | null} */
  let before = null;
  /** @type {Accuracy | null} */
  let after = null;
  let [timer, running, wanted] = [0, false, false];
  const show = () => {
    if (!before || !after) {
      const counted = engine.network.layers.every(({ live }) => live);
      body.replaceChildren(element("p", { class: "hint" }, t(counted ? "change.counting" : "now.not-live")));
      return;
    }
    const line = (/** @type {string} */ key, /** @type {Accuracy} */ one) => {
      const right = Math.round(one.accuracy * one.count);
      const [low, high] = wilsonInterval(right, one.count);
      return element(
        "div",
        { class: "score" },
        element("span", {}, t(key)),
        element("strong", {}, percent(one.accuracy)),
        element("span", { class: "range" }, t("change.interval", { low: percent(low), high: percent(high), right, count: one.count })),
      );
    };
    const changed = Object.keys(store.state.changes).length > 0;
    body.replaceChildren(
      line("change.before", before),
      changed ? line("change.after", after) : "",
      ...(classes.length <= MOST_CLASSES ? [matrix(after.confusion, before.confusion, classes), element("p", { class: "hint" }, t("change.matrix-hint"))] : confusions(after.confusion, before.confusion, classes)),
    );
  };
  // What stands here while it is counted anew is of before.
  const busy = (/** @type {boolean} */ now) => body.setAttribute("aria-busy", String(now));
  const count = async () => {
    wanted = true;
    busy(true);
    if (running) return;
    running = true;
    while (wanted) {
      wanted = false;
      const { changes, trained } = store.state;
      before ??= await engine.evaluate({ changes: {} });
      after = Object.keys(changes).length ? await engine.evaluate({ changes }) : before;
      if (store.state.trained !== trained) [before, after, wanted] = [null, null, true];
      if (!wanted) show();
    }
    running = false;
    busy(false);
  };
  store.subscribe((_, changed) => {
    if (changed.has("trained")) before = after = null;
    // A training in the page is counted when somebody looks again.
    if (changed.has("changes") || (changed.has("section") && store.state.section === "change" && !after)) {
      clearTimeout(timer);
      timer = window.setTimeout(count, CALM);
      busy(true);
    }
    if (["language", "trained"].some((key) => changed.has(key))) show();
  });
  show();
  count();
  return part;
}

/** The confusion matrix; a cell that differs from before says by how much. @param {ArrayLike<number>[]} now @param {ArrayLike<number>[]} before @param {string[]} classes */
function matrix(now, before, classes) {
  const largest = Math.max(1, ...classes.flatMap((_, row) => classes.map((__, column_) => (row === column_ ? 0 : now[row][column_]))));
  const long = classes.some((name) => name.length > 3);
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": t("change.matrix") },
    element(
      "table",
      { class: long ? "confusion long" : "confusion" },
      element("thead", {}, element("tr", {}, element("th", { class: "corner", scope: "col" }, t("change.corner")), ...classes.map((name) => element("th", { scope: "col", title: name }, element("span", {}, name))))),
      element(
        "tbody",
        {},
        ...classes.map((name, row) =>
          element(
            "tr",
            {},
            element("th", { scope: "row", title: name }, name),
            ...classes.map((_, column_) => {
              const [value, was] = [now[row][column_], before[row][column_]];
              const level = row === column_ ? "hit" : value ? `level-${Math.max(1, Math.ceil((8 * value) / largest))}` : "";
              const moved = value === was ? "" : value > was ? " more" : " less";
              return element("td", { class: level + moved, title: value === was ? null : t("change.was", { was }) }, value ? String(value) : was ? "0" : "");
            }),
          ),
        ),
      ),
    ),
  );
}

/** Of many classes, which are taken for which most often; how often as trained stands beside it. @param {ArrayLike<number>[]} now @param {ArrayLike<number>[]} before @param {string[]} classes */
function confusions(now, before, classes) {
  const pairs = classes.flatMap((_, row) => classes.flatMap((__, guess) => (row === guess || !now[row][guess] ? [] : [{ row, guess, count: now[row][guess], was: before[row][guess] }])));
  pairs.sort((one, other) => other.count - one.count || other.was - one.was);
  const shown = pairs.slice(0, MOST_PAIRS);
  const rest = pairs.slice(MOST_PAIRS).reduce((all, { count }) => all + count, 0);
  const rows = shown.map(({ row, guess, count, was }) =>
    element("tr", {}, element("th", { scope: "row" }, classes[row]), element("td", {}, classes[guess]), element("td", { class: count > was ? "more" : count < was ? "less" : "" }, String(count)), element("td", {}, String(was))),
  );
  const head = ["change.true", "change.predicted", "change.images", "change.before"].map((key) => element("th", { scope: "col" }, t(key)));
  return [
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("change.confusions") }, element("table", { class: "confusions" }, element("caption", {}, t("change.confusions")), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))),
    ...(rest ? [element("p", { class: "hint" }, t("change.other-confusions", { count: rest }))] : []),
  ];
}
