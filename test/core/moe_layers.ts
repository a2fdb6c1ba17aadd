/** Layers of experts, routings and activations of any size for tests. */
import { type Compute, type DType, moe, type QuantScheme, quantize, Tensor } from '../../lib';
import type { Routing } from '../../lib/ops/moe_route';
import type { Choice, Expert } from './moe_reference';
import { normals } from './random';

export type Float = 'float32' | 'float16' | 'bfloat16';
export const FLOATS: Float[] = ['float32', 'float16', 'bfloat16'];

export const int = (bits: 2 | 3 | 4 | 5 | 6 | 8, symmetric = false): QuantScheme => ({
  kind: 'int',
  bits,
  symmetric,
  granularity: 'group',
  groupSize: 32,
});
export const column: QuantScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'column' };
export const row: QuantScheme = { kind: 'int', bits: 8, symmetric: true, granularity: 'row' };
export const nf4: QuantScheme = { kind: 'nf4', blockSize: 32 };

/** What an expert's gate, up and down are made of: a scheme or a dtype. */
export type Make = readonly [QuantScheme | Float, QuantScheme | Float, QuantScheme | Float];

export const matrix = (out: number, depth: number, seed: number, dtype: DType = 'float32'): Tensor => {
  const scale = 1 / Math.sqrt(depth);
  return Tensor.from(
    normals(out * depth, seed).map((value) => value * scale),
    [out, depth],
    { dtype },
  );
};

export function make(kinds: readonly Make[], count: number, hidden: number, inter: number): Expert[] {
  return Array.from({ length: count }, (_, e) => {
    const of = (p: number, out: number, depth: number) => {
      const how = kinds[e % kinds.length]![p]!;
      const seed = 3 * e + p + 1;
      return typeof how === 'string'
        ? matrix(out, depth, seed, how)
        : quantize(matrix(out, depth, seed), how);
    };
    return { gate: of(0, inter, hidden), up: of(1, inter, hidden), down: of(2, hidden, inter) };
  });
}

export const run = (x: Tensor, experts: Expert[], routing: Routing, compute?: Compute): Tensor =>
  moe.experts(x, experts as never, routing, compute && { compute });

export const choose = (T: number, E: number, topK: number, seed = 7): Required<Routing> =>
  moe.route(Tensor.from(normals(T * E, seed), [T, E]), { topK, order: 'topk-softmax' });

export async function choiceOf({ indices, weights }: Routing): Promise<Choice> {
  return {
    topK: indices.shape[1] as number,
    indices: (await indices.read()) as Int32Array,
    weights: await weights.toFloat32(),
  };
}

/** A routing made of numbers, without an order of slots. */
export function routingOf(indices: number[][], weights: number[][], E: number): Routing {
  const shape = [indices.length, indices[0]?.length ?? 0];
  const counts = new Int32Array(E);
  for (const e of indices.flat()) if (e >= 0 && e < E) counts[e]!++;
  return {
    indices: Tensor.from(Int32Array.from(indices.flat()), shape),
    weights: Tensor.from(Float32Array.from(weights.flat()), shape),
    counts: Tensor.from(counts, [E]),
  };
}

export const rows = (T: number, hidden: number, dtype: DType = 'float32'): Tensor =>
  Tensor.from(normals(T * hidden, T + 1), [T, hidden], { dtype });
