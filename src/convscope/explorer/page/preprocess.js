// Pixels of any size → what the network takes, as Python's Preprocess makes it.

/** @typedef {import("./network.js").Changes} Changes */

/**
 * The settings of the payload with their arrays unpacked.
 * @typedef {{height: number, width: number, channels: number, resize: string, limits: number[] | null,
 *   scale: Float32Array, offset: Float32Array}} Preprocessing
 */

/**
 * A picture as the network takes it: brought to size, scaled.
 * @param {ArrayLike<number>} pixels red, green, blue and alpha of each pixel, nothing transparent
 * @param {number} width @param {number} height @param {Preprocessing} preprocessing
 */
export function prepare(pixels, width, height, preprocessing) {
  return scale(resize(pixels, width, height, preprocessing), preprocessing);
}

/**
 * Brings a picture to the network's size and channels, still as pixels, with the numbers of Pillow.
 * @param {ArrayLike<number>} pixels red, green, blue and alpha of each pixel, nothing transparent
 * @param {number} width @param {number} height
 * @param {{height: number, width: number, channels: number, resize: string}} preprocessing
 * @returns {Uint8Array} (height·width·channels)
 */
export function resize(pixels, width, height, { height: high, width: wide, channels, resize: how }) {
  const places = width * height;
  const own = new Uint8Array(places * channels);
  for (let place = 0; place < places; place += 1) {
    const [red, green, blue] = [pixels[4 * place], pixels[4 * place + 1], pixels[4 * place + 2]];
    if (channels === 1) own[place] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16; // ITU-R BT.601
    else own.set([red, green, blue], 3 * place);
  }
  if (width === wide && height === high) return own;
  if (how === "stretch") return resample(own, width, height, channels, wide, high);
  const factor = (how === "letterbox" ? Math.min : Math.max)(wide / width, high / height);
  const [innerWide, innerHigh] = [width, height].map((length) => Math.max(1, roundHalfToEven(length * factor)));
  const inner = resample(own, width, height, channels, innerWide, innerHigh);
  const made = new Uint8Array(wide * high * channels);
  // A negative corner crops, a positive one leaves a black border.
  const left = Math.floor((wide - innerWide) / 2);
  const top = Math.floor((high - innerHigh) / 2);
  for (let row = Math.max(0, top); row < Math.min(high, top + innerHigh); row += 1) {
    const first = Math.max(0, left);
    const count = Math.min(wide, left + innerWide) - first;
    const from = ((row - top) * innerWide + first - left) * channels;
    made.set(inner.subarray(from, from + count * channels), (row * wide + first) * channels);
  }
  return made;
}

/** As Python rounds. @param {number} value */
function roundHalfToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/**
 * Resamples with a triangle as wide as the reduction, along one axis, then along the other; each pass gives whole
 * numbers. Which comes first is what `_resample` in Python decides.
 * @param {Uint8Array} pixels @param {number} width @param {number} height @param {number} channels
 * @param {number} wide @param {number} high
 */
function resample(pixels, width, height, channels, wide, high) {
  const across = (/** @type {Uint8Array} */ given, /** @type {number} */ rows) => (wide === width ? given : along(given, rows, width, channels, wide));
  // Down is across for rows of columns · channels numbers each.
  const down = (/** @type {Uint8Array} */ given, /** @type {number} */ columns) => (high === height ? given : along(given, 1, height, columns * channels, high));
  const downFirst = height - high > Math.max(0, 2 * (width - wide));
  return downFirst ? across(down(pixels, width), high) : down(across(pixels, height), wide);
}

/**
 * Resamples the middle axis of (outer, length, inner) to another length.
 * @param {Uint8Array} pixels @param {number} outer @param {number} length @param {number} inner @param {number} wanted
 */
function along(pixels, outer, length, inner, wanted) {
  const made = new Uint8Array(outer * wanted * inner);
  const factor = length / wanted;
  const support = Math.max(factor, 1);
  const narrow = 1 / support; // the same roundings as in Pillow
  const unit = 1 << 22; // weights are whole numbers of 22 bits behind the point
  const sums = new Float64Array(inner);
  for (let place = 0; place < wanted; place += 1) {
    const centre = (place + 0.5) * factor;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(length, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, at) => Math.max(0, 1 - Math.abs((at + first - centre + 0.5) * narrow)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const whole = weights.map((weight) => Math.trunc(0.5 + (weight / total) * unit));
    for (let row = 0; row < outer; row += 1) {
      sums.fill(unit / 2);
      whole.forEach((weight, at) => {
        const from = (row * length + first + at) * inner;
        for (let z = 0; z < inner; z += 1) sums[z] += weight * pixels[from + z];
      });
      const to = (row * wanted + place) * inner;
      for (let z = 0; z < inner; z += 1) made[to + z] = Math.min(255, Math.floor(sums[z] / unit));
    }
  }
  return made;
}

/**
 * Scales pixels that have the network's size already: uint8 (h·w·c) → float32 (h·w·c).
 * @param {ArrayLike<number>} pixels @param {Preprocessing} preprocessing
 */
export function scale(pixels, { scale: factor, offset, limits }) {
  const values = new Float32Array(pixels.length);
  for (let at = 0; at < values.length; at += 1) {
    const value = Math.fround(pixels[at] * factor[at % factor.length]) + offset[at % offset.length];
    values[at] = limits ? Math.min(Math.max(value, limits[0]), limits[1]) : value;
  }
  return values;
}

/**
 * An image with the changes of the page: shifted, turned, with noise. What comes in from outside is `ground`.
 * @param {Float32Array} image @param {number[]} shape @param {Float32Array} ground @param {Changes} changes
 * @param {number} [number] of the image: each has noise of its own
 */
export function alter(image, [height, width, channels], ground, changes = {}, number = 0) {
  const [right = 0, down = 0] = changes.shift ?? [];
  const angle = ((changes.turn ?? 0) * Math.PI) / 180;
  const { sigma = 0, seed = 0 } = changes.noise ?? {};
  if (!right && !down && !angle && !sigma) return image;
  const made = new Float32Array(image.length);
  const cos = Math.cos(angle), sin = Math.sin(angle);
  const middleX = (width - 1) / 2, middleY = (height - 1) / 2;
  const at = (/** @type {number} */ y, /** @type {number} */ x, /** @type {number} */ z) =>
    y < 0 || x < 0 || y >= height || x >= width ? ground[z] : image[(y * width + x) * channels + z];
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const dx = column - right - middleX, dy = row - down - middleY;
      // An angle turns the picture against the clock, as in Pillow.
      const x = cos * dx - sin * dy + middleX, y = sin * dx + cos * dy + middleY;
      const left = Math.floor(x + 1e-9), top = Math.floor(y + 1e-9);
      const fx = Math.max(0, x - left), fy = Math.max(0, y - top);
      for (let z = 0; z < channels; z += 1) {
        const upper = at(top, left, z) * (1 - fx) + (fx ? at(top, left + 1, z) * fx : 0);
        const lower = fy ? at(top + 1, left, z) * (1 - fx) + (fx ? at(top + 1, left + 1, z) * fx : 0) : 0;
        made[(row * width + column) * channels + z] = upper * (1 - fy) + lower * fy;
      }
    }
  }
  if (sigma) {
    const next = normal(seed + 7919 * number);
    for (let place = 0; place < made.length; place += 1) made[place] += sigma * next();
  }
  return made;
}

/** Numbers of a normal distribution, the same ones for a seed. @param {number} seed */
export function normal(seed) {
  const uniform = random(seed);
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** Numbers from 0 to 1, the same ones for a seed (T. Ettinger's mulberry32). @param {number} seed */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
