// What each kind of layer computes. Values lie in the order (n, height, width, channels) or (n, units); sums are made in
// double precision and stored in single precision, as the values of Python are.

import { dense, multiplyStrip, packColumns } from "./products.js";
import { broadcastPlaces, stridesOf, volume } from "./arrays.js";

/**
 * @typedef {{shape: number[], values: Float32Array}} Weight
 * @typedef {{index: number, name: string, type: string, kind: string, shape: number[], inputs: number[],
 *   weights: Object<string, Weight>, activation: string | null, settings: Object<string, any>, live: boolean,
 *   reason: string, cost: number, parameters: number, shares: number | null}} Layer
 *
 * What a layer is computed from.
 * @typedef {{layer: Layer, entering: Float32Array[], shapes: number[][], n: number, weights: Object<string, Weight>,
 *   out: Float32Array}} Work
 */

/** The kinds of layers that are known: each fills `out` and returns it. @type {Object<string, (work: Work) => Float32Array>} */
export const KINDS = {
  convolution: (work) => convolve(work, work.entering[0], work.shapes[0], work.weights.kernel, work.weights.bias, work.out, work.layer.shape),
  depthwise: (work) => depthwise(work, work.weights.kernel, work.weights.bias, work.out),
  transposed: transpose,
  attention: (work) => {
    const { mixed, tokens } = attend(work);
    const { output_kernel: kernel, output_bias: bias } = work.weights;
    return dense(mixed, tokens, kernel.values, work.layer.shape[1], bias, work.out);
  },
  separable: (work) => {
    const [height, width] = work.layer.shape;
    const { shape } = work.weights.depthwise;
    const middle = [height, width, shape[2] * shape[3]];
    const between = depthwise(work, work.weights.depthwise, undefined, new Float32Array(work.n * volume(middle)));
    return dense(between, work.n * height * width, work.weights.pointwise.values, work.layer.shape[2], work.weights.bias, work.out);
  },
  dense: ({ layer, entering, n, weights, out }) => {
    const units = layer.shape[layer.shape.length - 1];
    return dense(entering[0], (n * volume(layer.shape)) / units, weights.kernel.values, units, weights.bias, out);
  },
  max: (work) => pool(work, true),
  average: (work) => pool(work, false),
  normalization: normalizeBatch,
  layer_normalization: (work) => normalizeGroups(work, "layer"),
  group_normalization: (work) => normalizeGroups(work, "group"),
  same: ({ layer, entering, shapes, n, out }) => {
    if (layer.settings.channelsFirst) return toChannelsFirst(entering[0], n, shapes[0], out);
    out.set(entering[0]);
    return out;
  },
  activation: ({ entering, out }) => {
    out.set(entering[0]);
    return out;
  },
  prelu: ({ layer, entering, shapes, n, weights, out }) => {
    const { shape, values } = weights.alpha;
    const places = broadcastPlaces(shape, layer.shape);
    const size = volume(shapes[0]);
    for (let at = 0; at < n * size; at += 1) {
      const x = entering[0][at];
      out[at] = x >= 0 ? x : x * values[places[at % size]];
    }
    return out;
  },
  scale: ({ layer, entering, out }) => {
    const { scale, offset } = layer.settings;
    const channels = layer.shape[layer.shape.length - 1];
    for (let at = 0; at < out.length; at += 1) {
      const channel = at % channels;
      out[at] = entering[0][at] * (scale.length > 1 ? scale[channel] : scale[0]) + (offset.length > 1 ? offset[channel] : offset[0]);
    }
    return out;
  },
  add: (work) => merge(work, (a, b) => a + b),
  subtract: (work) => merge(work, (a, b) => a - b),
  multiply: (work) => merge(work, (a, b) => a * b),
  maximum: (work) => merge(work, (a, b) => Math.max(a, b)),
  minimum: (work) => merge(work, (a, b) => Math.min(a, b)),
  divide: (work) => merge(work, (a, b) => a / b),
  mean: (work) => {
    const count = work.entering.length;
    return merge(work, (a, b) => a + b).map((sum) => sum / count);
  },
  concatenate,
  reduce,
  strided: ({ layer, entering, shapes, n, out }) => {
    const places = stridedPlaces(layer);
    const size = volume(shapes[0]);
    for (let image = 0; image < n; image += 1) for (let at = 0; at < places.length; at += 1) out[image * places.length + at] = entering[0][image * size + places[at]];
    return out;
  },
  zero_padding: ({ layer, entering, shapes, n, out }) => shifted(entering[0], n, shapes[0], layer.shape, layer.settings.margins, out),
  cropping: ({ layer, entering, shapes, n, out }) =>
    shifted(entering[0], n, shapes[0], layer.shape, layer.settings.margins.map((/** @type {number} */ margin) => -margin), out),
  resize,
  upsampling: ({ layer, entering, shapes, n, out }) => {
    const [height, width, channels] = layer.shape;
    const [down, across] = layer.settings.size;
    for (let at = 0, image = 0; image < n; image += 1) {
      for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) {
          const from = ((image * shapes[0][0] + Math.floor(y / down)) * shapes[0][1] + Math.floor(x / across)) * channels;
          for (let z = 0; z < channels; z += 1, at += 1) out[at] = entering[0][from + z];
        }
      }
    }
    return out;
  },
};

/** What a few values are made of many, by the name of how. @type {Object<string, {first: number, add: (sum: number, value: number) => number, last: (sum: number, count: number) => number}>} */
export const REDUCTIONS = {
  sum: { first: 0, add: (sum, value) => sum + value, last: (sum) => sum },
  mean: { first: 0, add: (sum, value) => sum + value, last: (sum, count) => sum / count },
  max: { first: -Infinity, add: Math.max, last: (most) => most },
  min: { first: Infinity, add: Math.min, last: (least) => least },
};

/** For each value that enters, the place of the one that it goes into. @param {Layer} layer @param {number[]} shape of what enters */
export function reducedPlaces(layer, shape) {
  const kept = shape.map((length, axis) => (layer.settings.axes.includes(axis) ? 1 : length));
  return broadcastPlaces(kept, shape);
}

/** Over some axes. @param {Work} work */
function reduce({ layer, entering, shapes, n, out }) {
  const { first, add, last } = REDUCTIONS[layer.settings.how];
  const [made, size] = [volume(layer.shape), volume(shapes[0])];
  const places = reducedPlaces(layer, shapes[0]);
  const sums = new Float64Array(made);
  for (let image = 0; image < n; image += 1) {
    sums.fill(first);
    for (let at = 0; at < size; at += 1) sums[places[at]] = add(sums[places[at]], entering[0][image * size + at]);
    for (let at = 0; at < made; at += 1) out[image * made + at] = last(sums[at], size / made);
  }
  return out;
}

/** For each value of a layer that only moves numbers, the place where it comes from. @param {Layer} layer */
export function stridedPlaces({ shape, settings }) {
  const own = stridesOf(shape);
  return Int32Array.from({ length: volume(shape) }, (_, at) =>
    own.reduce((from, step, axis) => from + (Math.floor(at / step) % shape[axis]) * settings.strides[axis], settings.offset));
}

/** Lays each number that enters, times the kernel, onto what comes out. @param {Work} work */
function transpose({ layer, entering, shapes, n, weights, out }) {
  const { strides, crop, dilation } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns, filters] = layer.shape;
  const [down, across] = weights.kernel.shape; // (down, across, filters, channels)
  const kernel = Float64Array.from(weights.kernel.values);
  const sums = new Float64Array(volume(layer.shape));
  for (let image = 0; image < n; image += 1) {
    for (let at = 0; at < sums.length; at += 1) sums[at] = weights.bias ? weights.bias.values[at % filters] : 0;
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const from = ((image * height + y) * width + x) * channels;
        for (let ky = 0; ky < down; ky += 1) {
          const row = y * strides[0] + ky * dilation[0] - crop[0];
          if (row < 0 || row >= rows) continue;
          for (let kx = 0; kx < across; kx += 1) {
            const column = x * strides[1] + kx * dilation[1] - crop[1];
            if (column < 0 || column >= columns) continue;
            const to = (row * columns + column) * filters;
            for (let filter = 0; filter < filters; filter += 1) {
              const own = ((ky * across + kx) * filters + filter) * channels;
              let sum = 0;
              for (let z = 0; z < channels; z += 1) sum += entering[0][from + z] * kernel[own + z];
              sums[to + filter] += sum;
            }
          }
        }
      }
    }
    out.set(sums, image * sums.length);
  }
  return out;
}

/**
 * How much each place of a sequence takes from each other, for each head, and what it takes (Vaswani et al.,
 * "Attention is all you need", 2017, section 3.2).
 * @param {Pick<Work, "layer" | "entering" | "shapes" | "n" | "weights">} work
 * @typedef {{length: number, size: number, values: Float32Array}} Projected (n, length, heads, size)
 * @returns {{mixed: Float32Array, tokens: number, shares: Float32Array, query: Projected, key: Projected, value: Projected}}
 *   (n·t, heads·size); (n, heads, t, s)
 */
export function attend({ layer, entering, shapes, n, weights }) {
  const { roles, heads } = layer.settings;
  const project = (/** @type {string} */ name, /** @type {number} */ role) => {
    const [kernel, bias] = [weights[`${name}_kernel`], weights[`${name}_bias`]];
    const [length] = shapes[role];
    const units = kernel.values.length / shapes[role][1];
    return { length, size: units / heads, values: dense(entering[role], n * length, kernel.values, units, bias, new Float32Array(n * length * units)) };
  };
  const [query, key, value] = [project("query", roles[0]), project("key", roles[2]), project("value", roles[1])];
  const shares = new Float32Array(n * heads * query.length * key.length);
  const mixed = new Float32Array(n * query.length * heads * value.size);
  const scores = new Float64Array(key.length);
  const sums = new Float64Array(value.size);
  const scale = 1 / Math.sqrt(query.size);
  for (let at = 0, image = 0; image < n; image += 1) {
    for (let head = 0; head < heads; head += 1) {
      for (let place = 0; place < query.length; place += 1) {
        const from = ((image * query.length + place) * heads + head) * query.size;
        let highest = -Infinity;
        for (let other = 0; other < key.length; other += 1) {
          const to = ((image * key.length + other) * heads + head) * key.size;
          let sum = 0;
          for (let z = 0; z < query.size; z += 1) sum += query.values[from + z] * key.values[to + z];
          scores[other] = sum * scale;
          highest = Math.max(highest, scores[other]);
        }
        let total = 0;
        for (let other = 0; other < key.length; other += 1) total += scores[other] = Math.exp(scores[other] - highest);
        sums.fill(0);
        for (let other = 0; other < key.length; other += 1, at += 1) {
          const share = (shares[at] = scores[other] / total);
          const to = ((image * key.length + other) * heads + head) * value.size;
          for (let z = 0; z < value.size; z += 1) sums[z] += share * value.values[to + z];
        }
        mixed.set(sums, ((image * query.length + place) * heads + head) * value.size);
      }
    }
  }
  return { mixed, tokens: n * query.length, shares, query, key, value };
}

/**
 * Between which two places of so many one of another number lies, and how near it is to the second; the middles of
 * pixels decide.
 * @param {number} at @param {number} length @param {number} wanted
 */
export function between(at, length, wanted) {
  const place = Math.max(0, ((at + 0.5) * length) / wanted - 0.5);
  const first = Math.min(length - 1, Math.floor(place));
  return [first, Math.min(length - 1, first + 1), place - first];
}

/** To another size, in straight lines between the middles of pixels. @param {Work} work */
function resize({ layer, entering, shapes, n, out }) {
  const [height, width, channels] = shapes[0];
  const [rows, columns] = layer.shape;
  for (let at = 0, image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      const [top, bottom, down] = between(row, height, rows);
      for (let column = 0; column < columns; column += 1) {
        const [left, right, over] = between(column, width, columns);
        const from = (/** @type {number} */ y, /** @type {number} */ x, /** @type {number} */ z) => entering[0][((image * height + y) * width + x) * channels + z];
        for (let z = 0; z < channels; z += 1, at += 1) {
          const upper = from(top, left, z) * (1 - over) + from(top, right, z) * over;
          const lower = from(bottom, left, z) * (1 - over) + from(bottom, right, z) * over;
          out[at] = upper * (1 - down) + lower * down;
        }
      }
    }
  }
  return out;
}


/**
 * @param {Work} work @param {Float32Array} values @param {number[]} shape @param {Weight} kernel
 * @param {Weight | undefined} bias @param {Float32Array} out @param {number[]} made
 */
function convolve({ layer, n }, values, shape, kernel, bias, out, made) {
  const { strides, padding, dilation, groups } = layer.settings;
  const [height, width, channels] = shape;
  const [rows, columns, filters] = made;
  const [down, across, each] = kernel.shape; // `each`: input channels of a group
  const depth = down * across * each;
  const own = filters / groups;
  const strip = new Float64Array(4 * depth);
  const places = rows * columns;
  for (let group = 0; group < groups; group += 1) {
    const packed = packColumns(kernel.values, depth, filters, group * own, own);
    for (let image = 0; image < n; image += 1) {
      for (let first = 0; first < places; first += 4) {
        const some = Math.min(4, places - first);
        for (let row = 0; row < some; row += 1) {
          const place = first + row;
          const top = Math.floor(place / columns) * strides[0] - padding[0];
          const left = (place % columns) * strides[1] - padding[1];
          let at = row;
          for (let y = 0; y < down; y += 1) {
            const inY = top + y * dilation[0];
            const outside = inY < 0 || inY >= height;
            for (let x = 0; x < across; x += 1) {
              const inX = left + x * dilation[1];
              if (outside || inX < 0 || inX >= width) {
                for (let z = 0; z < each; z += 1, at += 4) strip[at] = 0;
              } else {
                const from = ((image * height + inY) * width + inX) * channels + group * each;
                for (let z = 0; z < each; z += 1, at += 4) strip[at] = values[from + z];
              }
            }
          }
        }
        const to = (image * places + first) * filters + group * own;
        multiplyStrip(strip, some, packed, depth, bias?.values, group * own, own, out, to, filters);
      }
    }
  }
  return out;
}

/** @param {Work} work @param {Weight} kernel @param {Weight | undefined} bias @param {Float32Array} out */
function depthwise({ layer, entering, shapes, n }, kernel, bias, out) {
  const { strides, padding, dilation } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [down, across, , multiplier] = kernel.shape;
  const [rows, columns] = layer.shape;
  const filters = channels * multiplier;
  const values = entering[0];
  const sums = new Float64Array(filters);
  const weights = Float64Array.from(kernel.values);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        if (bias) sums.set(bias.values);
        else sums.fill(0);
        for (let y = 0; y < down; y += 1) {
          const inY = row * strides[0] - padding[0] + y * dilation[0];
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < across; x += 1) {
            const inX = column * strides[1] - padding[1] + x * dilation[1];
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            const own = (y * across + x) * filters;
            if (multiplier === 1) for (let z = 0; z < channels; z += 1) sums[z] += values[from + z] * weights[own + z];
            else for (let z = 0; z < filters; z += 1) sums[z] += values[from + Math.floor(z / multiplier)] * weights[own + z];
          }
        }
        out.set(sums, ((image * rows + row) * columns + column) * filters);
      }
    }
  }
  return out;
}

/** @param {Work} work @param {boolean} largest */
function pool({ layer, entering, shapes, n, out }, largest) {
  const { window, strides, padding } = layer.settings;
  const [height, width, channels] = shapes[0];
  const [rows, columns] = layer.shape.length === 3 ? layer.shape : [1, 1];
  const values = entering[0];
  const sums = new Float64Array(channels);
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        let count = 0;
        sums.fill(largest ? -Infinity : 0);
        for (let y = 0; y < window[0]; y += 1) {
          const inY = row * strides[0] - padding[0] + y;
          if (inY < 0 || inY >= height) continue;
          for (let x = 0; x < window[1]; x += 1) {
            const inX = column * strides[1] - padding[1] + x;
            if (inX < 0 || inX >= width) continue;
            const from = ((image * height + inY) * width + inX) * channels;
            count += 1;
            if (largest) {
              for (let z = 0; z < channels; z += 1) if (values[from + z] > sums[z]) sums[z] = values[from + z];
            } else for (let z = 0; z < channels; z += 1) sums[z] += values[from + z];
          }
        }
        if (!largest) for (let z = 0; z < channels; z += 1) sums[z] /= count;
        out.set(sums, ((image * rows + row) * columns + column) * channels);
      }
    }
  }
  return out;
}

/** By the moving statistics, along any axis. @param {Work} work */
function normalizeBatch({ layer, entering, weights, out }) {
  const { axis, epsilon } = layer.settings;
  const length = layer.shape[axis];
  const inner = volume(layer.shape.slice(axis + 1));
  const { gamma, beta, mean, variance } = weights;
  const scale = new Float64Array(length);
  const offset = new Float64Array(length);
  for (let z = 0; z < length; z += 1) {
    scale[z] = (gamma ? gamma.values[z] : 1) / Math.sqrt(variance.values[z] + epsilon);
    offset[z] = (beta ? beta.values[z] : 0) - mean.values[z] * scale[z];
  }
  const values = entering[0];
  if (inner === 1) {
    for (let first = 0; first < out.length; first += length) {
      for (let z = 0; z < length; z += 1) out[first + z] = values[first + z] * scale[z] + offset[z];
    }
  } else {
    for (let at = 0; at < out.length; at += 1) {
      const z = Math.floor(at / inner) % length;
      out[at] = values[at] * scale[z] + offset[z];
    }
  }
  return out;
}

/** Over the last axes of each image, or over groups of its channels. @param {Work} work @param {string} what */
function normalizeGroups({ layer, entering, n, weights, out }, what) {
  const { epsilon, groups, rows, centred = true } = layer.settings; // rows: values that a layer normalization averages over
  const values = entering[0];
  const size = volume(layer.shape);
  const channels = layer.shape[layer.shape.length - 1];
  const { gamma, beta } = weights;
  const each = channels / (groups ?? 1);
  const count = what === "layer" ? rows : size / groups;
  /** The place of a group's value in its image. @type {(group: number, at: number) => number} */
  const place = what === "layer" ? (group, at) => group * rows + at : (group, at) => Math.floor(at / each) * channels + group * each + (at % each);
  const learned = what === "layer" ? rows : channels;
  for (let image = 0; image < n; image += 1) {
    for (let group = 0; group < size / count; group += 1) {
      let sum = 0;
      for (let at = 0; at < count; at += 1) sum += values[image * size + place(group, at)];
      const mean = centred ? sum / count : 0;
      let squares = 0;
      for (let at = 0; at < count; at += 1) squares += (values[image * size + place(group, at)] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / count + epsilon);
      for (let at = 0; at < count; at += 1) {
        const own = place(group, at);
        const unit = own % learned;
        out[image * size + own] = (values[image * size + own] - mean) * scale * (gamma ? gamma.values[unit] : 1) + (beta ? beta.values[unit] : 0);
      }
    }
  }
  return out;
}

/** @param {Work} work @param {(a: number, b: number) => number} combine */
function merge({ layer, entering, shapes, n, out }, combine) {
  const size = volume(layer.shape);
  entering.forEach((values, which) => {
    const own = volume(shapes[which]);
    const places = own === size ? null : broadcastPlaces(shapes[which], layer.shape);
    for (let image = 0; image < n; image += 1) {
      for (let at = 0; at < size; at += 1) {
        const value = values[image * own + (places ? places[at] : at)];
        out[image * size + at] = which === 0 ? value : combine(out[image * size + at], value);
      }
    }
  });
  return out;
}

/** @param {Work} work */
function concatenate({ layer, entering, shapes, n, out }) {
  const { axis } = layer.settings;
  const inner = volume(layer.shape.slice(axis + 1));
  const outer = n * volume(layer.shape.slice(0, axis));
  const stride = layer.shape[axis] * inner;
  let from = 0;
  entering.forEach((values, which) => {
    const length = shapes[which][axis] * inner;
    for (let row = 0; row < outer; row += 1) out.set(values.subarray(row * length, (row + 1) * length), row * stride + from);
    from += length;
  });
  return out;
}

/** (h, w, c) → (c, h, w), as a network of that order flattens it. @param {Float32Array} values @param {number} n @param {number[]} shape @param {Float32Array} out */
function toChannelsFirst(values, n, [height, width, channels], out) {
  const places = height * width;
  for (let at = 0; at < out.length; at += 1) {
    const image = Math.floor(at / (places * channels));
    const place = at % places;
    const channel = Math.floor(at / places) % channels;
    out[at] = values[(image * places + place) * channels + channel];
  }
  return out;
}

/** Moves images down and right by margins, onto zeros. @param {Float32Array} values @param {number} n @param {number[]} shape @param {number[]} made @param {number[]} margins @param {Float32Array} out */
function shifted(values, n, [height, width, channels], made, [top, left], out) {
  for (let image = 0; image < n; image += 1) {
    for (let row = 0; row < made[0]; row += 1) {
      const inY = row - top;
      if (inY < 0 || inY >= height) continue;
      const first = Math.max(0, left);
      const last = Math.min(made[1], left + width);
      const from = ((image * height + inY) * width + first - left) * channels;
      const to = ((image * made[0] + row) * made[1] + first) * channels;
      out.set(values.subarray(from, from + (last - first) * channels), to);
    }
  }
  return out;
}

