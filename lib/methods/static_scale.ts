/** Codes of 8 bits on both sides of 0. */
const LARGEST_CODE = 127;
/** Shares of the largest magnitude that are tried, from all of it down to a fifth in steps of a fiftieth. */
const STEPS = 50;
const LEAST_STEPS = 10;
/** Magnitudes are counted in so many steps up to the largest, some 32 for each code. */
const BINS = 4096;

/**
 * The one scale for activations of 8 bits that changes them least: clipping few large values makes all others finer.
 * @param values of a sample of the activations
 * @param largest magnitude of all of them
 * @returns the scale of least squared error; ties keep the larger one; 1 where all are 0
 */
export function staticScale(values: Iterable<number>, largest: number): number {
  if (!(largest > 0)) return 1;
  const counts = new Float64Array(BINS);
  for (const value of values) {
    const bin = Math.min(BINS - 1, Math.floor((Math.abs(value) / largest) * BINS));
    counts[bin] = (counts[bin] as number) + 1;
  }
  let best = { scale: largest / LARGEST_CODE, error: Number.POSITIVE_INFINITY };
  for (let step = STEPS; step >= LEAST_STEPS; --step) {
    const scale = (largest * step) / STEPS / LARGEST_CODE;
    let error = 0;
    for (const [bin, count] of counts.entries()) {
      if (count === 0) continue;
      const magnitude = ((bin + 0.5) / BINS) * largest;
      error += count * (magnitude - scale * Math.min(LARGEST_CODE, Math.round(magnitude / scale))) ** 2;
    }
    if (error < best.error) best = { scale, error };
  }
  return best.scale;
}
