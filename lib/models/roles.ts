import type { Role } from './types';

/** A name that matches has this role. */
export type RoleRule = readonly [pattern: RegExp, role: Role];

/**
 * Parts of multimodal models that are neither the decoder nor see images; their layers are not the decoder's.
 */
export const OTHER_TOWERS = /(^|\.)(audio_tower|audio_model|audio_encoder|speech_encoder|talker|code2wav)\./;

/**
 * Roles by the names that Hugging Face models use; the first rule that matches decides. Whole path segments
 * are matched, at any depth, so that prefixes and the suffixes of quantized tensors make no difference.
 */
const commonRules: readonly RoleRule[] = [
  [OTHER_TOWERS, 'other'],
  [
    /(^|\.)(multi_modal_projector|mm_projector|vision_projection|image_projection|connector|aligner|resampler)(\.|$)/,
    'projector',
  ],
  [/(^|\.)(vision_tower|vision_model|vision_encoder|visual|vision|image_encoder|vpm|vit)\./, 'vision'],
  // A norm is the module itself: the last segment, or the one before its `weight` or `bias`.
  [/(^|\.)([^.]*norm[^.]*|ln_[^.]+)(\.(weight|bias))?$/i, 'norm'],
  [/(^|\.)(shared_expert_gate|e_score_correction_bias|expert_bias)(\.|$)/, 'router'],
  [/(^|\.)(shared_experts?|shared_mlp)(\.|$)/, 'shared-expert'],
  [/(^|\.)[a-z_]*experts?(\.|$)/, 'expert'],
  [/(^|\.)(router|gate)(\.|$)/, 'router'],
  [/(^|\.)(lm_head|embed_out|shared_head\.head)(\.|$)|^output\./, 'lm-head'],
  [
    /(^|\.)(embed_tokens|tok_embeddings|word_embeddings|[^.]*embeddings?|wte|wpe|embed_positions)(\.|$)/,
    'embedding',
  ],
  [/(^|\.)(self_attn|self_attention|attention|attn|linear_attn|cross_attn)(\.|$)/, 'attention'],
  [/(^|\.)(mlp|feed_forward|ffn|block_sparse_moe)(\.|$)/, 'dense-ffn'],
];

/**
 * Classifies names under the rules of a family, then the common ones. Names that differ in numbers only share
 * the work.
 */
export function roleClassifier(familyRules: readonly RoleRule[] = []): (name: string) => Role {
  const rules = [...familyRules, ...commonRules];
  const known = new Map<string, Role>();
  return (name) => {
    const pattern = name.replace(/\d+/g, '0');
    let role = known.get(pattern);
    if (role === undefined) {
      role = rules.find(([expression]) => expression.test(pattern))?.[1] ?? 'other';
      known.set(pattern, role);
    }
    return role;
  };
}

const projectionAliases: Record<string, string> = { w1: 'gate', w3: 'up', w2: 'down' };

/** A short name for what a linear layer does, from the last part of its module name. */
export function projectionOf(module: string, role: Role): string {
  const last = module.slice(module.lastIndexOf('.') + 1);
  if (role === 'router') return last === 'gate' ? 'router' : last;
  if (role === 'expert' || role === 'dense-ffn' || role === 'shared-expert') {
    const alias = projectionAliases[last];
    if (alias !== undefined) return alias;
  }
  return last.replace(/_proj(_with_mqa)?$/, '') || last;
}
