// Draw or drop: where the image comes from.

import { element, paint } from "./dom.js";
import { paintStrokes, UNITS } from "./drawing.js";
import { percent, t, translate } from "./texts.js";

/** @typedef {import("./main.js").App} App */

// Two points nearer than this, in thousandths of the canvas, are one.
const NEAR = 4;
// Frames a second that the camera is looked at.
const FRAMES = 8;

/**
 * Fill the section.
 * @param {HTMLElement} root
 * @param {App} app
 */
export function mountDraw(root, app) {
  const { store, images } = app;
  const { dark, size } = app;
  const { height, width } = size;

  const canvas = element("canvas", { id: "canvas", tabindex: "0", role: "img", "data-t-label": "draw.canvas" });
  const detail = Math.ceil(560 / Math.max(height, width));
  canvas.width = detail * width;
  canvas.height = detail * height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const video = element("video", { playsinline: true, muted: true, hidden: true });
  const hint = element("p", { class: "board-hint", "data-t": "draw.hint" });
  const board = element("div", { class: "board" }, canvas, video, hint);
  board.style.aspectRatio = `${width} / ${height}`;

  const pen = element("input", { type: "range", id: "pen", min: "20", max: "240", step: "5" });
  pen.value = String(Math.round((60 + 700 / Math.max(height, width)) / 5) * 5);
  const undo = button("draw.undo", () => store.undo());
  const redo = button("draw.redo", () => store.redo());
  const clear = button("draw.clear", () => store.set({ image: { kind: "drawing", strokes: [], fitted: fitted() } }));
  const fit = element("input", { type: "checkbox", id: "fit", checked: true });
  fit.addEventListener("change", () => {
    const { image } = store.state;
    if (image.kind === "drawing") store.set({ image: { ...image, fitted: fit.checked } });
  });
  const fitted = () => fit.checked;

  const file = element("input", { type: "file", accept: "image/*", id: "file", hidden: true });
  file.addEventListener("change", () => {
    if (file.files.length) app.takePicture(file.files[0]);
    file.value = "";
  });
  const choose = button("draw.choose", () => file.click());
  const camera = cameraButton(app, video);

  root.append(
    element("h2", { "data-t": "draw.title" }),
    element(
      "div",
      { class: "studio" },
      element(
        "div",
        { class: "easel" },
        board,
        element("p", { class: "hint", "data-t": "draw.begin" }),
        element(
          "div",
          { class: "tools" },
          element("label", { class: "slider" }, element("span", { "data-t": "draw.pen" }), pen),
          undo,
          redo,
          clear,
        ),
        app.convention && element("label", { class: "check" }, fit, element("span", { "data-t": "draw.fit" })),
        element("div", { class: "tools" }, choose, file, camera),
        element("p", { class: "hint" }, element("span", { "data-t": "draw.sources" }), " ", element("span", { "data-t": "draw.private" })),
        element("p", { class: "problem", id: "picture-problem", role: "alert", hidden: true }),
      ),
      images.count ? gallery(app) : null,
    ),
  );
  translate(root);

  drawWithPointer(canvas, {
    begin: (point) => {
      const { image } = store.state;
      const before = image.kind === "drawing" ? image.strokes : [];
      store.settle();
      return [...before, [Number(pen.value), ...point]];
    },
    change: (strokes) => store.set({ image: { kind: "drawing", strokes, fitted: fitted() } }, "stroke"),
    end: () => store.settle(),
    place: (event) => {
      const box = canvas.getBoundingClientRect();
      const unit = UNITS / Math.max(box.width, box.height);
      return [Math.round((event.clientX - box.left) * unit), Math.round((event.clientY - box.top) * unit)];
    },
  });

  const show = () => {
    const { image, pixels } = store.state;
    undo.disabled = store.past.length === 0;
    redo.disabled = store.future.length === 0;
    clear.disabled = image.kind === "drawing" && image.strokes.length === 0;
    hint.hidden = image.kind !== "drawing" || image.strokes.length > 0;
    if (image.kind === "drawing") {
      fit.checked = image.fitted;
      paintStrokes(context, image.strokes, dark);
    } else if (pixels) {
      const small = element("canvas");
      paint(small, pixels, app.size);
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    }
  };
  store.subscribe((_, changed) => {
    if (changed.has("image") || changed.has("changes") || changed.has("pixels")) show();
  });
  show();
}

/**
 * @param {string} key
 * @param {() => void} act
 */
function button(key, act) {
  return element("button", { type: "button", "data-t": key, click: act });
}

/**
 * Draw strokes with mouse, pen or finger; points between two frames are kept.
 * @param {HTMLCanvasElement} canvas
 * @param {{begin: (point: number[]) => number[][], change: (strokes: number[][]) => void, end: () => void,
 *   place: (event: PointerEvent) => number[]}} acts
 */
function drawWithPointer(canvas, acts) {
  /** @type {number[][] | null} */
  let strokes = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || strokes) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    strokes = acts.begin(acts.place(event));
    acts.change(strokes);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!strokes) return;
    const stroke = [...strokes[strokes.length - 1]];
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      const [x, y] = acts.place(one);
      if (Math.hypot(x - stroke[stroke.length - 2], y - stroke[stroke.length - 1]) >= NEAR) stroke.push(x, y);
    }
    strokes = [...strokes.slice(0, -1), stroke];
    acts.change(strokes);
  });
  const end = () => {
    if (strokes) acts.end();
    strokes = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
}

// How a picture of another size is brought to the network's, as CSS shows a video so.
const FITS = { letterbox: "contain", crop: "cover", stretch: "fill" };

/**
 * The camera, where the browser has one: what it sees is predicted until it is stopped.
 * @param {App} app
 * @param {HTMLVideoElement} video
 */
function cameraButton(app, video) {
  if (!navigator.mediaDevices?.getUserMedia) return null;
  const { store } = app;
  video.style.objectFit = FITS[/** @type {keyof typeof FITS} */ (app.engine.preprocessing.resize)];
  /** @type {MediaStream | null} */
  let stream = null;
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    video.srcObject = null;
    video.hidden = true;
    store.settle();
    show();
  };
  const start = async () => {
    app.complain("");
    made.disabled = true; // while the browser asks
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      await video.play();
      if (store.state.section !== "draw") return stop();
      video.hidden = false;
      store.settle();
      timer = window.setInterval(() => app.takeFrame(video), 1000 / FRAMES);
      stream.getVideoTracks()[0].addEventListener("ended", stop); // unplugged, or no longer allowed
    } catch (error) {
      stop();
      const { name } = /** @type {DOMException} */ (error);
      app.complain(t(name === "NotAllowedError" ? "draw.camera-refused" : name === "NotFoundError" ? "draw.no-camera" : "draw.camera-failed"));
    } finally {
      made.disabled = false;
      show();
    }
  };
  const made = button("draw.camera", () => (stream ? stop() : start()));
  made.id = "camera";
  const show = () => {
    made.dataset.t = stream ? "draw.stop" : "draw.camera";
    made.textContent = t(made.dataset.t);
  };
  // Another image, or another section, ends it.
  store.subscribe((state, changed) => {
    const other = changed.has("image") && !(state.image.kind === "picture" && store.merging === "camera");
    if (timer && stream && (other || state.section !== "draw")) stop();
  });
  return made;
}

/**
 * The run's test images, by class and by how wrong the network was.
 * @param {App} app
 */
function gallery(app) {
  const { store, images, classes } = app;
  const order = element("select", { id: "order" });
  const only = element("select", { id: "only" });
  const grid = element("div", { class: "gallery", role: "radiogroup", "data-t-label": "draw.images" });
  const count = element("span", { class: "hint" });
  const fill = () => {
    const chosen = [order.value || "worst", only.value || "all"];
    order.replaceChildren(
      element("option", { value: "worst" }, t("draw.worst")),
      element("option", { value: "given" }, t("draw.given")),
    );
    only.replaceChildren(
      element("option", { value: "all" }, t("draw.all")),
      ...classes.map((name, index) => element("option", { value: index }, name)),
    );
    [order.value, only.value] = chosen;
    let shown = Array.from({ length: images.count }, (_, index) => index);
    if (only.value !== "all") shown = shown.filter((index) => images.labels[index] === Number(only.value));
    if (order.value === "worst") shown.sort((one, other) => images.truth(one) - images.truth(other));
    count.textContent = t("draw.count", { count: shown.length });
    grid.replaceChildren(...shown.map((index) => tile(index)));
    mark();
  };
  const tile = (/** @type {number} */ index) => {
    const small = element("canvas", { "aria-hidden": "true" });
    paint(small, images.pixels(index), app.size);
    const name = classes[images.labels[index]];
    const radio = element("input", {
      type: "radio",
      name: "test-image",
      value: index,
      "aria-label": t("draw.tile", { name, share: percent(images.truth(index)), id: images.ids[index] }),
      change: () => store.set({ image: { kind: "test", index } }),
    });
    const wrong = images.wrong(index);
    const label = element("span", { class: wrong ? "truth wrong" : "truth" }, wrong ? `✗ ${name}` : name);
    return element("label", { title: images.ids[index] }, radio, small, label);
  };
  const mark = () => {
    const { image } = store.state;
    for (const radio of grid.querySelectorAll("input"))
      radio.checked = image.kind === "test" && radio.value === String(image.index);
  };
  order.addEventListener("change", fill);
  only.addEventListener("change", fill);
  store.subscribe((_, changed) => {
    if (changed.has("language")) fill();
    else if (changed.has("image")) mark();
  });
  const made = element(
    "div",
    { class: "pictures" },
    element("h3", { "data-t": "draw.images" }),
    element(
      "div",
      { class: "tools" },
      element("label", {}, element("span", { "data-t": "draw.only" }), only),
      element("label", {}, element("span", { "data-t": "draw.order" }), order),
      count,
    ),
    grid,
    element("p", { class: "hint", "data-t": "draw.legend" }),
  );
  fill();
  return made;
}
