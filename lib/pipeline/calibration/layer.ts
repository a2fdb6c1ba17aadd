import type { DType } from '../../dtype';
import { QuantariaError } from '../../errors';
import type { Format } from '../../formats';
import {
  type CalibratedMatrix,
  type GptqSettings,
  quantizeCalibrated,
  withGroupIndex,
} from '../../methods/gptq';
import {
  attentionHalf,
  decoderBlock,
  type ExpertWeights,
  feedForwardInput,
  gated,
  type LayerWeights,
  routeTokens,
} from '../../models/decoder';
import type { Hessian } from '../../ops/gptq';
import type { Tensor } from '../../tensor';
import type { Decoder } from '../decoder';
import { checkFinite } from '../decoder';
import type { Write } from '../output';
import { inTensor, type PlannedMatrix, writeQuantized } from '../quantize_units';
import type { MatrixCalibration } from '../report';
import type { Batches } from './batches';
import { FEED_FORWARD, InputHessians, inputOf } from './inputs';
import { QuantizedLayer } from './quantized_layer';
import { type ExpertHessians, expertHessians, hessianBytes, RoutedTokens } from './routed';
import { type States, StateWriter } from './states';

/** How a layer is quantized. */
export interface LayerSettings extends GptqSettings {
  /** An expert with fewer tokens is given those that enter its layer too. */
  minExpertTokens: number;
  maxMemoryBytes: number;
  signal?: AbortSignal;
}

/** What the report says of a layer. */
export interface LayerResult {
  errors: Record<string, number>;
  calibration: Record<string, MatrixCalibration>;
  /** Tokens of each routed expert; null for a dense layer. */
  counts: number[] | null;
}

/** Where the quantized weights go. */
export interface Sink {
  format: Format;
  modelDtype: DType;
  write: (part: Write) => Promise<void>;
}

/** The share of the memory that Hessians of experts may take; quantization itself needs the rest. */
const HESSIAN_SHARE = 0.5;

/**
 * One decoder layer on its way through calibration: the states that enter its linear layers are gathered with its original
 * weights, each weight is quantized and written, and the quantized layer makes the states of the next one.
 */
export class LayerCalibration implements Disposable {
  readonly #layer: QuantizedLayer;
  readonly #hessians: InputHessians;
  readonly #routed: RoutedTokens | null;
  readonly #result: LayerResult = { errors: {}, calibration: {}, counts: null };

  constructor(
    private readonly decoder: Decoder,
    private readonly original: LayerWeights,
    private readonly batches: Batches,
    private readonly members: readonly PlannedMatrix[],
    private readonly settings: LayerSettings,
  ) {
    this.#layer = new QuantizedLayer(original);
    const experts = members.some(({ linear }) => linear.expert !== null);
    const wanted = members
      .filter(({ linear }) => linear.expert === null)
      .map(({ linear }) => inputOf(linear.role, linear.projection));
    this.#hessians = new InputHessians(new Set(experts ? [...wanted, FEED_FORWARD] : wanted));
    this.#routed = original.experts.length > 0 ? new RoutedTokens(original.experts.length) : null;
  }

  /** @param inputsFile for what enters the feed-forward part, while it is needed */
  async quantize(states: States, inputsFile: string, sink: Sink): Promise<LayerResult> {
    const experts = this.members.filter(({ linear }) => linear.expert !== null);
    const writer =
      experts.length > 0 ? new StateWriter(inputsFile, this.batches.rows, this.decoder.shape.hidden) : null;
    try {
      await this.#gather(states, writer);
      for (const member of this.members) {
        const { role, projection, expert } = member.linear;
        if (expert !== null) continue;
        const hessian = this.#hessians.get(inputOf(role, projection));
        await this.#quantizeMatrix(member, hessian, { tokens: hessian?.samples ?? 0 }, sink);
      }
      this.#hessians.keep(experts.length > 0 ? [FEED_FORWARD] : []);
      if (writer !== null) {
        using inputs = await writer.finish();
        await this.#quantizeExperts(experts, inputs, sink);
      }
    } catch (error) {
      await writer?.abort();
      throw error;
    }
    return { ...this.#result, counts: this.#routed?.counts ?? null };
  }

  /** The states that the quantized layer makes. */
  async run(states: States, file: string): Promise<States> {
    const weights = this.#layer.weights();
    const writer = new StateWriter(file, this.batches.rows, this.decoder.shape.hidden);
    try {
      for (let batch = 0; batch < states.batches; ++batch) {
        this.#checkSignal();
        using x = states.batch(batch);
        using y = decoderBlock(x, weights, this.decoder.shape, this.batches.span(batch));
        await checkFinite(y, `calibration, quantized layer ${weights.layer}`, batch);
        await writer.put(batch, y);
      }
      return await writer.finish();
    } catch (error) {
      await writer.abort();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#layer[Symbol.dispose]();
    this.#hessians[Symbol.dispose]();
  }

  #checkSignal(): void {
    if (this.settings.signal?.aborted) throw new QuantariaError('ERR_ABORTED', 'interrupted');
  }

  async #gather(states: States, inputs: StateWriter | null): Promise<void> {
    const { shape } = this.decoder;
    const watched = this.#hessians.watch(this.original);
    for (let batch = 0; batch < states.batches; ++batch) {
      this.#checkSignal();
      this.#hessians.nextBatch();
      using x = states.batch(batch);
      using between = attentionHalf(x, watched, shape, this.batches.span(batch));
      using normed = feedForwardInput(between, watched, shape);
      await checkFinite(normed, `calibration, layer ${watched.layer}`, batch);
      this.#hessians.add(FEED_FORWARD, normed);
      for (const role of ['dense-ffn', 'shared-expert'] as const) {
        if (watched.has(role, 'gate')) this.#throughDense(normed, watched, role);
      }
      if (this.#routed !== null) await this.#route(normed, this.#routed);
      await inputs?.put(batch, normed);
    }
  }

  #throughDense(normed: Tensor, weights: LayerWeights, role: 'dense-ffn' | 'shared-expert'): void {
    using inner = gated(normed, weights, role);
    this.#hessians.add(inputOf(role, 'down'), inner);
  }

  async #route(normed: Tensor, routed: RoutedTokens): Promise<void> {
    const routing = routeTokens(normed, this.original, this.decoder.shape);
    try {
      await routed.add(routing);
    } finally {
      for (const tensor of Object.values(routing)) tensor.dispose();
    }
  }

  /** In waves whose Hessians fit into memory. */
  async #quantizeExperts(members: readonly PlannedMatrix[], inputs: States, sink: Sink): Promise<void> {
    const entering = this.#hessians.get(FEED_FORWARD);
    if (this.#routed === null || entering === null) {
      throw new QuantariaError('ERR_FORMAT', `layer ${this.original.layer}: no router for its experts`);
    }
    const byExpert = new Map<number, PlannedMatrix[]>();
    for (const member of members) {
      const expert = member.linear.expert as number;
      byExpert.set(expert, [...(byExpert.get(expert) ?? []), member]);
    }
    const each = hessianBytes(this.original.experts[0] as ExpertWeights);
    const size = Math.max(1, Math.floor((HESSIAN_SHARE * this.settings.maxMemoryBytes) / each));
    const indices = [...byExpert.keys()].sort((a, b) => a - b);
    for (let first = 0; first < indices.length; first += size) {
      const wave = indices
        .slice(first, first + size)
        .map((index) => ({ index, weights: this.original.experts[index] as ExpertWeights }));
      const hessians = await expertHessians(
        wave,
        inputs,
        this.#routed,
        entering,
        this.settings.minExpertTokens,
      );
      try {
        for (const [expert, own] of hessians) {
          for (const member of byExpert.get(expert) ?? []) await this.#quantizeExpert(member, own, sink);
          own[Symbol.dispose]();
        }
      } finally {
        for (const own of hessians.values()) own[Symbol.dispose]();
      }
    }
  }

  #quantizeExpert(member: PlannedMatrix, own: ExpertHessians, sink: Sink): Promise<void> {
    const hessian = member.linear.projection === 'down' ? own.down : own.entering;
    return this.#quantizeMatrix(member, hessian, { tokens: own.tokens, hessian: own.source }, sink);
  }

  async #quantizeMatrix(
    member: PlannedMatrix,
    hessian: Hessian | null,
    from: Pick<MatrixCalibration, 'tokens' | 'hessian'>,
    { format, modelDtype, write }: Sink,
  ): Promise<void> {
    const { linear, scheme, target } = member;
    this.#checkSignal();
    try {
      const weight = this.#layer.originalOf(linear) as Tensor;
      const made = await quantizeCalibrated(weight, hessian, scheme, this.settings);
      const quantized = member.groupIndex ? withGroupIndex(made.quantized) : made.quantized;
      this.#layer.replace(linear, quantized);
      await writeQuantized(member, quantized, format, modelDtype, write);
      this.#result.errors[target.name] = made.relativeError;
      this.#result.calibration[target.name] = { ...from, ...measuresOf(made) };
    } catch (error) {
      throw inTensor(linear.name, error);
    }
  }
}

function measuresOf({
  method,
  outputError,
  damping,
  deadColumns,
}: CalibratedMatrix): Omit<MatrixCalibration, 'tokens' | 'hessian'> {
  return {
    method,
    outputErrorRtn: outputError?.rtn ?? null,
    outputError: outputError?.own ?? null,
    damping,
    deadColumns,
  };
}
