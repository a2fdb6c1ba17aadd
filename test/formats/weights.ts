import { random } from '../core/random';

/** Rows that are hard on grids: zeros of both signs, one value, one outlier, one sign, ties, very small, very large. */
export function nastyWeight(rows: number, width: number, seed: number): Float32Array {
  const next = random(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  const kinds: ((column: number) => number)[] = [
    () => normal(),
    () => 0,
    () => -0,
    () => 0.37,
    () => -0.5,
    (column) => (column === 1 ? 3000 : 0.01 * normal()),
    () => Math.abs(normal()),
    () => -Math.abs(normal()),
    (column) => ((column % 15) - 7) / 2,
    () => 1e-6 * normal(),
    () => 1e3 * normal(),
    (column) => (column === width - 1 ? -2 : 0),
    () => 0.05 * normal(),
  ];
  return Float32Array.from({ length: rows * width }, (_, index) => {
    const row = Math.floor(index / width);
    return (kinds[(row + seed) % kinds.length] as (column: number) => number)(index % width);
  });
}

/** Where two lists of values differ first, in words; null if nowhere. Zeros of both signs are one value. */
export function difference(found: Float32Array, expected: Float32Array): string | null {
  if (found.length !== expected.length) return `${found.length} values, expected ${expected.length}`;
  const index = found.findIndex((value, at) => value !== expected[at]);
  return index < 0 ? null : `element ${index}: ${found[index]}, expected ${expected[index]}`;
}
