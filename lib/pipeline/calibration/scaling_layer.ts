import { clip, type ScaledLinear, searchScale } from '../../methods/awq';
import type { CalibratedMatrix } from '../../methods/gptq';
import { smoothingFactors } from '../../methods/smoothquant';
import { type Fold, keyOf, type LayerWeights, type LinearKey } from '../../models/decoder';
import { type NativeTensor, native } from '../../native';
import { dequantize, quantizeMatrix } from '../../ops/quantize';
import { ColumnMagnitudes } from '../../ops/scaling';
import type { QuantizedTensor } from '../../quantized';
import { Tensor } from '../../tensor';
import { encodeFactors, type TensorFactors } from '../folding';
import type { PlannedTensor } from '../quantize_plan';
import type { PlannedMatrix } from '../quantize_units';
import type { ExpertInputs } from './expert_inputs';
import { LayerFactors } from './factors';
import { biasOf, type LayerFolds } from './fold_plan';
import { type InputStatistics, inputOf, type LayerInputs } from './inputs';
import type { Sink } from './layer';
import type { EnteredWeight, LayerMethod } from './layer_method';
import { QuantizedLayer } from './quantized_layer';

export interface ScalingSettings {
  method: 'awq' | 'smoothquant';
  /** SmoothQuant: how much of the spread of activations the weights take over. */
  alpha: number;
}

/** Queries and keys are not clipped: their errors are multiplied with each other. */
const UNCLIPPED = ['q', 'k', 'q_a', 'q_b', 'kv_a'];

/** Factors are moved between what makes an input and the weights that take it; then these are clipped, and rounded. */
export class ScalingLayer implements LayerMethod {
  readonly #factors = new LayerFactors();

  constructor(
    private readonly original: LayerWeights,
    private readonly folds: LayerFolds,
    private readonly settings: ScalingSettings,
  ) {}

  async begin(inputs: LayerInputs, counts: readonly number[] | null): Promise<void> {
    for (const fold of this.folds.folds) {
      const [first] = fold.to as [LinearKey];
      const ofExpert = 'linear' in fold.from && fold.from.linear.expert !== null;
      const input = ofExpert ? null : inputs.get(inputOf(first.role, first.projection));
      if (input !== null) await this.#apply(fold, input, counts);
    }
  }

  async beginExpert(index: number, { down }: ExpertInputs): Promise<void> {
    const own = this.folds.folds.find(
      ({ from }) => 'linear' in from && from.linear.role === 'expert' && from.linear.expert === index,
    );
    if (own !== undefined) await this.#apply(own, down, null);
  }

  async matrices(entered: readonly EnteredWeight[]): Promise<CalibratedMatrix[]> {
    const made: CalibratedMatrix[] = [];
    for (const { member, weight, inputs } of entered) made.push(await this.#matrix(member, weight, inputs));
    return made;
  }

  async #matrix(
    { linear, scheme }: PlannedMatrix,
    weight: Tensor,
    inputs: InputStatistics | null,
  ): Promise<CalibratedMatrix> {
    using scaled = this.#factors.weight(linear, weight);
    const clips = this.settings.method === 'awq' && scheme.kind === 'int' && scheme.bits < 8;
    if (inputs === null || !clips || UNCLIPPED.includes(linear.projection)) {
      const made = await rounded(scaled, scaled, linear.shape, scheme);
      return { ...made, ...(await this.#measured(linear, weight, made.quantized, inputs, scheme)) };
    }
    using sums = inputs.hessian.sums();
    using products = this.#factors.products(linear, sums);
    const { clipped } = await clip(scaled, products, scheme);
    using _ = clipped;
    const made = await rounded(clipped, scaled, linear.shape, scheme);
    return { ...made, ...(await this.#measured(linear, weight, made.quantized, inputs, scheme)) };
  }

  divisors({ linear }: PlannedMatrix): Float32Array | null {
    return this.#factors.columns.get(keyOf(linear)) ?? null;
  }

  async finish(layer: QuantizedLayer, { write }: Sink): Promise<void> {
    for (const [name, gain] of this.#factors.gains) {
      const planned = this.folds.vectors.get(name);
      if (planned === undefined) continue;
      await writeKept(planned, gain, write);
      layer.replaceNorm(name, gain.to(gain.device));
    }
    for (const [key, planned] of this.folds.kept) {
      const linear = planned.linear as LinearKey;
      const weight = this.original.linear(linear.role, linear.projection).weight as Tensor;
      using scaled = this.#factors.weight(linear, weight);
      const stored = this.#factors.columns.has(key) ? scaled.cast(weight.dtype) : weight.to(weight.device);
      layer.replaceKept(linear, stored);
      await writeKept(planned, stored, write);
    }
    for (const [name, planned] of this.folds.vectors) {
      const member = [...this.folds.quantized.values()].find((other) => biasOf(other) === name);
      if (member === undefined) {
        const stored = this.original.vector(name);
        if (!this.#factors.gains.has(name) && stored !== null) await writeKept(planned, stored, write);
        continue;
      }
      const { role, projection } = member.linear;
      const bias = this.original.linear(role, projection).bias as Tensor;
      const scaled = this.#factors.bias(member.linear, bias);
      layer.replaceBias(member.linear, scaled);
      const stored = this.original.vector(name) as Tensor;
      using cast = scaled.cast(stored.dtype);
      await writeKept(planned, cast, write);
    }
  }

  factors(): Record<string, TensorFactors> {
    const found: Record<string, TensorFactors> = {};
    const { rows, columns } = this.#factors;
    const text = (values: Float32Array | undefined) => values && encodeFactors(values);
    for (const [key, { target, linear }] of [...this.folds.quantized, ...this.folds.kept]) {
      const own = { rows: text(rows.get(key)), columns: text(columns.get(key)) };
      if (own.rows !== undefined || own.columns !== undefined) found[target.name] = own;
      const bias = linear && this.folds.vectors.get(biasOf({ linear } as PlannedMatrix));
      if (bias && own.rows !== undefined) found[bias.target.name] = { columns: own.rows };
    }
    for (const { from, to } of this.folds.folds) {
      const planned = 'norm' in from ? this.folds.vectors.get(from.norm) : undefined;
      const factors = columns.get(keyOf(to[0] as LinearKey));
      if (planned === undefined || factors === undefined) continue;
      found[planned.target.name] = { columns: text(factors.map((factor) => 1 / factor)) };
    }
    return found;
  }

  [Symbol.dispose](): void {
    this.#factors.dispose();
  }

  async #apply(fold: Fold, input: InputStatistics, counts: readonly number[] | null): Promise<void> {
    const shared = LayerFactors.settle(fold);
    // Powers of two change no bit of what is kept in 16 bits, so that a router chooses as before.
    const keeps = fold.to.some((key) => this.folds.kept.has(keyOf(key)));
    const settle = (factors: Float32Array) =>
      keeps ? shared(factors).map((factor) => 2 ** Math.round(Math.log2(factor))) : shared(factors);
    const factors =
      this.settings.method === 'awq'
        ? (await searchScale(this.#linears(fold, input, counts), await input.magnitudes.means(), settle))
            .factors
        : settle(await this.#smoothing(fold, input));
    if ('norm' in fold.from) {
      await this.#factors.foldNorm(fold.from.norm, this.original.norm(fold.from.norm), fold.to, factors);
    } else {
      const producer = this.#weightOf(fold.from.linear);
      this.#factors.foldLinear(fold.from.linear, producer.shape[0] as number, fold, factors);
    }
  }

  /** Those whose rounding the factors are to make good; experts by their share of the tokens. */
  #linears({ to }: Fold, { hessian }: InputStatistics, counts: readonly number[] | null): ScaledLinear[] {
    return to.flatMap((key) => {
      const member = this.folds.quantized.get(keyOf(key));
      if (member === undefined) return [];
      const share =
        key.expert === null || counts === null ? 1 : (counts[key.expert] as number) / hessian.samples;
      return [{ weight: this.#weightOf(key), scheme: member.scheme, hessian, share }];
    });
  }

  async #smoothing({ to }: Fold, { magnitudes }: InputStatistics): Promise<Float32Array> {
    using weights = new ColumnMagnitudes(magnitudes.columns);
    for (const key of to) {
      if (this.folds.quantized.has(keyOf(key))) weights.update(this.#weightOf(key));
    }
    return smoothingFactors(await magnitudes.maxima(), await weights.maxima(), this.settings.alpha);
  }

  #weightOf(key: LinearKey): Tensor {
    return new QuantizedLayer(this.original).originalOf(key) as Tensor;
  }

  /** The error of the output, beside that of the original weight rounded to nearest. */
  async #measured(
    linear: LinearKey,
    weight: Tensor,
    quantized: QuantizedTensor,
    inputs: InputStatistics | null,
    scheme: PlannedMatrix['scheme'],
  ): Promise<Pick<CalibratedMatrix, 'method' | 'outputError' | 'damping' | 'deadColumns'>> {
    const { method } = this.settings;
    if (inputs === null) return { method, outputError: null, damping: null, deadColumns: 0 };
    const { hessian } = inputs;
    const energy = await hessian.outputError(weight, null);
    const relative = (error: number) => (error > 0 ? Math.sqrt(error / energy) : 0);
    const shape = weight.shape as [number, number];
    const nearest = quantizeMatrix(Tensor.native(weight, 'weight'), shape, scheme);
    using _ = nearest.relativeError;
    using plain = dequantize(nearest.quantized);
    nearest.quantized.dispose();
    using values = dequantize(quantized);
    using back = this.#factors.unscaled(linear, values);
    return {
      method,
      outputError: {
        rtn: relative(await hessian.outputError(weight, plain)),
        own: relative(await hessian.outputError(weight, back)),
      },
      damping: null,
      deadColumns: 0,
    };
  }
}

/** Writes a tensor that is kept, from wherever it is. */
async function writeKept({ target }: PlannedTensor, tensor: Tensor, write: Sink['write']): Promise<void> {
  using here = tensor.to('cpu');
  await write({ name: target.name, tensor: Tensor.native(here, target.name) });
}

/** A weight rounded to nearest, and its distance from what it was before it was clipped. */
async function rounded(
  weight: Tensor,
  before: Tensor,
  shape: readonly [number, number],
  scheme: PlannedMatrix['scheme'],
): Promise<Pick<CalibratedMatrix, 'quantized' | 'relativeError'>> {
  const { quantized, relativeError } = quantizeMatrix(Tensor.native(weight, 'weight'), shape, scheme);
  using _ = relativeError;
  using values = dequantize(quantized);
  const reference: NativeTensor = Tensor.native(before, 'before');
  const found = await native.compare(Tensor.native(values, 'values'), reference);
  return { quantized, relativeError: found.error > 0 ? Math.sqrt(found.error / found.reference) : 0 };
}
