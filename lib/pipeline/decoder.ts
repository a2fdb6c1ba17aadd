import { synchronize } from '../device';
import { QuantariaError } from '../errors';
import {
  type DecoderShape,
  decoderBlock,
  type KeyValueCache,
  type LayerWeights,
  rotaryAngles,
  type Span,
} from '../models/decoder';
import { native } from '../native';
import { type ActivationDType, embed, type RotaryTable, rmsNorm } from '../ops/decoder';
import { linear } from '../ops/linear';
import type { Routing } from '../ops/moe_route';
import { Tensor } from '../tensor';
import { DecoderWeights, type OuterWeights } from './decoder_weights';

/** Ids that go through a layer together, at most. */
export const BATCH_IDS = 4096;
/** Vectors of the hidden size that an id takes on its way through a layer, about, in float32. */
const VECTORS_UNDER_WAY = 16;

/** Rows of ids of one length, `count * length` of them. */
export interface IdRows {
  ids: Int32Array;
  length: number;
  /** Of each row, the first place whose id is scored; 1 if left out: windows that overlap score what is new in them. */
  scoredFrom?: Int32Array;
}

export interface ForwardHooks {
  onRouting?: (layer: number, routing: Routing) => void;
  /** After each layer. */
  onLayer?: (layer: number) => void;
  signal?: AbortSignal;
  /** Memory for what is between the states before a layer and those behind it; default: that of the largest batch. */
  batchBytes?: number;
}

/** A model's decoder, run layer by layer: the weights of one layer are in memory at a time. */
export class Decoder implements Disposable {
  private constructor(
    readonly weights: DecoderWeights,
    private readonly outer: OuterWeights,
    readonly dtype: ActivationDType,
  ) {}

  /**
   * @param dtype of the activations; `stored` takes that of the embedding
   * @throws QuantariaError (as a rejection) `ERR_IO`, `ERR_FORMAT`, `ERR_UNSUPPORTED`
   */
  static async open(directory: string, dtype: ActivationDType | 'stored' = 'float32'): Promise<Decoder> {
    const weights = await DecoderWeights.open(directory);
    try {
      const outer = await weights.outer();
      const own = dtype === 'stored' ? (outer.embedding.dtype as ActivationDType) : dtype;
      return new Decoder(weights, outer, own);
    } catch (error) {
      weights[Symbol.dispose]();
      throw error;
    }
  }

  get shape(): DecoderShape {
    return this.weights.shape;
  }

  get vocabulary(): number {
    return this.outer.embedding.shape[0] as number;
  }

  /** @throws QuantariaError `ERR_ARGUMENT` naming the first id that is not in the vocabulary */
  checkIds({ ids, length }: IdRows): void {
    const at = ids.findIndex((id) => id < 0 || id >= this.vocabulary);
    if (at < 0) return;
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `token id ${ids[at]} in row ${Math.floor(at / length)}, place ${at % length}, is not in the vocabulary of ${this.vocabulary}`,
    );
  }

  /**
   * The states after the final norm, `[ids of a batch, hidden]` each, batches in order. The caller disposes them.
   * @throws QuantariaError (as a rejection) `ERR_FORMAT` naming the layer whose states are not finite
   */
  async states(rows: IdRows, hooks: ForwardHooks = {}): Promise<Tensor[]> {
    this.checkIds(rows);
    using table = this.rotaryTable(rows.length);
    const { batchBytes = Number.POSITIVE_INFINITY } = hooks;
    const most = Math.min(BATCH_IDS, batchBytes / (4 * VECTORS_UNDER_WAY * this.shape.hidden));
    const perBatch = Math.max(1, Math.floor(most / rows.length)) * rows.length;
    const states: Tensor[] = [];
    try {
      for (let begin = 0; begin < rows.ids.length; begin += perBatch) {
        states.push(this.embed(rows.ids.subarray(begin, begin + perBatch)));
      }
      for (let layer = 0; layer < this.shape.layers; ++layer) {
        hooks.signal?.throwIfAborted();
        const weights = await this.weights.layer(layer);
        try {
          await this.#throughLayer(states, weights, rows.length, table, hooks);
        } finally {
          weights.dispose();
        }
        hooks.onLayer?.(layer);
      }
      for (const [batch, x] of states.entries()) {
        using before = x;
        states[batch] = this.finalNorm(before);
      }
      return states;
    } catch (error) {
      for (const x of states) x.dispose();
      throw error;
    }
  }

  /** float32 `[T, V]` of states after the final norm. */
  logits(states: Tensor): Tensor {
    const { weight, bias } = this.outer.head;
    return linear(states, weight, { bias, outDtype: 'float32' });
  }

  /**
   * For ids that come one after the other: all layers stay in memory, or as many as there is room for beside one that is read
   * anew for every id.
   */
  async resident(maxMemoryBytes = Number.POSITIVE_INFINITY): Promise<ResidentDecoder> {
    const sizes = Array.from({ length: this.shape.layers }, (_, layer) => this.weights.layerBytes(layer));
    const whole = sizes.reduce((a, b) => a + b, 0) <= maxMemoryBytes;
    let room = whole ? Number.POSITIVE_INFINITY : maxMemoryBytes - Math.max(...sizes);
    const layers: (LayerWeights | null)[] = [];
    try {
      for (const [layer, bytes] of sizes.entries()) {
        room -= bytes;
        layers.push(room >= 0 ? await this.weights.layer(layer) : null);
      }
    } catch (error) {
      for (const layer of layers) layer?.dispose();
      throw error;
    }
    return new ResidentDecoder(
      this,
      layers,
      (ids) => this.embed(ids),
      (x) => this.finalNorm(x),
    );
  }

  rotaryTable(length: number): RotaryTable & Disposable {
    const { frequencies, scale } = rotaryAngles(this.shape.rotary, length);
    const pairs = frequencies.length;
    const values = { cosines: new Float32Array(length * pairs), sines: new Float32Array(length * pairs) };
    for (let position = 0; position < length; ++position) {
      for (let i = 0; i < pairs; ++i) {
        const angle = Math.fround(position * (frequencies[i] as number));
        values.cosines[position * pairs + i] = Math.cos(angle) * scale;
        values.sines[position * pairs + i] = Math.sin(angle) * scale;
      }
    }
    const cosines = Tensor.from(values.cosines, [length, pairs], { dtype: 'float32' });
    const sines = Tensor.from(values.sines, [length, pairs], { dtype: 'float32' });
    const dispose = () => {
      cosines.dispose();
      sines.dispose();
    };
    return { cosines, sines, [Symbol.dispose]: dispose };
  }

  [Symbol.dispose](): void {
    this.weights[Symbol.dispose]();
  }

  /** The states that enter the first layer, `[ids, hidden]`. */
  embed(ids: Int32Array): Tensor {
    using tensor = Tensor.from(ids, [ids.length], { dtype: 'int32' });
    return embed(this.outer.embedding, tensor, this.dtype);
  }

  /** States `[T, hidden]` after the last layer, as the head takes them. */
  finalNorm(x: Tensor): Tensor {
    return rmsNorm(x, this.outer.norm, this.shape.eps);
  }

  async #throughLayer(
    states: Tensor[],
    weights: LayerWeights,
    length: number,
    table: RotaryTable,
    { onRouting }: ForwardHooks,
  ): Promise<void> {
    // Memory is taken when work is queued: one batch is under way while the next one is queued, not more.
    let previous = Promise.resolve();
    for (const [batch, x] of states.entries()) {
      const sequences = (x.shape[0] as number) / length;
      const span: Span = { sequences, length, first: 0, table, onRouting };
      using before = x;
      const y = decoderBlock(before, weights, this.shape, span);
      states[batch] = y;
      const check = checkFinite(y, `layer ${weights.layer}`, batch);
      check.catch(() => {}); // it is awaited below, maybe after the one before has failed
      await previous;
      previous = check;
    }
    await previous;
  }
}

/** A decoder whose layers stay in memory as far as they are given, for one sequence that grows. */
export class ResidentDecoder implements Disposable {
  constructor(
    private readonly decoder: Decoder,
    private readonly layers: readonly (LayerWeights | null)[],
    private readonly embedIds: (ids: Int32Array) => Tensor,
    private readonly finalNorm: (x: Tensor) => Tensor,
  ) {}

  /**
   * The logits `[1, V]` after further ids of the sequence that `cache` has seen `first` ids of.
   * @param table positions up to the last of these ids at least
   */
  async next(ids: Int32Array, first: number, table: RotaryTable, cache: KeyValueCache): Promise<Tensor> {
    const { shape } = this.decoder;
    const span: Span = { sequences: 1, length: ids.length, first, table };
    let x = this.embedIds(ids);
    for (const [index, resident] of this.layers.entries()) {
      using before = x;
      const layer = resident ?? (await this.decoder.weights.layer(index));
      x = decoderBlock(before, layer, shape, span, cache);
      if (resident !== null) continue;
      layer.dispose();
      // Its memory comes back when the queue has used it, which is to be before the next one takes as much.
      await synchronize();
    }
    using states = x;
    using last = states.slice(0, ids.length - 1, ids.length);
    using normed = this.finalNorm(last);
    return this.decoder.logits(normed);
  }

  [Symbol.dispose](): void {
    for (const layer of this.layers) layer?.dispose();
  }
}

/** @throws QuantariaError (as a rejection) `ERR_FORMAT` naming where states are not finite */
export async function checkFinite(x: Tensor, where: string, batch: number): Promise<void> {
  const floats = x.dtype === 'float32' ? null : x.cast('float32');
  try {
    const { nonFinite } = await native.compare(Tensor.native(floats ?? x, 'states'), null);
    if (nonFinite > 0) {
      throw new QuantariaError(
        'ERR_FORMAT',
        `${where}: ${nonFinite} of ${x.size} hidden states of batch ${batch} are NaN or infinite (${x.dtype} activations)`,
      );
    }
  } finally {
    floats?.dispose();
  }
}
