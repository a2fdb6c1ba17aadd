import { checkDType } from '../dtype';
import { QuantariaError } from '../errors';
import { native } from '../native';
import { QuantizedTensor } from '../quantized';
import { type QuantScheme, validateScheme } from '../scheme';
import { checkOptions, show, Tensor } from '../tensor';
import { quantize } from './quantize';

/**
 * Hadamard transform of the last dimension: each row `x` becomes `scale * H x`, with `H = H_m (x) H_{2^k}`: `H_m` acts on
 * the slow part of the index, `H_{2^k}` in natural (Sylvester) order on the fast one.
 *
 * `n = 2^k * m`, where `m` is 1 or four times the odd part of `n`: 12, 20 (40 once 40 divides `n`), 28, 36, 44, ... up to
 * 252, those of 156, 172, 188 and 236 aside. `H_m` is Paley's first construction where `m - 1` is prime, else his second
 * where `m / 2 - 1` is a prime or the square of one, else Williamson's (92, 116); `H_40 = H_2 (x) H_20`. These are the
 * matrices of QuaRot for 12, 28, 40, 60 and 108. `H_m` is not symmetric in general: the inverse is `H^T / n`.
 *
 * @param x `[..., n]`, float32, float16 or bfloat16; accumulated in float32 and rounded once
 * @param opts.scale finite; default `1 / sqrt(n)`, which makes the transform orthonormal
 * @returns a tensor of x's shape, dtype and device; NaN and infinities stay within their row
 * @throws QuantariaError `ERR_SHAPE` if n has no such factors, naming the nearest sizes that have, `ERR_DTYPE`, `ERR_ARGUMENT`
 */
export function hadamard(x: Tensor, opts?: { scale?: number }): Tensor {
  const handle = Tensor.native(x, 'x');
  return Tensor.wrap(native.hadamard(handle, checkScale(x, opts)));
}

/** Rows that one launch on CUDA rotates and quantizes; longer ones take a launch for each. */
const MOST_FUSED_COLUMNS = 16384;

/**
 * `quantize(hadamard(x, opts), scheme)`, to the bit. On CUDA integers with scales by row or group and MX blocks, found without
 * a search, are made in one launch, and the rotated values are never written to memory.
 * @param x `[rows, n]`, float32, float16 or bfloat16; its rotation is rounded to that dtype before it is quantized
 * @throws QuantariaError as `hadamard` and `quantize` do
 */
export function hadamardQuantize(x: Tensor, scheme: QuantScheme, opts?: { scale?: number }): QuantizedTensor {
  const handle = Tensor.native(x, 'x');
  const scale = checkScale(x, opts);
  const checked = validateScheme(scheme);
  const fits = x.shape.length === 2 && x.size > 0 && (x.shape[1] as number) <= MOST_FUSED_COLUMNS;
  if (x.device === 'cpu' || !fits || !isFused(checked)) {
    using rotated = hadamard(x, opts);
    return quantize(rotated, checked);
  }
  const stored = Object.entries(native.hadamardQuantize(handle, scale, checked)).map(
    ([name, tensor]) => [name, Tensor.wrap(tensor)] as const,
  );
  return QuantizedTensor.fromStored(checked, x.shape, Object.fromEntries(stored));
}

function isFused(scheme: QuantScheme): boolean {
  if (scheme.kind === 'mx') return !scheme.preScale;
  const byRow = scheme.kind === 'int' && (scheme.granularity === 'row' || scheme.granularity === 'group');
  return byRow && scheme.search !== 'mse';
}

function checkScale(x: Tensor, opts?: { scale?: number }): number {
  checkDType('x.dtype', x.dtype, ['float32', 'float16', 'bfloat16']);
  const scale = checkOptions(opts).scale ?? 1 / Math.sqrt(x.shape.at(-1) || 1);
  if (typeof scale !== 'number' || !Number.isFinite(scale)) {
    throw new QuantariaError('ERR_ARGUMENT', `scale: ${show(scale)} came, expected a finite number`);
  }
  return scale;
}
