// Shapes of arrays: how many values there are, and where each lies.

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
