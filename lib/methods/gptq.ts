import { native } from '../native';
import * as gptq from '../ops/gptq';
import { dequantize, quantizeMatrix } from '../ops/quantize';
import { QuantizedTensor } from '../quantized';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';

/** What became of a weight, and what it costs. */
export interface CalibratedMatrix {
  quantized: QuantizedTensor;
  /** How its codes were found. */
  method: 'gptq' | 'awq' | 'smoothquant' | 'rtn';
  /** Frobenius norm of original minus quantized over that of the original. */
  relativeError: number;
  /** The relative error of the layer's output on the calibration states; null where there are none. */
  outputError: { rtn: number; own: number } | null;
  /** More than was asked for if the Hessian was not positive definite with that. */
  damping: number | null;
  /** Input features that no state ever reached. */
  deadColumns: number;
}

export type GptqSettings = Omit<gptq.GptqOptions, 'scheme'>;

/** What GPTQ can be asked for; other schemes are rounded to nearest. */
export const compensable = (scheme: QuantScheme): boolean => scheme.kind === 'int' && scheme.bits !== 16;

/** A weight `[out, in]`, float32, float16 or bfloat16, and the Hessian of the states that enter it; null without any. */
export interface CalibratedWeight {
  weight: Tensor;
  hessian: gptq.Hessian | null;
}

/**
 * Quantizes weights by GPTQ in one go, and measures each beside round-to-nearest. Without samples, or for a scheme that GPTQ
 * does not do, they are rounded to nearest.
 * @param settings null to round to nearest in any case
 * @throws QuantariaError (as a rejection) as `gptq.quantize`
 */
export async function quantizeCalibrated(
  problems: readonly CalibratedWeight[],
  scheme: QuantScheme,
  settings: GptqSettings | null,
): Promise<CalibratedMatrix[]> {
  const isSolvable = (problem: CalibratedWeight): problem is SampledWeight =>
    problem.hessian !== null && problem.hessian.samples > 0;
  const solvable = settings !== null && compensable(scheme) ? problems.filter(isSolvable) : [];
  const solved =
    settings !== null && solvable.length > 0 ? await compensated(solvable, scheme, settings) : [];
  const made = new Map<CalibratedWeight, CalibratedMatrix>(
    solved.map((own, i) => [solvable[i] as SampledWeight, own]),
  );
  for (const problem of problems) {
    if (!made.has(problem)) made.set(problem, await rounded(problem.weight, problem.hessian, scheme));
  }
  return problems.map((problem) => made.get(problem) as CalibratedMatrix);
}

type SampledWeight = CalibratedWeight & { hessian: gptq.Hessian };

async function compensated(
  sampled: readonly SampledWeight[],
  scheme: QuantScheme,
  settings: GptqSettings,
): Promise<CalibratedMatrix[]> {
  const besides: Tensor[] = [];
  try {
    const problems = sampled.map(({ weight: w, hessian }) => {
      const { quantized, relativeError } = quantizeMatrix(Tensor.native(w, 'weight'), shapeOf(w), scheme);
      relativeError.dispose();
      const beside = dequantize(quantized);
      besides.push(beside);
      quantized.dispose();
      return { w, hessian, beside };
    });
    const found = await gptq.quantizeAll(problems, { ...settings, scheme });
    const errors = await Promise.all(
      found.map(({ quantized }, i) => weightError((sampled[i] as SampledWeight).weight, quantized)),
    );
    return found.map((own, i) => ({
      quantized: own.quantized,
      method: 'gptq',
      relativeError: errors[i] as number,
      outputError: { rtn: relative(own.besideError, own.energy), own: own.relativeError },
      damping: own.damping,
      deadColumns: own.deadColumns,
    }));
  } finally {
    for (const beside of besides) beside.dispose();
  }
}

const shapeOf = ({ shape }: Tensor) => shape as [number, number];

async function rounded(
  weight: Tensor,
  hessian: gptq.Hessian | null,
  scheme: QuantScheme,
): Promise<CalibratedMatrix> {
  const { quantized, relativeError } = quantizeMatrix(
    Tensor.native(weight, 'weight'),
    shapeOf(weight),
    scheme,
  );
  using _ = relativeError;
  const error = (await relativeError.toFloat32())[0] as number;
  const made = { quantized, method: 'rtn', relativeError: error, damping: null, deadColumns: 0 } as const;
  if (hessian === null || hessian.samples === 0) return { ...made, outputError: null };
  using values = dequantize(quantized);
  const lost = await hessian.outputError(weight, values);
  const own = relative(lost, await hessian.outputError(weight, null));
  return { ...made, outputError: { rtn: own, own } };
}

const relative = (error: number, energy: number): number => (error > 0 ? Math.sqrt(error / energy) : 0);

async function weightError(weight: Tensor, quantized: QuantizedTensor): Promise<number> {
  using values = dequantize(quantized);
  const floats = native.tensorCopy(Tensor.native(weight, 'weight'), 'float32');
  try {
    const { error, reference } = await native.compare(Tensor.native(values, 'values'), floats);
    return relative(error, reference);
  } finally {
    native.tensorDispose(floats);
  }
}

/** The weight with the part that names each column's group, which a format then has a place for. */
export function withGroupIndex(quantized: QuantizedTensor): QuantizedTensor {
  const { scheme, stored } = quantized;
  const width = quantized.shape[1] as number;
  if (stored.groupIndex !== undefined || scheme.kind !== 'int' || scheme.groupSize === undefined) {
    return quantized;
  }
  const size = scheme.groupSize;
  const index = Int32Array.from({ length: width }, (_, column) => Math.floor(column / size));
  const groupIndex = Tensor.from(index, [width], { dtype: 'int32', device: quantized.device });
  const shared = Object.entries(stored).map(([name, tensor]) => [name, tensor.to(quantized.device)] as const);
  const made = QuantizedTensor.fromStored(scheme, quantized.shape, {
    ...Object.fromEntries(shared),
    groupIndex,
  });
  quantized.dispose();
  return made;
}
