// The map: the image that is pointed at, or gone to by the arrow keys, is shown beside it.
(() => {
  const { classes, images } = JSON.parse(document.getElementById("data").textContent);
  const field = document.getElementById("field");
  const picture = field.querySelector("svg");
  const marks = [...document.querySelectorAll("#points use")];
  const ring = document.getElementById("ring");
  const details = document.getElementById("details");
  const buttons = [...document.querySelectorAll(".map-legend button")];
  const near = 30; // in the picture's units
  let current = -1;
  let only = null;

  function isShown(index) {
    return only === null || images[index][2] === only;
  }

  function show(index) {
    if (index < 0 || index === current) return;
    current = index;
    const [x, y, label, name, source] = images[index];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.removeAttribute("hidden");
    const image = document.createElement("img");
    image.src = source;
    image.alt = `The image ${name}`;
    const lines = classes.length ? [classes[label], name] : [name];
    const texts = lines.map((line, place) => {
      const text = document.createElement(place === 0 && lines.length > 1 ? "strong" : "span");
      text.textContent = line;
      const paragraph = document.createElement("p");
      paragraph.append(text);
      return paragraph;
    });
    details.replaceChildren(image, ...texts);
  }

  // The closest image to a place, of those for which a distance is given.
  function best(measure) {
    let found = -1;
    let least = Infinity;
    for (let index = 0; index < images.length; index += 1) {
      if (!isShown(index)) continue;
      const distance = measure(images[index][0], images[index][1], index);
      if (distance < least) {
        least = distance;
        found = index;
      }
    }
    return found;
  }

  function place(event) {
    const box = picture.getBoundingClientRect();
    const scale = picture.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, scale];
  }

  function point(event) {
    const [x, y, scale] = place(event);
    const reach = Math.max(near, 24 * scale); // a finger is as wide on a small screen
    show(best((a, b) => {
      const distance = Math.hypot(a - x, b - y);
      return distance < reach ? distance : Infinity;
    }));
  }
  field.addEventListener("pointermove", point);
  field.addEventListener("pointerdown", point);

  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  field.addEventListener("keydown", (event) => {
    const direction = directions[event.key];
    if (!direction && event.key !== "Home") return;
    event.preventDefault();
    if (!direction || current < 0) {
      show(best((_x, _y, index) => index));
      return;
    }
    const [x, y] = images[current];
    const [right, down] = direction;
    show(best((a, b, index) => {
      const along = (a - x) * right + (b - y) * down;
      const across = Math.abs((a - x) * down) + Math.abs((b - y) * right);
      return index !== current && along > 0 && across <= along ? along + 2 * across : Infinity;
    }));
  });

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const chosen = Number(button.dataset.class);
      only = only === chosen ? null : chosen;
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(Number(other.dataset.class) === only));
      }
      if (current >= 0 && !isShown(current)) {
        ring.setAttribute("hidden", "");
        current = -1;
      }
      marks.forEach((mark, index) => mark.classList.toggle("dim", !isShown(index)));
    });
  }
})();
