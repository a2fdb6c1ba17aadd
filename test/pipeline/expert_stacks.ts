/** Experts cut out of their stacks byte by byte, without the library. */
import type { Stored } from './helpers';

export interface StackNames {
  /** Endings of the names of both stacks. */
  gateUp: string;
  down: string;
  /** Stored as [E, in, out]. */
  transposed: boolean;
  /** Names of gate, up and down of one expert, after what stands before the stacks' endings. */
  expert: (index: number) => readonly [gate: string, up: string, down: string];
}

const projections = (path: string, index: number) =>
  ['gate_proj', 'up_proj', 'down_proj'].map(
    (name) => `${path}.${index}.${name}.weight`,
  ) as unknown as readonly [string, string, string];

/** Aria's `fc1` and `fc2`. */
export const groupedAria: StackNames = {
  gateUp: 'mlp.experts.fc1.weight',
  down: 'mlp.experts.fc2.weight',
  transposed: true,
  expert: (index) => projections('mlp.experts.experts', index),
};

/** transformers v5's stacks of most families. */
export const fused = (
  path: string,
  names?: (index: number) => readonly [string, string, string],
): StackNames => ({
  gateUp: 'mlp.experts.gate_up_proj',
  down: 'mlp.experts.down_proj',
  transposed: false,
  expert: names ?? ((index) => projections(path, index)),
});

export const mixtralNames = (index: number) =>
  ['w1', 'w3', 'w2'].map(
    (name) => `block_sparse_moe.experts.${index}.${name}.weight`,
  ) as unknown as readonly [string, string, string];

function transpose(bytes: Buffer, rows: number, columns: number, width: number): Buffer {
  const result = Buffer.alloc(bytes.length);
  for (let row = 0; row < rows; ++row) {
    for (let column = 0; column < columns; ++column) {
      const from = (row * columns + column) * width;
      bytes.copy(result, (column * rows + row) * width, from, from + width);
    }
  }
  return result;
}

/** The matrices [out, in] of a stack, one for each expert. */
function matrices({ shape, bytes }: Stored, transposed: boolean) {
  const [experts, first, second] = shape as [number, number, number];
  const size = bytes.length / experts;
  const width = size / (first * second);
  const [out, inner] = transposed ? [second, first] : [first, second];
  const slabs = Array.from({ length: experts }, (_, index) => {
    const slab = bytes.subarray(index * size, (index + 1) * size);
    return transposed ? transpose(slab, first, second, width) : slab;
  });
  return { slabs, out, inner };
}

/** All tensors, with each stack replaced by its experts' matrices. */
export function toSequential(tensors: ReadonlyMap<string, Stored>, names: StackNames): Map<string, Stored> {
  const result = new Map<string, Stored>();
  for (const [name, stored] of tensors) {
    const ending = [names.gateUp, names.down].find((end) => name.endsWith(end));
    if (ending === undefined) {
      result.set(name, stored);
      continue;
    }
    const prefix = name.slice(0, -ending.length);
    const { slabs, out, inner } = matrices(stored, names.transposed);
    slabs.forEach((slab, index) => {
      const [gate, up, down] = names.expert(index);
      const put = (path: string, bytes: Buffer, rows: number) =>
        result.set(prefix + path, { ...stored, shape: [rows, inner], bytes });
      if (ending === names.down) {
        put(down, slab, out);
      } else {
        put(gate, slab.subarray(0, slab.length / 2), out / 2);
        put(up, slab.subarray(slab.length / 2), out / 2);
      }
    });
  }
  return result;
}
