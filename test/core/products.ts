/** Float64 products of what quantized weights stand for, and how far float32 may be from them. */
import { expect } from 'vitest';
import { dequantize, type QuantizedTensor, type QuantScheme } from '../../lib';
import { SUBSET } from '../device';

/** A weight as products see it, `[out, in]`. */
export interface Decoded {
  out: number;
  in: number;
  values: ArrayLike<number>;
  /** |zero point * scale| of each element, which may be taken off after the sum; null: none. */
  zeros: Float64Array | null;
  /** Columns that share a scale of int8 activations. */
  group: number;
}

/** Constants of element (row, column) lie at row * rows + floor(column / group). */
function constantAt(scheme: QuantScheme, [, columns]: readonly number[]) {
  const granularity = scheme.kind === 'int' ? scheme.granularity : 'row';
  const size = scheme.kind === 'int' && granularity === 'group' ? (scheme.groupSize as number) : columns!;
  const groups = Math.ceil(columns! / size);
  return (r: number, c: number): number => {
    if (granularity === 'column') return c;
    return granularity === 'tensor' ? 0 : r * groups + Math.floor(c / size);
  };
}

/** By way of `dequantize` and `parts`. */
export async function decoded(q: QuantizedTensor): Promise<Decoded> {
  const [out, columns] = q.shape as [number, number];
  const values = await dequantize(q).toFloat32();
  const { scheme } = q;
  const group = scheme.kind === 'int' && scheme.granularity === 'group' ? scheme.groupSize! : columns;
  const parts = q.parts as { scales: never; zeros?: never } & typeof q.parts;
  let zeros: Float64Array | null = null;
  if (parts.zeros && !parts.groupIndex) {
    const [zero, scale] = [(await q.parts.zeros!.read()) as Int32Array, await q.parts.scales!.toFloat32()];
    const at = constantAt(scheme, q.shape);
    zeros = Float64Array.from(values, (_, i) => {
      const g = at(Math.floor(i / columns), i % columns);
      return Math.abs((zero[g] as number) * (scale[g] as number));
    });
  }
  return { out, in: columns, values, zeros, group: Math.max(1, group) };
}

export interface Sums {
  rows: number;
  out: number;
  depth: number;
  /** sum x w */
  exact: Float64Array;
  /** sum |x| |w| */
  magnitude: Float64Array;
  /** sum |x| |zero * scale| */
  zeros: Float64Array;
  /** sum of |w| times half a step of int8 activations, and as much of the zeros' sums as rounding leaves of it */
  half: Float64Array;
}

/** x `[rows, in]` times the weight's transpose. */
export function sumsOf(x: ArrayLike<number>, w: Decoded): Sums {
  const rows = w.in === 0 ? 0 : x.length / w.in;
  const size = rows * w.out;
  const sums: Sums = {
    rows,
    out: w.out,
    depth: w.in,
    exact: new Float64Array(size),
    magnitude: new Float64Array(size),
    zeros: new Float64Array(size),
    half: new Float64Array(size),
  };
  const halfStep = new Float64Array(w.in);
  for (let i = 0; i < rows; i++) {
    for (let first = 0; first < w.in; first += w.group) {
      const end = Math.min(w.in, first + w.group);
      let absmax = 0;
      for (let k = first; k < end; k++) absmax = Math.max(absmax, Math.abs(x[i * w.in + k] as number));
      halfStep.fill(absmax / 254, first, end);
    }
    for (let j = 0; j < w.out; j++) {
      let [exact, magnitude, zeros, half] = [0, 0, 0, 0];
      for (let k = 0; k < w.in; k++) {
        const [a, b] = [x[i * w.in + k] as number, w.values[j * w.in + k] as number];
        exact += a * b;
        magnitude += Math.abs(a * b);
        half += Math.abs(b) * (halfStep[k] as number);
        if (w.zeros) zeros += Math.abs(a * (w.zeros[j * w.in + k] as number));
      }
      const at = i * w.out + j;
      [sums.exact[at], sums.magnitude[at], sums.zeros[at], sums.half[at]] = [exact, magnitude, zeros, half];
    }
  }
  return sums;
}

/**
 * |error| of one sum of products in `compute`:
 *  - sums, and constants that round on their own: 4 * 2^-24 sqrt(K) sum |x| |w|, and the same of the zero points
 *    where products take them off afterwards (all but float32);
 *  - bfloat16: both factors are rounded by at most 2^-8 of themselves, together 2^-7 and a little;
 *  - int8: each activation moves by at most half a step, absmax / 127 of its group.
 */
export function bound(sums: Sums, at: number, compute: string): number {
  const [magnitude, zeros] = [sums.magnitude[at] as number, sums.zeros[at] as number];
  const rounding = 2 ** -22 * Math.sqrt(sums.depth);
  if (compute === 'float32') return rounding * magnitude;
  const factors = compute === 'bfloat16' ? 2 ** -7 * 1.002 * magnitude : 1.001 * (sums.half[at] as number);
  return factors + rounding * (magnitude + zeros);
}

/** Holds the first `rows` rows of a product to the bound, and reports the coordinate that is furthest beyond it. */
export function expectWithin(y: ArrayLike<number>, rows: number, sums: Sums, compute: string, label: string) {
  expect(y).toHaveLength(rows * sums.out);
  let [worst, at] = [1, -1];
  for (let i = 0; i < y.length; i++) {
    const error = Math.abs((y[i] as number) - (sums.exact[i] as number));
    const allowed = bound(sums, i, compute);
    // Not `>`: NaN is beyond any bound.
    if (error <= allowed * worst) continue;
    [worst, at] = [allowed === 0 || Number.isNaN(error) ? Number.POSITIVE_INFINITY : error / allowed, i];
    if (worst === Number.POSITIVE_INFINITY) break;
  }
  if (at < 0) return;
  const place = `(${Math.floor(at / sums.out)}, ${at % sums.out})`;
  expect.fail(
    `${label}, ${compute}, ${rows} rows: ${worst} times the bound at ${place}: ${y[at]}, expected ${sums.exact[at]}`,
  );
}

/** Same values in every place; NaN is not. Much faster than `toEqual` on long arrays. */
export function expectSame(y: ArrayLike<number>, expected: ArrayLike<number>, label: string): void {
  expect(y).toHaveLength(expected.length);
  for (let i = 0; i < y.length; i++) {
    if (y[i] !== expected[i]) expect.fail(`${label}: ${y[i]} at ${i}, expected ${expected[i]}`);
  }
}

/** 1 to 17 and the neighbours of powers of two: every count of rows that tiles treat in a way of its own. */
const ALL_ROWS = [...Array.from({ length: 17 }, (_, i) => i + 1), ...[31, 32, 33, 63, 64, 65, 127, 128, 129]];
/** Of the emulator, but in the whole sweep: one of each way. */
export const ROWS = SUBSET ? [1, 2, 7, 16, 17, 33, 65] : ALL_ROWS;
