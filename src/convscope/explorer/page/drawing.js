// How a run's images lie in their frame, and strokes → pixels that lie as they do: MNIST's digits are light on dark,
// their longer side has 20 of 28 pixels, and their centre of mass is the frame's.

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

// Strokes are in thousandths of the longer side, whatever the canvas's size.
export const UNITS = 1000;
// A dot is not blown up to the size of a digit.
const LARGEST_SCALE = 3;

/**
 * Paint strokes over the ground of a canvas.
 * @param {CanvasRenderingContext2D} context
 * @param {number[][]} strokes
 * @param {boolean} dark  whether the ground is dark
 * @param {{scale: number, x: number, y: number}} [laid]  in thousandths of the longer side
 */
export function paintStrokes(context, strokes, dark, laid = { scale: 1, x: 0, y: 0 }) {
  const { width, height } = context.canvas;
  const unit = Math.max(width, height) / UNITS;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = dark ? "#000" : "#fff";
  context.fillRect(0, 0, width, height);
  context.setTransform(unit * laid.scale, 0, 0, unit * laid.scale, unit * laid.x, unit * laid.y);
  context.strokeStyle = context.fillStyle = dark ? "#fff" : "#000";
  context.lineCap = context.lineJoin = "round";
  for (const [pen, ...points] of strokes) {
    context.beginPath();
    if (points.length === 2) {
      context.arc(points[0], points[1], pen / 2, 0, 2 * Math.PI);
      context.fill();
      continue;
    }
    context.lineWidth = pen;
    context.moveTo(points[0], points[1]);
    for (let at = 2; at < points.length; at += 2) context.lineTo(points[at], points[at + 1]);
    context.stroke();
  }
}

/**
 * Find where strokes go so that they lie as the run's images do.
 * @param {number[][]} strokes
 * @param {Convention} convention
 * @param {{height: number, width: number}} size
 * @param {CanvasRenderingContext2D} scratch  a canvas to measure on
 */
export function layStrokes(strokes, convention, size, scratch) {
  const longer = Math.max(size.height, size.width);
  const middle = { x: (UNITS / 2) * (size.width / longer), y: (UNITS / 2) * (size.height / longer) };
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [pen, ...points] of strokes) {
    for (let at = 0; at < points.length; at += 2) {
      left = Math.min(left, points[at] - pen / 2);
      right = Math.max(right, points[at] + pen / 2);
      top = Math.min(top, points[at + 1] - pen / 2);
      bottom = Math.max(bottom, points[at + 1] + pen / 2);
    }
  }
  if (right < left) return { scale: 1, x: 0, y: 0 };
  const scale = Math.min((UNITS * convention.side) / Math.max(right - left, bottom - top), LARGEST_SCALE);
  const laid = { scale, x: middle.x - (scale * (left + right)) / 2, y: middle.y - (scale * (top + bottom)) / 2 };
  if (!convention.mass) return laid;
  const { width, height } = scratch.canvas;
  paintStrokes(scratch, strokes, true, laid);
  const { data } = scratch.getImageData(0, 0, width, height);
  const grey = Float32Array.from({ length: width * height }, (_, pixel) => data[4 * pixel]);
  const { row, column } = place(grey, height, width, 0);
  return { ...laid, x: laid.x + 2 * middle.x * (0.5 - column), y: laid.y + 2 * middle.y * (0.5 - row) };
}
