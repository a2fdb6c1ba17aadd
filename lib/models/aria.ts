import type { Architecture } from './architecture';

/**
 * Aria, whole or text-only: experts in files are the stacks fc1 and fc2, which transformers v5 renames in
 * memory without turning them round. The sequential names are those of the authors' sequential MLP, a module
 * `experts` that holds the list `experts`. Source: rhymes-ai/Aria; transformers `models/aria`.
 */
export const aria: Architecture = {
  modelTypes: ['aria', 'aria_text', 'aria_moe_lm'],
  wrapper: true,
  experts: {
    sequential: 'mlp.experts.experts.{expert}.{projection}',
    projections: { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' },
    fused: { transposed: true, interleaved: false },
  },
  decoder: { router: () => ({ order: 'topk-softmax' }) },
};
