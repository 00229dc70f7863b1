"use strict";

// The theme button, the table of contents that follows the reader, and printing.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const key = "convscope-report-theme";
  let theme = "auto";
  try {
    theme = localStorage.getItem(key) || "auto";
  } catch {
    // a browser may refuse storage to a page opened from a file; the choice then lasts as long as the page
  }

  function apply() {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  }
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try {
      localStorage.setItem(key, theme);
    } catch {
      // as above
    }
    apply();
  });
  if (!themes.includes(theme)) theme = "auto";
  apply();
  button.hidden = false;

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
