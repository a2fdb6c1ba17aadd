import { checkDevice, type DeviceId, getDefaultDevice } from './device';
import { arrayOf, bytesOf, checkDType, type DType, isFloat, type TypedArray } from './dtype';
import { QuantariaError } from './errors';
import { type NativeTensor, native } from './native';
import { tensorInfo } from './tensor_info';

export type { DeviceId } from './device';
export type { DType, TypedArray } from './dtype';

export interface TensorOptions<D extends DType = DType> {
  dtype?: D;
  device?: DeviceId;
}

const MAX_RANK = 16;

/** @throws QuantariaError `ERR_SHAPE` unless a list of up to 16 non-negative integers whose product is exact */
export function checkShape(name: string, shape: unknown): number[] {
  const dims = copyShape(name, shape);
  if (!dims.every((n) => Number.isSafeInteger(n) && n >= 0)) refuseShape(name, dims);
  if (!Number.isSafeInteger(dims.reduce((a, b) => a * b, 1))) {
    throw new QuantariaError('ERR_SHAPE', `${name}: [${dims}] holds more than 2^53 elements`);
  }
  return dims;
}

/** The dimensions, read once: what is checked is what is used, whatever the array's getters do. */
function copyShape(name: string, shape: unknown): number[] {
  if (!Array.isArray(shape)) return refuseShape(name, shape);
  const rank = shape.length;
  if (rank > MAX_RANK) return refuseShape(name, shape);
  return Array.from({ length: rank }, (_, i) => shape[i] as number);
}

function refuseShape(name: string, shape: unknown): never {
  const expected = `a list of up to ${MAX_RANK} non-negative integers`;
  throw new QuantariaError('ERR_SHAPE', `${name}: ${show(shape)} came, expected ${expected}`);
}

/** A value for a message: short, and never throwing. */
export function show(value: unknown, depth = 0): string {
  if (typeof value === 'string')
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  if (Array.isArray(value) && depth < 2) {
    if (value.length > MAX_RANK) return `an array of ${value.length}`;
    return `[${Array.from({ length: value.length }, (_, i) => show(value[i], depth + 1)).join(', ')}]`;
  }
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object';
  if (typeof value === 'function') return 'a function';
  return String(value);
}

/** @throws QuantariaError `ERR_ARGUMENT` unless an integer from `min` to `max` */
export function checkInteger(name: string, value: unknown, min: number, max: number): number {
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max)
    return value as number;
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `${name}: ${show(value)} came, expected an integer from ${min} to ${max}`,
  );
}

/** @throws QuantariaError `ERR_ARGUMENT` unless undefined or an object */
export function checkOptions<T extends object>(options: T | undefined): T {
  if (options === undefined) return {} as T;
  if (typeof options === 'object' && options !== null) return options;
  throw new QuantariaError('ERR_ARGUMENT', `options: ${show(options)} came, expected an object`);
}

/** The dtype of a typed array's elements, where it says one. */
function dtypeOfArray(data: ArrayBufferView): DType | null {
  if (data instanceof Float32Array) return 'float32';
  if (data instanceof Uint8Array) return 'uint8';
  if (data instanceof Int8Array) return 'int8';
  if (data instanceof Int16Array) return 'int16';
  if (data instanceof Int32Array) return 'int32';
  if (data instanceof BigInt64Array) return 'int64';
  return null;
}

/** Typed arrays that may stand for a dtype's storage bits. */
function holdsBitsOf(data: ArrayBufferView, dtype: DType): boolean {
  if (dtype === 'float16' || dtype === 'bfloat16') return data instanceof Uint16Array;
  if (dtype.startsWith('float8') || dtype === 'bool') return data instanceof Uint8Array;
  return dtypeOfArray(data) === dtype;
}

/** A numeric value that cannot be there is told by this index. */
const valueError = (i: number, value: unknown, dtype: string): QuantariaError =>
  new QuantariaError('ERR_ARGUMENT', `data[${i}]: ${show(value)} came, which ${dtype} does not hold`);

/**
 * A value in float32 such that rounding it on to a dtype of fewer bits gives what rounding the value itself does: where
 * float32 does not hold it, the neighbour with an odd last bit, which is no tie of any of them.
 */
function roundToOdd(value: number, float: Float32Array, bits: Uint32Array): number {
  float[0] = value;
  const nearest = float[0] as number;
  if (nearest === value || Number.isNaN(value)) return nearest;
  if (Math.abs(nearest) > Math.abs(value)) bits[0] = (bits[0] as number) - 1;
  bits[0] = (bits[0] as number) | 1;
  return float[0] as number;
}

/**
 * The values of an array-like, each read once, as float32, from where they are rounded on, or as the integers of a dtype.
 * @throws QuantariaError `ERR_ARGUMENT` for what is no number or what the dtype cannot hold, `ERR_SHAPE` unless of `count` values
 */
function convertNumbers(data: unknown, count: number, dtype: DType): TypedArray {
  const length =
    typeof data === 'object' && data !== null ? (data as { length?: unknown }).length : undefined;
  if (!Number.isSafeInteger(length) || data instanceof BigInt64Array || data instanceof BigUint64Array) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `data: ${show(data)} came, expected a typed array or an array of numbers`,
    );
  }
  if (length !== count)
    throw new QuantariaError('ERR_SHAPE', `data: ${length} values came, the shape takes ${count}`);
  const numbers = data as ArrayLike<number>;
  const array = new (arrayOf(isFloat(dtype) ? 'float32' : dtype))(
    allocate(count * (isFloat(dtype) ? 4 : bytesOf(dtype))),
  );
  const narrow = isFloat(dtype) && dtype !== 'float32';
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  for (let i = 0; i < count; i++) {
    const value = numbers[i];
    if (typeof value !== 'number') {
      throw new QuantariaError('ERR_ARGUMENT', `data[${i}]: ${show(value)} came, expected a number`);
    }
    if (array instanceof BigInt64Array) {
      if (!Number.isSafeInteger(value)) throw valueError(i, value, dtype);
      array[i] = BigInt(value);
    } else {
      array[i] = narrow ? roundToOdd(value, float, bits) : value;
      if (!isFloat(dtype) && (array[i] !== value || (dtype === 'bool' && value > 1)))
        throw valueError(i, value, dtype);
    }
  }
  return array;
}

/**
 * A handle to values on a device. Operations return handles at once and run in the device's order; `read` waits.
 * Memory is freed when the last handle that shares it is disposed or collected: `dispose()` or `using` what is
 * large, as the collector sees only the small handle.
 */
export class Tensor<D extends DType = DType> implements Disposable {
  readonly shape: readonly number[];
  readonly dtype: D;
  readonly device: DeviceId;
  readonly #native: NativeTensor;
  #disposed = false;

  private constructor(handle: NativeTensor) {
    const { shape, dtype, device } = tensorInfo(handle);
    this.shape = Object.freeze(shape);
    this.dtype = dtype as D;
    this.device = device;
    this.#native = handle;
    Object.freeze(this); // private state may still change
  }

  /**
   * A tensor of the given values, which are copied at the call. Values are converted to `dtype` (default: the array's
   * own, float32 for numbers); a `Uint16Array` for float16 and bfloat16, a `Uint8Array` for float8 and bool, are
   * taken as the bits.
   * @throws QuantariaError `ERR_SHAPE` if data and shape do not fit, `ERR_ARGUMENT` for a value that `dtype` cannot hold
   */
  static from<D extends DType = DType>(
    data: TypedArray | ArrayLike<number>,
    shape: number[],
    opts?: TensorOptions<D>,
  ): Tensor<D> {
    const options = checkOptions(opts);
    const dims = checkShape('shape', shape);
    const device = checkDevice(options.device ?? getDefaultDevice());
    const view = ArrayBuffer.isView(data) ? data : null;
    const dtype = checkDType('dtype', options.dtype ?? (view && dtypeOfArray(view)) ?? 'float32');
    const count = dims.reduce((a, b) => a * b, 1);
    if (view && holdsBitsOf(view, dtype))
      return Tensor.#moved(Tensor.#fromBits(view, dtype, dims, count), device) as Tensor<D>;
    if (data instanceof Uint16Array && options.dtype === undefined) {
      throw new QuantariaError(
        'ERR_DTYPE',
        'dtype: none came, but a Uint16Array may hold float16 or bfloat16',
      );
    }
    const numbers = convertNumbers(data, count, dtype);
    const values = Tensor.#fromBits(numbers, isFloat(dtype) ? 'float32' : dtype, dims, count);
    if (values.dtype === dtype) return Tensor.#moved(values, device) as Tensor<D>;
    const cast = values.cast(dtype);
    values.dispose();
    return Tensor.#moved(cast, device) as Tensor<D>;
  }

  /** `tensor` on `device`, in place of `tensor`. */
  static #moved(tensor: Tensor, device: DeviceId): Tensor {
    if (tensor.device === device) return tensor;
    const moved = tensor.to(device);
    tensor.dispose();
    return moved;
  }

  static #fromBits(view: ArrayBufferView, dtype: DType, shape: number[], count: number): Tensor {
    const length = view.byteLength / bytesOf(dtype);
    if (length !== count) {
      throw new QuantariaError('ERR_SHAPE', `data: ${length} values came, shape [${shape}] takes ${count}`);
    }
    return new Tensor(native.tensorFromBytes(view, dtype, shape));
  }

  static zeros<D extends DType = 'float32'>(shape: number[], opts?: TensorOptions<D>): Tensor<D> {
    const options = checkOptions(opts);
    const device = checkDevice(options.device ?? getDefaultDevice());
    const dtype = checkDType('dtype', options.dtype ?? 'float32');
    return new Tensor<D>(native.tensorZeros(dtype, checkShape('shape', shape), device));
  }

  /** @internal A tensor for a native one. */
  static wrap<D extends DType = DType>(handle: NativeTensor): Tensor<D> {
    return new Tensor<D>(handle);
  }

  /** @internal The native tensor. @throws QuantariaError `ERR_ARGUMENT`, `ERR_DISPOSED` */
  static native(tensor: unknown, name: string): NativeTensor {
    if (typeof tensor !== 'object' || tensor === null || !(#native in tensor)) {
      throw new QuantariaError('ERR_ARGUMENT', `${name}: ${show(tensor)} came, expected a Tensor`);
    }
    if (tensor.#disposed) throw new QuantariaError('ERR_DISPOSED', `${name}: the tensor was disposed`);
    return tensor.#native;
  }

  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }

  get byteLength(): number {
    return this.size * bytesOf(this.dtype);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** On another device; on this one, another handle to the same values. */
  to(device: DeviceId): Tensor<D> {
    if (checkDevice(device) === this.device) return this.reshape([...this.shape]);
    return new Tensor<D>(native.tensorTo(this.#live(), device));
  }

  /** Rounded to nearest even; float8 saturates, infinities too; NaN stays NaN, and is 0 as an integer. */
  cast<E extends DType>(dtype: E): Tensor<E> {
    return new Tensor<E>(native.tensorCopy(this.#live(), checkDType('dtype', dtype)));
  }

  /**
   * The same values in another shape, without a copy; one dimension may be -1.
   * @throws QuantariaError `ERR_SHAPE` if the number of values differs
   */
  reshape(shape: number[]): Tensor<D> {
    const asked = copyShape('shape', shape);
    const wanted = [...asked];
    const open = wanted.indexOf(-1);
    if (open >= 0) {
      const rest = checkShape(
        'shape',
        wanted.map((n, i) => (i === open ? 1 : n)),
      ).reduce((a, b) => a * b, 1);
      wanted[open] = rest > 0 && this.size % rest === 0 ? this.size / rest : 0;
    }
    const dims = checkShape('shape', wanted);
    if (dims.reduce((a, b) => a * b, 1) !== this.size) {
      throw new QuantariaError(
        'ERR_SHAPE',
        `shape: [${asked}] came for ${this.size} values of shape [${this.shape}]`,
      );
    }
    return new Tensor<D>(native.tensorReshape(this.#live(), dims));
  }

  /** Elements `start` to `end` (not included) of one dimension, as a tensor of its own. */
  slice(dim: number, start: number, end: number): Tensor<D> {
    const axis = checkInteger('dim', dim, 0, this.shape.length - 1);
    const size = this.shape[axis] as number;
    const from = checkInteger('start', start, 0, size);
    const view = native.tensorSlice(this.#live(), axis, from, checkInteger('end', end, from, size), 1);
    return Tensor.#materialised<D>(view);
  }

  /** Rows and columns of a matrix exchanged, materialised. */
  transpose(): Tensor<D> {
    if (this.shape.length !== 2) {
      throw new QuantariaError('ERR_SHAPE', `transpose: shape [${this.shape}] came, expected two dimensions`);
    }
    return Tensor.#materialised<D>(native.tensorTransposed(this.#live()));
  }

  /** A strided view becomes a tensor without gaps; one that already is, stays a view. */
  static #materialised<D extends DType>(view: NativeTensor): Tensor<D> {
    const { contiguous, dtype } = tensorInfo(view);
    if (contiguous) return new Tensor<D>(view);
    const copy = native.tensorCopy(view, dtype);
    native.tensorDispose(view);
    return new Tensor<D>(copy);
  }

  /**
   * The storage bits: float16 and bfloat16 as `Uint16Array`, float8 and bool as `Uint8Array`.
   * @throws QuantariaError (as a rejection) with what went wrong on the device
   */
  async read(): Promise<TypedArray> {
    const handle = this.#live();
    const buffer = allocate(this.byteLength);
    await native.tensorRead(handle, buffer);
    return new (arrayOf(this.dtype))(buffer);
  }

  /** The values, rounded to float32 where the dtype holds more. */
  async toFloat32(): Promise<Float32Array> {
    if (this.dtype === 'float32') return (await this.read()) as Float32Array;
    const floats = this.cast('float32');
    try {
      return (await floats.read()) as Float32Array;
    } finally {
      floats.dispose();
    }
  }

  /** Gives up this handle. Views of it, and work that is queued on it, keep what they need. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    native.tensorDispose(this.#native);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): NativeTensor {
    return Tensor.native(this, 'tensor');
  }
}

/** @throws QuantariaError `ERR_OUT_OF_MEMORY` where JavaScript would say RangeError */
function allocate(bytes: number): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes);
  } catch {
    throw new QuantariaError('ERR_OUT_OF_MEMORY', `a buffer of ${bytes} bytes cannot be allocated`);
  }
}
