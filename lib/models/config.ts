/**
 * Reading config.json: every field may be absent, spelt in several ways, or of another type than it should
 * be.
 */

export type Config = Record<string, unknown>;

function asObject(value: unknown): Config | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Config) : null;
}

/**
 * The part of a configuration that describes the decoder: `text_config` in multimodal models, else the whole.
 */
export function textConfig(config: object | null): Config {
  const whole = asObject(config) ?? {};
  return asObject(whole.text_config) ?? whole;
}

/** The model types that a configuration names, the whole model's before the decoder's. */
export function modelTypes(config: object | null): string[] {
  const whole = asObject(config) ?? {};
  return [whole.model_type, textConfig(config).model_type].filter(
    (type): type is string => typeof type === 'string' && type !== '',
  );
}

/** The first of these fields that holds a positive integer; null if none does. */
export function count(config: Config, ...fields: string[]): number | null {
  for (const field of fields) {
    const value = config[field];
    if (Number.isSafeInteger(value) && (value as number) > 0) return value as number;
  }
  return null;
}

/** A finite number, or what stands in for it. */
export const number = (value: unknown, otherwise: number): number =>
  typeof value === 'number' && Number.isFinite(value) ? value : otherwise;

/**
 * What a configuration says of the decoder, whatever the spelling of its family; null where it says nothing.
 */
export interface DecoderFacts {
  layers: number | null;
  hidden: number | null;
  experts: number | null;
  topK: number | null;
  /** Width of one routed expert. */
  expertWidth: number | null;
}

export function decoderFacts(config: object | null): DecoderFacts {
  const text = textConfig(config);
  return {
    layers: count(text, 'num_hidden_layers', 'n_layer', 'num_layers'),
    hidden: count(text, 'hidden_size', 'n_embd', 'd_model'),
    // Qwen3-MoE is saved with either of two of these by different versions of transformers.
    experts: count(text, 'moe_num_experts', 'num_local_experts', 'num_experts', 'n_routed_experts'),
    topK: count(text, 'moe_topk', 'num_experts_per_tok', 'num_experts_per_token', 'moe_k'),
    // Where both are given, `intermediate_size` is that of dense layers (Qwen, DeepSeek) or unused (early Aria).
    expertWidth: count(text, 'moe_intermediate_size', 'intermediate_size'),
  };
}
