import { type CalibratedMatrix, type GptqSettings, quantizeCalibrated } from '../../methods/gptq';
import type { Tensor } from '../../tensor';
import type { TensorFactors } from '../folding';
import type { PlannedMatrix } from '../quantize_units';
import type { ExpertInputs } from './expert_inputs';
import type { InputStatistics, LayerInputs } from './inputs';
import type { Sink } from './layer';
import type { QuantizedLayer } from './quantized_layer';

/** A weight to quantize. */
export interface EnteredWeight {
  member: PlannedMatrix;
  weight: Tensor;
  /** What enters the linear layer; null if nothing does. */
  inputs: InputStatistics | null;
}

/** How the weights of one layer are found. Its steps are called in this order. */
export interface LayerMethod extends Disposable {
  /** @param counts tokens of each routed expert */
  begin(inputs: LayerInputs, counts: readonly number[] | null): Promise<void>;
  /** Before the matrices of an expert. */
  beginExpert(index: number, inputs: ExpertInputs): Promise<void>;
  /** @param entered of one scheme, at least one */
  matrices(entered: readonly EnteredWeight[]): Promise<CalibratedMatrix[]>;
  /** What the weight's input features will be divided by; null for nothing. */
  divisors(member: PlannedMatrix): Float32Array | null;
  /** After all matrices: what else of the layer has changed is replaced and written. */
  finish(layer: QuantizedLayer, sink: Sink): Promise<void>;
  /** What weights, norms and biases were multiplied by, by their names in the output. */
  factors(): Record<string, TensorFactors>;
}

/** Each weight by itself: by GPTQ, or without its settings rounded to nearest and measured. */
export class SingleWeights implements LayerMethod {
  constructor(private readonly settings: GptqSettings | null) {}

  async begin(): Promise<void> {}
  async beginExpert(): Promise<void> {}

  matrices(entered: readonly EnteredWeight[]): Promise<CalibratedMatrix[]> {
    const [{ member }] = entered as [EnteredWeight];
    const problems = entered.map(({ weight, inputs }) => ({ weight, hessian: inputs?.hessian ?? null }));
    return quantizeCalibrated(problems, member.scheme, this.settings);
  }

  divisors(): null {
    return null;
  }

  async finish(): Promise<void> {}

  factors(): Record<string, TensorFactors> {
    return {};
  }

  [Symbol.dispose](): void {}
}
