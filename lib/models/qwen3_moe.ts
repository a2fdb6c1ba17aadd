import type { Architecture } from './architecture';
import { softmaxRouter } from './decoder/traits';
import type { ExpertNaming } from './layouts';

/** The names that most mixture-of-experts families share. */
export const plainExperts: ExpertNaming = {
  sequential: 'mlp.experts.{expert}.{projection}',
  projections: { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' },
  fused: { transposed: false, interleaved: false },
};

/**
 * Qwen3-MoE and OLMoE: `mlp.gate` routes, norms on queries and keys, no shared expert. Source: transformers.
 */
export const qwen3Moe: Architecture = {
  modelTypes: ['qwen3_moe', 'olmoe'],
  experts: plainExperts,
  decoder: { router: softmaxRouter, slides: ({ use_sliding_window: asked }) => asked === true },
};
