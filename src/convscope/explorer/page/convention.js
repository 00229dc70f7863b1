// How a run's images lie in their frame, so that a drawing is laid as they are: MNIST's digits are light on
// dark, their longer side has 20 of 28 pixels, and their centre of mass is the frame's.

import { median, place } from "./unlike.js";

/**
 * @typedef {object} Convention
 * @property {boolean} dark  whether the ground is dark
 * @property {number} side  the longer side of what is drawn, as a fraction of the longer side of the frame
 * @property {boolean} mass  whether the centre of mass is the frame's, or else that of the box around it
 */

// Of the images, so many have to agree.
const MOST = 0.85;
// Grey levels within which a border is all ground, and beyond which a pixel is ink.
const GROUND = 24;
// MNIST's centres of mass lie within a pixel of the middle.
const CENTRED = 0.04;

/**
 * Find the convention that images (h, w, c) keep; null for photographs and all else that keeps none.
 * @param {ArrayLike<number>[]} images  uint8
 * @param {{height: number, width: number, channels: number}} size
 * @returns {Convention | null}
 */
export function findConvention(images, { height, width, channels }) {
  if (!images.length) return null;
  const longer = Math.max(height, width);
  const boxes = [];
  let [dark, light] = [0, 0];
  for (const pixels of images) {
    if (colourful(pixels, channels)) continue; // a photograph with a black border is no drawing
    const grey = Float32Array.from({ length: height * width }, (_, pixel) => {
      let sum = 0;
      for (let channel = 0; channel < channels; channel++) sum += pixels[pixel * channels + channel];
      return sum / channels;
    });
    const border = grey.filter((_, pixel) => {
      const [row, column] = [Math.floor(pixel / width), pixel % width];
      return row === 0 || row === height - 1 || column === 0 || column === width - 1;
    });
    const ground = median(border);
    const plain = border.filter((value) => Math.abs(value - ground) <= GROUND).length;
    if (plain < 0.6 * border.length || (ground > GROUND && ground < 255 - GROUND)) continue;
    if (ground <= GROUND) dark++;
    else light++;
    const box = inkBox(grey, height, width, ground);
    if (box) boxes.push({ side: box.side, ...place(grey, height, width, ground) });
  }
  if (Math.max(dark, light) < MOST * images.length || boxes.length < MOST * images.length) return null;
  const side = median(Float32Array.from(boxes, (box) => box.side));
  const near = boxes.filter((box) => Math.abs(box.side - side) <= Math.max(1, 0.05 * side)).length;
  if (near < MOST * boxes.length) return null;
  const centred = boxes.filter((box) => Math.abs(box.row - 0.5) < CENTRED && Math.abs(box.column - 0.5) < CENTRED).length;
  return { dark: dark > light, side: side / longer, mass: centred >= MOST * boxes.length };
}

// Of an image in colours, more than so many pixels are not grey.
const COLOURED = 0.1;

/** @param {ArrayLike<number>} pixels @param {number} channels */
function colourful(pixels, channels) {
  if (channels === 1) return false;
  let count = 0;
  for (let at = 0; at < pixels.length; at += channels) {
    const spread = Math.max(pixels[at], pixels[at + 1], pixels[at + 2]) - Math.min(pixels[at], pixels[at + 1], pixels[at + 2]);
    if (spread > GROUND) count++;
  }
  return count * channels > COLOURED * pixels.length;
}

/**
 * @param {Float32Array} grey
 * @param {number} height
 * @param {number} width
 * @param {number} ground
 */
function inkBox(grey, height, width, ground) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (Math.abs(grey[row * width + column] - ground) <= GROUND) continue;
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
      left = Math.min(left, column);
      right = Math.max(right, column);
    }
  }
  return bottom < 0 ? null : { side: Math.max(bottom - top, right - left) + 1 };
}
