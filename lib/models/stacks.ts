import type { LayerName } from './names';
import { projectionOf } from './roles';
import type { Linear, StoredTensor } from './types';

const intoHidden = /^(down|w2|fc2|wo|out|output|output_linear|dense_4h_to_h)$/;
const fromHidden = /^(gate|up|gate_up|w1|w3|fc1|wi|wi_0|wi_1|input|input_linear|dense_h_to_4h)$/;

/**
 * Reads a three-dimensional tensor `[E, a, b]` of a family that is not known as E linear weights. Its name
 * must say whether it maps from or to the hidden size, and exactly one axis must have that size; else nothing
 * can be said: null.
 */
export function readStack(
  name: string,
  at: LayerName | null,
  tensor: StoredTensor,
  hidden: number | null,
): Linear[] | null {
  const module = name.replace(/\.weight$/, '');
  const projection = projectionOf(module, 'expert');
  const down = intoHidden.test(projection);
  if (hidden === null || !(down || fromHidden.test(projection))) return null;
  const [experts = 0, a = 0, b = 0] = tensor.shape;
  if ((a === hidden) === (b === hidden) || experts === 0 || a === 0 || b === 0) return null;
  const transposed = down === (b === hidden);
  const [out, width] = transposed ? [b, a] : [a, b];
  return Array.from({ length: experts }, (_, expert) => ({
    name: `${module.slice(0, module.lastIndexOf('.'))}.${expert}.${module.slice(module.lastIndexOf('.') + 1)}`,
    role: 'expert' as const,
    layer: at?.layer ?? null,
    expert,
    projection,
    shape: [out, width] as [number, number],
    dtype: tensor.dtype,
    source: { tensor: tensor.name, expert, start: 0, end: out, step: 1, transposed },
  }));
}
