// The page: reads the payload, starts the engine, shows how well it agrees with Python.

import { Engine } from "./engine.js";

async function start() {
  const badge = /** @type {HTMLElement} */ (document.getElementById("badge"));
  const payload = JSON.parse(document.getElementById("payload")?.textContent ?? "{}");
  const engine = await Engine.start(payload);
  /** @type {any} */ (window).explorer = { engine };
  const { worst, layer } = await engine.check();
  badge.textContent = worst < 1e-4 ? `agrees to ${worst.toExponential(0)}` : `${layer} differs by ${worst.toExponential(0)}`;
  document.documentElement.dataset.ready = "true";
}

start();
