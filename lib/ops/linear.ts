import { checkDType, type DType, FLOAT_DTYPES } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeTensor, native } from '../native';
import { QuantizedTensor } from '../quantized';
import { checkOptions, show, Tensor } from '../tensor';

/** dtypes that products take. */
const FACTOR_DTYPES = ['float32', 'float16', 'bfloat16'] as const;

export interface MatmulOptions {
  /** `b` is `[N, K]` */
  transposeB?: boolean;
  /** any float dtype; default: that of `a` */
  outDtype?: DType;
}

/** What products run in; sums are float32 (int32 inside a group for int8). */
export type Compute = 'auto' | 'float32' | 'bfloat16' | 'int8';

export interface LinearOptions {
  /** `[out]`, float32 or the activations' dtype */
  bias?: Tensor;
  /** any float dtype; default: that of `x` */
  outDtype?: DType;
  /** default `auto` */
  compute?: Compute;
}

/**
 * Matrix product with float32 sums. bfloat16 factors are multiplied as such; all others in float32, which holds them exactly.
 * Large ones on CUDA devices can be given to cuBLASLt: see `cudaStatus`.
 * @param a `[..., M, K]`, float32, float16 or bfloat16
 * @param b `[K, N]`, or `[N, K]` with `transposeB`
 * @returns `[..., M, N]`
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_ARGUMENT`
 */
export function matmul(a: Tensor, b: Tensor, opts?: MatmulOptions): Tensor {
  const [left, right] = [Tensor.native(a, 'a'), Tensor.native(b, 'b')];
  const { transposeB, outDtype } = checkOptions(opts);
  if (transposeB !== undefined && typeof transposeB !== 'boolean') {
    throw new QuantariaError('ERR_ARGUMENT', `transposeB: ${show(transposeB)} came, expected a boolean`);
  }
  checkDType('a.dtype', a.dtype, FACTOR_DTYPES);
  checkDType('b.dtype', b.dtype, FACTOR_DTYPES);
  if (a.shape.length < 2 || b.shape.length !== 2) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `a [${a.shape}] and b [${b.shape}] came, expected [..., M, K] and [K, N]`,
    );
  }
  const depth = b.shape[transposeB ? 1 : 0];
  if (a.shape.at(-1) !== depth) {
    throw new QuantariaError('ERR_SHAPE', `a [${a.shape}] has another K than b [${b.shape}]`);
  }
  const dtype = checkDType('outDtype', outDtype ?? a.dtype, FLOAT_DTYPES);
  return Tensor.wrap(
    native.matmul(left, right, transposeB ?? false, null, dtype, denseProducts('auto', a, b)),
  );
}

/**
 * A linear layer, `y = x wᵀ + bias`. A quantized weight is decoded on the way and never written to memory as a whole;
 * its codes are put into the order that products want at the first use (`QuantizedTensor.pack`).
 * @param x `[..., in]`, float32, float16 or bfloat16
 * @param weight `[out, in]`
 * @param opts.compute what products run in. `auto`: bfloat16 for bfloat16 activations (and bfloat16 or quantized weights),
 *   else float32; on CUDA the activations' own dtype, and integers are never rounded. `int8` quantizes the activations
 *   symmetrically over each of the weight's groups, for integer weights; NaN, or several infinities in one group of
 *   activations, make sums of int8 products NaN; a single infinity goes by its own term, as it does in the other products.
 *   On CUDA the first product in 16 bits of a weight whose columns name their groups copies its codes into the order of groups,
 *   once for all later ones.
 *   A weight of LLM.int8 has its own product for `auto` and `int8`: outlier columns in float32, the rest in integers
 * @returns `[..., out]`
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_ARGUMENT`; `ERR_UNSUPPORTED` for int8 products of other weights
 */
export function linear(x: Tensor, weight: Tensor | QuantizedTensor, opts?: LinearOptions): Tensor {
  const input = Tensor.native(x, 'x');
  checkDType('x.dtype', x.dtype, FACTOR_DTYPES);
  const options = checkOptions(opts);
  const [out, inFeatures] = checkWeight(weight);
  if (x.shape.length === 0 || x.shape.at(-1) !== inFeatures) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `x: [${x.shape}] came, weight [${out}, ${inFeatures}] takes [..., ${inFeatures}]`,
    );
  }
  const bias = checkBias(options.bias, x, out);
  const dtype = checkDType('outDtype', options.outDtype ?? x.dtype, FLOAT_DTYPES);
  const compute = checkCompute(options.compute);
  if (!QuantizedTensor.is(weight)) {
    const products = denseProducts(compute, x, weight);
    return Tensor.wrap(native.matmul(input, Tensor.native(weight, 'weight'), true, bias, dtype, products));
  }
  if (weight.scheme.kind === 'llm.int8' && (compute === 'auto' || compute === 'int8')) {
    const threshold = weight.scheme.threshold ?? 6;
    return Tensor.wrap(native.llmInt8Linear(input, weight.forProducts(), bias, dtype, threshold));
  }
  const products = quantizedProducts(compute, x, weight);
  return Tensor.wrap(native.linear(input, weight.forProducts(), bias, dtype, products));
}

function checkWeight(weight: Tensor | QuantizedTensor): readonly [number, number] {
  if (!QuantizedTensor.is(weight)) {
    Tensor.native(weight, 'weight');
    checkDType('weight.dtype', weight.dtype, FACTOR_DTYPES);
    if (weight.shape.length !== 2) {
      throw new QuantariaError('ERR_SHAPE', `weight: [${weight.shape}] came, expected [out, in]`);
    }
  }
  return weight.shape as readonly [number, number];
}

function checkBias(bias: Tensor | undefined, x: Tensor, out: number): NativeTensor | null {
  if (bias === undefined) return null;
  const handle = Tensor.native(bias, 'bias');
  checkDType('bias.dtype', bias.dtype, ['float32', x.dtype]);
  if (bias.shape.length !== 1 || bias.shape[0] !== out) {
    throw new QuantariaError('ERR_SHAPE', `bias: [${bias.shape}] came, expected [${out}]`);
  }
  return handle;
}

/** @internal */
export function checkCompute(compute: unknown): Compute {
  const choices: readonly unknown[] = ['auto', 'float32', 'bfloat16', 'int8'];
  if (compute === undefined) return 'auto';
  if (choices.includes(compute)) return compute as Compute;
  throw new QuantariaError('ERR_ARGUMENT', `compute: ${show(compute)} came, expected ${choices.join(', ')}`);
}

function denseProducts(compute: Compute, x: Tensor, weight: Tensor): Compute {
  if (compute === 'int8')
    throw new QuantariaError('ERR_UNSUPPORTED', 'compute: int8 needs a quantized weight');
  if (compute !== 'auto') return compute;
  return x.dtype === 'bfloat16' && weight.dtype === 'bfloat16' ? 'bfloat16' : 'float32';
}

/** On the CPU float16 products run in float32: it holds them exactly, and no CPU has sums in float32 of float16 operands. */
function quantizedProducts(compute: Compute, x: Tensor, weight: QuantizedTensor): Compute {
  if (compute === 'int8' && weight.scheme.kind !== 'int') {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `compute: int8 needs a weight of integers, but it is ${weight.scheme.kind}`,
    );
  }
  if (compute !== 'auto') return compute;
  // Tensor cores take float16 as they take bfloat16.
  const in16Bits = x.dtype === 'bfloat16' || (x.dtype === 'float16' && weight.device !== 'cpu');
  return in16Bits ? 'bfloat16' : 'float32';
}
