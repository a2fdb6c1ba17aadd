import { getDefaultDevice } from '../device';
import { dtypeOfStored, isFloat } from '../dtype';
import { QuantariaError } from '../errors';
import type { StoredModule } from '../formats';
import { DECODER_LINEAR_ROLES } from '../models';
import { type NativeTensor, native } from '../native';
import { dequantize, quantizeMatrix } from '../ops/quantize';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { type Folding, foldedRounding, foldedTensor, readFolding } from './folding';
import { rolesOf } from './inspect';
import { Original, type OriginalTensor } from './original';
import { placedView } from './placement';
import { openModel, type StoredModel } from './stored_model';

export interface VerifiedTensor {
  name: string;
  scheme: QuantScheme | null;
  /** Against the original; null without one. */
  relativeError: number | null;
}

export interface Verification {
  ok: boolean;
  problems: string[];
  tensors: VerifiedTensor[];
}

/** How much worse than round-to-nearest a weight may be: methods that compensate errors trade them for a better output. */
const RTN_FACTOR = 1.5;
const COMPENSATED_FACTOR = 4;
/** Of the stored relative errors, which are float32. */
const ROUNDING = 1e-6;
/** How far a relative error may be from the reported one: damage that is small in a large tensor shows here only. */
const REPEATED = 1e-4;
/** Kept tensors are looked at in parts of so many elements. */
const PART = 1 << 24;

/**
 * Checks that every tensor of a checkpoint decodes to finite values and, against the original, that nothing is missing, was
 * skipped without a rule, or is further away than its scheme explains.
 * @throws QuantariaError (as a rejection) if a checkpoint cannot be read, or the original is malformed; what is wrong in the
 *   checkpoint itself is a problem of the result
 */
export async function verifyModel(
  directory: string,
  against: string | null = null,
  onProgress?: (done: number, total: number) => void,
): Promise<Verification> {
  let opened: StoredModel;
  try {
    opened = await openModel(directory);
  } catch (error) {
    // A malformed model is what this is to find; one that cannot be read at all was not verified.
    if (!(error instanceof QuantariaError) || error.code === 'ERR_IO') throw error;
    return { ok: false, problems: [error.message], tensors: [] };
  }
  const original = against === null ? null : await Original.open(against).catch(closeAnd(opened));
  try {
    const folding = await readFolding(opened.checkpoint.directory);
    return await new Verifier(opened, original, folding).run(onProgress);
  } finally {
    original?.close();
    opened.checkpoint.close();
  }
}

const closeAnd =
  (opened: StoredModel) =>
  (error: unknown): never => {
    opened.checkpoint.close();
    throw error;
  };

class Verifier {
  readonly #problems: string[] = [];
  readonly #tensors: VerifiedTensor[] = [];

  constructor(
    private readonly opened: StoredModel,
    private readonly original: Original | null,
    private readonly folding: Folding,
  ) {}

  /** The original's tensor, with the factors that a method has moved into it. */
  #find(name: string): OriginalTensor | null {
    const source = this.original?.find(name) ?? null;
    const factors = this.folding.get(name);
    return source === null || factors === undefined ? source : foldedTensor(name, source, factors);
  }

  async run(onProgress?: (done: number, total: number) => void): Promise<Verification> {
    const { modules, checkpoint, stored } = this.opened;
    const quantized = new Set(modules.flatMap(({ tensors }) => tensors));
    const kept = [...stored.entries.keys()].filter((name) => !quantized.has(name));
    const total = checkpoint.names().length;
    let done = 0;
    for (const module of modules) {
      await this.#guard(module.module, () => this.#checkModule(module));
      done += module.tensors.length;
      onProgress?.(done, total);
    }
    for (const name of kept) {
      await this.#guard(name, () => this.#checkKept(name));
      onProgress?.(++done, total);
    }
    this.#checkMissing(new Set([...modules.map(({ module }) => `${module}.weight`), ...kept]));
    this.#checkRules(kept);
    return { ok: this.#problems.length === 0, problems: this.#problems, tensors: this.#tensors };
  }

  /** What one tensor's data does wrong is that tensor's problem; the others are still looked at. */
  async #guard(name: string, check: () => Promise<void>): Promise<void> {
    try {
      await check();
    } catch (error) {
      if (!(error instanceof QuantariaError)) throw error;
      this.#problems.push(`${name}: ${error.message}`);
    }
  }

  async #checkModule(module: StoredModule): Promise<void> {
    const { format, report, stored } = this.opened;
    if (format === null) return;
    const name = `${module.module}.weight`;
    using decoded = await format.decode(module, stored.read);
    using quantized = decoded.to(getDefaultDevice());
    using values = dequantize(quantized);
    const source = this.#find(name);
    if (source !== null && !sameShape(source.shape, module.shape)) {
      this.#problems.push(`${name}: shape [${module.shape}], [${source.shape}] in the original`);
      return;
    }
    const reported = report?.tensors.find((tensor) => tensor.name === name);
    const scheme = reported?.scheme ?? module.scheme;
    const relativeError = await this.#measure(name, values, source);
    this.#tensors.push({ name, scheme, relativeError });
    if (source === null) {
      if (this.original) this.#problems.push(`${name}: not in the original`);
      return;
    }
    const expected = await roundToNearestError(source, module.shape, scheme);
    const factor = (report?.method ?? 'rtn') === 'rtn' ? RTN_FACTOR : COMPENSATED_FACTOR;
    if ((relativeError as number) > factor * expected + ROUNDING) {
      this.#problems.push(
        `${name}: relative error ${relativeError?.toPrecision(4)}, at most ${factor} x ${expected.toPrecision(4)} of round-to-nearest expected`,
      );
    } else if (
      reported &&
      Math.abs((relativeError as number) - reported.relativeError) > REPEATED * expected + ROUNDING
    ) {
      this.#problems.push(
        `${name}: relative error ${relativeError?.toPrecision(6)}, ${reported.relativeError.toPrecision(6)} when it was written`,
      );
    }
  }

  /** Relative error, or null without an original. Values that are not finite are a problem. */
  async #measure(name: string, values: Tensor, source: OriginalTensor | null): Promise<number | null> {
    using floats = source && floatsOf(source.view());
    const found = await native.compare(Tensor.native(values, name), floats && Tensor.native(floats, name));
    if (found.nonFinite > 0) this.#problems.push(`${name}: ${found.nonFinite} values are not finite`);
    return source === null ? null : relative(found);
  }

  async #checkKept(name: string): Promise<void> {
    const { checkpoint } = this.opened;
    const entry = checkpoint.info(name);
    const dtype = dtypeOfStored(this.opened.stored.entries.get(name)?.dtype ?? '');
    const source = this.#find(name);
    if (source !== null && !sameShape(source.shape, entry.shape)) {
      this.#problems.push(`${name}: shape [${entry.shape}], [${source.shape}] in the original`);
      return;
    }
    if (this.original !== null && source === null) this.#problems.push(`${name}: not in the original`);
    if (dtype === null || !isFloat(dtype)) {
      const differs = source !== null && (await this.#differs(name, source));
      if (differs) this.#problems.push(`${name}: kept, but differs from the original`);
      this.#tensors.push({ name, scheme: null, relativeError: source === null ? null : Number(differs) });
      return;
    }
    const error = await this.#compareParts(name, source);
    const dtypeOf = this.opened.stored.entries.get(name)?.dtype ?? '';
    if (error !== null && error > (this.folding.has(name) ? foldedRounding(dtypeOf) : 0)) {
      this.#problems.push(`${name}: kept, but differs from the original by ${error.toPrecision(4)}`);
    }
    this.#tensors.push({ name, scheme: null, relativeError: error });
  }

  /** Whether a tensor that cannot be computed with differs from the original in dtype or bytes. */
  async #differs(name: string, source: OriginalTensor): Promise<boolean> {
    const { checkpoint, stored } = this.opened;
    if (source.bytes === null || source.dtype !== stored.entries.get(name)?.dtype) return true;
    const { bytes } = checkpoint.info(name);
    for (let start = 0; start < bytes; start += PART) {
      const end = Math.min(bytes, start + PART);
      const parts = [checkpoint.bytes(name, start, end), source.bytes(start, end)];
      const floats = parts.map((part) => native.tensorCopy(part, 'float32'));
      try {
        if ((await native.compare(floats[0] as NativeTensor, floats[1] as NativeTensor)).error > 0)
          return true;
      } finally {
        for (const tensor of [...parts, ...floats]) native.tensorDispose(tensor);
      }
    }
    return false;
  }

  /** Part by part of the first dimension, so that memory does not grow with the tensor. */
  async #compareParts(name: string, source: OriginalTensor | null): Promise<number | null> {
    const { shape } = this.opened.checkpoint.info(name);
    const rows = shape[0] ?? 1;
    const rowSize = shape.slice(1).reduce((a, b) => a * b, 1);
    const step = Math.max(1, Math.floor(PART / Math.max(1, rowSize)));
    const sum = { error: 0, reference: 0, nonFinite: 0 };
    for (let start = 0; start < rows; start += step) {
      const range = shape.length === 0 ? undefined : ([start, Math.min(rows, start + step)] as const);
      using part = floatsOf(this.opened.checkpoint.view(name, range));
      using before = source && floatsOf(source.view(range));
      const found = await native.compare(Tensor.native(part, name), before && Tensor.native(before, name));
      sum.error += found.error;
      sum.reference += found.reference;
      sum.nonFinite += found.nonFinite;
    }
    if (sum.nonFinite > 0) this.#problems.push(`${name}: ${sum.nonFinite} values are not finite`);
    return source === null ? null : relative(sum);
  }

  #checkMissing(present: ReadonlySet<string>): void {
    for (const name of this.original?.missing(present) ?? []) {
      this.#problems.push(`${name}: in the original, but missing here`);
    }
    for (const { name } of this.opened.report?.tensors ?? []) {
      if (!present.has(name)) this.#problems.push(`${name}: in the report, but missing here`);
    }
  }

  /** A decoder weight that stayed as it was must have a rule that says so. */
  #checkRules(kept: readonly string[]): void {
    const { format, model, report } = this.opened;
    // A plain or converted model: nobody meant to quantize it.
    if (format === null && report === null) return;
    const ruled = new Set((report?.tensors ?? []).filter((tensor) => tensor.ruled).map(({ name }) => name));
    const weights = new Set(model.linears.map(({ source }) => source.tensor));
    const roles = rolesOf(this.opened);
    for (const name of kept) {
      const role = roles.get(name) ?? 'other';
      if (!weights.has(name) || !DECODER_LINEAR_ROLES.includes(role) || ruled.has(name)) continue;
      this.#problems.push(`${name}: kept as it is, and no rule says so`);
    }
  }
}

async function roundToNearestError(
  source: OriginalTensor,
  shape: readonly [number, number],
  scheme: QuantScheme,
): Promise<number> {
  using weight = placedView(source.view());
  const { quantized, relativeError } = quantizeMatrix(Tensor.native(weight, 'weight'), shape, scheme);
  using _ = relativeError;
  quantized.dispose();
  return (await relativeError.toFloat32())[0] as number;
}

/** A tensor of a checkpoint in float32, on the default device. Takes the view over. */
function floatsOf(view: NativeTensor): Tensor<'float32'> {
  using stored = placedView(view);
  return stored.cast('float32');
}

const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((n, i) => n === b[i]);

const relative = ({ error, reference }: { error: number; reference: number }): number =>
  error === 0 ? 0 : Math.sqrt(error / reference);
