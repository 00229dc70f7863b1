// How gradients go back through each kind of layer: from what it gives to what enters it, and to its weights.

import { attend, between, reducedPlaces, stridedPlaces } from "./kinds.js";
import { broadcastPlaces, volume } from "./arrays.js";

/**
 * @typedef {import("./kinds.js").Layer} Layer
 * @typedef {Object<string, Float64Array>} WeightGradients by the weight's name
 * What a layer's backward pass works on: `out` is the gradient of its sums; it gives that of each input.
 * @typedef {{layer: Layer, entering: Float32Array[], shapes: number[][], n: number, weights: Object<string, import("./kinds.js").Weight>,
 *   output: Float32Array, out: Float32Array, into: boolean, learned: WeightGradients | null}} Back
 */

/** Kinds of layers through which gradients go back. @type {Object<string, (back: Back) => Float32Array[]>} */
export const BACKWARD = {
  dense: denseBack,
  attention: attentionBack,
  convolution: (back) => convolutionBack(back),
  depthwise: (back) => convolutionBack(back, true),
  transposed: transposedBack,
  separable: separableBack,
  max: (back) => poolBack(back, true),
  average: (back) => poolBack(back, false),
  normalization: ({ layer, weights, out }) => {
    const { axis, epsilon } = layer.settings;
    const inner = volume(layer.shape.slice(axis + 1));
    const { gamma, variance } = weights;
    return [out.map((value, at) => {
      const z = Math.floor(at / inner) % layer.shape[axis];
      return (value * (gamma ? gamma.values[z] : 1)) / Math.sqrt(variance.values[z] + epsilon);
    })];
  },
  layer_normalization: (back) => normalizationBack(back, "layer"),
  group_normalization: (back) => normalizationBack(back, "group"),
  activation: ({ out }) => [out],
  prelu: ({ layer, entering, weights, out }) => {
    const places = broadcastPlaces(weights.alpha.shape, layer.shape);
    return [out.map((value, at) => (entering[0][at] >= 0 ? value : value * weights.alpha.values[places[at % places.length]]))];
  },
  scale: ({ layer, out }) => {
    const { scale } = layer.settings;
    return [out.map((value, at) => value * scale[at % scale.length])];
  },
  same: ({ layer, shapes, out }) => {
    if (!layer.settings.channelsFirst) return [out];
    const [height, width, channels] = shapes[0];
    const places = height * width;
    const made = new Float32Array(out.length);
    out.forEach((value, at) => {
      const image = Math.floor(at / (places * channels));
      made[(image * places + (at % places)) * channels + (Math.floor(at / places) % channels)] = value;
    });
    return [made];
  },
  strided: ({ layer, shapes, n, out }) => {
    const places = stridedPlaces(layer);
    const size = volume(shapes[0]);
    const made = new Float32Array(n * size);
    out.forEach((value, at) => (made[Math.floor(at / places.length) * size + places[at % places.length]] += value));
    return [made];
  },
  reduce: ({ layer, entering, shapes, output, n, out }) => {
    const { how } = layer.settings;
    const [size, length] = [volume(shapes[0]), volume(layer.shape)];
    const places = reducedPlaces(layer, shapes[0]);
    const whole = (/** @type {number} */ at) => Math.floor(at / size) * length + places[at % size];
    if (how === "sum" || how === "mean") return [entering[0].map((_, at) => (out[whole(at)] * (how === "mean" ? length : size)) / size)];
    const ties = new Float32Array(n * length); // equal ones share, as in torch
    entering[0].forEach((value, at) => (ties[whole(at)] += Number(value === output[whole(at)])));
    return [entering[0].map((value, at) => (value === output[whole(at)] ? out[whole(at)] / ties[whole(at)] : 0))];
  },
  maximum: extremeBack,
  minimum: extremeBack,
  divide: (back) => back.shapes.map((shape, which) => gathered(back, shape, (image, at) => {
    const [over, under] = back.entering.map((_, position) => valueAt(back, position, image, at));
    return which === 0 ? 1 / under : -over / under ** 2;
  })),
  add: (back) => back.shapes.map((shape) => gathered(back, shape, () => 1)),
  subtract: (back) => back.shapes.map((shape, which) => gathered(back, shape, () => (which === 0 ? 1 : -1))),
  mean: (back) => back.shapes.map((shape) => gathered(back, shape, () => 1 / back.shapes.length)),
  multiply: (back) => back.shapes.map((shape, which) => gathered(back, shape, (image, at) =>
    back.entering.reduce((product, _, other) => (other === which ? product : product * valueAt(back, other, image, at)), 1))),
  concatenate: ({ layer, shapes, n, out }) => {
    const { axis } = layer.settings;
    const inner = volume(layer.shape.slice(axis + 1));
    const outer = n * volume(layer.shape.slice(0, axis));
    const stride = layer.shape[axis] * inner;
    let from = 0;
    return shapes.map((shape) => {
      const length = shape[axis] * inner;
      const made = new Float32Array(outer * length);
      for (let row = 0; row < outer; row += 1) made.set(out.subarray(row * stride + from, row * stride + from + length), row * length);
      from += length;
      return made;
    });
  },
  cropping: ({ layer, shapes, n, out }) => {
    const [height, width, channels] = shapes[0];
    const [rows, columns] = layer.shape;
    const [top, left] = layer.settings.margins;
    const made = new Float32Array(n * volume(shapes[0]));
    for (let image = 0; image < n; image += 1) {
      for (let row = 0; row < rows; row += 1) {
        const from = (image * rows + row) * columns * channels;
        made.set(out.subarray(from, from + columns * channels), ((image * height + row + top) * width + left) * channels);
      }
    }
    return [made];
  },
  upsampling: ({ layer, shapes, n, out }) => {
    const [rows, columns, channels] = layer.shape;
    const [height, width] = shapes[0];
    const [down, across] = layer.settings.size;
    const made = new Float32Array(n * volume(shapes[0]));
    out.forEach((value, at) => {
      const place = Math.floor(at / channels);
      const [image, row, column] = [Math.floor(place / (rows * columns)), Math.floor(place / columns) % rows, place % columns];
      made[((image * height + Math.floor(row / down)) * width + Math.floor(column / across)) * channels + (at % channels)] += value;
    });
    return [made];
  },
  resize: ({ layer, shapes, n, out }) => {
    const [height, width, channels] = shapes[0];
    const [rows, columns] = layer.shape;
    const made = new Float32Array(n * volume(shapes[0]));
    out.forEach((value, at) => {
      const place = Math.floor(at / channels);
      const [top, bottom, down] = between(Math.floor(place / columns) % rows, height, rows);
      const [left, right, over] = between(place % columns, width, columns);
      const image = Math.floor(place / (rows * columns));
      const put = (/** @type {number} */ y, /** @type {number} */ x, /** @type {number} */ share) => (made[((image * height + y) * width + x) * channels + (at % channels)] += share * value);
      put(top, left, (1 - down) * (1 - over));
      put(top, right, (1 - down) * over);
      put(bottom, left, down * (1 - over));
      put(bottom, right, down * over);
    });
    return [made];
  },
  zero_padding: ({ layer, shapes, n, out }) => {
    const [height, width, channels] = shapes[0];
    const [top, left] = layer.settings.margins;
    const made = new Float32Array(n * volume(shapes[0]));
    for (let image = 0; image < n; image += 1) {
      for (let row = 0; row < height; row += 1) {
        const from = ((image * layer.shape[0] + row + top) * layer.shape[1] + left) * channels;
        made.set(out.subarray(from, from + width * channels), (image * height + row) * width * channels);
      }
    }
    return [made];
  },
};

/**
 * Adds up a merged gradient in the shape of one input, each value times a factor.
 * @param {Back} back @param {number[]} shape @param {(image: number, at: number) => number} factor
 */
function gathered({ layer, n, out }, shape, factor) {
  const size = volume(layer.shape);
  const own = volume(shape);
  const places = own === size ? null : broadcastPlaces(shape, layer.shape);
  const made = new Float32Array(n * own);
  for (let image = 0; image < n; image += 1) {
    for (let at = 0; at < size; at += 1) made[image * own + (places ? places[at] : at)] += out[image * size + at] * factor(image, at);
  }
  return made;
}

/** What an input of a merge has at a place of what comes out. @param {Back} back @param {number} which @param {number} image @param {number} at */
function valueAt({ layer, entering, shapes }, which, image, at) {
  const shape = shapes[which];
  if (volume(shape) === volume(layer.shape)) return entering[which][image * volume(shape) + at];
  let [rest, place, step] = [at, 0, 1];
  for (let axis = shape.length - 1; axis >= 0; axis -= 1) {
    if (shape[axis] > 1) place += (rest % layer.shape[axis]) * step;
    rest = Math.floor(rest / layer.shape[axis]);
    step *= shape[axis];
  }
  return entering[which][image * volume(shape) + place];
}

/** To the input that is the largest, or the smallest; equal ones share. @param {Back} back */
function extremeBack(back) {
  const size = volume(back.layer.shape);
  return back.shapes.map((shape, which) => gathered(back, shape, (image, at) => {
    const reached = back.output[image * size + at];
    if (valueAt(back, which, image, at) !== reached) return 0;
    return 1 / back.entering.filter((_, other) => valueAt(back, other, image, at) === reached).length;
  }));
}

/** Over the statistics of the image itself, which depend on every value. @param {Back} back @param {"layer" | "group"} what */
function normalizationBack({ layer, entering, n, weights, out }, what) {
  const { epsilon, groups = 1, rows, centred = true } = layer.settings;
  const size = volume(layer.shape);
  const channels = layer.shape[layer.shape.length - 1];
  const set = what === "layer" ? (/** @type {number} */ at) => Math.floor(at / rows) : (/** @type {number} */ at) => Math.floor(((at % channels) * groups) / channels);
  const sets = what === "layer" ? size / rows : groups;
  const made = new Float32Array(out.length);
  const scaled = out.map((value, at) => value * (weights.gamma ? weights.gamma.values[(at % size) % (what === "layer" ? rows : channels)] : 1));
  for (let image = 0; image < n; image += 1) {
    const x = entering[0].subarray(image * size, (image + 1) * size);
    const slopes = scaled.subarray(image * size, (image + 1) * size);
    const mean = (/** @type {(at: number) => number} */ value) => {
      const sums = new Float64Array(sets);
      for (let at = 0; at < size; at += 1) sums[set(at)] += value(at) / (size / sets);
      return sums;
    };
    const means = centred ? mean((at) => x[at]) : new Float64Array(sets);
    const scales = mean((at) => (x[at] - means[set(at)]) ** 2).map((variance) => 1 / Math.sqrt(variance + epsilon));
    const normal = (/** @type {number} */ at) => (x[at] - means[set(at)]) * scales[set(at)];
    const slope = centred ? mean((at) => slopes[at]) : new Float64Array(sets);
    const along = mean((at) => slopes[at] * normal(at));
    for (let at = 0; at < size; at += 1) made[image * size + at] = scales[set(at)] * (slopes[at] - slope[set(at)] - normal(at) * along[set(at)]);
  }
  return [made];
}

/** @param {Back} back */
function transposedBack({ layer, shapes, n, weights, out }) {
  const { strides, crop, dilation } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns, filters] = layer.shape;
  const [down, across] = weights.kernel.shape;
  const made = new Float64Array(n * volume(shapes[0]));
  for (let place = 0; place < n * height * width; place += 1) {
    const [image, y, x] = [Math.floor(place / (height * width)), Math.floor(place / width) % height, place % width];
    for (let ky = 0; ky < down; ky += 1) {
      const row = y * strides[0] + ky * dilation[0] - crop[0];
      for (let kx = 0; kx < across; kx += 1) {
        const column = x * strides[1] + kx * dilation[1] - crop[1];
        if (row < 0 || row >= rows || column < 0 || column >= columns) continue;
        const from = ((image * rows + row) * columns + column) * filters;
        for (let filter = 0; filter < filters; filter += 1) {
          const own = ((ky * across + kx) * filters + filter) * channels;
          for (let z = 0; z < channels; z += 1) made[place * channels + z] += out[from + filter] * weights.kernel.values[own + z];
        }
      }
    }
  }
  return [Float32Array.from(made)];
}

/** Backwards through the sum over channels, then through each channel's own kernels. @param {Back} back */
function separableBack(back) {
  const { layer, out, weights } = back;
  const [rows, columns, filters] = layer.shape;
  const { depthwise, pointwise } = weights;
  const middle = depthwise.shape[2] * depthwise.shape[3];
  const inner = new Float32Array((out.length / filters) * middle);
  for (let place = 0; place < out.length / filters; place += 1) {
    for (let unit = 0; unit < middle; unit += 1) {
      let sum = 0;
      for (let filter = 0; filter < filters; filter += 1) sum += out[place * filters + filter] * pointwise.values[unit * filters + filter];
      inner[place * middle + unit] = sum;
    }
  }
  return convolutionBack({ ...back, layer: { ...layer, shape: [rows, columns, middle] }, out: inner, weights: { kernel: depthwise }, learned: null }, true);
}

/** @param {Back} back */
function denseBack({ layer, entering, out, weights, into, learned }) {
  const units = layer.shape[layer.shape.length - 1];
  const kernel = weights.kernel.values;
  const depth = kernel.length / units;
  const rows = out.length / units;
  const values = entering[0];
  if (learned) {
    const own = (learned.kernel = new Float64Array(kernel.length));
    const bias = weights.bias && (learned.bias = new Float64Array(units));
    for (let row = 0; row < rows; row += 1) {
      if (bias) for (let unit = 0; unit < units; unit += 1) bias[unit] += out[row * units + unit];
      for (let place = 0; place < depth; place += 1) {
        const value = values[row * depth + place];
        if (value === 0) continue;
        for (let unit = 0; unit < units; unit += 1) own[place * units + unit] += value * out[row * units + unit];
      }
    }
  }
  if (!into) return [];
  const made = new Float32Array(values.length);
  for (let row = 0; row < rows; row += 1) {
    for (let place = 0; place < depth; place += 1) {
      let sum = 0;
      for (let unit = 0; unit < units; unit += 1) sum += out[row * units + unit] * kernel[place * units + unit];
      made[row * depth + place] = sum;
    }
  }
  return [made];
}

/** Back through what the heads gather, how much of it, and the three projections. @param {Back} back */
function attentionBack({ layer, entering, shapes, n, weights, out }) {
  const { roles, heads } = layer.settings;
  const { mixed, shares, query, key, value } = attend({ layer, entering, shapes, n, weights });
  const through = (/** @type {Float32Array} */ values, /** @type {Float32Array} */ own, /** @type {string} */ name, /** @type {number} */ units) =>
    denseBack(/** @type {any} */ ({ layer: { shape: [units] }, entering: [values], out: own, weights: { kernel: weights[name] }, into: true, learned: null }))[0];
  const gathered = through(mixed, out, "output_kernel", layer.shape[1]);
  const back = [query, value, key].map(({ values }) => new Float32Array(values.length));
  const scale = 1 / Math.sqrt(query.size);
  for (let image = 0; image < n; image += 1) {
    for (let head = 0; head < heads; head += 1) {
      for (let place = 0; place < query.length; place += 1) {
        const row = shares.subarray(((image * heads + head) * query.length + place) * key.length).subarray(0, key.length);
        const token = (image * query.length + place) * heads + head;
        const places = Array.from(row, (_, other) => (image * key.length + other) * heads + head);
        const slopes = places.map((from) => {
          let sum = 0;
          for (let z = 0; z < value.size; z += 1) sum += gathered[token * value.size + z] * value.values[from * value.size + z];
          return sum;
        });
        const mean = slopes.reduce((sum, slope_, other) => sum + slope_ * row[other], 0);
        places.forEach((from, other) => {
          for (let z = 0; z < value.size; z += 1) back[1][from * value.size + z] += row[other] * gathered[token * value.size + z];
          const score = scale * row[other] * (slopes[other] - mean);
          for (let z = 0; z < query.size; z += 1) {
            back[0][token * query.size + z] += score * key.values[from * query.size + z];
            back[2][from * query.size + z] += score * query.values[token * query.size + z];
          }
        });
      }
    }
  }
  const made = shapes.map((shape) => new Float32Array(n * volume(shape)));
  ["query_kernel", "value_kernel", "key_kernel"].forEach((name, role) => {
    const units = heads * [query, value, key][role].size;
    const into = made[roles[role]];
    through(entering[roles[role]], back[role], name, units).forEach((one, at) => (into[at] += one));
  });
  return made;
}

/** @param {Back} back @param {boolean} [depthwise] */
function convolutionBack({ layer, entering, shapes, n, out, weights, into, learned }, depthwise = false) {
  const { strides, padding, dilation, groups } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns, filters] = layer.shape;
  const [down, across, each] = weights.kernel.shape;
  const kernel = weights.kernel.values;
  const multiplier = depthwise ? weights.kernel.shape[3] : 1;
  const own = filters / groups; // filters of a group
  const values = entering[0];
  const made = into ? new Float64Array(values.length) : null;
  const forKernel = learned && (learned.kernel = new Float64Array(kernel.length));
  const forBias = learned && weights.bias ? (learned.bias = new Float64Array(filters)) : null;
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const to = ((image * rows + row) * columns + column) * filters;
        if (forBias) for (let filter = 0; filter < filters; filter += 1) forBias[filter] += out[to + filter];
        for (let y = 0; y < down; y += 1) {
          const inY = row * strides[0] - padding[0] + y * dilation[0];
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < across; x += 1) {
            const inX = column * strides[1] - padding[1] + x * dilation[1];
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            const place = y * across + x;
            if (depthwise) {
              for (let filter = 0; filter < filters; filter += 1) {
                const z = Math.floor(filter / multiplier);
                if (made) made[from + z] += out[to + filter] * kernel[place * filters + filter];
                if (forKernel) forKernel[place * filters + filter] += out[to + filter] * values[from + z];
              }
              continue;
            }
            for (let group = 0; group < groups; group += 1) {
              for (let z = 0; z < each; z += 1) {
                const first = (place * each + z) * filters + group * own;
                const value = values[from + group * each + z];
                if (forKernel) for (let filter = 0; filter < own; filter += 1) forKernel[first + filter] += value * out[to + group * own + filter];
                if (!made) continue;
                let sum = 0;
                for (let filter = 0; filter < own; filter += 1) sum += out[to + group * own + filter] * kernel[first + filter];
                made[from + group * each + z] += sum;
              }
            }
          }
        }
      }
    }
  }
  return made ? [Float32Array.from(made)] : [];
}

/** @param {Back} back @param {boolean} largest */
function poolBack({ layer, entering, shapes, n, out }, largest) {
  const { window, strides, padding } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns] = layer.shape.length === 3 ? layer.shape : [1, 1];
  const values = entering[0];
  const made = new Float32Array(values.length);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const places = [];
        for (let y = 0; y < window[0]; y += 1) {
          const inY = row * strides[0] - padding[0] + y;
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < window[1]; x += 1) {
            const inX = column * strides[1] - padding[1] + x;
            if (inX >= 0 && inX < width) places.push(((image * height + inY) * width + inX) * channels);
          }
        }
        const to = ((image * rows + row) * columns + column) * channels;
        for (let z = 0; z < channels; z += 1) {
          if (largest) {
            let best = places[0];
            for (const place of places) if (values[place + z] > values[best + z]) best = place; // of equal ones the first
            made[best + z] += out[to + z];
          } else for (const place of places) made[place + z] += out[to + z] / places.length;
        }
      }
    }
  }
  return [made];
}
