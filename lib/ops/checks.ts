import { checkDType, type DType } from '../dtype';
import { QuantariaError } from '../errors';
import type { NativeTensor } from '../native';
import { show, Tensor } from '../tensor';

/** @throws QuantariaError `ERR_ARGUMENT` unless a finite number of at least `min` */
export function checkNumber(name: string, value: unknown, min = Number.NEGATIVE_INFINITY): number {
  if (Number.isFinite(value) && (value as number) >= min) return value as number;
  const expected =
    min === Number.NEGATIVE_INFINITY ? 'a finite number' : `a finite number of at least ${min}`;
  throw new QuantariaError('ERR_ARGUMENT', `${name}: ${show(value)} came, expected ${expected}`);
}

/** The native tensor. @throws QuantariaError `ERR_ARGUMENT`, `ERR_DISPOSED`, `ERR_DTYPE`, `ERR_SHAPE` */
export function checkTensor(
  name: string,
  tensor: unknown,
  dtypes: readonly DType[],
  dimensions: number,
): NativeTensor {
  const handle = Tensor.native(tensor, name);
  const { dtype, shape } = tensor as Tensor;
  checkDType(`${name}.dtype`, dtype, dtypes);
  if (shape.length !== dimensions) {
    throw new QuantariaError('ERR_SHAPE', `${name}: [${shape}] came, expected ${dimensions} dimensions`);
  }
  return handle;
}
