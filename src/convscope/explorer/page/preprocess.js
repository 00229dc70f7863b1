// Pixels of any size → what the network takes, as Python's Preprocess makes it.

/** @typedef {import("./network.js").Changes} Changes */

/**
 * The settings of the payload with their arrays unpacked.
 * @typedef {{height: number, width: number, channels: number, resize: string, limits: number[] | null,
 *   scale: Float32Array, offset: Float32Array}} Preprocessing
 */

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
