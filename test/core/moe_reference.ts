/** Float64 experts of a mixture, and how far float32 between and after their products may be from them. */
import { expect } from 'vitest';
import { QuantizedTensor, type Tensor } from '../../lib';
import { bound, type Decoded, decoded, type Sums, sumsOf } from './products';

export type Matrix = Tensor | QuantizedTensor;
export type Expert = Record<'gate' | 'up' | 'down', Matrix>;
export type DecodedExpert = Record<'gate' | 'up' | 'down', Decoded>;

async function decodedMatrix(matrix: Matrix): Promise<Decoded> {
  if (QuantizedTensor.is(matrix)) return decoded(matrix);
  const [out, depth] = matrix.shape as [number, number];
  return { out, in: depth, values: await matrix.toFloat32(), zeros: null, group: Math.max(1, depth) };
}

export async function decodedExperts(experts: readonly Expert[]): Promise<DecodedExpert[]> {
  return Promise.all(
    experts.map(async ({ gate, up, down }) => ({
      gate: await decodedMatrix(gate),
      up: await decodedMatrix(up),
      down: await decodedMatrix(down),
    })),
  );
}

/** A routing as numbers. */
export interface Choice {
  topK: number;
  /** `[T, topK]` */
  indices: ArrayLike<number>;
  /** `[T, topK]` */
  weights: ArrayLike<number>;
}

export interface Expected {
  /** `[T, hidden]` */
  values: Float64Array;
  /** |error| that each may have before it is rounded to x's dtype */
  allowed: Float64Array;
}

const silu = (g: number): number => g / (1 + Math.exp(-g));

/** One expert for rows of x, with the bound carried through: |silu'| <= 1.1, and 2^-20 of itself for silu times up. */
function expertReference(x: Float32Array, expert: DecodedExpert, compute: string): [Sums, Float64Array] {
  const [gate, up] = [sumsOf(x, expert.gate), sumsOf(x, expert.up)];
  const activated = new Float64Array(gate.exact.length);
  const errors = activated.map((_, i) => {
    const [g, u] = [gate.exact[i] as number, up.exact[i] as number];
    const [eg, eu] = [bound(gate, i, compute), bound(up, i, compute)];
    activated[i] = silu(g) * u;
    const moved = 1.1 * eg * (Math.abs(u) + eu) + Math.abs(silu(g)) * eu;
    return moved + 2 ** -20 * (Math.abs(silu(g) * u) + moved) + 2 ** -120 * (1 + Math.abs(g * u));
  });
  // What products make of the error that comes in: its own sum, and where they round, as much of it as of values.
  const [down, spread] = [sumsOf(activated, expert.down), sumsOf(errors, expert.down)];
  const allowed = down.exact.map(
    (_, i) => bound(down, i, compute) + (spread.magnitude[i] as number) + bound(spread, i, compute),
  );
  return [down, allowed];
}

/** sum_k weight * down(silu(gate x) * (up x)), for tokens of x `[T, hidden]`. */
export function expertsReference(
  x: Float32Array,
  experts: readonly DecodedExpert[],
  { topK, indices, weights }: Choice,
  compute: string,
): Expected {
  const values = new Float64Array(x.length);
  const allowed = new Float64Array(x.length);
  const hidden = topK === 0 ? 1 : x.length / (indices.length / topK);
  const slots = Array.from({ length: indices.length }, (_, slot) => slot);
  experts.forEach((expert, e) => {
    const own = slots.filter((slot) => indices[slot] === e);
    const rows = new Float32Array(own.length * hidden);
    own.forEach((slot, r) => {
      const t = Math.floor(slot / topK);
      rows.set(x.subarray(t * hidden, (t + 1) * hidden), r * hidden);
    });
    const [down, errors] = expertReference(rows, expert, compute);
    own.forEach((slot, r) => {
      const weight = weights[slot] as number;
      for (let h = 0; h < hidden; h++) {
        const [at, from] = [Math.floor(slot / topK) * hidden + h, r * hidden + h];
        const [value, error] = [down.exact[from] as number, errors[from] as number];
        values[at]! += weight * value;
        // One rounding for each of at most topK additions.
        allowed[at]! += Math.abs(weight) * (error + (topK + 1) * 2 ** -24 * (Math.abs(value) + error));
      }
    });
  });
  return { values, allowed };
}

/** Half a unit in the last place of 1. */
const ROUNDING: Readonly<Record<string, number>> = {
  float32: 2 ** -24,
  float16: 2 ** -11,
  bfloat16: 2 ** -8,
};

/** Holds y to the bound, and reports the coordinate that is furthest beyond it. */
export function expectNear(
  y: ArrayLike<number>,
  { values, allowed }: Expected,
  dtype: string,
  label: string,
): void {
  expect(y).toHaveLength(values.length);
  let [worst, at] = [1, -1];
  for (let i = 0; i < y.length; i++) {
    const [value, slack] = [values[i] as number, allowed[i] as number];
    const error = Math.abs((y[i] as number) - value);
    const most =
      slack + (ROUNDING[dtype] as number) * (Math.abs(value) + slack) + 2 ** -25 * +(dtype === 'float16');
    // Not `>`: NaN is beyond any bound.
    if (error <= most * worst) continue;
    [worst, at] = [most === 0 || Number.isNaN(error) ? Number.POSITIVE_INFINITY : error / most, i];
    if (worst === Number.POSITIVE_INFINITY) break;
  }
  if (at >= 0) {
    expect.fail(`${label}: ${worst} times the bound at ${at}: ${y[at]}, expected ${values[at]}`);
  }
}
