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

// One image's way through the network: the values of each layer, and how each of them came about. Small layers
// come with the page; large ones are computed here, and held against some of the network's own numbers.
class Passage {
  constructor(data, image, values, weights) {
    this.data = data;
    this.image = image;
    this.weights = weights;
    this.arrays = new Map();
    this.checks = new Map();
    let start = 0;
    const take = (count) => values.subarray(start, (start += count));
    this.arrays.set(-1, take(volume(data.input)));
    data.layers.forEach((layer, place) => {
      if (layer.supply === "carried") this.arrays.set(place, take(volume(layer.shape)));
    });
    data.layers.forEach((layer, place) => {
      if (layer.supply !== "computed") return;
      const channels = layer.shape.at(-1);
      const places = take(channels);
      const own = take(channels);
      this.checks.set(place, new Map(Array.from(places, (flat, channel) => [flat, own[channel]])));
    });
  }

  shape(place) {
    return place < 0 ? this.data.input : this.data.layers[place].shape;
  }

  // The values of a layer, or null where the page neither carries nor computes them.
  of(place) {
    if (this.arrays.has(place)) return this.arrays.get(place);
    const layer = this.data.layers[place];
    if (layer?.supply === "same") return this.of(layer.parent);
    if (layer?.supply !== "computed") return null;
    this.arrays.set(place, this.compute(layer));
    return this.arrays.get(place);
  }

  // The network's own number; null where only the page's own is here.
  own(place, flat) {
    const layer = this.data.layers[place];
    if (layer.supply === "same" && layer.parent >= 0) return this.own(layer.parent, flat);
    return this.checks.has(place) ? (this.checks.get(place).get(flat) ?? null) : this.of(place)[flat];
  }

  // How far the values that the page computed are from those of the network's own that it carries.
  agreement(place) {
    const layer = this.data.layers[place];
    if (layer.supply === "same" && layer.parent >= 0) return this.agreement(layer.parent);
    const values = this.of(place);
    const checks = [...this.checks.get(place)];
    const largest = Math.max(...checks.map(([flat, own]) => Math.abs(values[flat] - own)));
    const worst = Math.max(...checks.map(([flat, own]) => Math.abs(values[flat] - own) / Math.max(1, Math.abs(own))));
    return { count: checks.length, largest, worst };
  }

  // All values of a layer at once, from all values that enter it.
  compute(layer) {
    const values = this.of(layer.parent);
    const channels = layer.shape.at(-1);
    const made = new Float32Array(volume(layer.shape));
    if (layer.kind === "activation") return made.map((_, flat) => ACTIVATIONS[layer.activation](values[flat]));
    if (layer.kind === "normalization") return made.map((_, flat) => this.normalize(layer, flat % channels, values[flat]).result);
    if (layer.kind === "dense") return made.map((_, unit) => this.dense(layer, unit).result);
    const [rows, columns] = layer.shape.length === 3 ? layer.shape : [1, 1];
    const fill = layer.kind === "max" || layer.kind === "average" ? this.pool : this.convolve;
    const sums = new Float64Array(channels);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        fill.call(this, layer, row, column, values, sums);
        made.set(sums, (row * columns + column) * channels);
      }
    }
    return made;
  }

  // Calls for each place of the input under a window: where its first channel is, and which place of the window.
  under(layer, row, column, visit) {
    const [height, width, depth] = this.shape(layer.parent);
    for (let y = 0; y < layer.window[0]; y += 1) {
      const down = row * layer.strides[0] - layer.padding[0] + y * layer.dilation[0];
      if (down < 0 || down >= height) continue;
      for (let x = 0; x < layer.window[1]; x += 1) {
        const across = column * layer.strides[1] - layer.padding[1] + x * layer.dilation[1];
        if (across >= 0 && across < width) visit((down * width + across) * depth, y * layer.window[1] + x);
      }
    }
  }

  pool(layer, row, column, values, sums) {
    const largest = layer.kind === "max";
    let count = 0;
    sums.fill(largest ? -Infinity : 0);
    this.under(layer, row, column, (first) => {
      count += 1;
      for (let z = 0; z < sums.length; z += 1) sums[z] = largest ? Math.max(sums[z], values[first + z]) : sums[z] + values[first + z];
    });
    if (!largest) for (let z = 0; z < sums.length; z += 1) sums[z] /= count;
  }

  convolve(layer, row, column, values, sums) {
    const kernel = this.kernel(layer);
    const [, , inputs, outputs] = layer.weights.kernel;
    const depthwise = layer.kind === "depthwise";
    const groups = depthwise ? inputs : layer.groups;
    const each = depthwise ? outputs : outputs / groups; // outputs of a group
    const own = depthwise ? 1 : inputs; // inputs of a group
    sums.fill(0);
    this.under(layer, row, column, (first, place) => {
      for (let group = 0; group < groups; group += 1) {
        for (let z = 0; z < own; z += 1) {
          const value = values[first + group * own + z];
          if (value === 0) continue;
          const start = depthwise ? (place * inputs + group) * outputs : (place * inputs + z) * outputs + group * each;
          for (let one = 0; one < each; one += 1) sums[group * each + one] += value * kernel[start + one];
        }
      }
    });
    const act = ACTIVATIONS[layer.activation];
    for (let output = 0; output < sums.length; output += 1) sums[output] = act(sums[output] + this.bias(layer, output));
  }

  // Why an activation of this layer cannot be recomputed in the page; empty where it can.
  obstacle(place, unit) {
    const layer = this.data.layers[place];
    if (layer.parent === null || layer.kind === "other") return `The page knows no arithmetic for ${layer.type}.`;
    if (!this.of(place) || !this.of(layer.parent)) return "The numbers around this layer are too many for this page.";
    if (!["convolution", "depthwise", "dense", "normalization"].includes(layer.kind)) {
      return layer.kind === "activation" && !this.known(layer) ? `The page does not know ${layer.activation}.` : "";
    }
    if (!layer.weights) return "The kernel of this layer has too many numbers for this page.";
    if (layer.weights.units && !layer.weights.units.includes(unit)) {
      return `Of this layer’s kernel, only the weights of ${plural(layer.weights.units.length, "unit")} are in this page: ${layer.weights.units.join(", ")}.`;
    }
    return layer.kind === "normalization" || this.known(layer) ? "" : `The page does not know the activation function ${layer.activation}.`;
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

  normalize(layer, channel, value) {
    const channels = layer.weights.kernel[1];
    const [gamma, beta, mean, variance] = [0, 1, 2, 3].map((row) => this.weights[layer.weights.start + row * channels + channel]);
    const scaled = (value - mean) / Math.sqrt(variance + layer.epsilon);
    return { terms: [], sum: value, bias: null, gamma, beta, mean, variance, scaled, result: gamma * scaled + beta };
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
    const own = this.own(place, flat);
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
      normalization: () => this.normalize(layer, channel, this.of(layer.parent)[flat]),
      same: () => ({ terms: [], sum: own, bias: null, result: this.of(layer.parent)[flat] }),
    }[layer.kind]();
    const difference = Math.abs(found.result - (own ?? this.of(place)[flat]));
    return { ...found, own, difference };
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
    const filters = depthwise ? inputs * outputs : layer.shape.at(-1);
    const unit = layer.weights.units ? layer.weights.units.indexOf(channel) : channel;
    const first = depthwise ? Math.floor(channel / layer.multiplier) : Math.floor(channel / (filters / layer.groups)) * inputs;
    const channels = depthwise ? [first] : Array.from({ length: inputs }, (_, index) => first + index);
    const kernel = this.kernel(layer);
    const weight = (y, x, z) =>
      depthwise
        ? kernel[((y * columns + x) * inputs + first) * outputs + (channel % outputs)]
        : kernel[((y * columns + x) * inputs + z) * outputs + unit];
    const patches = this.window(layer, row, column, channels);
    let sum = 0;
    const terms = patches.map((patch, z) => {
      const weights = patch.map((line, y) => line.map((_, x) => weight(y, x, z)));
      let subtotal = 0;
      for (let y = 0; y < rows; y += 1) for (let x = 0; x < columns; x += 1) subtotal += (patch[y][x] ?? 0) * weights[y][x];
      sum += subtotal;
      return { channel: channels[z], patch, weights, subtotal };
    });
    const bias = this.bias(layer, unit);
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
