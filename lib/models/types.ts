/** The vocabulary of checkpoints: roles, linear weights, and where each lies in the stored tensors. */

/** What a tensor does in the model; recipes choose by it. */
export type Role =
  | 'expert'
  | 'shared-expert'
  | 'dense-ffn'
  | 'attention'
  | 'router'
  | 'embedding'
  | 'lm-head'
  | 'norm'
  | 'vision'
  | 'projector'
  | 'other';

export const ROLES: readonly Role[] = [
  'expert',
  'shared-expert',
  'dense-ffn',
  'attention',
  'router',
  'embedding',
  'lm-head',
  'norm',
  'vision',
  'projector',
  'other',
];

/**
 * The roles whose linear weights are the decoder's: presets quantize these, and `averageBits` is taken over
 * them.
 */
export const DECODER_LINEAR_ROLES: readonly Role[] = ['expert', 'shared-expert', 'dense-ffn', 'attention'];

/**
 * How the routed experts are stored: one linear layer each (`sequential`), Aria's stacks `fc1` `[E, H, 2I]`
 * and `fc2` `[E, I, H]` (`grouped`), or transformers v5's in-memory parameters `gate_up_proj` and `down_proj`
 * (`fused`).
 */
export type Layout = 'sequential' | 'grouped' | 'fused';

export const LAYOUTS: readonly Layout[] = ['sequential', 'grouped', 'fused'];

/** How a logical `[out, in]` matrix lies inside a stored tensor. */
export interface Piece {
  tensor: string;
  /** Index along the first of three dimensions; null in a two-dimensional tensor. */
  expert: number | null;
  /** Rows of the matrix are `start, start + step, ...` below `end` along the stored tensor's out axis. */
  start: number;
  end: number;
  step: number;
  /** The tensor is stored `[..., in, out]` instead of `[..., out, in]`. */
  transposed: boolean;
}

/** One weight of a linear layer, whatever tensor it is stored in. */
export interface Linear {
  /** Module name in the sequential layout, in the names of files, without `.weight`. */
  name: string;
  role: Role;
  /** Decoder layer; null outside of the decoder's layers (head, vision tower, projector). */
  layer: number | null;
  expert: number | null;
  /** `gate`, `up`, `down`, `q`, `k`, `v`, `o`, ...; else the last part of the module name. */
  projection: string;
  shape: [number, number];
  /** As safetensors spells it, `BF16` for example. */
  dtype: string;
  source: Piece;
}

/**
 * Every stored tensor that is not, and does not hold, a linear weight: norms, biases, embeddings,
 * convolutions.
 */
export interface PlainTensor {
  /** As stored. */
  name: string;
  role: Role;
  layer: number | null;
  dtype: string;
  shape: number[];
}

/** A checkpoint read as a model: which linear weights it has, and where, and what else there is. */
export interface ModelMap {
  /** The `model_type` that was recognised; `unknown` without one. */
  architecture: string;
  /** False if the names were read by general rules only. */
  known: boolean;
  /** Decoder layers. */
  layers: number;
  /** Routed experts of a layer, 0 in a dense model. */
  experts: number;
  topK: number | null;
  expertLayout: Layout | null;
  /** The decoder sits inside a multimodal model, which decides the prefixes of loader names. */
  wrapped: boolean;
  linears: Linear[];
  others: PlainTensor[];
  /** What a user should know about how the checkpoint was read. */
  notes: string[];
}

/** A tensor as a checkpoint's header gives it. */
export interface StoredTensor {
  name: string;
  dtype: string;
  shape: readonly number[];
}

/** A tensor of a checkpoint in another layout, and what it is made of. */
export interface TargetTensor {
  name: string;
  dtype: string;
  shape: number[];
  /**
   * `copy`: the bytes of that source tensor as they are. `pieces`: each linear weight is read at
   * `linear.source` and written at `piece`; together the pieces cover the tensor exactly.
   */
  from: { copy: string } | { pieces: { linear: Linear; piece: Piece }[] };
}
