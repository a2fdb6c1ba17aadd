import { checkDType, type DType, FLOAT_DTYPES } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeTensor, native } from '../native';
import { QuantizedTensor } from '../quantized';
import { type QuantScheme, schemeLabel, validateScheme } from '../scheme';
import { checkOptions, show, Tensor } from '../tensor';

/** @internal What a pipeline wants beside the result: the relative error of the weight, float32 `[1]`. */
export interface MeasuredQuantization {
  quantized: QuantizedTensor;
  relativeError: Tensor<'float32'>;
}

/** @internal `quantize` of a native matrix, which may be a strided view of a larger tensor. */
export function quantizeMatrix(
  weight: NativeTensor,
  shape: readonly [number, number],
  scheme: QuantScheme,
): MeasuredQuantization {
  if (scheme.kind === 'spqr')
    throw new QuantariaError('ERR_UNSUPPORTED', 'scheme: spqr is not supported yet');
  const { relativeError, ...stored } = native.quantize(weight, scheme);
  const tensors = Object.entries(stored).map(([name, handle]) => [name, Tensor.wrap(handle)] as const);
  return {
    quantized: QuantizedTensor.fromStored(scheme, shape, Object.fromEntries(tensors)),
    relativeError: Tensor.wrap(relativeError as NativeTensor),
  };
}

/**
 * Round-to-nearest quantization of a weight.
 * @param w `[out, in]`, float32, float16 or bfloat16
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_ARGUMENT`; NaN or infinity in the weight rejects the next `read`
 *   of what depends on it, with `ERR_ARGUMENT` and the position
 */
export function quantize(w: Tensor, scheme: QuantScheme): QuantizedTensor {
  const weight = Tensor.native(w, 'w');
  const checked = validateScheme(scheme);
  checkDType('w.dtype', w.dtype, ['float32', 'float16', 'bfloat16']);
  if (w.shape.length !== 2) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `w: shape [${w.shape}] came, ${schemeLabel(checked)} takes [out, in]`,
    );
  }
  const { quantized, relativeError } = quantizeMatrix(weight, w.shape as [number, number], checked);
  relativeError.dispose();
  return quantized;
}

/**
 * The values that a quantized weight stands for.
 * @param opts.dtype any float dtype; default float32
 * @returns `[out, in]`
 */
export function dequantize(q: QuantizedTensor, opts?: { dtype?: DType }): Tensor {
  if (!QuantizedTensor.is(q)) {
    throw new QuantariaError('ERR_ARGUMENT', `q: ${show(q)} came, expected a QuantizedTensor`);
  }
  const dtype = checkDType('dtype', checkOptions(opts).dtype ?? 'float32', FLOAT_DTYPES);
  const stored = Object.entries(q.stored).map(
    ([name, tensor]) => [name, Tensor.native(tensor, name)] as const,
  );
  return Tensor.wrap(native.dequantize(q.scheme, Object.fromEntries(stored), q.shape, dtype));
}
