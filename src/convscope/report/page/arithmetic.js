"use strict";

// One activation, recomputed from the numbers that entered the layer, its kernel and its bias.
// The sums are made in double precision; the network made its own in single precision.
const ACTIVATIONS = {
  linear: (sum) => sum,
  relu: (sum) => Math.max(sum, 0),
  relu6: (sum) => Math.min(Math.max(sum, 0), 6),
  sigmoid: (sum) => 1 / (1 + Math.exp(-sum)),
  tanh: Math.tanh,
  elu: (sum) => (sum > 0 ? sum : Math.expm1(sum)),
  silu: (sum) => sum / (1 + Math.exp(-sum)),
  softplus: (sum) => Math.log1p(Math.exp(-Math.abs(sum))) + Math.max(sum, 0),
};

// Reads the walk's packed numbers.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = planes.length / 4;
  const sorted = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane += 1) {
    for (let place = 0; place < count; place += 1) sorted[4 * place + plane] = planes[plane * count + place];
  }
  return new Float32Array(sorted.buffer);
}

function volume(shape) {
  return shape.reduce((product, length) => product * length, 1);
}

// One image's way through the network: the values of each layer, and how each of them came about.
class Passage {
  constructor(data, image, values, weights) {
    this.data = data;
    this.image = image;
    this.weights = weights;
    this.starts = new Map([[-1, 0]]);
    this.values = values;
    let start = volume(data.input);
    data.layers.forEach((layer, place) => {
      if (!layer.kept) return;
      this.starts.set(place, start);
      start += volume(layer.shape);
    });
  }

  shape(place) {
    return place < 0 ? this.data.input : this.data.layers[place].shape;
  }

  // The values of a layer, or null where the page does not carry them.
  of(place) {
    if (this.starts.has(place)) {
      const start = this.starts.get(place);
      return this.values.subarray(start, start + volume(this.shape(place)));
    }
    const layer = this.data.layers[place];
    return layer?.kind === "same" && layer.parent !== null ? this.of(layer.parent) : null;
  }

  // Why an activation of this layer cannot be recomputed in the page; empty where it can.
  obstacle(place, unit) {
    const layer = this.data.layers[place];
    if (layer.parent === null || layer.kind === "other") return `The page knows no arithmetic for ${layer.type}.`;
    if (!this.of(place) || !this.of(layer.parent)) return "The numbers around this layer are too many for this page.";
    if (!["convolution", "depthwise", "dense"].includes(layer.kind)) {
      return layer.kind === "activation" && !this.known(layer) ? `The page does not know ${layer.activation}.` : "";
    }
    if (!layer.weights) return "The kernel of this layer has too many numbers for this page.";
    if (layer.weights.units && !layer.weights.units.includes(unit)) {
      return `Of this layer’s kernel, only the columns of ${plural(layer.weights.units.length, "unit")} are in this page: ${layer.weights.units.join(", ")}.`;
    }
    return this.known(layer) ? "" : `The page does not know the activation function ${layer.activation}.`;
  }

  known(layer) {
    return layer.activation in ACTIVATIONS || (layer.activation === "softmax" && this.sums(layer) !== null);
  }

  sums(layer) {
    if (layer.kind === "dense") return layer.place === this.data.layers.length - 1 ? this.image.logits : null;
    return this.shape(layer.place).length === 1 ? this.of(layer.parent) : null;
  }

  kernel(layer) {
    const { start, kernel } = layer.weights;
    return this.weights.subarray(start, start + volume(kernel));
  }

  bias(layer, output) {
    const { start, kernel } = layer.weights;
    return this.weights[start + volume(kernel) + output];
  }

  activate(layer, sum, unit) {
    if (layer.activation !== "softmax") return ACTIVATIONS[layer.activation](sum);
    const sums = [...this.sums(layer)];
    sums[unit] = sum;
    const highest = Math.max(...sums);
    const total = sums.reduce((all, one) => all + Math.exp(one - highest), 0);
    return Math.exp(sum - highest) / total;
  }

  // Recomputes the value at (row, column, channel), or at unit `channel` of a layer without rows.
  recompute(place, row, column, channel) {
    const layer = this.data.layers[place];
    const shape = layer.shape;
    const flat = shape.length === 3 ? (row * shape[1] + column) * shape[2] + channel : channel;
    const own = this.of(place)[flat];
    const found = {
      convolution: () => this.convolution(layer, row, column, channel),
      depthwise: () => this.convolution(layer, row, column, channel),
      dense: () => this.dense(layer, channel),
      max: () => this.pooling(layer, row, column, channel),
      average: () => this.pooling(layer, row, column, channel),
      activation: () => {
        const sum = this.of(layer.parent)[flat];
        return { terms: [], sum, bias: null, result: this.activate(layer, sum, channel) };
      },
      same: () => ({ terms: [], sum: own, bias: null, result: this.of(layer.parent)[flat] }),
    }[layer.kind]();
    return { ...found, own, difference: Math.abs(found.result - own) };
  }

  // The part of the input under a window, with zeros outside the image: [channel][row][column].
  window(layer, row, column, channels) {
    const [height, width, depth] = this.shape(layer.parent);
    const values = this.of(layer.parent);
    const [rows, columns] = layer.window;
    const top = row * layer.strides[0] - layer.padding[0];
    const left = column * layer.strides[1] - layer.padding[1];
    const at = (y, x, z) => (y < 0 || x < 0 || y >= height || x >= width ? null : values[(y * width + x) * depth + z]);
    return channels.map((channel) =>
      Array.from({ length: rows }, (_, y) =>
        Array.from({ length: columns }, (_, x) => at(top + y * layer.dilation[0], left + x * layer.dilation[1], channel)),
      ),
    );
  }

  convolution(layer, row, column, channel) {
    const [rows, columns, inputs, outputs] = layer.weights.kernel;
    const depthwise = layer.kind === "depthwise";
    const filters = depthwise ? inputs * outputs : outputs;
    const first = depthwise ? Math.floor(channel / layer.multiplier) : Math.floor(channel / (filters / layer.groups)) * inputs;
    const channels = depthwise ? [first] : Array.from({ length: inputs }, (_, index) => first + index);
    const kernel = this.kernel(layer);
    const weight = (y, x, z) =>
      depthwise
        ? kernel[((y * columns + x) * inputs + first) * outputs + (channel % outputs)]
        : kernel[((y * columns + x) * inputs + z) * outputs + channel];
    const patches = this.window(layer, row, column, channels);
    let sum = 0;
    const terms = patches.map((patch, z) => {
      const weights = patch.map((line, y) => line.map((_, x) => weight(y, x, z)));
      let subtotal = 0;
      for (let y = 0; y < rows; y += 1) for (let x = 0; x < columns; x += 1) subtotal += (patch[y][x] ?? 0) * weights[y][x];
      sum += subtotal;
      return { channel: channels[z], patch, weights, subtotal };
    });
    const bias = this.bias(layer, channel);
    return { terms, sum, bias, result: this.activate(layer, sum + bias, channel) };
  }

  dense(layer, unit) {
    const outputs = layer.weights.kernel[1];
    const place = layer.weights.units ? layer.weights.units.indexOf(unit) : unit;
    const kernel = this.kernel(layer);
    const values = this.of(layer.parent);
    let sum = 0;
    const terms = Array.from(values, (value, input) => {
      const weight = kernel[input * outputs + place];
      sum += value * weight;
      return { input, value, weight, product: value * weight };
    });
    const bias = this.bias(layer, place);
    return { terms, sum, bias, result: this.activate(layer, sum + bias, unit) };
  }

  pooling(layer, row, column, channel) {
    const patch = this.window(layer, row, column, [channel])[0];
    const inside = patch.flat().filter((value) => value !== null);
    const total = inside.reduce((all, one) => all + one, 0);
    const result = layer.kind === "max" ? Math.max(...inside) : total / inside.length;
    return { terms: [{ channel, patch, weights: null, subtotal: total }], sum: total, bias: null, count: inside.length, result };
  }
}
