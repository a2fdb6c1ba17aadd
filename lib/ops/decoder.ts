/** What a decoder does between its products (csrc/ops/decoder). Internal: the addon checks shapes and dtypes. */
import type { DType } from '../dtype';
import { native } from '../native';
import { Tensor } from '../tensor';

/** Dtypes that activations may have. */
export const ACTIVATION_DTYPES = ['float32', 'float16', 'bfloat16'] as const;
export type ActivationDType = (typeof ACTIVATION_DTYPES)[number];

/** `gain * x / sqrt(mean(x^2) + eps)` over rows of x `[T, n]`; gain has n elements of any float dtype. */
export function rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor {
  return Tensor.wrap(native.decoderRmsNorm(Tensor.native(x, 'x'), Tensor.native(gain, 'gain'), eps));
}

/** Cosines and sines `[positions, dims / 2]`. */
export interface RotaryTable {
  cosines: Tensor<'float32'>;
  sines: Tensor<'float32'>;
}

export interface Rotary {
  heads: number;
  headDim: number;
  /** Where the turned elements of a head begin, and how many there are. */
  offset: number;
  dims: number;
  /** Pairs are neighbours; else element i goes with `i + dims / 2`. */
  interleaved: boolean;
  /** Row t is at position `first + t mod sequence`. */
  sequence: number;
  first: number;
}

/** Rotary embedding of x `[T, heads * headDim]`. */
export function rotate(x: Tensor, { cosines, sines }: RotaryTable, rotary: Rotary): Tensor {
  return Tensor.wrap(
    native.decoderRotate(
      Tensor.native(x, 'x'),
      Tensor.native(cosines, 'cosines'),
      Tensor.native(sines, 'sines'),
      rotary,
    ),
  );
}

export interface AttentionShape {
  sequences: number;
  /** Of each sequence: the queries are its last positions. */
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  keyDim: number;
  valueDim: number;
  scale: number;
  /** Keys that a query sees, the last at its own position; 0 for all. */
  window: number;
}

/** Causal attention of q `[sequences * queries, heads * keyDim]`, with float32 sums. */
export function attend(q: Tensor, k: Tensor, v: Tensor, shape: AttentionShape): Tensor {
  return Tensor.wrap(
    native.decoderAttend(Tensor.native(q, 'q'), Tensor.native(k, 'k'), Tensor.native(v, 'v'), shape),
  );
}

/** Rows of the table. An id that it does not have fails on the queue with `ERR_ARGUMENT`. */
export function embed(table: Tensor, ids: Tensor<'int32'>, dtype: DType): Tensor {
  return Tensor.wrap(native.decoderEmbed(Tensor.native(table, 'table'), Tensor.native(ids, 'ids'), dtype));
}

/** `a + b`, or with gate logits `[T, 1]` `a + sigmoid(gates) * b`. */
export function add(a: Tensor, b: Tensor, gates: Tensor | null = null): Tensor {
  return Tensor.wrap(
    native.decoderAdd(
      Tensor.native(a, 'a'),
      Tensor.native(b, 'b'),
      gates === null ? null : Tensor.native(gates, 'gates'),
    ),
  );
}

/** `silu(gate) * up`. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return Tensor.wrap(native.decoderSwiglu(Tensor.native(gate, 'gate'), Tensor.native(up, 'up')));
}

/** What `scoreTokens` gives of a row, in this order. */
export const SCORE_FIELDS = 5;

/**
 * Of each row of float32 logits `[T, V]`: the loss of its target in nats, and against a baseline's logits KL(baseline || model),
 * whether both have the same largest one, and the sums of squares of the difference and of the baseline (else 0).
 * @returns float32 `[T, 5]`
 */
export function scoreTokens(logits: Tensor, baseline: Tensor | null, targets: Tensor<'int32'>): Tensor {
  return Tensor.wrap(
    native.decoderScoreTokens(
      Tensor.native(logits, 'logits'),
      baseline === null ? null : Tensor.native(baseline, 'baseline'),
      Tensor.native(targets, 'targets'),
    ),
  );
}
