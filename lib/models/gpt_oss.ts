import type { Architecture } from './architecture';

/**
 * gpt-oss: files hold what is in memory, stacks `[E, in, out]` with gate and up columns in turn, and biases
 * on experts, which the other layouts have no place for. Source: transformers `models/gpt_oss`.
 */
export const gptOss: Architecture = {
  modelTypes: ['gpt_oss'],
  experts: {
    sequential: 'mlp.experts.{expert}.{projection}',
    projections: { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' },
    fused: { transposed: true, interleaved: true },
  },
};
