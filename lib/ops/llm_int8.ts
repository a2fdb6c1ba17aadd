import { checkDType } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeTensor, native } from '../native';
import { checkOptions, Tensor } from '../tensor';
import { checkNumber } from './checks';

export interface OutlierOptions {
  /** least magnitude of an outlier, compared in float32; default 6. With 0 there are none */
  threshold?: number;
}

/** Activations as LLM.int8 multiplies them. */
export interface SplitActivations {
  /** outlier columns, rising */
  columns: number[];
  /** `[T, columns.length]`, of x's dtype */
  outliers: Tensor;
  /** `[T, in]`, 0 in outlier columns */
  codes: Tensor<'int8'>;
  /** `[T]`: absmax of each row; a value is `code * scale / 127` */
  scales: Tensor<'float32'>;
}

/** The threshold, and x with its leading dimensions made into one; `body` takes a matrix of its own. */
function asMatrix<T>(
  x: Tensor,
  opts: OutlierOptions | undefined,
  body: (matrix: NativeTensor, threshold: number) => T,
): T {
  const handle = Tensor.native(x, 'x');
  const threshold = checkNumber('threshold', checkOptions(opts).threshold ?? 6, 0);
  checkDType('x.dtype', x.dtype, ['float32', 'float16', 'bfloat16']);
  const columns = x.shape[x.shape.length - 1];
  if (columns === undefined) throw new QuantariaError('ERR_SHAPE', 'x: [] came, expected [..., in]');
  const rows = x.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const matrix = native.tensorReshape(handle, [rows, columns]);
  try {
    return body(matrix, threshold);
  } finally {
    native.tensorDispose(matrix);
  }
}

/**
 * Columns that hold a value of at least the threshold's magnitude, rising. NaN is not such a value.
 * @param x `[..., in]`, float32, float16 or bfloat16
 * @throws QuantariaError `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`
 */
export async function outlierColumns(x: Tensor, opts?: OutlierOptions): Promise<number[]> {
  return asMatrix(x, opts, (matrix, threshold) => native.llmInt8OutlierColumns(matrix, threshold));
}

/**
 * Outlier columns apart, the rest as int8 with a scale per row (arXiv 2208.07339).
 *
 * The row absmax leaves out single values of at least the threshold's magnitude and counts the small ones of an outlier
 * column; `code = round(x * (127 / absmax))` in float32. A row with NaN has absmax NaN and codes 0.
 * @param x `[..., in]`, float32, float16 or bfloat16; T is the product of its leading dimensions
 * @throws QuantariaError `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`
 */
export async function split(x: Tensor, opts?: OutlierOptions): Promise<SplitActivations> {
  const { columns, ...tensors } = await asMatrix(x, opts, (matrix, threshold) =>
    native.llmInt8Split(matrix, threshold),
  );
  return {
    columns,
    outliers: Tensor.wrap(tensors.outliers),
    codes: Tensor.wrap<'int8'>(tensors.codes),
    scales: Tensor.wrap<'float32'>(tensors.scales),
  };
}
