import type { Architecture } from './architecture';
import { number } from './config';
import { plainExperts } from './qwen3_moe';

/** A choice among the experts of the best groups only. */
const GROUP_LIMITED = 'group_limited_greedy';

/**
 * DeepSeek-V2 and V3, and GLM-4-MoE, which has their names: low-rank attention, first layers dense, shared
 * experts as one MLP. V3's files end in a layer for multi-token prediction: `eh_proj`, `enorm`, `hnorm`,
 * `shared_head`. Source: transformers `models/deepseek_v2`, `models/deepseek_v3`, `models/glm4_moe`.
 */
export const deepseek: Architecture = {
  modelTypes: ['deepseek_v2', 'deepseek_v3', 'glm4_moe'],
  experts: plainExperts,
  decoder: {
    latent: true,
    router: (text) => ({
      order: 'softmax-topk',
      scale: number(text.routed_scaling_factor, 1),
      ...(text.topk_method === GROUP_LIMITED && {
        groups: number(text.n_group, 1),
        topGroups: number(text.topk_group, 1),
      }),
    }),
    refuse(text) {
      if (text.model_type !== 'deepseek_v2') return `${text.model_type} routes by sigmoids with a bias`;
      const method = text.topk_method ?? 'greedy';
      return method === 'greedy' || method === GROUP_LIMITED ? null : `expert choice ${method}`;
    },
  },
};
