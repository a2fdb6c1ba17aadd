import type { DType } from '../../dtype';
import { QuantariaError } from '../../errors';
import type { Format } from '../../formats';
import { type CalibratedMatrix, withGroupIndex } from '../../methods/gptq';
import { staticScale } from '../../methods/static_scale';
import {
  attentionHalf,
  decoderBlock,
  type ExpertWeights,
  feedForwardInput,
  gated,
  type LayerWeights,
  routeTokens,
} from '../../models/decoder';
import type { Tensor } from '../../tensor';
import type { Decoder } from '../decoder';
import { checkFinite } from '../decoder';
import type { TensorFactors } from '../folding';
import type { Write } from '../output';
import { inTensor, type PlannedMatrix, writeQuantized } from '../quantize_units';
import type { MatrixCalibration } from '../report';
import type { Batches } from './batches';
import {
  type ExpertInputs,
  expertInputs,
  hessianBytes,
  parted,
  sideBySide,
  solvingBytes,
} from './expert_inputs';
import { FEED_FORWARD, type InputStatistics, inputOf, LayerInputs } from './inputs';
import type { LayerMethod } from './layer_method';
import { QuantizedLayer } from './quantized_layer';
import { RoutedTokens } from './routed';
import { type States, StateWriter } from './states';

/** How a layer is quantized. */
export interface LayerSettings {
  /** An expert with fewer tokens is given those that enter its layer too. */
  minExpertTokens: number;
  /** Tokens of an expert count by the weight that the router gives them. */
  routingWeights: boolean;
  maxMemoryBytes: number;
  signal?: AbortSignal;
}

/** What the report says of a layer. */
export interface LayerResult {
  errors: Record<string, number>;
  calibration: Record<string, MatrixCalibration>;
  /** Tokens of each routed expert; null for a dense layer. */
  counts: number[] | null;
  /** What tensors were multiplied by, of a method that moves factors between them. */
  factors: Record<string, TensorFactors>;
}

/** Where the quantized weights go. */
export interface Sink {
  format: Format;
  modelDtype: DType;
  write: (part: Write) => Promise<void>;
}

/** Rows of an input that are kept where static activations need them. */
const SAMPLED_ROWS = 512;
/** The share of the memory that Hessians of experts may take; quantization itself needs the rest. */
const HESSIAN_SHARE = 0.5;

/**
 * One decoder layer on its way through calibration: the states that enter its linear layers are gathered with its original
 * weights, each weight is quantized and written, and the quantized layer makes the states of the next one.
 */
export class LayerCalibration implements Disposable {
  readonly #layer: QuantizedLayer;
  readonly #inputs: LayerInputs;
  readonly #routed: RoutedTokens | null;
  readonly #result: LayerResult = { errors: {}, calibration: {}, counts: null, factors: {} };

  constructor(
    private readonly decoder: Decoder,
    private readonly original: LayerWeights,
    private readonly batches: Batches,
    private readonly members: readonly PlannedMatrix[],
    private readonly method: LayerMethod,
    private readonly settings: LayerSettings,
  ) {
    this.#layer = new QuantizedLayer(original);
    const experts = members.some(({ linear }) => linear.expert !== null);
    const wanted = members
      .filter(({ linear }) => linear.expert === null)
      .map(({ linear }) => inputOf(linear.role, linear.projection));
    const isStatic = members.some(({ activations }) => activations === 'static');
    const sampled = isStatic ? Math.max(1, Math.floor(SAMPLED_ROWS / batches.rows.length)) : 0;
    this.#inputs = new LayerInputs(new Set(experts ? [...wanted, FEED_FORWARD] : wanted), sampled);
    this.#routed =
      original.experts.length > 0 ? new RoutedTokens(original.experts.length, settings.routingWeights) : null;
  }

  /** @param inputsFile for what enters the feed-forward part, while it is needed */
  async quantize(states: States, inputsFile: string, sink: Sink): Promise<LayerResult> {
    const experts = this.members.filter(({ linear }) => linear.expert !== null);
    const writer =
      experts.length > 0 ? new StateWriter(inputsFile, this.batches.rows, this.decoder.shape.hidden) : null;
    try {
      await this.#gather(states, writer);
      await this.method.begin(this.#inputs, this.#routed?.counts ?? null);
      const others = this.members.filter(({ linear }) => linear.expert === null);
      for (const together of sharingInput(others)) {
        const { role, projection } = (together[0] as PlannedMatrix).linear;
        const inputs = this.#inputs.get(inputOf(role, projection));
        const from = { tokens: inputs?.hessian.samples ?? 0 };
        await this.#quantizeMatrices(
          together.map((member) => ({ member, inputs, from })),
          sink,
        );
      }
      this.#inputs.keep(experts.length > 0 ? [FEED_FORWARD] : []);
      if (writer !== null) {
        using inputs = await writer.finish();
        await this.#quantizeExperts(experts, inputs, sink);
      }
      await this.method.finish(this.#layer, sink);
    } catch (error) {
      await writer?.abort();
      throw error;
    }
    const counts = this.#routed?.counts ?? null;
    return { ...this.#result, counts, factors: this.method.factors() };
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
    this.#inputs[Symbol.dispose]();
  }

  #checkSignal(): void {
    if (this.settings.signal?.aborted) throw new QuantariaError('ERR_ABORTED', 'interrupted');
  }

  async #gather(states: States, inputs: StateWriter | null): Promise<void> {
    const { shape } = this.decoder;
    const watched = this.#inputs.watch(this.original);
    for (let batch = 0; batch < states.batches; ++batch) {
      this.#checkSignal();
      this.#inputs.nextBatch();
      using x = states.batch(batch);
      using between = attentionHalf(x, watched, shape, this.batches.span(batch));
      using normed = feedForwardInput(between, watched, shape);
      await checkFinite(normed, `calibration, layer ${watched.layer}`, batch);
      this.#inputs.add(FEED_FORWARD, normed);
      for (const role of ['dense-ffn', 'shared-expert'] as const) {
        if (watched.has(role, 'gate')) this.#throughDense(normed, watched, role);
      }
      if (this.#routed !== null) await this.#route(normed, this.#routed);
      await inputs?.put(batch, normed);
    }
  }

  #throughDense(normed: Tensor, weights: LayerWeights, role: 'dense-ffn' | 'shared-expert'): void {
    using inner = gated(normed, weights, role);
    this.#inputs.add(inputOf(role, 'down'), inner);
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
    const entering = this.#inputs.get(FEED_FORWARD)?.hessian;
    if (this.#routed === null || entering === undefined) {
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
      const found = await expertInputs(wave, inputs, this.#routed, entering, this.settings.minExpertTokens);
      try {
        for (const together of parted([...found], this.#expertsTogether())) {
          for (const [expert, own] of together) await this.method.beginExpert(expert, own);
          const gathered = together.flatMap(([expert]) => byExpert.get(expert) ?? []);
          for (const alike of sharingInput(gathered)) {
            await this.#quantizeMatrices(
              alike.map((member) => ofExpert(member, found)),
              sink,
            );
          }
          for (const [, own] of together) own[Symbol.dispose]();
        }
      } finally {
        for (const own of found.values()) own[Symbol.dispose]();
      }
    }
  }

  /** Whose weights are quantized in one go, as far as what that takes fits beside the Hessians. */
  #expertsTogether(): number {
    const each = solvingBytes(this.original.experts[0] as ExpertWeights);
    const fit = Math.floor(((1 - HESSIAN_SHARE) * this.settings.maxMemoryBytes) / each);
    return Math.max(1, Math.min(sideBySide(), fit));
  }

  async #inputScale(member: PlannedMatrix, inputs: InputStatistics | null): Promise<number | undefined> {
    if (member.activations !== 'static') return undefined;
    if (inputs === null) return staticScale([], 0);
    const divisors = this.method.divisors(member);
    const divided = (values: Float32Array) =>
      divisors === null
        ? values
        : values.map((value, i) => value / (divisors[i % divisors.length] as number));
    const maxima = divided(await inputs.magnitudes.maxima());
    const largest = maxima.reduce((most, magnitude) => Math.max(most, magnitude), 0);
    return staticScale(divided(await inputs.sample()), largest);
  }

  /** @param gathered of one scheme; those of one input behind each other, whose Hessian is then factored once */
  async #quantizeMatrices(gathered: readonly Gathered[], sink: Sink): Promise<void> {
    this.#checkSignal();
    try {
      const entered = gathered.map(({ member, inputs }) => {
        return { member, inputs, weight: this.#layer.originalOf(member.linear) as Tensor };
      });
      const made = await this.method.matrices(entered);
      for (const [i, own] of gathered.entries()) await this.#keep(own, made[i] as CalibratedMatrix, sink);
    } catch (error) {
      const names = gathered.map(({ member }) => member.linear.name);
      throw inTensor(names.length > 3 ? `${names[0]} to ${names.at(-1)}` : names.join(', '), error);
    }
  }

  /** Writes what a weight became, and notes it. */
  async #keep(
    { member, inputs, from }: Gathered,
    made: CalibratedMatrix,
    { format, modelDtype, write }: Sink,
  ): Promise<void> {
    const { linear, target } = member;
    const quantized = member.groupIndex ? withGroupIndex(made.quantized) : made.quantized;
    this.#layer.replace(linear, quantized);
    const inputScale = await this.#inputScale(member, inputs);
    await writeQuantized(member, quantized, format, modelDtype, write, inputScale);
    this.#result.errors[target.name] = made.relativeError;
    const outlierColumns = await countOutliers(inputs, member.scheme);
    this.#result.calibration[target.name] = {
      ...from,
      ...measuresOf(made),
      outlierColumns,
      ...(inputScale !== undefined && { inputScale }),
    };
  }
}

/** A weight with what calibration found of its input. */
interface Gathered {
  member: PlannedMatrix;
  /** Null if nothing enters it. */
  inputs: InputStatistics | null;
  from: Pick<MatrixCalibration, 'tokens' | 'hessian'>;
}

function ofExpert(member: PlannedMatrix, found: ReadonlyMap<number, ExpertInputs>): Gathered {
  const { expert, projection } = member.linear;
  const { entering, down, tokens, source } = found.get(expert as number) as ExpertInputs;
  return { member, inputs: projection === 'down' ? down : entering, from: { tokens, hessian: source } };
}

/** Weights of one scheme and of one input, each expert's its own, in the order of the first of each. */
function sharingInput(members: readonly PlannedMatrix[]): PlannedMatrix[][] {
  const groups = new Map<string, PlannedMatrix[]>();
  for (const member of members) {
    const { role, projection } = member.linear;
    const key = `${inputOf(role, projection)} ${JSON.stringify(member.scheme)}`;
    groups.set(key, [...(groups.get(key) ?? []), member]);
  }
  return [...groups.values()];
}

function measuresOf({
  method,
  outputError,
  damping,
  deadColumns,
}: CalibratedMatrix): Omit<MatrixCalibration, 'tokens' | 'hessian' | 'outlierColumns'> {
  return {
    method,
    outputErrorRtn: outputError?.rtn ?? null,
    outputError: outputError?.own ?? null,
    damping,
    deadColumns,
  };
}

/** LLM.int8's, unless its scheme says otherwise. */
const OUTLIER_THRESHOLD = 6;

async function countOutliers(
  inputs: InputStatistics | null,
  scheme: PlannedMatrix['scheme'],
): Promise<number> {
  if (inputs === null) return 0;
  const threshold = (scheme.kind === 'llm.int8' ? scheme.threshold : undefined) ?? OUTLIER_THRESHOLD;
  return (await inputs.magnitudes.maxima()).filter((magnitude) => magnitude >= threshold).length;
}
