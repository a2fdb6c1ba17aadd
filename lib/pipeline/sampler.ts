import { QuantariaError } from '../errors';

export interface SamplingOptions {
  /** 0 takes the largest logit; default 0. */
  temperature?: number;
  /** Only the so many largest; default all. */
  topK?: number;
  /** Only the largest that together have this probability; default 1. */
  topP?: number;
  /** The same seed gives the same choices; default 0. */
  seed?: number;
}

/** Chooses an id by its logits. */
export class Sampler {
  readonly #temperature: number;
  readonly #topK: number;
  readonly #topP: number;
  readonly #next: () => number;

  /** @throws QuantariaError `ERR_ARGUMENT` for values out of range */
  constructor({ temperature = 0, topK, topP = 1, seed = 0 }: SamplingOptions) {
    if (!(Number.isFinite(temperature) && temperature >= 0))
      throw bad('temperature', temperature, 'at least 0');
    if (topK !== undefined && !(Number.isSafeInteger(topK) && topK >= 1))
      throw bad('topK', topK, 'an integer from 1');
    if (!(topP > 0 && topP <= 1)) throw bad('topP', topP, 'above 0 and at most 1');
    this.#temperature = temperature;
    this.#topK = topK ?? Number.POSITIVE_INFINITY;
    this.#topP = topP;
    this.#next = uniform(seed);
  }

  /** @throws QuantariaError `ERR_FORMAT` if a logit is NaN */
  choose(logits: Float32Array): number {
    if (logits.some(Number.isNaN))
      throw new QuantariaError('ERR_FORMAT', 'the logits of the next id hold NaN');
    if (this.#temperature === 0) return largest(logits);
    const candidates = this.#candidates(logits);
    const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
    let left = this.#next() * total;
    for (const { id, weight } of candidates) {
      left -= weight;
      if (left < 0) return id;
    }
    return (candidates.at(-1) as Candidate).id;
  }

  /** By falling probability, ties to the lower id; cut to top-k, then to top-p. */
  #candidates(logits: Float32Array): Candidate[] {
    const most = logits[largest(logits)] as number;
    const all = Array.from(logits, (logit, id) => ({
      id,
      weight: Math.exp((logit - most) / this.#temperature),
    }));
    all.sort((a, b) => b.weight - a.weight || a.id - b.id);
    const top = all.slice(0, this.#topK);
    const wanted = this.#topP * top.reduce((sum, { weight }) => sum + weight, 0);
    let sum = 0;
    for (const [i, { weight }] of top.entries()) {
      sum += weight;
      if (sum >= wanted) return top.slice(0, i + 1);
    }
    return top;
  }
}

interface Candidate {
  id: number;
  weight: number;
}

const bad = (name: string, came: unknown, expected: string) =>
  new QuantariaError('ERR_ARGUMENT', `${name}: ${String(came)} came, expected ${expected}`);

/** The first of the largest. */
function largest(logits: Float32Array): number {
  let best = 0;
  logits.forEach((logit, id) => {
    if (logit > (logits[best] as number)) best = id;
  });
  return best;
}

/** Numbers in [0, 1): a Weyl sequence through a 32-bit finalizer. */
function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let bits = state;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
  };
}
