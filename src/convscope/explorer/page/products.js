// Products of matrices, in blocks of four rows and four columns; sums in double precision.

/** @typedef {import("./kinds.js").Weight} Weight */

/**
 * Four rows of `a` times four columns of `b`, both packed by four, each product into its place of `sums`.
 * @param {Float64Array} a @param {number} fromA @param {Float64Array} b @param {number} fromB @param {number} depth
 * @param {Float64Array} sums
 */
function block(a, fromA, b, fromB, depth, sums) {
  let c00 = 0, c01 = 0, c02 = 0, c03 = 0;
  let c10 = 0, c11 = 0, c12 = 0, c13 = 0;
  let c20 = 0, c21 = 0, c22 = 0, c23 = 0;
  let c30 = 0, c31 = 0, c32 = 0, c33 = 0;
  for (let end = fromA + 4 * depth, i = fromA, j = fromB; i < end; i += 4, j += 4) {
    const a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    let x = b[j];
    c00 += a0 * x; c10 += a1 * x; c20 += a2 * x; c30 += a3 * x;
    x = b[j + 1];
    c01 += a0 * x; c11 += a1 * x; c21 += a2 * x; c31 += a3 * x;
    x = b[j + 2];
    c02 += a0 * x; c12 += a1 * x; c22 += a2 * x; c32 += a3 * x;
    x = b[j + 3];
    c03 += a0 * x; c13 += a1 * x; c23 += a2 * x; c33 += a3 * x;
  }
  sums[0] = c00; sums[1] = c01; sums[2] = c02; sums[3] = c03;
  sums[4] = c10; sums[5] = c11; sums[6] = c12; sums[7] = c13;
  sums[8] = c20; sums[9] = c21; sums[10] = c22; sums[11] = c23;
  sums[12] = c30; sums[13] = c31; sums[14] = c32; sums[15] = c33;
}

const SUMS = new Float64Array(16);

/**
 * Packs columns of a matrix (depth, width) by four, those beyond the last as zeros.
 * @param {ArrayLike<number>} values @param {number} depth @param {number} width @param {number} first @param {number} count
 */
export function packColumns(values, depth, width, first, count) {
  const blocks = Math.ceil(count / 4);
  const packed = new Float64Array(blocks * depth * 4);
  for (let at = 0, one = 0; one < blocks; one += 1) {
    for (let row = 0; row < depth; row += 1) {
      for (let column = 0; column < 4; column += 1, at += 1) {
        const place = 4 * one + column;
        packed[at] = place < count ? values[row * width + first + place] : 0;
      }
    }
  }
  return packed;
}

/**
 * A strip of up to four packed rows times all packed columns, stored from `to` on with `stride` between the rows.
 * @param {Float64Array} strip @param {number} rows @param {Float64Array} columns @param {number} depth
 * @param {Float64Array | Float32Array | undefined} bias @param {number} first @param {number} count
 * @param {Float32Array} out @param {number} to @param {number} stride
 */
export function multiplyStrip(strip, rows, columns, depth, bias, first, count, out, to, stride) {
  for (let one = 0; 4 * one < count; one += 1) {
    block(strip, 0, columns, one * 4 * depth, depth, SUMS);
    const most = Math.min(4, count - 4 * one);
    for (let column = 0; column < most; column += 1) {
      const added = bias ? bias[first + 4 * one + column] : 0;
      for (let row = 0; row < rows; row += 1) out[to + row * stride + 4 * one + column] = SUMS[4 * row + column] + added;
    }
  }
}

/**
 * Rows (rows, depth) times a kernel (depth, units), plus a bias.
 * @param {Float32Array} values @param {number} rows @param {Float32Array} kernel @param {number} units
 * @param {Weight | undefined} bias @param {Float32Array} out
 */
export function dense(values, rows, kernel, units, bias, out) {
  const depth = kernel.length / units;
  if (rows < 4) {
    const sums = new Float64Array(units);
    for (let row = 0; row < rows; row += 1) {
      if (bias) sums.set(bias.values);
      else sums.fill(0);
      for (let place = 0; place < depth; place += 1) {
        const value = values[row * depth + place];
        if (value === 0) continue; // behind a ReLU, half of them are
        const from = place * units;
        for (let unit = 0; unit < units; unit += 1) sums[unit] += value * kernel[from + unit];
      }
      out.set(sums, row * units);
    }
    return out;
  }
  const columns = packColumns(kernel, depth, units, 0, units);
  const strip = new Float64Array(4 * depth);
  for (let first = 0; first < rows; first += 4) {
    const some = Math.min(4, rows - first);
    for (let row = 0; row < some; row += 1) {
      const from = (first + row) * depth;
      for (let place = 0; place < depth; place += 1) strip[4 * place + row] = values[from + place];
    }
    multiplyStrip(strip, some, columns, depth, bias?.values, 0, units, out, first * units, units);
  }
  return out;
}
