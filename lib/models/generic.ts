import type { Architecture } from './architecture';
import { plainExperts } from './qwen3_moe';

/**
 * Any model type that no other family claims: roles by the common rules, experts where names and shapes leave
 * no doubt. GPT-2's Conv1D keeps its weights `[in, out]`, so those are not taken for linear layers.
 */
export const generic: Architecture = {
  modelTypes: [],
  experts: plainExperts,
  notLinear: /(^|\.)(c_attn|c_proj|c_fc|conv1d)\.weight$/,
};
