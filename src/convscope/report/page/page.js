"use strict";

// The table of contents that follows the reader, and printing.
(() => {
  const links = new Map(
    [...document.querySelectorAll(".toc a")].map((link) => [link.hash.slice(1), link]),
  );
  const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  function follow() {
    const line = window.innerHeight / 3;
    const passed = sections.filter((section) => section.getBoundingClientRect().top <= line);
    const current = (passed.pop() || sections[0])?.id;
    for (const [id, link] of links) {
      if (id === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
  let waiting = false;
  window.addEventListener(
    "scroll",
    () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        follow();
      });
    },
    { passive: true },
  );
  follow();

  // Paper has no folds: what is folded is unfolded while printing.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });
})();

// Makes an element; text is always text, never markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// As in the rest of the report: 100 only when nothing is missing, 0 only when nothing is there.
function asPercent(share, digits = 1) {
  const step = 10 ** -digits;
  let shown = 100 * share;
  if (share < 1) shown = Math.min(shown, 100 - step);
  if (share > 0) shown = Math.max(shown, step);
  return `${shown.toFixed(digits)}\u202f%`;
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// Images are enlarged by a click, or by Enter on the first of each group; in the window that opens, the arrow keys
// go on to the images beside it, and Esc closes it. An image inside a label or a button chooses something else.
const enlarge = (() => {
  const page = document.querySelector("main");
  const picture = element("img", { alt: "" });
  const words = element("p", { "aria-live": "polite" });
  const step = (label, by) => {
    const button = element("button", { type: "button" }, label);
    button.addEventListener("click", () => move(by));
    return button;
  };
  const close = element("button", { type: "button", autofocus: true }, "Close");
  const dialog = element("dialog", { class: "zoom", "aria-label": "Enlarged image" }, picture, words, element("p", { class: "controls" }, step("Previous", -1), step("Next", 1), close));
  const large = (image) => image?.matches?.("main img:not(label img)") && !image.closest("dialog");
  const all = () => [...page.querySelectorAll("img")].filter((image) => large(image) && image.offsetParent);
  let from = null;

  function show(image) {
    from = image;
    picture.src = image.src;
    picture.alt = image.alt;
    words.textContent = (image.closest(".cards li, figure, .tiny") ?? image).innerText?.trim().replace(/\s*\n\s*/g, ", ") || image.alt;
    if (!dialog.open) dialog.showModal();
  }
  function move(by) {
    const images = all();
    const place = images.indexOf(from) + by;
    if (images[place]) show(images[place]);
  }
  page.append(dialog);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => from?.focus());
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) move(by);
  });
  page.addEventListener("click", (event) => large(event.target) && show(event.target));
  page.addEventListener("keydown", (event) => {
    if ((event.key !== "Enter" && event.key !== " ") || !large(event.target)) return;
    event.preventDefault();
    show(event.target);
  });

  // Of neighbours only the first is a stop for the tabulator.
  return (part) => {
    const groups = new Set();
    for (const image of part.querySelectorAll("img")) {
      if (!large(image)) continue;
      const group = image.closest("td, ul");
      image.setAttribute("role", "button");
      image.setAttribute("aria-label", `Enlarge ${image.alt || "the image"}`);
      image.tabIndex = groups.has(group) && group ? -1 : 0;
      groups.add(group);
    }
  };
})();
enlarge(document);
