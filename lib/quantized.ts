import type { DeviceId } from './device';
import { checkDevice } from './device';
import { QuantariaError } from './errors';
import { type NativeWeight, native } from './native';
import { partsOf, type StoredForm, storedForm, storedFromParts } from './ops/stored_form';
import { type QuantScheme, validateScheme } from './scheme';
import { checkShape, show, Tensor } from './tensor';

/** Held by this module alone: the constructor is not for others. */
const OWN = Symbol('QuantizedTensor');

/**
 * A weight `[out, in]` in a quantized, bit-packed form. `quantize` makes it; `fromParts` makes it of codes and constants
 * that come from elsewhere.
 */
export class QuantizedTensor implements Disposable {
  readonly scheme: QuantScheme;
  readonly shape: readonly number[];
  readonly device: DeviceId;
  #stored: StoredForm;
  /** Whether products have been given the codes, which lie in their order then. Shared by the handles of one weight. */
  readonly #order: { tiled: boolean };
  #disposed = false;

  private constructor(
    scheme: QuantScheme,
    shape: readonly number[],
    stored: StoredForm,
    token: symbol,
    order = { tiled: false },
  ) {
    if (token !== OWN) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        'quantized tensors are made by quantize and fromParts, not by `new`',
      );
    }
    this.scheme = Object.freeze({ ...scheme });
    this.shape = Object.freeze([...shape]);
    this.device = (Object.values(stored)[0] as Tensor).device;
    this.#stored = stored;
    this.#order = order;
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
    return new QuantizedTensor(checked, dims, storedFromParts(checked, dims, parts), OWN);
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
    return new QuantizedTensor(checked, dims, stored, OWN);
  }

  /** @internal The packed tensors, codes row by row. They belong to this object, and are good until its next product. */
  get stored(): StoredForm {
    this.#check();
    if (this.#order.tiled) native.arrange(this.#weight(), false);
    this.#order.tiled = false;
    return this.#stored;
  }

  /** @internal For a product, which may put the codes into its own order. */
  forProducts(): NativeWeight {
    this.#check();
    const packed = this.#stored.packed as Tensor;
    if (!this.#order.tiled && !native.ownsStorage(Tensor.native(packed, 'packed'))) {
      const own = Tensor.wrap(native.tensorCopy(Tensor.native(packed, 'packed'), packed.dtype));
      this.#stored = { ...this.#stored, packed: own };
      packed.dispose();
    }
    this.#order.tiled = true;
    return this.#weight();
  }

  #weight(): NativeWeight {
    const stored = Object.entries(this.#stored).map(
      ([name, tensor]) => [name, Tensor.native(tensor, name)] as const,
    );
    return { scheme: this.scheme, stored: Object.fromEntries(stored), shape: this.shape };
  }

  /** Codes and constants, unpacked anew at each call; the caller owns them. */
  get parts(): Record<string, Tensor> {
    this.#check();
    return partsOf(this.scheme, this.shape, this.stored);
  }

  get byteLength(): number {
    return Object.values(this.#stored).reduce((bytes, tensor) => bytes + tensor.byteLength, 0);
  }

  /** @internal Also false for what only has the prototype. */
  static is(value: unknown): value is QuantizedTensor {
    return typeof value === 'object' && value !== null && #stored in value;
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
    using nothing = (this.#stored.packed as Tensor).slice(0, 0, 0);
    await nothing.read();
  }

  to(device: DeviceId): QuantizedTensor {
    checkDevice(device);
    const shared = Object.entries(this.stored).map(([name, tensor]) => [name, tensor.to(device)] as const);
    return new QuantizedTensor(
      this.scheme,
      this.shape,
      Object.fromEntries(shared),
      OWN,
      device === this.device ? this.#order : undefined,
    );
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const tensor of Object.values(this.#stored)) tensor.dispose();
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
