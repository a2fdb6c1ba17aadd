import type { Checkpoint } from '../checkpoint/reader';
import { type DType, dtypeOfStored } from '../dtype';
import { QuantariaError } from '../errors';
import type { Linear, Piece, TargetTensor } from '../models';
import { type NativeTensor, native } from '../native';
import { pieceView, scoped } from '../ops/pieces';
import type { WorkUnit } from './run';

/** Large tensors are copied in parts, so that an interruption costs little. */
const COPY_BYTES = 64e6;

/** Units that copy a tensor's bytes as they are, straight from the mapped file. */
export function copyUnits(source: Checkpoint, from: string, to: string, bytes: number): WorkUnit[] {
  const units: WorkUnit[] = [];
  for (let start = 0; start === 0 || start < bytes; start += COPY_BYTES) {
    const end = Math.min(bytes, start + COPY_BYTES);
    units.push({
      key: `copy ${to} ${start}`,
      inputBytes: end - start,
      memoryBytes: 0,
      outputs: [to],
      run: async (write) => {
        const tensor = source.bytes(from, start, end);
        await write({ name: to, tensor, offset: start }).finally(() => native.tensorDispose(tensor));
        return {};
      },
    });
  }
  return units;
}

/** Rearranges linear weights into a target tensor: one unit for each slab of a stack, or one for a matrix. */
export function pieceUnits(source: Checkpoint, target: TargetTensor): WorkUnit[] {
  if (!('pieces' in target.from)) throw new QuantariaError('ERR_ARGUMENT', `${target.name} is a copy`);
  const slabs = new Map<number, { linear: Linear; piece: Piece }[]>();
  for (const part of target.from.pieces) {
    const slab = part.piece.expert ?? 0;
    slabs.set(slab, [...(slabs.get(slab) ?? []), part]);
  }
  const stacked = target.shape.length === 3;
  const shape = stacked ? target.shape.slice(1) : target.shape;
  const dtype = dtypeOfStored(target.dtype);
  if (!dtype)
    throw new QuantariaError('ERR_DTYPE', `${target.name}: ${target.dtype} weights cannot be rearranged`);
  const bytes = slabBytes(source, target, slabs.size);
  return [...slabs].map(([slab, parts]) => ({
    key: `pieces ${target.name} ${slab}`,
    inputBytes: bytes,
    memoryBytes: bytes,
    outputs: [target.name],
    run: async (write) => {
      const tensor = assemble(source, parts, dtype, shape);
      const part = { name: target.name, tensor, offset: slab * bytes };
      await write(part).finally(() => native.tensorDispose(tensor));
      return {};
    },
  }));
}

function slabBytes(source: Checkpoint, target: TargetTensor, slabs: number): number {
  const [first] = 'pieces' in target.from ? target.from.pieces : [];
  if (!first) return 0;
  const { shape, bytes } = source.info(first.linear.source.tensor);
  const width = bytes / shape.reduce((a, b) => a * b, 1);
  return (target.shape.reduce((a, b) => a * b, 1) / slabs) * width;
}

/** The matrix `linear` as it lies in the checkpoint; the caller disposes it. */
export function linearView(source: Checkpoint, linear: Linear): NativeTensor {
  const { tensor, expert } = linear.source;
  return scoped((own) => {
    const stored = own(source.view(tensor, expert === null ? undefined : [expert, expert + 1]));
    return pieceView(stored, linear.source);
  });
}

function assemble(
  source: Checkpoint,
  parts: readonly { linear: Linear; piece: Piece }[],
  dtype: DType,
  shape: readonly number[],
): NativeTensor {
  const slab = native.tensorEmpty(dtype, shape, 'cpu');
  scoped((own) => {
    for (const { linear, piece } of parts) {
      const target = own(pieceView(slab, { ...piece, expert: null }));
      native.tensorCopyInto(own(linearView(source, linear)), target);
    }
  });
  return slab;
}

/** A stack's slabs from `start` to `end`, put together from the linear weights that it is made of. */
export function assembleStack(
  source: Checkpoint,
  target: TargetTensor,
  [start, end]: readonly [number, number],
): NativeTensor {
  const dtype = dtypeOfStored(target.dtype);
  if (!dtype || !('pieces' in target.from))
    throw new QuantariaError('ERR_DTYPE', `${target.name} is no stack of weights`);
  const stack = native.tensorEmpty(dtype, [end - start, ...target.shape.slice(1)], 'cpu');
  scoped((own) => {
    for (const { linear, piece } of 'pieces' in target.from ? target.from.pieces : []) {
      if (piece.expert === null || piece.expert < start || piece.expert >= end) continue;
      const slab = own(native.tensorSelect(stack, 0, piece.expert - start));
      native.tensorCopyInto(
        own(linearView(source, linear)),
        own(pieceView(slab, { ...piece, expert: null })),
      );
    }
  });
  return stack;
}
