import { QuantariaError } from '../../errors';
import { type Config, count } from '../config';

/** The angles of a rotary embedding: position p turns pair i by `p * frequencies[i]`; cosines and sines are scaled. */
export interface RotaryAngles {
  frequencies: Float32Array;
  scale: number;
}

/** What a rotary embedding is, from config.json. */
export interface RotarySpec {
  type: string;
  theta: number;
  /** Elements of a head that are turned. */
  dims: number;
  /** Longest context of the model. */
  maxPositions: number;
  parameters: Config;
}

const number = (config: Config, name: string): number | null =>
  typeof config[name] === 'number' && Number.isFinite(config[name]) ? (config[name] as number) : null;

/** @throws QuantariaError `ERR_FORMAT` if the scaling needs it */
function needed(spec: RotarySpec, name: string): number {
  const value = number(spec.parameters, name);
  if (value !== null) return value;
  throw new QuantariaError('ERR_FORMAT', `config.json: rotary scaling ${spec.type} needs a number ${name}`);
}

/**
 * Reads `rope_parameters` (transformers v5), or `rope_theta` and `rope_scaling`.
 * @throws QuantariaError `ERR_FORMAT` for dimensions that are not even, `ERR_UNSUPPORTED` for an unknown type
 */
export function rotarySpec(text: Config, headDim: number, defaultTheta = 10000): RotarySpec {
  const parameters = {
    ...((text.rope_scaling ?? {}) as Config),
    ...((text.rope_parameters ?? {}) as Config),
  };
  const type = String(parameters.rope_type ?? parameters.type ?? 'default');
  if (!Object.hasOwn(scalings, type)) {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `rotary scaling ${type} is not known; known are ${Object.keys(scalings).join(', ')}`,
    );
  }
  const share = number(parameters, 'partial_rotary_factor') ?? number(text, 'partial_rotary_factor') ?? 1;
  const dims = Math.trunc(headDim * share);
  if (dims % 2 !== 0 || dims < 2) {
    throw new QuantariaError('ERR_FORMAT', `config.json: ${dims} rotary dimensions, an even number expected`);
  }
  const theta = number(parameters, 'rope_theta') ?? number(text, 'rope_theta') ?? defaultTheta;
  const maxPositions = count(text, 'max_position_embeddings') ?? 2048;
  return { type, theta, dims, maxPositions, parameters };
}

/** The frequencies for sequences of up to `length` ids: `dynamic` and `longrope` depend on it. */
export function rotaryAngles(spec: RotarySpec, length: number): RotaryAngles {
  return (scalings[spec.type] as Scaling)(spec, length);
}

type Scaling = (spec: RotarySpec, length: number) => RotaryAngles;

// Every step is rounded to float32 as transformers does: at position 10^4 the last bit of a frequency shows.
const f32 = Math.fround;
const power = (base: number, dims: number, i: number) => f32(base ** f32((2 * i) / dims));
const frequencies = (dims: number, of: (i: number) => number) =>
  Float32Array.from({ length: dims / 2 }, (_, i) => of(i));
const plain = (theta: number, dims: number) => frequencies(dims, (i) => 1 / power(theta, dims, i));

/** YaRN's factor of the attention's temperature. */
export function yarnScale(factor: number, weight = 1): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

const originalPositions = (spec: RotarySpec) =>
  number(spec.parameters, 'original_max_position_embeddings') ?? spec.maxPositions;

/** By the names of config.json. Sources: arXiv 2306.15595, 2309.00071 (YaRN), 2402.13753 (LongRoPE), Llama 3.1. */
const scalings: Readonly<Record<string, Scaling>> = {
  default: ({ theta, dims }) => ({ frequencies: plain(theta, dims), scale: 1 }),

  linear(spec) {
    const factor = needed(spec, 'factor');
    return { frequencies: plain(spec.theta, spec.dims).map((f) => f / factor), scale: 1 };
  },

  dynamic(spec, length) {
    const factor = needed(spec, 'factor');
    const ratio = (factor * Math.max(length, spec.maxPositions)) / spec.maxPositions - (factor - 1);
    const theta = spec.theta * ratio ** (spec.dims / (spec.dims - 2));
    return { frequencies: plain(theta, spec.dims), scale: 1 };
  },

  llama3(spec) {
    const factor = needed(spec, 'factor');
    const [low, high] = [needed(spec, 'low_freq_factor'), needed(spec, 'high_freq_factor')];
    const context = originalPositions(spec);
    const scaled = plain(spec.theta, spec.dims).map((f) => {
      const wavelength = (2 * Math.PI) / f;
      if (wavelength > context / low) return f / factor;
      if (wavelength < context / high) return f;
      const smooth = (context / wavelength - low) / (high - low);
      return ((1 - smooth) * f) / factor + smooth * f;
    });
    return { frequencies: scaled, scale: 1 };
  },

  yarn(spec) {
    const { theta, dims, parameters } = spec;
    const original = originalPositions(spec);
    const factor = number(parameters, 'factor') ?? spec.maxPositions / original;
    const [weight, weightOfAll] = [number(parameters, 'mscale'), number(parameters, 'mscale_all_dim')];
    const scale =
      number(parameters, 'attention_factor') ??
      (weight && weightOfAll
        ? yarnScale(factor, weight) / yarnScale(factor, weightOfAll)
        : yarnScale(factor));
    /** The pair that turns so many times over the original context. */
    const pairOf = (turns: number) =>
      (dims * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
    const ends = [
      pairOf(number(parameters, 'beta_fast') || 32),
      pairOf(number(parameters, 'beta_slow') || 1),
    ];
    const whole = parameters.truncate !== false;
    const low = Math.max(whole ? Math.floor(ends[0] as number) : (ends[0] as number), 0);
    const end = Math.min(whole ? Math.ceil(ends[1] as number) : (ends[1] as number), dims - 1);
    const high = end === low ? end + 0.001 : end;
    return {
      frequencies: frequencies(dims, (i) => {
        const base = power(theta, dims, i);
        const kept = f32(1 - Math.min(Math.max(f32((i - low) / (high - low)), 0), 1));
        return f32(f32(1 / f32(factor * base)) * f32(1 - kept)) + f32(f32(1 / base) * kept);
      }),
      scale,
    };
  },

  longrope(spec, length) {
    const { theta, dims, parameters } = spec;
    const original = originalPositions(spec);
    const name = length > original ? 'long_factor' : 'short_factor';
    const factors = parameters[name];
    if (!Array.isArray(factors) || factors.length !== dims / 2 || !factors.every(Number.isFinite)) {
      throw new QuantariaError('ERR_FORMAT', `config.json: longrope needs ${dims / 2} numbers in ${name}`);
    }
    const factor = number(parameters, 'factor') ?? spec.maxPositions / original;
    const scale =
      number(parameters, 'attention_factor') ??
      (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
    return {
      frequencies: frequencies(dims, (i) => 1 / f32(f32(factors[i] as number) * power(theta, dims, i))),
      scale,
    };
  },
};
