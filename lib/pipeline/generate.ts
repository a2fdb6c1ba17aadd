import * as path from 'node:path';
import { readJsonObject } from '../checkpoint/json_file';
import { QuantariaError } from '../errors';
import { KeyValueCache } from '../models/decoder';
import type { ActivationDType } from '../ops/decoder';
import { Decoder } from './decoder';
import { Sampler, type SamplingOptions } from './sampler';
import { Tokenizer } from './tokenizer';

export interface GenerateOptions extends SamplingOptions {
  prompt: string;
  /** At most so many new ids; default 128. */
  maxTokens?: number;
  /** Of activations; default float32. `stored` is the checkpoint's own. */
  dtype?: ActivationDType | 'stored';
  /** Further text, whole characters, as it comes. */
  /** For weights; a layer that does not fit is read anew for every id. Default: all layers stay in memory. */
  maxMemoryBytes?: number;
  onText?: (text: string) => void;
  signal?: AbortSignal;
}

export interface Generation {
  /** The prompt and what follows it. */
  text: string;
  /** What follows the prompt alone. */
  completion: string;
  /** New ids, the end mark among them. */
  tokens: number;
  tokensPerSecond: number;
  /** Whether an end mark came. */
  ended: boolean;
}

/**
 * Text after a prompt, id by id with a cache of keys and values.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT`, `ERR_IO` without a tokenizer, and whatever opening the model throws
 */
export async function generateText(directory: string, options: GenerateOptions): Promise<Generation> {
  const { prompt, maxTokens = 128, maxMemoryBytes, onText, signal } = options;
  const sampler = new Sampler(options);
  using decoder = await Decoder.open(directory, options.dtype);
  const tokenizer = await Tokenizer.open(decoder.weights.directory);
  const given = Int32Array.from(tokenizer.encode(prompt));
  if (given.length === 0) {
    throw new QuantariaError('ERR_ARGUMENT', 'prompt: it has no ids, and the tokenizer no start token');
  }
  decoder.checkIds({ ids: given, length: given.length });
  const ends = await endIds(decoder.weights.directory);
  const capacity = given.length + maxTokens;
  using layers = await decoder.resident(maxMemoryBytes);
  using table = decoder.rotaryTable(capacity);
  using cache = new KeyValueCache(capacity);

  const stream = new TextStream(tokenizer, [...given], onText);
  const began = performance.now();
  let next = given;
  let seen = 0;
  let ended = false;
  let count = 0;
  while (count < maxTokens && !ended) {
    signal?.throwIfAborted();
    using logits = await layers.next(next, seen, table, cache);
    seen += next.length;
    const id = sampler.choose((await logits.read()) as Float32Array);
    count++;
    ended = ends.has(id);
    if (!ended) stream.push(id);
    next = Int32Array.of(id);
  }
  const seconds = (performance.now() - began) / 1000;
  const completion = stream.finish();
  return { text: prompt + completion, completion, tokens: count, tokensPerSecond: count / seconds, ended };
}

/** Ids that end a text: generation_config.json's, else those of config.json. */
async function endIds(directory: string): Promise<ReadonlySet<number>> {
  const generation = await readJsonObject(path.join(directory, 'generation_config.json'));
  const config = await readJsonObject(path.join(directory, 'config.json'));
  const text = config?.text_config as { eos_token_id?: unknown } | undefined;
  const ids = generation?.eos_token_id ?? config?.eos_token_id ?? text?.eos_token_id ?? [];
  return new Set([ids].flat().filter((id): id is number => Number.isSafeInteger(id)));
}

/** Ids as text, handed on as soon as its last character is whole. */
class TextStream {
  readonly #ids: number[];
  readonly #before: string;
  #told = 0;

  constructor(
    private readonly tokenizer: Tokenizer,
    prompt: number[],
    private readonly onText: ((text: string) => void) | undefined,
  ) {
    this.#ids = prompt;
    this.#before = tokenizer.decode(prompt);
  }

  push(id: number): void {
    this.#ids.push(id);
    const text = this.#completion();
    // A character of several bytes is not whole before the last of them.
    if (!text.endsWith('\ufffd')) this.#tell(text);
  }

  finish(): string {
    const text = this.#completion();
    this.#tell(text);
    return text;
  }

  /** Decoded after the prompt, as spaces at the start of a piece depend on what stands before it. */
  #completion(): string {
    return this.tokenizer.decode(this.#ids).slice(this.#before.length);
  }

  #tell(text: string): void {
    if (text.length > this.#told) this.onText?.(text.slice(this.#told));
    this.#told = Math.max(this.#told, text.length);
  }
}
