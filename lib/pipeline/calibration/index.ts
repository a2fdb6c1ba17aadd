import * as path from 'node:path';
import type { Checkpoint } from '../../checkpoint/reader';
import { bytesOf } from '../../dtype';
import { QuantariaError } from '../../errors';
import type { LayerWeights } from '../../models/decoder';
import { checkFinite, Decoder, type IdRows } from '../decoder';
import { WORK } from '../output';
import type { QuantizePlan } from '../quantize_plan';
import type { PlannedMatrix } from '../quantize_units';
import type { CalibrationSummary } from '../report';
import { DEFAULT_SAMPLES, type RowOptions, readRows } from '../rows';
import type { WorkUnit } from '../run';
import { Batches, idsDigest } from './batches';
import { foldsOfLayer, type LayerFolds, rewrittenOf } from './fold_plan';
import { LayerCalibration, type LayerResult, type LayerSettings, type Sink } from './layer';
import { type LayerMethod, SingleWeights } from './layer_method';
import { ScalingLayer } from './scaling_layer';
import { removeStates, STATE_DTYPE, States, StateWriter } from './states';

export type { LayerResult } from './layer';

/** Memory of a calibrated job, unless it is asked for more or less. */
export const CALIBRATION_MEMORY_BYTES = 2e9;

const statesName = (layer: number) => `states-${layer}.safetensors`;
const INPUTS_FILE = 'inputs.safetensors';

/** A decoder that is quantized layer by layer on calibration rows. */
export class Calibration implements Disposable {
  readonly #table: ReturnType<Decoder['rotaryTable']>;
  readonly #batches: Batches;
  /** Where states are kept. */
  readonly #work: string;

  constructor(
    private readonly decoder: Decoder,
    rows: IdRows,
    out: string,
    private readonly plan: QuantizePlan,
    private readonly settings: LayerSettings,
  ) {
    decoder.checkIds(rows);
    this.#table = decoder.rotaryTable(rows.length);
    this.#batches = new Batches(rows, this.#table);
    this.#work = path.join(out, WORK);
  }

  /**
   * A unit for each decoder layer up to the last one with something to quantize, in order. The states that enter a layer are
   * kept in a file, from which an interrupted run goes on.
   */
  units(members: readonly PlannedMatrix[]): WorkUnit[] {
    const { plan } = this;
    const byLayer = new Map<number, PlannedMatrix[]>();
    for (const member of members) {
      const layer = member.layer as number;
      byLayer.set(layer, [...(byLayer.get(layer) ?? []), member]);
    }
    const last = Math.max(-1, ...byLayer.keys());
    return Array.from({ length: last + 1 }, (_, layer) => {
      const own = byLayer.get(layer) ?? [];
      const rewritten = this.#folds(layer).flatMap(rewrittenOf);
      const elements = own.reduce((sum, { linear }) => sum + linear.shape[0] * linear.shape[1], 0);
      return {
        key: `calibrate layer ${layer}`,
        inputBytes: elements * bytesOf(plan.modelDtype),
        // One at a time: each begins with what the one before has made.
        memoryBytes: Number.POSITIVE_INFINITY,
        outputs: [...own, ...rewritten].flatMap(({ entries }) => entries.map(({ name }) => name)),
        run: async (write) => {
          const sink = { format: plan.format, modelDtype: plan.modelDtype, write };
          return { ...(await this.#layer(layer, byLayer, layer < last, sink)) };
        },
      };
    });
  }

  /** Kept tensors that the method changes, by their names in the output. */
  rewritten(): Set<string> {
    const layers = Array.from({ length: this.decoder.shape.layers }, (_, layer) => this.#folds(layer));
    return new Set(layers.flat().flatMap((folds) => rewrittenOf(folds).map(({ target }) => target.name)));
  }

  /** Of a method that moves factors; else none. */
  #folds(layer: number): LayerFolds[] {
    const scales = this.plan.method === 'awq' || this.plan.method === 'smoothquant';
    return !scales ? [] : [foldsOfLayer(this.plan, this.decoder.shape, layer)];
  }

  #method(weights: LayerWeights): LayerMethod {
    const { method, gptq, alpha } = this.plan;
    const [folds] = this.#folds(weights.layer);
    if (folds === undefined || method === 'gptq' || method === 'rtn') {
      return new SingleWeights(method === 'gptq' ? gptq : null);
    }
    return new ScalingLayer(weights, folds, { method, alpha });
  }

  [Symbol.dispose](): void {
    this.#table[Symbol.dispose]();
  }

  async #layer(
    layer: number,
    members: ReadonlyMap<number, PlannedMatrix[]>,
    goesOn: boolean,
    sink: Sink,
  ): Promise<LayerResult> {
    using states = await this.#statesBefore(layer, members, sink);
    // The unit of the layer before is noted as done now.
    if (layer > 0) await removeStates(this.#work, statesName(layer - 1));
    const weights = await this.decoder.weights.layer(layer);
    try {
      using method = this.#method(weights);
      using calibration = new LayerCalibration(
        this.decoder,
        weights,
        this.#batches,
        members.get(layer) ?? [],
        method,
        this.settings,
      );
      const result = await calibration.quantize(states, path.join(this.#work, INPUTS_FILE), sink);
      if (goesOn) {
        const next = await calibration.run(states, path.join(this.#work, statesName(layer + 1)));
        next[Symbol.dispose]();
      }
      return result;
    } finally {
      weights.dispose();
    }
  }

  /**
   * The states that enter a layer. If a crash of the system has lost them, the layers before are gone through again, writing
   * nothing but states.
   */
  async #statesBefore(
    layer: number,
    members: ReadonlyMap<number, PlannedMatrix[]>,
    sink: Sink,
  ): Promise<States> {
    const file = path.join(this.#work, statesName(layer));
    const found = await States.open(file);
    if (found !== null) return found;
    if (layer === 0) return await this.#embedded(file);
    // What that layer writes is in shards already, which may have their names.
    await this.#layer(layer - 1, members, true, { ...sink, write: async () => {} });
    const made = await States.open(file);
    if (made !== null) return made;
    throw new QuantariaError('ERR_IO', `${file}: the states that were just written are gone`);
  }

  async #embedded(file: string): Promise<States> {
    const writer = new StateWriter(file, this.#batches.rows, this.decoder.shape.hidden);
    try {
      for (const batch of this.#batches.rows.keys()) {
        using x = this.decoder.embed(this.#batches.ids(batch));
        await checkFinite(x, 'calibration, embedding', batch);
        await writer.put(batch, x);
      }
      return await writer.finish();
    } catch (error) {
      await writer.abort();
      throw error;
    }
  }
}

/** What a calibrated job needs beside its plan. */
export interface PreparedCalibration extends Disposable {
  calibration: Calibration;
  /** By which a later run knows that it is the same job. */
  identity: object;
  summary: CalibrationSummary;
}

const DEFAULT_MIN_EXPERT_TOKENS = 256;

export interface CalibrationOptions extends RowOptions {
  out: string;
  minExpertTokens?: number;
  maxMemoryBytes?: number;
  signal?: AbortSignal;
}

const hasStaticActivations = ({ tensors }: QuantizePlan): boolean =>
  tensors.some(({ activations }) => activations === 'static');

/** LLM.int8 needs no calibration, but with data the report tells how many columns will have outliers. */
const countsOutliers = ({ tensors }: QuantizePlan, { text, tokens }: CalibrationOptions): boolean =>
  (text !== undefined || tokens !== undefined) && tensors.some(({ scheme }) => scheme?.kind === 'llm.int8');

/**
 * Reads the calibration rows and opens the decoder; null for a method that needs neither.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` without a text or tokens, or with less than a row of them, and
 *   whatever reading them and opening the model throws
 */
export async function prepareCalibration(
  source: Checkpoint,
  plan: QuantizePlan,
  options: CalibrationOptions,
): Promise<PreparedCalibration | null> {
  const needsNone = plan.method === 'rtn' && !hasStaticActivations(plan);
  if (needsNone && !countsOutliers(plan, options)) return null;
  if (options.text === undefined && options.tokens === undefined) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `${plan.method === 'rtn' ? '--activations static' : `method ${plan.method}`} needs calibration data: --text <file>, or --tokens <file>`,
    );
  }
  const decoder = await Decoder.open(source.directory, STATE_DTYPE);
  try {
    const rows = await readRows(source.directory, {
      ...options,
      samples: options.samples ?? DEFAULT_SAMPLES,
    });
    const minExpertTokens = options.minExpertTokens ?? DEFAULT_MIN_EXPERT_TOKENS;
    const calibration = new Calibration(decoder, rows, options.out, plan, {
      minExpertTokens,
      routingWeights: plan.routingWeights && plan.method === 'gptq',
      maxMemoryBytes: options.maxMemoryBytes ?? CALIBRATION_MEMORY_BYTES,
      signal: options.signal,
    });
    const { ids, length } = rows;
    const summary: CalibrationSummary = {
      rows: ids.length / length,
      seqLen: length,
      tokens: ids.length,
      ...(plan.method === 'gptq' ? plan.gptq : {}),
      ...(plan.method === 'gptq' && plan.routingWeights ? { routingWeights: true } : {}),
      ...(plan.method === 'smoothquant' ? { alpha: plan.alpha } : {}),
      minExpertTokens,
    };
    return {
      calibration,
      identity: { ...summary, ids: idsDigest(rows) },
      summary,
      [Symbol.dispose]() {
        calibration[Symbol.dispose]();
        decoder[Symbol.dispose]();
      },
    };
  } catch (error) {
    decoder[Symbol.dispose]();
    throw error;
  }
}
