import { synchronize } from '../device';
import { DECODER_LINEAR_ROLES, type Linear, type ModelMap } from '../models';
import { type DecoderShape, decoderBlock, type LayerWeights, type Span } from '../models/decoder';
import { SCORE_FIELDS, scoreTokens } from '../ops/decoder';
import { quantizeMatrix } from '../ops/quantize';
import type { QuantizedTensor } from '../quantized';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { QuantizedLayer } from './calibration/quantized_layer';
import { Decoder, type IdRows } from './decoder';
import type { RunOptions } from './usage';

/** Weights that are rounded to nearest, and how; all others are the original's. */
export type Assignment = ReadonlyMap<Linear, QuantScheme>;

export interface MeasureRequest {
  /** What all variants share where they do not differ; empty for the original. */
  base: Assignment;
  /** By any name. */
  variants: ReadonlyMap<string, Assignment>;
  /** That they are measured on: as many of the first ones as there is room for. */
  rows: IdRows;
}

/** For the states of all variants, each of which goes its own way through the layers behind its first difference. */
const STATE_BYTES = 512e6;

/** Weights that forward passes reach. */
export const isMeasured = ({ layer, role }: Linear, model: ModelMap): boolean =>
  layer !== null && layer < model.layers && DECODER_LINEAR_ROLES.includes(role);

/** The part that a weight is measured in: what shares an input, and the routed experts of a layer as one. */
export const partOf = ({ layer, role, projection }: Linear): string =>
  `${layer} ${role} ${role === 'attention' ? (projection === 'o' ? 'o' : 'qkv') : projection === 'down' ? 'down' : 'gate-up'}`;

/**
 * What rounding weights to nearest does to the model's predictions: KL divergence of each variant, and of the base, from the
 * original in nats an id. The model is gone through once, layer by layer: the states
 * behind the first layer in which a variant differs from the base pass through the layers after it beside those of the base.
 * @returns by the variant's name; `base` for the base
 * @throws QuantariaError (as a rejection) whatever opening and running the model throws
 */
export async function measureVariants(
  directory: string,
  { base, variants, rows }: MeasureRequest,
  { signal, onProgress }: Pick<RunOptions, 'signal' | 'onProgress'>,
): Promise<{ base: number; variants: Map<string, number> }> {
  using decoder = await Decoder.open(directory, 'float32');
  const fit = STATE_BYTES / (4 * decoder.shape.hidden * (variants.size + 2));
  const ids = rowsOf(rows, 0, Math.max(1, Math.floor(fit / rows.length)));
  decoder.checkIds(ids);
  using run = new Variants(decoder, ids, base, variants);
  let done = 0;
  const total = decoder.shape.layers;
  for (let layer = 0; layer < total; ++layer) {
    signal?.throwIfAborted();
    const weights = await decoder.weights.layer(layer);
    try {
      await run.through(weights, layer);
    } finally {
      weights.dispose();
    }
    onProgress?.(++done, total);
  }
  return await run.divergences();
}

/** Some of the rows. */
export const rowsOf = ({ ids, length }: IdRows, begin: number, end: number): IdRows => ({
  ids: ids.subarray(begin * length, end * length),
  length,
});

/** What an assignment makes of one layer. */
const inLayer = (assignment: Assignment, layer: number): [Linear, QuantScheme][] =>
  [...assignment].filter(([linear]) => linear.layer === layer);

class Variants implements Disposable {
  readonly #table: ReturnType<Decoder['rotaryTable']>;
  readonly #shape: DecoderShape;
  #original: Tensor;
  /** Null as long as the base does not differ from the original. */
  #ofBase: Tensor | null = null;
  readonly #changed = new Map<string, Tensor>();

  constructor(
    private readonly decoder: Decoder,
    private readonly rows: IdRows,
    private readonly base: Assignment,
    private readonly variants: ReadonlyMap<string, Assignment>,
  ) {
    this.#shape = decoder.shape;
    this.#table = decoder.rotaryTable(rows.length);
    this.#original = decoder.embed(rows.ids);
  }

  async through(weights: LayerWeights, layer: number): Promise<void> {
    const own = inLayer(this.base, layer);
    using rounded = new RoundedWeights(weights);
    using baseLayer = rounded.layer(own);
    const plain = new Map(own);
    for (const [name, assignment] of this.variants) {
      const members = inLayer(assignment, layer);
      const differs =
        members.length !== own.length || members.some(([linear, scheme]) => plain.get(linear) !== scheme);
      const before = this.#changed.get(name);
      if (!differs && before === undefined) continue;
      using variantLayer = differs ? rounded.layer(members) : null;
      const x = before ?? this.#ofBase ?? this.#original;
      this.#changed.set(name, await this.#block(x, (variantLayer ?? baseLayer).weights()));
      before?.dispose();
    }
    using original = this.#original;
    using base = this.#ofBase;
    if (base !== null || own.length > 0) {
      this.#ofBase = await this.#block(base ?? original, baseLayer.weights());
    }
    this.#original = await this.#block(original, weights);
  }

  async divergences(): Promise<{ base: number; variants: Map<string, number> }> {
    const { ids, length } = this.rows;
    const scored = (place: number) => (place + 1) % length !== 0;
    using targets = Tensor.from(
      ids.map((_, place) => (scored(place) ? (ids[place + 1] as number) : 0)),
      [ids.length],
      { dtype: 'int32' },
    );
    using reference = this.#logits(this.#original);
    const divergence = async (x: Tensor): Promise<number> => {
      using logits = this.#logits(x);
      using scores = scoreTokens(logits, reference, targets);
      const values = await scores.toFloat32();
      let sum = 0;
      for (const place of ids.keys()) if (scored(place)) sum += values[SCORE_FIELDS * place + 1] as number;
      return Math.max(0, sum / (ids.length - ids.length / length));
    };
    const base = this.#ofBase === null ? 0 : await divergence(this.#ofBase);
    const found = new Map<string, number>();
    for (const name of this.variants.keys()) {
      const x = this.#changed.get(name);
      found.set(name, x === undefined ? base : await divergence(x));
    }
    return { base, variants: found };
  }

  [Symbol.dispose](): void {
    this.#table[Symbol.dispose]();
    this.#original.dispose();
    this.#ofBase?.dispose();
    for (const x of this.#changed.values()) x.dispose();
  }

  async #block(x: Tensor, weights: LayerWeights): Promise<Tensor> {
    const { ids, length } = this.rows;
    const span: Span = { sequences: ids.length / length, length, first: 0, table: this.#table };
    const y = decoderBlock(x, weights, this.#shape, span);
    // Memory is taken when work is queued.
    await synchronize();
    return y;
  }

  #logits(x: Tensor): Tensor {
    using normed = this.decoder.finalNorm(x);
    return this.decoder.logits(normed);
  }
}

/** The weights of one layer, rounded once under each scheme that an assignment has for them. */
class RoundedWeights implements Disposable {
  readonly #made = new Map<string, QuantizedTensor>();
  readonly #plain: QuantizedLayer;

  constructor(private readonly weights: LayerWeights) {
    this.#plain = new QuantizedLayer(weights);
  }

  /** The caller disposes it. */
  layer(members: readonly (readonly [Linear, QuantScheme])[]): QuantizedLayer {
    const layer = new QuantizedLayer(this.weights);
    try {
      for (const [linear, scheme] of members) {
        const rounded = this.#rounded(linear, scheme);
        layer.replace(linear, rounded.to(rounded.device));
      }
      return layer;
    } catch (error) {
      layer[Symbol.dispose]();
      throw error;
    }
  }

  #rounded(linear: Linear, scheme: QuantScheme): QuantizedTensor {
    const key = `${linear.name} ${JSON.stringify(scheme)}`;
    const found = this.#made.get(key);
    if (found !== undefined) return found;
    const weight = Tensor.native(this.#plain.originalOf(linear), linear.name);
    const { quantized, relativeError } = quantizeMatrix(weight, linear.shape, scheme);
    relativeError.dispose();
    this.#made.set(key, quantized);
    return quantized;
  }

  [Symbol.dispose](): void {
    this.#plain[Symbol.dispose]();
    for (const quantized of this.#made.values()) quantized.dispose();
  }
}
