import { synchronize } from '../device';
import type { Linear } from '../models';
import { type DecoderShape, decoderBlock, type LayerWeights, type Span } from '../models/decoder';
import { SCORE_FIELDS, scoreTokens } from '../ops/decoder';
import { quantizeMatrix } from '../ops/quantize';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { QuantizedLayer } from './calibration/quantized_layer';
import { Decoder, type IdRows } from './decoder';
import { readRows } from './rows';
import type { RunOptions } from './usage';

/** Weights that are rounded together to see what it costs, all of one layer. */
export interface Part {
  /** `layer role projections` */
  name: string;
  members: { linear: Linear; scheme: QuantScheme }[];
}

/** Ids that the parts are measured on, at most. */
const IDS = 2048;
/** For the states of all parts, each of which goes its own way through the layers behind it. */
const STATE_BYTES = 512e6;

/** The part that a weight is measured in: what shares an input, and the routed experts of a layer as one. */
export const partOf = ({ layer, role, projection }: Linear): string =>
  `${layer} ${role} ${role === 'attention' ? (projection === 'o' ? 'o' : 'qkv') : projection === 'down' ? 'down' : 'gate-up'}`;

/**
 * What rounding each part to nearest by itself does to the model's predictions: KL divergence from the original in nats an id,
 * on the first rows of calibration data. The model is gone through once, layer by layer: the states behind each rounded part
 * pass through the original layers after it beside those of the original.
 * @returns by the part's name
 * @throws QuantariaError (as a rejection) whatever opening and running the model throws
 */
export async function measureParts(
  directory: string,
  parts: readonly Part[],
  options: RunOptions,
): Promise<Map<string, number>> {
  using decoder = await Decoder.open(directory, 'float32');
  const all = await readRows(directory, options);
  const fit = Math.min(IDS, STATE_BYTES / (4 * decoder.shape.hidden * (parts.length + 1)));
  const rows = Math.max(1, Math.min(all.ids.length / all.length, Math.floor(fit / all.length)));
  const ids = { ids: all.ids.subarray(0, rows * all.length), length: all.length };
  decoder.checkIds(ids);
  using run = new Variants(decoder, ids);
  let done = 0;
  const total = decoder.shape.layers;
  for (let layer = 0; layer < total; ++layer) {
    options.signal?.throwIfAborted();
    const weights = await decoder.weights.layer(layer);
    try {
      await run.through(
        weights,
        parts.filter(({ members }) => members[0]?.linear.layer === layer),
      );
    } finally {
      weights.dispose();
    }
    options.onProgress?.(++done, total);
  }
  return await run.divergences();
}

class Variants implements Disposable {
  readonly #table: ReturnType<Decoder['rotaryTable']>;
  readonly #shape: DecoderShape;
  #original: Tensor;
  readonly #changed = new Map<string, Tensor>();

  constructor(
    private readonly decoder: Decoder,
    private readonly rows: IdRows,
  ) {
    this.#shape = decoder.shape;
    this.#table = decoder.rotaryTable(rows.length);
    this.#original = decoder.embed(rows.ids);
  }

  async through(weights: LayerWeights, parts: readonly Part[]): Promise<void> {
    for (const [name, x] of this.#changed) {
      using before = x;
      this.#changed.set(name, await this.#block(before, weights));
    }
    for (const { name, members } of parts) {
      using layer = new QuantizedLayer(weights);
      for (const { linear, scheme } of members) {
        const weight = Tensor.native(layer.originalOf(linear), linear.name);
        const { quantized, relativeError } = quantizeMatrix(weight, linear.shape, scheme);
        relativeError.dispose();
        layer.replace(linear, quantized);
      }
      this.#changed.set(name, await this.#block(this.#original, layer.weights()));
    }
    using before = this.#original;
    this.#original = await this.#block(before, weights);
  }

  async divergences(): Promise<Map<string, number>> {
    const found = new Map<string, number>();
    const { ids, length } = this.rows;
    const scored = (place: number) => (place + 1) % length !== 0;
    using targets = Tensor.from(
      ids.map((_, place) => (scored(place) ? (ids[place + 1] as number) : 0)),
      [ids.length],
      { dtype: 'int32' },
    );
    using reference = this.#logits(this.#original);
    for (const [name, x] of this.#changed) {
      using logits = this.#logits(x);
      using scores = scoreTokens(logits, reference, targets);
      const values = await scores.toFloat32();
      let sum = 0;
      for (const place of ids.keys()) if (scored(place)) sum += values[SCORE_FIELDS * place + 1] as number;
      found.set(name, Math.max(0, sum / (ids.length - ids.length / length)));
    }
    return found;
  }

  [Symbol.dispose](): void {
    this.#table[Symbol.dispose]();
    this.#original.dispose();
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
