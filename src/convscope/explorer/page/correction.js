// "That is a 7": kept by the server of this page, for the next training. A page from a file has none.

import { element, paint } from "./dom.js";
import { t, translate } from "./texts.js";

/** @typedef {import("./main.js").App} App */

/**
 * @param {HTMLElement} root
 * @param {App} app
 */
export async function mountCorrection(root, app) {
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
