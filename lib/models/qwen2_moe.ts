import type { Architecture } from './architecture';
import { softmaxRouter } from './decoder/traits';
import { plainExperts } from './qwen3_moe';

/**
 * Qwen2-MoE: one shared expert behind a gate of its own, biases on q, k and v; layers may be dense
 * (`mlp_only_layers`, `decoder_sparse_step`). Source: transformers `models/qwen2_moe`.
 */
export const qwen2Moe: Architecture = {
  modelTypes: ['qwen2_moe'],
  experts: plainExperts,
  decoder: { router: softmaxRouter },
};
