import { QuantariaError } from '../../errors';
import { architectureOf } from '../architecture';
import { type Config, count, decoderFacts, modelTypes, number, textConfig } from '../config';
import { type RotarySpec, rotarySpec, yarnScale } from './rope';
import type { DecoderTraits, RouterTraits } from './traits';

/** The widths of multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434). */
export interface LatentShape {
  /** Elements of a head of queries and keys without position, and with. */
  plain: number;
  rotary: number;
  value: number;
  /** Of the shared vector. */
  rank: number;
}

/** A decoder as its configuration describes it. */
export interface DecoderShape {
  architecture: string;
  layers: number;
  hidden: number;
  heads: number;
  kvHeads: number;
  /** Of queries and keys. */
  headDim: number;
  valueDim: number;
  /** Factor of the scores. */
  scale: number;
  eps: number;
  rotary: RotarySpec;
  /** Positions that each layer sees; 0 for all. */
  windows: readonly number[];
  latent: LatentShape | null;
  router: (RouterTraits & { topK: number }) | null;
  /** The head is the embedding. */
  tied: boolean;
}

/**
 * @throws QuantariaError `ERR_UNSUPPORTED` for what there is no forward pass for, `ERR_FORMAT` for fields that are missing
 */
export function decoderShape(config: object | null, layers: number): DecoderShape {
  const types = modelTypes(config);
  const text = textConfig(config);
  const type = types.find((name) => architectureOf(name).known) ?? types[0] ?? 'unknown';
  const traits = architectureOf(type).architecture.decoder;
  if (traits === undefined) throw unsupported(type, 'that model type');
  const refused = traits.refuse?.(text) ?? null;
  if (refused !== null) throw unsupported(type, refused);
  checkOrdinary(type, text);
  const hidden = needed(text, 'hidden_size');
  const heads = needed(text, 'num_attention_heads');
  const topK = decoderFacts(config).topK;
  const latent = traits.latent ? latentShape(text) : null;
  const headDim = latent
    ? latent.plain + latent.rotary
    : (count(text, 'head_dim') ?? Math.floor(hidden / heads));
  const rotary = rotarySpec(text, latent?.rotary ?? headDim, traits.theta);
  return {
    architecture: type,
    layers,
    hidden,
    heads,
    kvHeads: latent ? heads : (count(text, 'num_key_value_heads') ?? heads),
    headDim,
    valueDim: latent?.value ?? headDim,
    scale: (latent ? latentTemperature(rotary) : 1) / Math.sqrt(headDim),
    eps: number(text.rms_norm_eps, 1e-6),
    rotary,
    windows: Array.from({ length: layers }, (_, layer) => windowOf(text, traits, layer)),
    latent,
    router: traits.router && topK !== null ? { ...traits.router(text), topK } : null,
    tied: tiesHead(config, text),
  };
}

const unsupported = (type: string, what: string) =>
  new QuantariaError('ERR_UNSUPPORTED', `there is no forward pass for ${type}: ${what} is not known`);

/** What would change the result silently if it were not looked at. */
function checkOrdinary(type: string, text: Config): void {
  const activation = text.hidden_act ?? 'silu';
  if (activation !== 'silu') throw unsupported(type, `hidden_act ${String(activation)}`);
  if (typeof text.clip_qkv === 'number') throw unsupported(type, 'clip_qkv');
}

function needed(text: Config, name: string): number {
  const value = count(text, name);
  if (value !== null) return value;
  throw new QuantariaError(
    'ERR_FORMAT',
    `config.json: no positive integer ${name}, which the forward pass needs`,
  );
}

function latentShape(text: Config): LatentShape {
  return {
    plain: needed(text, 'qk_nope_head_dim'),
    rotary: needed(text, 'qk_rope_head_dim'),
    value: needed(text, 'v_head_dim'),
    rank: needed(text, 'kv_lora_rank'),
  };
}

/** Latent attention takes YaRN's temperature for all dimensions into the scores. */
function latentTemperature({ type, parameters }: RotarySpec): number {
  const weight = number(parameters.mscale_all_dim, 0);
  return type === 'default' || weight === 0 ? 1 : yarnScale(number(parameters.factor, 1), weight) ** 2;
}

function windowOf(text: Config, traits: DecoderTraits, layer: number): number {
  const window = count(text, 'sliding_window') ?? traits.window?.(text) ?? 0;
  if (Array.isArray(text.layer_types)) return text.layer_types[layer] === 'sliding_attention' ? window : 0;
  return traits.slides?.(text, layer) ? window : 0;
}

function tiesHead(config: object | null, text: Config): boolean {
  const whole = (config ?? {}) as Config;
  return (whole.tie_word_embeddings ?? text.tie_word_embeddings) === true;
}
