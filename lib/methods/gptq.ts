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

/**
 * Quantizes a weight by GPTQ, and measures it beside round-to-nearest. Without a Hessian, or for a scheme that GPTQ does not
 * do, it is rounded to nearest.
 * @param weight `[out, in]`, float32, float16 or bfloat16
 * @param hessian of the states that enter the layer; null without any
 * @param settings null to round to nearest in any case
 * @throws QuantariaError (as a rejection) as `gptq.quantize`
 */
export async function quantizeCalibrated(
  weight: Tensor,
  hessian: gptq.Hessian | null,
  scheme: QuantScheme,
  settings: GptqSettings | null,
): Promise<CalibratedMatrix> {
  const view = Tensor.native(weight, 'weight');
  const shape = weight.shape as [number, number];
  const { quantized: nearest, relativeError } = quantizeMatrix(view, shape, scheme);
  using _ = relativeError;
  try {
    const error = (await relativeError.toFloat32())[0] as number;
    const rounded = { method: 'rtn', relativeError: error, damping: null, deadColumns: 0 } as const;
    if (hessian === null || hessian.samples === 0) {
      return { ...rounded, quantized: nearest.to('cpu'), outputError: null };
    }
    using values = dequantize(nearest);
    if (settings === null || !compensable(scheme)) {
      const lost = await hessian.outputError(weight, values);
      const own = relative(lost, await hessian.outputError(weight, null));
      return { ...rounded, quantized: nearest.to('cpu'), outputError: { rtn: own, own } };
    }
    const found = await gptq.quantizeBeside(weight, hessian, { ...settings, scheme }, values);
    return {
      quantized: found.quantized,
      method: 'gptq',
      relativeError: await weightError(weight, found.quantized),
      outputError: { rtn: relative(found.besideError, found.energy), own: found.relativeError },
      damping: found.damping,
      deadColumns: found.deadColumns,
    };
  } finally {
    nearest.dispose();
  }
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
  const groupIndex = Tensor.from(index, [width], { dtype: 'int32' });
  const shared = Object.entries(stored).map(([name, tensor]) => [name, tensor.to('cpu')] as const);
  const made = QuantizedTensor.fromStored(scheme, quantized.shape, {
    ...Object.fromEntries(shared),
    groupIndex,
  });
  quantized.dispose();
  return made;
}
