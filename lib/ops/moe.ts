import { checkDType, type DType, FLOAT_DTYPES } from '../dtype';
import { QuantariaError } from '../errors';
import type { Piece } from '../models';
import { type NativeTensor, native } from '../native';
import { show, Tensor } from '../tensor';
import { pieceView, scoped } from './pieces';

/** One routed expert as three linear weights `[out, in]`. */
export interface SequentialExpert {
  /** `[inter, hidden]` */
  gate: Tensor;
  /** `[inter, hidden]` */
  up: Tensor;
  /** `[hidden, inter]` */
  down: Tensor;
}

/** All routed experts of a layer as Aria stores them for a grouped GEMM. */
export interface GroupedExperts {
  /** `[E, hidden, 2 inter]`: gate columns first, then up */
  fc1: Tensor;
  /** `[E, inter, hidden]` */
  fc2: Tensor;
}

const piece = (expert: number | null, start: number, end: number): Piece => ({
  tensor: '',
  expert,
  start,
  end,
  step: 1,
  transposed: true,
});

/** Where each of an expert's matrices lies in the stacks. */
function placesOf(expert: number, hidden: number, inter: number) {
  return {
    gate: { stack: 'fc1', piece: piece(expert, 0, inter) },
    up: { stack: 'fc1', piece: piece(expert, inter, 2 * inter) },
    down: { stack: 'fc2', piece: piece(expert, 0, hidden) },
  } as const;
}

/**
 * Grouped-GEMM experts as sequential MLPs, byte for byte.
 * @param fc1 `[E, hidden, 2 inter]`, gate columns first
 * @param fc2 `[E, inter, hidden]`, of the same dtype
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`
 */
export function groupedToSequential(fc1: Tensor, fc2: Tensor): SequentialExpert[] {
  const stacks = { fc1: Tensor.native(fc1, 'fc1'), fc2: Tensor.native(fc2, 'fc2') };
  const { experts, hidden, inter, dtype } = checkStacks(fc1, fc2);
  return Array.from({ length: experts }, (_, expert) => {
    const places = placesOf(expert, hidden, inter);
    const take = (projection: keyof typeof places): Tensor =>
      scoped((own) => {
        const { stack, piece: place } = places[projection];
        return Tensor.wrap(native.tensorCopy(own(pieceView(stacks[stack], place)), dtype));
      });
    return { gate: take('gate'), up: take('up'), down: take('down') };
  });
}

/**
 * Sequential MLPs as grouped-GEMM stacks: the inverse of `groupedToSequential`, byte for byte.
 * @throws QuantariaError `ERR_ARGUMENT` without experts, `ERR_SHAPE`, `ERR_DTYPE`
 */
export function sequentialToGrouped(experts: SequentialExpert[]): GroupedExperts {
  if (!Array.isArray(experts) || experts.length === 0) {
    throw new QuantariaError('ERR_ARGUMENT', `experts: ${show(experts)} came, expected at least one expert`);
  }
  const { hidden, inter, dtype } = checkExperts(experts);
  const device = (experts[0] as SequentialExpert).gate.device;
  const stacks = {
    fc1: native.tensorEmpty(dtype, [experts.length, hidden, 2 * inter], device),
    fc2: native.tensorEmpty(dtype, [experts.length, inter, hidden], device),
  };
  experts.forEach((matrices, expert) => {
    const places = placesOf(expert, hidden, inter);
    for (const projection of ['gate', 'up', 'down'] as const) {
      scoped((own) => {
        const { stack, piece: place } = places[projection];
        native.tensorCopyInto(
          handleOf(matrices[projection], expert, projection),
          own(pieceView(stacks[stack], place)),
        );
      });
    }
  });
  return { fc1: Tensor.wrap(stacks.fc1), fc2: Tensor.wrap(stacks.fc2) };
}

function checkStacks(
  fc1: Tensor,
  fc2: Tensor,
): { experts: number; hidden: number; inter: number; dtype: DType } {
  const [experts, hidden, both] = fc1.shape;
  const [experts2, inter, hidden2] = fc2.shape;
  const fits =
    fc1.shape.length === 3 &&
    fc2.shape.length === 3 &&
    experts === experts2 &&
    hidden === hidden2 &&
    both === 2 * (inter ?? 0);
  if (!fits) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `fc1 [${fc1.shape}] and fc2 [${fc2.shape}] came, expected [E, hidden, 2 inter] and [E, inter, hidden]`,
    );
  }
  if (fc1.dtype !== fc2.dtype) throw new QuantariaError('ERR_DTYPE', `fc1 is ${fc1.dtype}, fc2 ${fc2.dtype}`);
  checkDType('fc1.dtype', fc1.dtype, FLOAT_DTYPES);
  return { experts: experts as number, hidden: hidden as number, inter: inter as number, dtype: fc1.dtype };
}

function handleOf(tensor: unknown, expert: number, projection: string): NativeTensor {
  return Tensor.native(tensor, `experts[${expert}].${projection}`);
}

function checkExperts(experts: SequentialExpert[]): { hidden: number; inter: number; dtype: DType } {
  let first: Tensor | undefined;
  for (let expert = 0; expert < experts.length; expert++) {
    const matrices = experts[expert] as SequentialExpert; // holes included, which forEach passes over
    if (typeof matrices !== 'object' || matrices === null) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `experts[${expert}]: ${show(matrices)} came, expected {gate, up, down}`,
      );
    }
    handleOf(matrices.gate, expert, 'gate');
    first ??= matrices.gate;
    const [inter, hidden] = first.shape;
    const expected = { gate: [inter, hidden], up: [inter, hidden], down: [hidden, inter] };
    for (const projection of ['gate', 'up', 'down'] as const) {
      const tensor = matrices[projection];
      handleOf(tensor, expert, projection);
      const want = expected[projection];
      if (tensor.shape.length !== 2 || tensor.shape[0] !== want[0] || tensor.shape[1] !== want[1]) {
        throw new QuantariaError(
          'ERR_SHAPE',
          `experts[${expert}].${projection}: [${tensor.shape}] came, expected [${want}]`,
        );
      }
      if (tensor.dtype !== first.dtype) {
        throw new QuantariaError(
          'ERR_DTYPE',
          `experts[${expert}].${projection}: ${tensor.dtype} came, expected ${first.dtype}`,
        );
      }
    }
  }
  const [inter, hidden] = (first as Tensor).shape;
  return {
    hidden: hidden as number,
    inter: inter as number,
    dtype: checkDType('experts', first?.dtype, FLOAT_DTYPES),
  };
}
