// Strokes → pixels: drawn as a pen draws them, or laid into the frame as the run's images are.

import { place } from "./unlike.js";

/** @typedef {import("./convention.js").Convention} Convention */

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
