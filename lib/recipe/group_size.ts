const SMALLEST_GROUP = 16;

/**
 * The group size to use where groups must divide a layer: the largest divisor of `width` that is at most
 * `asked` and at least 16; null if there is none, and per-row scales are the next choice.
 */
export function fitGroupSize(width: number, asked: number): number | null {
  for (let size = Math.min(asked, width); size >= SMALLEST_GROUP; --size) {
    if (width % size === 0) return size;
  }
  return null;
}
