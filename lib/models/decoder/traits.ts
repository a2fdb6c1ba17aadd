import type { Config } from '../config';

/** How a layer chooses experts; `moe.route` without the number of them. */
export interface RouterTraits {
  order: 'topk-softmax' | 'softmax-topk';
  normalize?: boolean;
  scale?: number;
  groups?: number;
  topGroups?: number;
}

/**
 * What a family computes that its tensors do not show. Biases, norms of queries and keys, dense and sparse layers, shared
 * experts and their gates are told by the tensors that are there.
 */
export interface DecoderTraits {
  router?: (text: Config) => RouterTraits;
  /** Keys and values come from one low-rank vector a token, as in DeepSeek-V2. */
  latent?: boolean;
  /** rope_theta where config.json has none. */
  theta?: number;
  /** Whether a layer sees only `sliding_window` positions, where config.json has no `layer_types`. */
  slides?: (text: Config, layer: number) => boolean;
  /** The window where config.json does not say; null for none. */
  window?: (text: Config) => number | null;
  /** What of it there is no forward pass for; null if all is well. */
  refuse?: (text: Config) => string | null;
}

/** Softmax over all experts, then the choice; Qwen and OLMoE say whether weights are normalised. */
export const softmaxRouter = (text: Config): RouterTraits => ({
  order: 'softmax-topk',
  normalize: text.norm_topk_prob === true,
});
