import { checkDevice, type DeviceId, getDefaultDevice } from '../device';
import { checkDType } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeTensor, native } from '../native';
import { QuantizedTensor } from '../quantized';
import { type QuantScheme, schemeLabel, validateScheme } from '../scheme';
import { checkInteger, checkOptions, show, Tensor } from '../tensor';
import { checkTensor } from './checks';

/** Square of it is the most elements that a tensor may have, 2^53. */
const MAX_FEATURES = Math.floor(Math.sqrt(Number.MAX_SAFE_INTEGER));

/** Who has it may say which memory a Hessian has. */
const OWN = Symbol('Hessian');

/**
 * The second-order information that GPTQ works by: the mean over calibration samples of `2 x x^T`, where x are
 * the states that enter a linear layer. One serves all layers with the same input.
 */
export class Hessian implements Disposable {
  readonly inFeatures: number;
  readonly device: DeviceId;
  /** Sums of x x^T, in the upper triangle. */
  readonly #products: Tensor<'float32'>;
  #samples = 0;

  /** @throws QuantariaError `ERR_ARGUMENT`, `ERR_DEVICE`, `ERR_OUT_OF_MEMORY` */
  constructor(inFeatures: number, opts?: { device?: DeviceId });
  /** @internal Of `parts`. */
  constructor(inFeatures: number, opts: { device: DeviceId }, zeros: Tensor<'float32'>, token: symbol);
  constructor(inFeatures: number, opts?: { device?: DeviceId }, zeros?: Tensor<'float32'>, token?: symbol) {
    this.inFeatures = checkInteger('inFeatures', inFeatures, 0, MAX_FEATURES);
    this.device = checkDevice(checkOptions(opts).device ?? getDefaultDevice());
    this.#products =
      token === OWN
        ? (zeros as Tensor<'float32'>)
        : Tensor.zeros([this.inFeatures, this.inFeatures], { device: this.device });
  }

  /**
   * Adds calibration states; summed in float32. Samples are counted as in the paper's code: a batch
   * `[batch, seq, in]` is `batch` of them, `[rows, in]` one. NaN and infinity are carried into the columns where
   * they are.
   * @param x `[..., in]`, float32, float16 or bfloat16
   * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`
   */
  update(x: Tensor): void {
    const products = Hessian.native(this, 'hessian');
    const states = Tensor.native(x, 'x');
    checkDType('x.dtype', x.dtype, ['float32', 'float16', 'bfloat16']);
    if (x.shape.length === 0 || x.shape.at(-1) !== this.inFeatures) {
      throw new QuantariaError('ERR_SHAPE', `x: shape [${x.shape}] came, expected [..., ${this.inFeatures}]`);
    }
    native.hessianUpdate(products, states);
    this.#samples += x.shape.slice(0, -2).reduce((a, b) => a * b, 1);
  }

  /** Calibration samples so far. */
  get samples(): number {
    return this.#samples;
  }

  get disposed(): boolean {
    return this.#products.disposed;
  }

  /** The Hessian, `[in, in]`, as a new tensor; zeros before the first sample. */
  value(): Tensor<'float32'> {
    return Tensor.wrap(native.hessianValue(Hessian.native(this, 'hessian'), this.#samples));
  }

  /**
   * @internal Adds `samples` samples that are as those of another Hessian are on average: for an expert that too few tokens
   * reach, those that enter its layer.
   */
  fill(from: Hessian, samples: number): void {
    const [products, others] = [Hessian.native(this, 'hessian'), Hessian.native(from, 'from')];
    const count = checkInteger('samples', samples, 0, Number.MAX_SAFE_INTEGER);
    if (from.samples === 0) throw new QuantariaError('ERR_ARGUMENT', 'from: no samples came');
    native.hessianAdd(products, others, count / from.samples);
    this.#samples += count;
  }

  /** @internal So many samples were added to the sums by others. */
  count(samples: number): void {
    this.#samples += checkInteger('samples', samples, 0, Number.MAX_SAFE_INTEGER);
  }

  /** @internal Hessians that have their sums in `products` `[count, in, in]`, zeros, which stay the caller's. */
  static parts(products: Tensor<'float32'>): Hessian[] {
    const stack = checkTensor('products', products, ['float32'], 3);
    const { device, shape } = products;
    const [count, inFeatures] = shape as [number, number, number];
    if (shape[2] !== inFeatures)
      throw new QuantariaError('ERR_SHAPE', `products: [${shape}] came, [count, in, in] expected`);
    return Array.from({ length: count }, (_, i) => {
      return new Hessian(inFeatures, { device }, Tensor.wrap(native.tensorSelect(stack, 0, i)), OWN);
    });
  }

  /** @internal Sums of x x^T, of which the upper triangle is good. */
  sums(): Tensor<'float32'> {
    Hessian.native(this, 'hessian');
    return this.#products.to(this.device);
  }

  /**
   * @internal The squared error, summed over the samples, of the output of a linear layer `w` that has the weight `values`
   * instead; without `values` the squared output itself.
   * @param w `[out, in]`, float32, float16 or bfloat16
   */
  async outputError(w: Tensor, values: Tensor | null): Promise<number> {
    const other = values === null ? null : Tensor.native(values, 'values');
    return await native.outputError(Tensor.native(w, 'w'), other, Hessian.native(this, 'hessian'));
  }

  dispose(): void {
    this.#products.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal The native sums. @throws QuantariaError `ERR_ARGUMENT`, `ERR_DISPOSED` */
  static native(hessian: unknown, name: string): NativeTensor {
    if (typeof hessian !== 'object' || hessian === null || !(#products in hessian)) {
      throw new QuantariaError('ERR_ARGUMENT', `${name}: ${show(hessian)} came, expected a Hessian`);
    }
    if (hessian.disposed) throw new QuantariaError('ERR_DISPOSED', `${name}: the Hessian was disposed`);
    return Tensor.native(hessian.#products, name);
  }
}

export interface GptqOptions {
  /** Of any kind but `llm.int8` and `spqr`; integers of up to 8 bits. */
  scheme: QuantScheme;
  /** Columns by falling diagonal of the Hessian. */
  actOrder?: boolean;
  /**
   * With `actOrder`, for integers: groups stay whole, by the falling largest diagonal of their columns, and columns are sorted
   * within each; so the layout is the plain one though grids are fitted on the way. Without effect where groups are static.
   */
  groupAware?: boolean;
  /**
   * All grids fitted on the original weight, as with act-order they must be for a plain layout of groups. Blocks of
   * schemes other than integers then always are.
   */
  staticGroups?: boolean;
  /** Added to the Hessian's diagonal, times the mean of the diagonal; 0.01 if left out. */
  damping?: number;
  /** Columns between two matrix products; 128 if left out, and always on CUDA devices. Changes rounding errors only. */
  blockSize?: number;
}

export interface GptqResult {
  quantized: QuantizedTensor;
  /** `tr((W - Q) H (W - Q)^T)`, without damping. */
  error: number;
  /** `tr(W H W^T)`. */
  energy: number;
  /** Square root of `error` over `tr(W H W^T)`: the relative error of the layer's output on the samples. */
  relativeError: number;
  /** The damping that was used: more than asked for if the Hessian was not positive definite with that. */
  damping: number;
  /** Columns that no state ever reached; their weights became 0. */
  deadColumns: number;
}

/**
 * GPTQ (arXiv 2210.17323): quantizes column by column, making up for each column's error in those behind it, so that
 * the layer's output on the calibration samples changes least. Grids of groups are fitted when their first column is
 * reached, unless they are static; per row, column and tensor they are round-to-nearest's. The result is in the original
 * order of columns; with act-order and groups that are neither static nor whole it has the part `groupIndex` int32 `[in]`.
 *
 * Blocks of code books and MX are fitted in the same way, where they start with a row, their constants are stored by
 * themselves, and neither act-order nor static groups are asked for. Elsewhere (fp8, blocks that span rows, `doubleQuant`,
 * the factors of `preScale`) the constants are round-to-nearest's.
 * Runs on the device's queue.
 * @param w `[out, in]`, float32, float16 or bfloat16
 * @param hessian of `in` features, with at least one sample
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT`, also for NaN or infinity in the weight (with the position) or in the
 *   calibration states (with the column), `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`;
 *   `ERR_UNSUPPORTED` for 16-bit integers, `llm.int8` and `spqr`
 */
export async function quantize(w: Tensor, hessian: Hessian, opts: GptqOptions): Promise<GptqResult> {
  const [{ besideError: _, ...result }] = (await quantizeAll([{ w, hessian, beside: null }], opts)) as [
    MeasuredResult,
  ];
  return result;
}

/** @internal A weight to quantize, and one `[out, in]` that is measured beside it; null for none. */
export interface GptqProblem {
  w: Tensor;
  hessian: Hessian;
  beside: Tensor | null;
}

/** @internal */
export type MeasuredResult = GptqResult & {
  /** Of the weight beside, as `error` is. */
  besideError: number;
};

/**
 * @internal Several weights of one device in one go, at least one. On the CPU a Hessian that weights behind each other share is
 * factored once; on CUDA devices weights of one shape are worked on side by side. The same bits as one by one.
 */
export async function quantizeAll(
  problems: readonly GptqProblem[],
  opts: GptqOptions,
): Promise<MeasuredResult[]> {
  const options = checkOptions<Partial<GptqOptions>>(opts);
  const own = problems.map(({ w, hessian, beside }) => ({
    weight: Tensor.native(w, 'w'),
    products: Hessian.native(hessian, 'hessian'),
    samples: hessian.samples,
    beside: beside === null ? null : Tensor.native(beside, 'beside'),
  }));
  const scheme = checkScheme(options.scheme);
  for (const { w, hessian } of problems) {
    checkDType('w.dtype', w.dtype, ['float32', 'float16', 'bfloat16']);
    if (w.shape.length !== 2 || w.shape[1] !== hessian.inFeatures) {
      throw new QuantariaError(
        'ERR_SHAPE',
        `w: shape [${w.shape}] came, expected [out, ${hessian.inFeatures}]`,
      );
    }
    if (hessian.samples === 0 && hessian.inFeatures > 0) {
      throw new QuantariaError('ERR_ARGUMENT', 'hessian: no samples came, expected at least one update');
    }
  }
  const reports = await native.gptqQuantize(own, scheme, {
    actOrder: checkFlag('actOrder', options.actOrder),
    groupAware: checkFlag('groupAware', options.groupAware),
    staticGroups: checkFlag('staticGroups', options.staticGroups),
    damping: checkDamping(options.damping ?? 0.01),
    blockSize: checkInteger('blockSize', options.blockSize ?? 128, 1, Number.MAX_SAFE_INTEGER),
  });
  return reports.map(({ stored, error, weight: energy, beside: besideError, damping, deadColumns }, i) => {
    const tensors = Object.entries(stored).map(([name, handle]) => [name, Tensor.wrap(handle)] as const);
    const { shape } = (problems[i] as GptqProblem).w;
    return {
      quantized: QuantizedTensor.fromStored(scheme, shape, Object.fromEntries(tensors)),
      error,
      besideError,
      energy,
      relativeError: error > 0 ? Math.sqrt(error / energy) : 0,
      damping,
      deadColumns,
    };
  });
}

function checkScheme(value: unknown): QuantScheme {
  const scheme = validateScheme(value);
  if (scheme.kind === 'llm.int8' || scheme.kind === 'spqr' || (scheme.kind === 'int' && scheme.bits === 16)) {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `scheme: ${schemeLabel(scheme)} came, GPTQ takes kind "int" of 2 to 8 bits, code books, "fp8" and "mx"`,
    );
  }
  return scheme;
}

function checkFlag(name: string, value: unknown): boolean {
  if (value === undefined || typeof value === 'boolean') return value ?? false;
  throw new QuantariaError('ERR_ARGUMENT', `${name}: ${show(value)} came, expected true or false`);
}

function checkDamping(value: unknown): number {
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value;
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `damping: ${show(value)} came, expected a finite number, 0 or more`,
  );
}
