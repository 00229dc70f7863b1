// Arrays: how many values a shape has and where each lies; packed ones of the payload → typed arrays.

/** @param {number[]} shape */
export function volume(shape) {
  return shape.reduce((product, length) => product * length, 1);
}

/**
 * For each value of a shape, its place in a smaller one whose axes of length 1 are repeated.
 * @param {number[]} shape @param {number[]} whole
 */
export function broadcastPlaces(shape, whole) {
  const places = new Int32Array(volume(whole));
  for (let at = 0; at < places.length; at += 1) {
    let rest = at, place = 0, step = 1;
    for (let axis = whole.length - 1; axis >= 0; axis -= 1) {
      if (shape[axis] > 1) place += (rest % whole[axis]) * step;
      rest = Math.floor(rest / whole[axis]);
      step *= shape[axis];
    }
    places[at] = place;
  }
  return places;
}

/**
 * A shape as it is shown: maps (rows, columns, channels), or a row of units. A sequence (places, channels) is a square
 * where it can be one, as an image that was laid into a row, and else one row of pixels; values lie in the same order.
 * @param {number[]} shape
 */
export function asMaps(shape) {
  if (shape.length === 1 || shape.length === 3) return shape;
  const channels = shape[shape.length - 1];
  if (shape.length > 3) return [shape[0], volume(shape) / shape[0] / channels, channels];
  const side = Math.sqrt(shape[0]);
  return Number.isInteger(side) ? [side, side, channels] : [1, shape[0], channels];
}

/** How far apart neighbours of each axis lie. @param {number[]} shape */
export function stridesOf(shape) {
  return shape.map((_, axis) => volume(shape.slice(axis + 1)));
}

/** @typedef {{dtype: string, shape: number[], data: string}} Packed */

const TYPES = { float32: Float32Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array, int32: Int32Array, float64: Float64Array };

/**
 * Unpacks an array: base64, gzip, bytes sorted by their significance; float16 becomes Float32Array.
 * @param {Packed} packed
 * @returns {Promise<any>}
 */
export async function unpack({ dtype, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const Type = TYPES[/** @type {keyof TYPES} */ (dtype)];
  const size = Type.BYTES_PER_ELEMENT;
  const count = planes.length / size;
  const sorted = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane += 1) {
    for (let at = 0; at < count; at += 1) sorted[size * at + plane] = planes[plane * count + at];
  }
  const values = new Type(sorted.buffer);
  return dtype === "float16" ? Float32Array.from(values, fromFloat16) : values;
}

/** @param {number} bits */
function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/**
 * All weights behind each other as float32; kernels may come in fewer bits.
 * @param {any} weights the payload's @param {any[]} layers those of the payload's network
 * @returns {Promise<Float32Array>}
 */
export async function unpackWeights(weights, layers) {
  const exact = await unpack(weights.exact);
  if (!weights.short) return exact;
  const short = await unpack(weights.short);
  const values = new Float32Array(weights.count);
  let fromExact = 0;
  let fromShort = 0;
  for (const layer of layers) {
    if (layer.shares !== null) continue;
    for (const { shape, start, bits, scales } of Object.values(layer.weights)) {
      const count = volume(shape);
      if (!bits) {
        values.set(exact.subarray(fromExact, (fromExact += count)), start);
      } else if (bits === 16) {
        values.set(short.subarray(fromShort, (fromShort += count)), start);
      } else {
        // A scale for each place of the last axis that is longer than 1.
        for (let at = 0; at < count; at += 1) values[start + at] = short[fromShort + at] * exact[fromExact + (at % scales)];
        fromShort += count;
        fromExact += scales;
      }
    }
  }
  return values;
}
