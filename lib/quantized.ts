import type { DeviceId } from './device';
import { checkDevice } from './device';
import { QuantariaError } from './errors';
import { type NativeWeight, native } from './native';
import { partsOf, type StoredForm, storedForm, storedFromParts } from './ops/stored_form';
import { type QuantScheme, validateScheme } from './scheme';
import { checkShape, show, Tensor } from './tensor';

/** Held by this module alone: the constructor is not for others. */
const OWN = Symbol('QuantizedTensor');

/** What the handles of one weight share. */
interface Shared {
  stored: StoredForm;
  /** What products were given: the codes, and the constants of groups with them, then lie in their order. */
  weight: NativeWeight | null;
  handles: number;
}

/** Constants that products read in the order of the codes, where they have one for each group. */
const TILED_CONSTANTS = ['scales', 'absmax', 'zeros'];

/**
 * A weight `[out, in]` in a quantized, bit-packed form. `quantize` makes it; `fromParts` makes it of codes and constants
 * that come from elsewhere.
 */
export class QuantizedTensor implements Disposable {
  readonly scheme: QuantScheme;
  readonly shape: readonly number[];
  readonly device: DeviceId;
  readonly #shared: Shared;
  #disposed = false;

  private constructor(scheme: QuantScheme, shape: readonly number[], shared: Shared, token: symbol) {
    if (token !== OWN) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        'quantized tensors are made by quantize and fromParts, not by `new`',
      );
    }
    this.scheme = Object.freeze({ ...scheme });
    this.shape = Object.freeze([...shape]);
    this.device = (shared.stored.packed as Tensor).device;
    this.#shared = shared;
    Object.freeze(this); // private state may still change
  }

  /**
   * @param parts canonical and unpacked, as `parts` gives them
   * @throws QuantariaError `ERR_ARGUMENT` for a part that is missing or unknown, `ERR_DTYPE`, `ERR_SHAPE`; codes out of
   *   range reject the next `read` of what depends on them
   */
  static fromParts(scheme: QuantScheme, shape: number[], parts: Record<string, Tensor>): QuantizedTensor {
    const checked = validateScheme(scheme);
    const dims = checkMatrixShape(shape);
    if (typeof parts !== 'object' || parts === null) {
      throw new QuantariaError('ERR_ARGUMENT', `parts: ${show(parts)} came, expected an object of tensors`);
    }
    return QuantizedTensor.#of(checked, dims, storedFromParts(checked, dims, parts));
  }

  /** @internal Of the packed tensors of `ops/stored_form.ts`, which it takes over. */
  static fromStored(scheme: QuantScheme, shape: readonly number[], stored: StoredForm): QuantizedTensor {
    const checked = validateScheme(scheme);
    const dims = checkMatrixShape(shape);
    if (typeof stored !== 'object' || stored === null) {
      throw new QuantariaError('ERR_ARGUMENT', `stored: ${show(stored)} came, expected an object of tensors`);
    }
    for (const { name, dtype, shape: expected } of storedForm(checked, dims)) {
      const tensor = stored[name] as Tensor;
      Tensor.native(tensor, name);
      const size = expected.reduce((a, b) => a * b, 1);
      if (tensor.dtype !== dtype || tensor.size !== size) {
        const came = `${tensor.dtype} [${tensor.shape}]`;
        throw new QuantariaError('ERR_SHAPE', `${name}: ${came} came, expected ${dtype} [${expected}]`);
      }
    }
    return QuantizedTensor.#of(checked, dims, stored);
  }

  static #of(scheme: QuantScheme, shape: readonly number[], stored: StoredForm): QuantizedTensor {
    return new QuantizedTensor(scheme, shape, { stored, weight: null, handles: 1 }, OWN);
  }

  /**
   * @internal The packed tensors, codes row by row. They belong to this object, and are good until its next product;
   * views of them stay good.
   */
  get stored(): StoredForm {
    this.#check();
    const { weight } = this.#shared;
    if (weight) {
      native.arrange(weight, false);
      this.#release();
    }
    return this.#shared.stored;
  }

  /** @internal For a product, which may put the codes into its own order. */
  forProducts(): NativeWeight {
    this.#check();
    if (!this.#shared.weight) {
      if (this.device === 'cpu') this.#own(); // elsewhere products read the codes as they are
      const stored = Object.entries(this.#shared.stored).map(
        ([name, tensor]) => [name, Tensor.native(tensor, name)] as const,
      );
      this.#shared.weight = native.weight(this.scheme, Object.fromEntries(stored), this.shape);
    }
    return this.#shared.weight;
  }

  #release(): void {
    if (this.#shared.weight) native.weightDispose(this.#shared.weight);
    this.#shared.weight = null;
  }

  /** Tensors that are to be put into another order must be nobody else's: those that others can see are copied. */
  #own(): void {
    const stored: Record<string, Tensor> = { ...this.#shared.stored };
    for (const name of ['packed', ...TILED_CONSTANTS]) {
      const tensor = stored[name];
      if (tensor === undefined) continue;
      const handle = Tensor.native(tensor, name);
      if (native.ownsStorage(handle)) continue;
      stored[name] = Tensor.wrap(native.tensorCopy(handle, tensor.dtype));
      tensor.dispose();
    }
    this.#shared.stored = stored;
  }

  /** Codes and constants, unpacked anew at each call; the caller owns them. */
  get parts(): Record<string, Tensor> {
    this.#check();
    return partsOf(this.scheme, this.shape, this.stored);
  }

  get byteLength(): number {
    return Object.values(this.#shared.stored).reduce((bytes, tensor) => bytes + tensor.byteLength, 0);
  }

  /** @internal Also false for what only has the prototype. */
  static is(value: unknown): value is QuantizedTensor {
    return typeof value === 'object' && value !== null && #shared in value;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Puts the codes, in place, into the order that this device's products want, and waits for it; else the first
   * product does it. `parts`, `dequantize` and the writers of formats put them back.
   */
  async pack(): Promise<void> {
    native.arrange(this.forProducts(), true);
    using nothing = (this.#shared.stored.packed as Tensor).slice(0, 0, 0);
    await nothing.read();
  }

  /** A copy on another device; on this one, another handle to the same weight. */
  to(device: DeviceId): QuantizedTensor {
    checkDevice(device);
    this.#check();
    if (device !== this.device) {
      const copies = Object.entries(this.stored).map(([name, tensor]) => [name, tensor.to(device)] as const);
      return QuantizedTensor.#of(this.scheme, this.shape, Object.fromEntries(copies));
    }
    this.#shared.handles++;
    return new QuantizedTensor(this.scheme, this.shape, this.#shared, OWN);
  }

  /** Gives up this handle; the weight goes with the last one. Work that is queued on it keeps what it needs. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#shared.handles--;
    if (this.#shared.handles > 0) return;
    this.#release();
    for (const tensor of Object.values(this.#shared.stored)) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #check(): void {
    if (this.#disposed) throw new QuantariaError('ERR_DISPOSED', 'the quantized tensor was disposed');
  }
}

function checkMatrixShape(shape: unknown): [number, number] {
  const dims = checkShape('shape', shape);
  if (dims.length !== 2) throw new QuantariaError('ERR_SHAPE', `shape: [${dims}] came, expected [out, in]`);
  return dims as [number, number];
}
