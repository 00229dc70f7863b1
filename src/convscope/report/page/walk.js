"use strict";

// The walk: choose a test image, a layer, a map and a place in it, and see how its number came about.
(() => {
  const source = document.getElementById("walk-data");
  const home = document.getElementById("walk");
  if (!source || !home) return;
  const data = JSON.parse(source.textContent);
  const state = { image: 0, layer: 0, channel: 0, row: 0, column: 0, input: null };
  const passages = new Map();
  let weights = null;
  let passage = null;

  const TOLERANCE = 1e-5;
  const MOST_MAPS = 128;
  const LARGEST_GRID = 49;
  const LIST = 10;
  const UNITS_ACROSS = 16;

  const minus = (text) => text.replace("-", "\u2212");
  const number = (value) => (value !== 0 && Math.abs(value) < 5e-5 ? scientific(value) : minus(value.toFixed(4)));
  const precise = (value) => (value !== 0 && Math.abs(value) < 1e-4 ? scientific(value, 6) : minus(value.toPrecision(8)));
  const title = (place) => (place < 0 ? "the image" : data.layers[place].name);
  const shapeText = (shape) => shape.join("×");
  const spatial = (place) => passage.shape(place).length === 3;

  function scientific(value, digits = 1) {
    const [mantissa, exponent] = value.toExponential(digits).split("e");
    const raised = [...exponent.replace("+", "")].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻").join("");
    return `${minus(mantissa)}·10${raised}`;
  }

  // A choice among things, as radio buttons: one stop for the tabulator, arrow keys inside.
  function choice(legend, name, style, options, chosen, choose) {
    const list = options.map(({ value, content, label }) => {
      const input = element("input", { type: "radio", name, value, "aria-label": label ?? null, checked: value === chosen });
      input.addEventListener("change", () => choose(value));
      return element("label", {}, input, ...content);
    });
    return element("fieldset", { class: `choice ${style}` }, element("legend", {}, legend), ...list);
  }

  // Draws numbers as shades of grey, black for the lowest and white for the highest.
  function draw(canvas, values, height, width, at) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    let low = Infinity;
    let high = -Infinity;
    for (let place = 0; place < height * width; place += 1) {
      const value = at(place);
      if (value === undefined) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const span = high - low || 1;
    for (let place = 0; place < height * width; place += 1) {
      const value = at(place);
      const shade = value === undefined ? 0 : ((value - low) / span) * 255;
      pixels.data.set([shade, shade, shade, value === undefined ? 0 : 255], 4 * place);
    }
    context.putImageData(pixels, 0, 0);
    return [low, high];
  }

  function drawChannel(canvas, place, channel) {
    const [height, width, depth] = passage.shape(place);
    const values = passage.of(place);
    return draw(canvas, values, height, width, (pixel) => values[pixel * depth + channel]);
  }

  function drawUnits(canvas, place) {
    const values = passage.of(place);
    const across = Math.min(values.length, values.length > 1024 ? 128 : UNITS_ACROSS);
    return draw(canvas, values, Math.ceil(values.length / across), across, (unit) => values[unit]);
  }

  // A canvas in a frame that can hold a box around some of its pixels.
  function frame(canvas, height, width, box, words) {
    const mark = element("span", { class: "box" });
    Object.assign(mark.style, {
      left: `${(100 * box.left) / width}%`,
      top: `${(100 * box.top) / height}%`,
      width: `${(100 * box.width) / width}%`,
      height: `${(100 * box.height) / height}%`,
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", words);
    const framed = element("span", { class: "frame" }, canvas, mark);
    framed.style.aspectRatio = `${width} / ${height}`;
    return framed;
  }

  const images = element("div");
  const layers = element("div");
  const maps = element("div", { class: "maps" });
  const detail = element("div", { class: "detail" });
  const pane = element("div", { class: "pane", "aria-live": "polite", id: "walk-pane" });
  home.replaceChildren(images, layers, maps, detail, pane);

  function showImages() {
    const options = data.images.map((image, value) => {
      const [true_, predicted] = [data.classes[image.true], data.classes[image.predicted]];
      const words = image.true === image.predicted ? `${true_}, recognised` : `${true_}, taken for ${predicted}`;
      const content = [element("img", { src: image.picture, alt: "", width: 56, height: 56 }), element("span", {}, words)];
      return { value, content, label: `${image.name}: ${words}` };
    });
    images.replaceChildren(choice("1. Choose a test image", "walk-image", "pictures", options, state.image, (value) => start(value)));
  }

  function showLayers() {
    const options = data.layers.map((layer, value) => ({
      value,
      content: [element("strong", {}, layer.name), element("span", {}, `${layer.type} → ${shapeText(layer.shape)}`)],
    }));
    layers.replaceChildren(choice("2. Choose a layer", "walk-layer", "steps", options, state.layer, (value) => chooseLayer(value)));
  }

  function chooseLayer(place) {
    state.layer = place;
    for (const part of [maps, detail, pane]) part.replaceChildren(); // nothing may stay from the layer before
    if (!passage.of(place)) {
      maps.replaceChildren(element("p", {}, `The output of ${title(place)} has too many numbers for this page.`));
      return;
    }
    chooseStrongest(place, null);
    showMaps(place);
    showDetail();
  }

  // Begins where there is something to see: at the largest value, of a channel or of all.
  function chooseStrongest(place, channel) {
    const values = passage.of(place);
    const shape = passage.shape(place);
    const depth = shape[shape.length - 1];
    const units = data.layers[place].weights?.units;
    let best = -1;
    values.forEach((value, flat) => {
      if (channel !== null && flat % depth !== channel) return;
      if (units && !units.includes(flat % depth)) return;
      if (spatial(place) && flat % depth >= MOST_MAPS) return;
      if (best < 0 || value > values[best]) best = flat;
    });
    // A layer without rows has one place, and no place of the layer before may be left in its stead.
    const pixel = spatial(place) ? Math.floor(best / depth) : 0;
    const across = spatial(place) ? shape[1] : 1;
    Object.assign(state, { channel: best % depth, row: Math.floor(pixel / across), column: pixel % across, input: null });
  }

  function showMaps(place) {
    if (!spatial(place)) {
      maps.replaceChildren();
      return;
    }
    const depth = passage.shape(place)[2];
    const options = Array.from({ length: Math.min(depth, MOST_MAPS) }, (_, channel) => {
      const canvas = element("canvas");
      drawChannel(canvas, place, channel);
      return { value: channel, content: [canvas], label: `map ${channel}` };
    });
    const hidden = depth > MOST_MAPS ? ` (the first ${MOST_MAPS} of ${depth})` : "";
    const legend = `3. Choose one of the ${plural(depth, "feature map")} of ${title(place)}${hidden}`;
    maps.replaceChildren(
      choice(legend, "walk-map", "grid", options, state.channel, (channel) => {
        chooseStrongest(place, channel);
        showDetail();
      }),
      element("p", { class: "hint" }, "Each map from black, its lowest value, to white, its highest."),
    );
  }

  function control(label, key, most) {
    const input = element("input", { type: "number", min: 0, max: most - 1, value: state[key], inputmode: "numeric" });
    input.addEventListener("input", () => {
      const value = Number.parseInt(input.value, 10);
      if (!(value >= 0 && value < most)) return;
      state[key] = value;
      state.input = null;
      showPlaces();
      showArithmetic();
    });
    return element("label", {}, `${label} `, input);
  }

  let places = null;
  let controls = null;

  function showDetail() {
    const place = state.layer;
    places = element("div", { class: "places" });
    controls = element("p", { class: "controls" });
    const what = spatial(place) ? "4. Click a place in the map, or type it" : "3. Click a unit, or type its number";
    detail.replaceChildren(element("p", { class: "step" }, what), places, controls);
    showPlaces();
    showControls();
    showArithmetic();
  }

  function showControls() {
    const shape = passage.shape(state.layer);
    controls.replaceChildren(
      ...(spatial(state.layer) ? [control("Row", "row", shape[0]), " ", control("Column", "column", shape[1])] : [control("Unit", "channel", shape[0])]),
    );
  }

  // What enters, with the window that is seen, and what comes out, with the place that was chosen.
  function showPlaces() {
    const place = state.layer;
    const layer = data.layers[place];
    const figures = [];
    if (layer.window && layer.parent !== null && passage.of(layer.parent)) {
      const [height, width, depth] = passage.shape(layer.parent);
      const channel = entering(layer, depth);
      const canvas = element("canvas");
      drawChannel(canvas, layer.parent, channel);
      const reach = (axis) => (layer.window[axis] - 1) * layer.dilation[axis] + 1;
      const box = {
        left: state.column * layer.strides[1] - layer.padding[1],
        top: state.row * layer.strides[0] - layer.padding[0],
        width: reach(1),
        height: reach(0),
      };
      const words = `channel ${channel} of ${title(layer.parent)}`;
      figures.push(element("figure", {}, frame(canvas, height, width, box, words), element("figcaption", {}, `enters: ${words}`)));
    }
    figures.push(outgoing(place));
    places.replaceChildren(...figures);
  }

  function entering(layer, depth) {
    if (layer.kind === "max" || layer.kind === "average") return state.channel;
    if (layer.kind === "depthwise") return Math.floor(state.channel / layer.multiplier);
    return Math.min(state.input ?? 0, depth - 1);
  }

  function outgoing(place) {
    const canvas = element("canvas");
    const [low, high] = spatial(place) ? drawChannel(canvas, place, state.channel) : drawUnits(canvas, place);
    const across = canvas.width;
    const box = spatial(place)
      ? { left: state.column, top: state.row, width: 1, height: 1 }
      : { left: state.channel % across, top: Math.floor(state.channel / across), width: 1, height: 1 };
    const words = spatial(place) ? `map ${state.channel} of ${title(place)}` : `the units of ${title(place)}`;
    const framed = frame(canvas, canvas.height, across, box, words);
    framed.classList.add("clickable");
    framed.addEventListener("click", (event) => {
      const area = framed.getBoundingClientRect();
      const x = Math.min(Math.floor(((event.clientX - area.left) / area.width) * across), across - 1);
      const y = Math.min(Math.floor(((event.clientY - area.top) / area.height) * canvas.height), canvas.height - 1);
      if (spatial(place)) [state.row, state.column] = [y, x];
      else if (y * across + x < passage.shape(place)[0]) state.channel = y * across + x;
      state.input = null;
      showPlaces();
      showControls();
      showArithmetic();
    });
    const caption = `comes out: ${words}, from ${number(low)} to ${number(high)}`;
    return element("figure", {}, framed, element("figcaption", {}, caption));
  }

  function showArithmetic() {
    const place = state.layer;
    const layer = data.layers[place];
    const where = spatial(place) ? `row ${state.row}, column ${state.column}, map ${state.channel}` : `unit ${state.channel}${unitName(place)}`;
    const heading = element("h3", {}, `${layer.name}: ${where}`);
    const obstacle = passage.obstacle(place, state.channel);
    if (obstacle) {
      const values = passage.of(place);
      const shape = layer.shape;
      const flat = spatial(place) ? (state.row * shape[1] + state.column) * shape[2] + state.channel : state.channel;
      pane.replaceChildren(heading, element("p", {}, `The network’s number is ${precise(values[flat])}. ${obstacle}`));
      return;
    }
    const found = passage.recompute(place, state.row, state.column, state.channel);
    pane.replaceChildren(heading, ...explain(layer, found), verdict(found));
  }

  function unitName(place) {
    return place === data.layers.length - 1 && data.classes.length === passage.shape(place)[0] ? ` (${data.classes[state.channel]})` : "";
  }

  function explain(layer, found) {
    if (layer.kind === "same") return [element("p", {}, `${layer.type} hands its input on unchanged when the network is used.`)];
    if (layer.kind === "normalization") return explainNormalization(layer, found);
    if (layer.kind === "activation") return [equation([["enters", found.sum], [layer.activation, found.result]])];
    if (layer.kind === "dense") return [contributions(layer, found), sumUp(layer, found)];
    if (layer.kind === "max" || layer.kind === "average") return explainPooling(layer, found);
    return explainConvolution(layer, found);
  }

  function explainPooling(layer, found) {
    const words = layer.kind === "max" ? `The largest of ${found.count} numbers` : `The mean of ${found.count} numbers`;
    const grid = layer.window[0] * layer.window[1] <= LARGEST_GRID ? [table("what enters", found.terms[0].patch, layer.kind === "max" ? found.result : null)] : [];
    const sum = layer.kind === "max" ? [["max", found.result]] : [["Σ", found.sum], [`Σ / ${found.count}`, found.result]];
    return [element("p", {}, `${words} under the window.`), element("div", { class: "tables" }, ...grid), equation(sum)];
  }

  function explainNormalization(layer, found) {
    const words = `(x − mean) ÷ √(variance + ${scientific(layer.epsilon)}) × gamma + beta, with the mean and variance of the training:`;
    const lines = [["x, what enters", found.sum], ["mean", found.mean], ["variance", found.variance], ["normalized", found.scaled], ["× gamma", found.gamma], ["+ beta", found.beta], ["=", found.result]];
    return [element("p", {}, words), equation(lines)];
  }

  function explainConvolution(layer, found) {
    const largest = found.terms.reduce((best, term, place) => (Math.abs(term.subtotal) > Math.abs(found.terms[best].subtotal) ? place : best), 0);
    const chosen = Math.max(0, state.input === null ? largest : found.terms.findIndex((term) => term.channel === state.input));
    const term = found.terms[chosen];
    if (state.input === null && term.channel !== 0) {
      state.input = term.channel;
      showPlaces();
    }
    const parts = [];
    if (found.terms.length > 1) parts.push(channelChoice(layer, found, term));
    if (layer.window[0] * layer.window[1] <= LARGEST_GRID) {
      const products = term.patch.map((line, y) => line.map((value, x) => (value ?? 0) * term.weights[y][x]));
      const sign = (text) => element("span", { class: "sign", "aria-hidden": "true" }, text);
      parts.push(element("div", { class: "tables" }, table("patch", term.patch), sign("×"), table("kernel", term.weights), sign("="), table("products", products)));
    }
    parts.push(sumUp(layer, found, term));
    return parts;
  }

  function channelChoice(layer, found, term) {
    const select = element(
      "select",
      {},
      ...found.terms.map((one) => element("option", { value: one.channel, selected: one === term }, `${one.channel}: ${number(one.subtotal)}`)),
    );
    select.addEventListener("change", () => {
      state.input = Number(select.value);
      showPlaces();
      showArithmetic();
      pane.querySelector("select")?.focus();
    });
    return element("p", { class: "controls" }, element("label", {}, `Input channel, of ${found.terms.length}, and what it adds: `, select));
  }

  function sumUp(layer, found, term) {
    const kernel = layer.weights.kernel;
    const count = layer.kind === "dense" ? found.terms.length : found.terms.length * kernel[0] * kernel[1];
    const lines = [];
    if (term && found.terms.length > 1) lines.push([`Σ of the products of channel ${term.channel}`, term.subtotal]);
    lines.push([`Σ of all ${count.toLocaleString("en")} products`, found.sum]);
    if (layer.weights.bias) lines.push(["+ bias", found.bias], ["=", found.sum + found.bias]);
    if (layer.activation !== "linear") lines.push([`${layer.activation}${layer.activation === "softmax" ? " over all classes" : ""}`, found.result]);
    return equation(lines);
  }

  // A dense layer has too many products for a table; the largest ones carry the sum.
  function contributions(layer, found) {
    const sorted = [...found.terms].sort((a, b) => Math.abs(b.product) - Math.abs(a.product)).slice(0, LIST);
    const rest = found.terms.length - sorted.length;
    const other = found.sum - sorted.reduce((all, term) => all + term.product, 0);
    const rows = sorted.map(({ input, value, weight, product }) =>
      element("tr", {}, element("th", { scope: "row" }, `input ${input}`), ...[value, weight, product].map((one) => element("td", {}, number(one)))),
    );
    if (rest > 0) rows.push(element("tr", {}, element("th", { scope: "row", colspan: 3 }, `the other ${rest.toLocaleString("en")}`), element("td", {}, number(other))));
    const head = element("tr", {}, ...["input", "value", "weight", "product"].map((text) => element("th", { scope: "col" }, text)));
    return element("table", { class: "terms" }, element("caption", {}, "The largest contributions"), element("thead", {}, head), element("tbody", {}, ...rows));
  }

  function table(caption, rows, highlight = null) {
    const largest = Math.max(...rows.flat().map((value) => Math.abs(value ?? 0))) || 1;
    const cell = (value) => {
      const made = element("td", { class: value === highlight && value !== null ? "chosen" : null }, value === null ? "0" : value.toFixed(3).replace("-", "\u2212"));
      made.style.setProperty("--strength", `${Math.round((45 * Math.abs(value ?? 0)) / largest)}%`);
      made.classList.add(value === null ? "outside" : value < 0 ? "negative" : "positive");
      return made;
    };
    return element("table", { class: "numbers" }, element("caption", {}, caption), element("tbody", {}, ...rows.map((line) => element("tr", {}, ...line.map(cell)))));
  }

  function equation(lines) {
    return element("dl", { class: "equation" }, ...lines.flatMap(([what, value]) => [element("dt", {}, what), element("dd", {}, precise(value))]));
  }

  function verdict(found) {
    const close = (difference, own) => difference <= TOLERANCE * Math.max(1, Math.abs(own));
    const apart = (difference) => (difference === 0 ? "0" : scientific(difference));
    if (found.own !== null) {
      const equal = close(found.difference, found.own);
      const words = `${equal ? "equal" : "not equal"} to the network’s own number, ${precise(found.own)}`;
      return judged(equal, `Recomputed here: ${precise(found.result)}, ${words} (they differ by ${apart(found.difference)}).`, found);
    }
    const { count, largest, worst } = passage.agreement(state.layer);
    const equal = worst <= TOLERANCE && close(found.difference, found.result);
    const words = `of this layer’s own numbers the page carries the largest of each map, and ${equal ? "computes the same" : "computes others"}`;
    return judged(equal, `Computed here: ${precise(found.result)}; ${words} (${plural(count, "number")}, at most ${apart(largest)} apart).`, found);
  }

  function judged(equal, words, found) {
    const style = `verdict ${equal ? "equal" : "different"}`;
    return element("p", { class: style, "data-difference": found.difference }, `${equal ? "✓" : "✗"} ${words}`);
  }

  async function start(image) {
    state.image = image;
    if (!passages.has(image)) {
      weights ??= data.weights ? await unpack(data.weights) : new Float32Array();
      const values = await unpack(data.images[image].values);
      passages.set(image, new Passage(data, data.images[image], values, weights));
    }
    if (state.image !== image) return; // another image was chosen while this one was unpacked
    passage = passages.get(image);
    chooseLayer(state.layer);
    home.dataset.ready = image;
  }

  if (typeof DecompressionStream === "undefined") {
    home.replaceChildren(element("p", {}, "This browser cannot unpack the numbers of the walk; a newer one can."));
    return;
  }
  showImages();
  showLayers();
  start(0);
})();
