import { QuantariaError } from '../errors';
import { embed, SCORE_FIELDS, scoreTokens } from '../ops/decoder';
import { Tensor } from '../tensor';
import { Decoder, type IdRows } from './decoder';
import { readRows, type WindowOptions } from './rows';
import { PeakRss } from './rss';
import type { RunOptions } from './usage';

/** Memory, unless it is asked for more or less; the weights of one layer need some of it. */
const MEMORY_BYTES = 2e9;
/** Shares of it: states that are kept between layers, of all models (more rows go through them in several waves), */
const STATE_SHARE = 1 / 4;
/** logits of one model at a time, */
const LOGIT_SHARE = 1 / 16;
/** and what a batch has under way. */
const BATCH_SHARE = 1 / 4;

export interface EvaluateOptions extends RunOptions, WindowOptions {
  /** A checkpoint to compare with: another form of the same model, with the same vocabulary. */
  baseline?: string;
  /**
   * `int8`: activations of the model that meet a weight of integers are quantized too, each row by its largest magnitude; if left out,
   * those of which the checkpoint says it, as it says it.
   */
  compute?: 'int8';
  /** For states, logits and what is under way, beside the weights of one layer; default 2 GB. */
  maxMemoryBytes?: number;
}

export interface Evaluation {
  /** exp of the mean loss of the scored ids, each given those before it in its row. */
  perplexity: number;
  /** Mean loss in nats. */
  loss: number;
  /** Scored ids: all but the first of each row, or with a stride those that are new in it. */
  tokens: number;
  rows: number;
  seqLen: number;
  seconds: number;
  peakRssBytes: number;
  /** Of this model, the baseline left out. */
  tokensPerSecond: number;
  baseline?: {
    perplexity: number;
    /** Mean KL(baseline || model) in nats. */
    klDivergence: number;
    /** Share of scored ids for which both models have the same first choice. */
    top1Agreement: number;
    /** Root of the summed squared difference of all logits over that of the baseline's. */
    logitError: number;
  };
}

/**
 * Perplexity over rows of ids, and how far the model's predictions are from a baseline's.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for ids or a baseline that do not fit, `ERR_FORMAT` for states that are
 *   not finite, and whatever opening the models throws
 */
export async function evaluateModel(directory: string, options: EvaluateOptions): Promise<Evaluation> {
  using model = await Decoder.open(directory, options.dtype);
  model.weights.compute = options.compute;
  const rows = await readRows(model.weights.directory, options);
  if (rows.length < 2) throw new QuantariaError('ERR_ARGUMENT', 'rows of one id have nothing to score');
  const baseline =
    options.baseline === undefined ? null : await Decoder.open(options.baseline, options.dtype);
  using _ = baseline;
  if (baseline && baseline.vocabulary !== model.vocabulary) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `the baseline has a vocabulary of ${baseline.vocabulary}, the model of ${model.vocabulary}`,
    );
  }
  return await new Run(model, baseline, rows, options).evaluate();
}

class Run {
  readonly #sums = new Float64Array(SCORE_FIELDS);
  #baselineLoss = 0;
  #scored = 0;
  #modelMs = 0;
  #done = 0;

  readonly #memory: number;

  constructor(
    private readonly model: Decoder,
    private readonly baseline: Decoder | null,
    private readonly rows: IdRows,
    private readonly options: EvaluateOptions,
  ) {
    this.#memory = options.maxMemoryBytes ?? MEMORY_BYTES;
  }

  async evaluate(): Promise<Evaluation> {
    const began = performance.now();
    const rss = new PeakRss();
    const hidden = Math.max(this.model.shape.hidden, this.baseline?.shape.hidden ?? 0);
    const models = this.baseline === null ? 1 : 2;
    for (const wave of waves(this.rows, hidden, (STATE_SHARE * this.#memory) / models))
      await this.#wave(wave);
    const [loss, kl, agree, error, reference] = this.#sums as unknown as number[] & { length: 5 };
    const mean = (sum: number | undefined) => (sum as number) / this.#scored;
    const { ids, length } = this.rows;
    return {
      perplexity: Math.exp(mean(loss)),
      loss: mean(loss),
      tokens: this.#scored,
      rows: ids.length / length,
      seqLen: length,
      seconds: (performance.now() - began) / 1000,
      peakRssBytes: rss.stop(),
      tokensPerSecond: (1000 * ids.length) / this.#modelMs,
      ...(this.baseline && {
        baseline: {
          perplexity: Math.exp(mean(this.#baselineLoss)),
          klDivergence: mean(kl),
          top1Agreement: mean(agree),
          logitError: Math.sqrt((error as number) / (reference as number)),
        },
      }),
    };
  }

  async #wave(wave: IdRows): Promise<void> {
    const layers = this.model.shape.layers + (this.baseline?.shape.layers ?? 0);
    const total = layers * (this.rows.ids.length / this.rows.length);
    const hooks = {
      signal: this.options.signal,
      batchBytes: BATCH_SHARE * this.#memory,
      onLayer: () => {
        this.#done += wave.ids.length / wave.length;
        this.options.onProgress?.(this.#done, total);
      },
    };
    const began = performance.now();
    const states = await this.model.states(wave, hooks);
    this.#modelMs += performance.now() - began;
    let others: Tensor[] = [];
    try {
      others = (await this.baseline?.states(wave, hooks)) ?? [];
      let first = 0;
      for (const [batch, x] of states.entries()) {
        const count = x.shape[0] as number;
        await this.#scoreBatch(x, others[batch] ?? null, wave, first);
        first += count;
      }
    } finally {
      for (const x of [...states, ...others]) x.dispose();
    }
  }

  /** States of the ids from `first` on of a wave: each predicts the next id of its row, if that is scored. */
  async #scoreBatch(x: Tensor, other: Tensor | null, wave: IdRows, first: number): Promise<void> {
    const count = x.shape[0] as number;
    const { ids, length, scoredFrom } = wave;
    const scores = (place: number) => {
      const next = (place % length) + 1;
      return next < length && next >= (scoredFrom?.[Math.floor(place / length)] ?? 1);
    };
    const places = Array.from({ length: count }, (_, i) => first + i).filter(scores);
    const step = Math.max(1, Math.floor((LOGIT_SHARE * this.#memory) / (4 * this.model.vocabulary)));
    for (let begin = 0; begin < places.length; begin += step) {
      const own = Int32Array.from(places.slice(begin, begin + step));
      const shape = [own.length];
      using rows = Tensor.from(
        own.map((place) => place - first),
        shape,
        { dtype: 'int32' },
      );
      using targets = Tensor.from(
        own.map((place) => ids[place + 1] as number),
        shape,
        { dtype: 'int32' },
      );
      const began = performance.now();
      using logits = logitsOf(this.model, x, rows);
      using reference = this.baseline && other ? logitsOf(this.baseline, other, rows) : null;
      using scored = scoreTokens(logits, reference, targets);
      const values = (await scored.read()) as Float32Array;
      this.#modelMs += reference === null ? performance.now() - began : 0;
      using ofBaseline = reference && scoreTokens(reference, null, targets);
      const baselineValues = ofBaseline && ((await ofBaseline.read()) as Float32Array);
      for (const i of own.keys()) this.#add(values, baselineValues, i);
    }
    if (!Number.isFinite(this.#sums[0])) {
      throw new QuantariaError('ERR_FORMAT', `the logits of ids ${first} to ${first + count} are not finite`);
    }
  }

  #add(values: Float32Array, baselineValues: Float32Array | null, i: number): void {
    this.#scored++;
    this.#baselineLoss += baselineValues?.[SCORE_FIELDS * i] ?? 0;
    for (let field = 0; field < SCORE_FIELDS; ++field) {
      this.#sums[field] = (this.#sums[field] as number) + (values[SCORE_FIELDS * i + field] as number);
    }
  }
}

/** @param rows of the states */
function logitsOf(decoder: Decoder, states: Tensor, rows: Tensor<'int32'>): Tensor {
  using part = embed(states, rows, states.dtype);
  return decoder.logits(part);
}

/** Rows in parts whose states fit into memory together. */
export function* waves(
  { ids, length, scoredFrom }: IdRows,
  hidden: number,
  bytes = STATE_SHARE * MEMORY_BYTES,
): Generator<IdRows> {
  const rows = Math.max(1, Math.floor(bytes / (4 * hidden * length)));
  for (let begin = 0; begin < ids.length; begin += rows * length) {
    const first = begin / length;
    yield {
      ids: ids.subarray(begin, begin + rows * length),
      length,
      ...(scoredFrom && { scoredFrom: scoredFrom.subarray(first, first + rows) }),
    };
  }
}
