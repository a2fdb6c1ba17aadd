import { add, attend, type Rotary, type RotaryTable, rmsNorm, rotate, swiglu } from '../../ops/decoder';
import { type Compute, linear } from '../../ops/linear';
import { experts, type QuantizedExpert } from '../../ops/moe_experts';
import { type Routing, route } from '../../ops/moe_route';
import { roundToScale } from '../../ops/scaling';
import { QuantizedTensor } from '../../quantized';
import type { Tensor } from '../../tensor';
import type { Role } from '../types';
import type { KeyValueCache } from './cache';
import { latentQueriesKeysValues } from './latent';
import type { DecoderShape } from './shape';

export type Matrix = Tensor | QuantizedTensor;

/** Activations of 8 bits: each row by its largest magnitude, or all by one scale. */
export type Activations = 'dynamic' | { scale: number };

export interface LinearWeight {
  weight: Matrix;
  /** What the checkpoint says of the layer's input; as it comes if left out. */
  activations?: Activations;
  /** float32 */
  bias: Tensor | undefined;
}

/** The weights of one decoder layer, by what they do. */
export interface LayerWeights {
  readonly layer: number;
  /** @throws QuantariaError `ERR_FORMAT` if it is not there */
  linear(role: Role, projection: string): LinearWeight;
  has(role: Role, projection: string): boolean;
  /** A vector by its name inside the layer, `input_layernorm.weight`; null if it is not there. */
  vector(name: string): Tensor | null;
  /** @throws QuantariaError `ERR_FORMAT` */
  norm(name: string): Tensor;
  /** Of all routed experts; empty in a dense layer. */
  readonly experts: readonly ExpertWeights[];
  /** Asked to look at what enters a linear layer outside of the routed experts, before its product. */
  readonly onInput?: (role: Role, projection: string, x: Tensor) => void;
  /** `int8`: activations are quantized row by row where they meet a weight of integers; else `auto`. */
  readonly compute?: 'int8';
  /** What the checkpoint says of the routed experts' inputs. */
  readonly expertActivations?: 'dynamic';
  dispose(): void;
}

export interface ExpertWeights {
  gate: Matrix;
  up: Matrix;
  down: Matrix;
}

/** Rows of ids that go through the decoder together. */
export interface Span {
  sequences: number;
  /** Ids of each sequence. */
  length: number;
  /** Position of the first of them. */
  first: number;
  table: RotaryTable;
  /** Asked to look at the routing of a sparse layer. It is disposed afterwards. */
  onRouting?: (layer: number, routing: Routing) => void;
}

/** One decoder layer: `x + attention(norm(x))`, then the same with the feed-forward part. */
export function decoderBlock(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  span: Span,
  cache: KeyValueCache | null = null,
): Tensor {
  using between = attentionHalf(x, weights, shape, span, cache);
  using normed = feedForwardInput(between, weights, shape);
  using fed =
    weights.experts.length > 0 ? sparse(normed, weights, shape, span) : dense(normed, weights, 'dense-ffn');
  return add(between, fed);
}

/** `x + attention(norm(x))` */
export function attentionHalf(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  span: Span,
  cache: KeyValueCache | null = null,
): Tensor {
  using entering = rmsNorm(x, weights.norm('input_layernorm.weight'), shape.eps);
  using attended = attention(entering, weights, shape, span, cache);
  return add(x, attended);
}

/** What the feed-forward part of a layer sees, and its router. */
export const feedForwardInput = (between: Tensor, weights: LayerWeights, shape: DecoderShape): Tensor =>
  rmsNorm(between, weights.norm('post_attention_layernorm.weight'), shape.eps);

/** A linear layer with its bias. */
export function project(x: Tensor, weights: LayerWeights, role: Role, projection: string): Tensor {
  weights.onInput?.(role, projection, x);
  const { weight, bias, activations } = weights.linear(role, projection);
  if (typeof activations === 'object' && weights.compute === undefined) {
    using rounded = roundToScale(x, activations.scale);
    return linear(rounded, weight, { bias });
  }
  return linear(x, weight, {
    bias,
    compute: computeOf([weight], weights.compute ?? inIntegers(activations)),
  });
}

const inIntegers = (activations: Activations | undefined): 'int8' | undefined =>
  activations === 'dynamic' ? 'int8' : undefined;

/** Products of integers only where all weights are such. */
function computeOf(matrices: readonly Matrix[], compute: 'int8' | undefined): Compute {
  const integers = matrices.every((matrix) => QuantizedTensor.is(matrix) && matrix.scheme.kind === 'int');
  return compute !== undefined && integers ? compute : 'auto';
}

function attention(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  span: Span,
  cache: KeyValueCache | null,
): Tensor {
  const made =
    shape.latent === null
      ? queriesKeysValues(x, weights, shape, span)
      : latentQueriesKeysValues(x, weights, shape, shape.latent, span);
  using q = made.q;
  using k = made.k;
  using v = made.v;
  const seen = cache?.append(weights.layer, k, v) ?? { k, v };
  using mixed = attend(q, seen.k, seen.v, {
    sequences: span.sequences,
    queries: span.length,
    keys: span.first + span.length,
    heads: shape.heads,
    kvHeads: shape.kvHeads,
    keyDim: shape.headDim,
    valueDim: shape.valueDim,
    scale: shape.scale,
    window: shape.windows[weights.layer] ?? 0,
  });
  if (cache !== null) {
    seen.k.dispose();
    seen.v.dispose();
  }
  return project(mixed, weights, 'attention', 'o');
}

export interface QueriesKeysValues {
  q: Tensor;
  k: Tensor;
  v: Tensor;
}

function queriesKeysValues(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  span: Span,
): QueriesKeysValues {
  const { heads, kvHeads } = shape;
  return {
    q: placed(
      project(x, weights, 'attention', 'q'),
      weights.vector('self_attn.q_norm.weight'),
      heads,
      shape,
      span,
    ),
    k: placed(
      project(x, weights, 'attention', 'k'),
      weights.vector('self_attn.k_norm.weight'),
      kvHeads,
      shape,
      span,
    ),
    v: project(x, weights, 'attention', 'v'),
  };
}

/** Queries or keys, normed if the layer has a norm for them, and turned. Takes `x` over. */
function placed(x: Tensor, gain: Tensor | null, heads: number, shape: DecoderShape, span: Span): Tensor {
  using own = x;
  using normed = gain === null ? own.reshape([...own.shape]) : normHeads(own, gain, shape);
  return rotate(normed, span.table, {
    ...rotaryOf(span),
    heads,
    headDim: shape.headDim,
    offset: 0,
    dims: shape.rotary.dims,
    interleaved: false,
  });
}

/** Each head by itself where the gain is as long as a head (Qwen3), else the whole row (OLMoE). */
function normHeads(x: Tensor, gain: Tensor, shape: DecoderShape): Tensor {
  using rows = x.reshape([-1, gain.size]);
  using normed = rmsNorm(rows, gain, shape.eps);
  return normed.reshape([...x.shape]);
}

export const rotaryOf = (span: Span): Pick<Rotary, 'sequence' | 'first'> => ({
  sequence: span.length,
  first: span.first,
});

/** `down(silu(gate x) * (up x))` */
function dense(x: Tensor, weights: LayerWeights, role: 'dense-ffn' | 'shared-expert'): Tensor {
  using inner = gated(x, weights, role);
  return project(inner, weights, role, 'down');
}

/** `silu(gate x) * (up x)` */
export function gated(x: Tensor, weights: LayerWeights, role: 'dense-ffn' | 'shared-expert'): Tensor {
  using gate = project(x, weights, role, 'gate');
  using up = project(x, weights, role, 'up');
  return swiglu(gate, up);
}

/** Routed experts, and what every token goes through beside them. */
function sparse(x: Tensor, weights: LayerWeights, shape: DecoderShape, span: Span): Tensor {
  const routing = routeTokens(x, weights, shape);
  try {
    span.onRouting?.(weights.layer, routing);
    // Of one expert some matrices may be quantized and others not, which the types do not say.
    const matrices = weights.experts.flatMap(({ gate, up, down }) => [gate, up, down]);
    const compute = computeOf(matrices, weights.compute ?? inIntegers(weights.expertActivations));
    const routed = experts(x, [...weights.experts] as QuantizedExpert[], routing, { compute });
    if (!weights.has('shared-expert', 'gate')) return routed;
    using own = routed;
    using shared = dense(x, weights, 'shared-expert');
    if (!weights.has('router', 'shared_expert_gate')) return add(own, shared);
    using gates = project(x, weights, 'router', 'shared_expert_gate');
    return add(own, shared, gates);
  } finally {
    for (const tensor of Object.values(routing)) tensor.dispose();
  }
}

/** @param x what enters the feed-forward part */
export function routeTokens(x: Tensor, weights: LayerWeights, shape: DecoderShape): Required<Routing> {
  const { weight, bias } = weights.linear('router', 'router');
  weights.onInput?.('router', 'router', x);
  using logits = linear(x, weight, { bias, outDtype: 'float32' });
  const { topK, ...traits } = shape.router as NonNullable<DecoderShape['router']>;
  return route(logits, { ...traits, topK });
}
