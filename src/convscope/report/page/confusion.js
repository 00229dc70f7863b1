"use strict";

// The confusion matrix: point at a cell, focus it or click it, and see its images.
(() => {
  const source = document.getElementById("matrix-data");
  const pane = document.getElementById("matrix-pane");
  if (!source || !pane) return;
  const data = JSON.parse(source.textContent);
  let pinned = null;
  let shown = null;

  function card([name, predicted, true_, picture], wrong) {
    const image = picture
      ? element("img", { src: picture, alt: `image ${name}`, width: 64, height: 64 })
      : element("span", { class: "no-picture" }, "no picture");
    const words = wrong
      ? `${asPercent(predicted)}, true ${asPercent(true_)}`
      : asPercent(true_);
    return element("li", {}, image, element("span", {}, words), element("code", {}, name));
  }

  function show(key) {
    if (key === shown) return;
    shown = key;
    const [true_, predicted] = key.split(",").map(Number);
    const count = data.counts[key] || 0;
    const wrong = true_ !== predicted;
    const total = data.support[true_];
    const share = total ? ` – ${asPercent(count / total)} of the class` : "";
    const examples = data.images[key] || [];
    const title = wrong
      ? `True class ${data.classes[true_]}, predicted ${data.classes[predicted]}`
      : `${data.classes[true_]}, recognised`;
    const order = wrong ? "the surest errors first" : "the least sure ones first";
    const list = element("ul", { class: "cards small" }, ...examples.map((one) => card(one, wrong)));
    const more = examples.length && examples.length < count ? `, ${examples.length} shown` : "";
    pane.scrollTop = 0;
    pane.replaceChildren(
      element("h3", {}, title),
      element("p", {}, `${plural(count, "image")}${share}${more}${examples.length > 1 ? `; ${order}` : ""}.`),
      list,
    );
    enlarge(pane);
    for (const cell of document.querySelectorAll("[data-cell]")) {
      cell.classList.toggle("chosen", cell.dataset.cell === key);
    }
  }

  function preview(key) {
    if (key in data.counts) show(key);
  }
  function pin(key) {
    pinned = key;
    show(key);
  }
  function restore() {
    if (pinned) show(pinned);
  }

  const frequent = Object.keys(data.counts).sort((a, b) => {
    const right = (key) => Number(new Set(key.split(",")).size === 1);
    return right(a) - right(b) || data.counts[b] - data.counts[a];
  })[0];

  const table = document.querySelector("table.confusion");
  if (table) setUpTable(table);
  const drawing = document.getElementById("matrix-drawing");
  if (drawing) setUpDrawing(drawing);
  if (frequent) pin(frequent);

  // Arrow keys move through the cells; only one of them is a stop for the tabulator.
  function setUpTable(table) {
    const buttons = new Map();
    for (const cell of table.querySelectorAll("td[data-cell]")) {
      const key = cell.dataset.cell;
      if (!(key in data.counts)) continue;
      const [true_, predicted] = key.split(",").map(Number);
      const label = `true ${data.classes[true_]}, predicted ${data.classes[predicted]}: ${plural(data.counts[key], "image")}`;
      const button = element("button", { type: "button", tabindex: "-1", "aria-label": label }, cell.textContent.trim());
      cell.replaceChildren(button);
      buttons.set(key, button);
      cell.addEventListener("mouseenter", () => preview(key));
      button.addEventListener("focus", () => show(key));
      button.addEventListener("click", () => pin(key));
    }
    buttons.get(frequent)?.setAttribute("tabindex", "0");
    table.addEventListener("mouseleave", restore);
    table.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      const cell = event.target.closest?.("td[data-cell]");
      if (!step || !cell) return;
      event.preventDefault();
      let [row, column] = cell.dataset.cell.split(",").map(Number);
      const last = data.classes.length;
      do {
        row += step[0];
        column += step[1];
      } while (row >= 0 && column >= 0 && row < last && column < last && !buttons.has(`${row},${column}`));
      const next = buttons.get(`${row},${column}`);
      if (!next) return;
      event.target.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  // Many classes: the pointer reads the drawing, the keyboard two lists.
  function setUpDrawing(drawing) {
    const size = data.classes.length;
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ class: "mark", width: 1, height: 1 })) mark.setAttribute(name, value);
    drawing.append(mark);
    const cellAt = (event) => {
      const box = drawing.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * size);
      const row = Math.floor(((event.clientY - box.top) / box.height) * size);
      return `${Math.min(Math.max(row, 0), size - 1)},${Math.min(Math.max(column, 0), size - 1)}`;
    };
    const choice = (label) => {
      const select = element("select", {}, ...data.classes.map((name, index) => element("option", { value: index }, name)));
      return [element("label", {}, `${label} `, select), select];
    };
    const [trueLabel, trueSelect] = choice("True class");
    const [predictedLabel, predictedSelect] = choice("predicted as");
    drawing.closest("figure").before(element("p", { class: "controls" }, trueLabel, " ", predictedLabel));
    const place = (key) => {
      const [row, column] = key.split(",");
      mark.setAttribute("x", column);
      mark.setAttribute("y", row);
      trueSelect.value = row;
      predictedSelect.value = column;
    };
    for (const select of [trueSelect, predictedSelect]) {
      select.addEventListener("change", () => {
        const key = `${trueSelect.value},${predictedSelect.value}`;
        place(key);
        pin(key);
      });
    }
    drawing.addEventListener("pointermove", (event) => preview(cellAt(event)));
    drawing.addEventListener("pointerleave", restore);
    drawing.addEventListener("click", (event) => {
      const key = cellAt(event);
      place(key);
      pin(key);
    });
    if (frequent) place(frequent);
  }
})();
