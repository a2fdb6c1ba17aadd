import { bytesOfEntry } from '../checkpoint/layout';
import type { Checkpoint } from '../checkpoint/reader';
import { getDefaultDevice } from '../device';
import type { DType } from '../dtype';
import { bytesOf } from '../dtype';
import { QuantariaError } from '../errors';
import type { Format } from '../formats';
import type { Linear } from '../models';
import { native } from '../native';
import { pieceView } from '../ops/pieces';
import { quantizeMatrix } from '../ops/quantize';
import type { QuantizedTensor } from '../quantized';
import { Tensor } from '../tensor';
import type { UnitResult } from './journal';
import type { Write } from './output';
import { placedView } from './placement';
import type { PlannedTensor, QuantizePlan } from './quantize_plan';
import type { WorkUnit } from './run';

/** A tensor that is quantized. */
export type PlannedMatrix = PlannedTensor & { linear: Linear; scheme: NonNullable<PlannedTensor['scheme']> };

/** What a unit of quantization leaves in the journal. */
export interface QuantizeResult extends UnitResult {
  /** Relative error by tensor name. */
  errors: Record<string, number>;
}

/**
 * Units that quantize: one for each matrix, or slab of a stack, of the source. Gate and up of an expert lie side by side in
 * one slab, whose pages are then read once.
 */
export function quantizeUnits(
  source: Checkpoint,
  plan: QuantizePlan,
  tensors: readonly PlannedMatrix[],
): WorkUnit[] {
  const slabs = new Map<string, PlannedMatrix[]>();
  for (const tensor of tensors) {
    const { tensor: stored, expert } = tensor.linear.source;
    const key = `quantize ${stored} ${expert ?? ''}`;
    const members = slabs.get(key);
    if (members) members.push(tensor);
    else slabs.set(key, [tensor]);
  }
  return [...slabs].map(([key, members]) => {
    const elements = members.reduce((sum, { linear }) => sum + linear.shape[0] * linear.shape[1], 0);
    const inputBytes = elements * bytesOf(plan.modelDtype);
    const stored = members.reduce(
      (sum, { entries }) => sum + entries.reduce((s, e) => s + bytesOfEntry(e), 0),
      0,
    );
    return {
      key,
      inputBytes,
      // Packed, in the format's order, and once unpacked on the way there; elsewhere than on the CPU the weights too.
      memoryBytes: 2 * stored + elements + (getDefaultDevice() === 'cpu' ? 0 : inputBytes),
      outputs: members.flatMap(({ entries }) => entries.map(({ name }) => name)),
      run: (write) => quantizeSlab(source, members, plan.format, plan.modelDtype, write),
    };
  });
}

export const isQuantized = (tensor: PlannedTensor): tensor is PlannedMatrix =>
  tensor.scheme !== null && tensor.linear !== null;

async function quantizeSlab(
  source: Checkpoint,
  members: readonly PlannedMatrix[],
  format: Format,
  modelDtype: DType,
  write: (part: Write) => Promise<void>,
): Promise<QuantizeResult> {
  const [{ linear }] = members as [PlannedMatrix];
  const { tensor, expert } = linear.source;
  using slab = placedView(source.view(tensor, expert === null ? undefined : [expert, expert + 1]));
  const errors = await Promise.all(
    members.map(async (member) => {
      const error = await quantizeMember(slab, member, format, modelDtype, write);
      return [member.target.name, error] as const;
    }),
  );
  return { errors: Object.fromEntries(errors) };
}

async function quantizeMember(
  slab: Tensor,
  member: PlannedMatrix,
  format: Format,
  modelDtype: DType,
  write: (part: Write) => Promise<void>,
): Promise<number> {
  const { linear, scheme } = member;
  const view = pieceView(Tensor.native(slab, linear.name), linear.source);
  const { quantized, relativeError } = quantizeMatrix(view, linear.shape, scheme);
  try {
    await writeQuantized(member, quantized, format, modelDtype, write);
    return (await relativeError.toFloat32())[0] as number;
  } catch (error) {
    throw inTensor(linear.name, error);
  } finally {
    native.tensorDispose(view);
    relativeError.dispose();
    quantized.dispose();
  }
}

/**
 * Writes a quantized weight as its format stores it, which is made where the file is.
 * @param inputScale of static activations
 */
export async function writeQuantized(
  { name, entries, activations }: PlannedMatrix,
  quantized: QuantizedTensor,
  format: Format,
  modelDtype: DType,
  write: (part: Write) => Promise<void>,
  inputScale?: number,
): Promise<void> {
  using here = quantized.to('cpu');
  const encoded = await format.encode(name, here, modelDtype, { activations, inputScale });
  try {
    await Promise.all(
      entries.map((entry) => write({ ...placeOf(entry, encoded.get(entry.name)), name: entry.name })),
    );
  } finally {
    for (const tensor of encoded.values()) tensor.dispose();
  }
}

/** Where a module's part goes within its tensor: all of it, or its rows of a tensor that several modules share. */
function placeOf(entry: PlannedTensor['entries'][number], tensor: Tensor | undefined): Omit<Write, 'name'> {
  const handle = Tensor.native(tensor, entry.name);
  const { region } = entry;
  if (region === undefined) return { tensor: handle };
  const rows = entry.shape[1] as number;
  const rowBytes = bytesOfEntry({ ...entry, shape: entry.shape.slice(2) });
  return {
    tensor: handle,
    offset: (region.index * rows + region.start) * rowBytes,
    rows: { bytes: rowBytes, stride: region.step * rowBytes },
  };
}

/** Says which tensor an error of a kernel is about. */
export function inTensor(name: string, error: unknown): unknown {
  return error instanceof QuantariaError
    ? new QuantariaError(error.code, `${name}: ${error.message}`)
    : error;
}
