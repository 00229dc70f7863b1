"use strict";

// The theme button.
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
})();
