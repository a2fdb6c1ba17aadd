/**
 * The choice of bits under a size limit: a multiple-choice knapsack, solved greedily on the convex hulls of error against
 * bytes. Its loss against the optimum is at most that of one step of one choice.
 */

/** One way to store a unit. */
export interface BitOption {
  bytes: number;
  /** Predicted loss, in any unit that is the same for all units. */
  error: number;
}

/** Weights that are stored in one way. */
export interface BitUnit<Option extends BitOption = BitOption> {
  options: readonly Option[];
  /** Decides between steps that pay equally: higher first. */
  priority?: number;
}

/**
 * The options that no mixture of two others beats, by rising bytes and falling error: each further one pays less a byte.
 * @returns at least one option; the cheapest is always among them
 */
export function convexHull<Option extends BitOption>(options: readonly Option[]): Option[] {
  const rising = [...options].sort((a, b) => a.bytes - b.bytes || a.error - b.error);
  const hull: Option[] = [];
  for (const option of rising) {
    const last = hull.at(-1);
    if (last !== undefined && option.error >= last.error) continue;
    while (
      hull.length >= 2 &&
      gain(hull.at(-2) as Option, hull.at(-1) as Option) <= gain(hull.at(-2) as Option, option)
    )
      hull.pop();
    hull.push(option);
  }
  return hull;
}

/** Loss that a byte takes away on the way from one option to a larger one. */
const gain = (from: BitOption, to: BitOption) => (from.error - to.error) / (to.bytes - from.bytes);

/** The least and the most bytes that the units can take. */
export function sizeRange(units: readonly BitUnit[]): [least: number, most: number] {
  let least = 0;
  let most = 0;
  for (const { options } of units) {
    const hull = convexHull(options);
    least += hull[0]?.bytes ?? 0;
    most += hull.at(-1)?.bytes ?? 0;
  }
  return [least, most];
}

/**
 * Chooses an option for each unit: all begin with their cheapest, and the step that takes away most loss a byte is taken
 * first, as long as it fits. The same units give the same choice.
 * @returns the chosen options in the order of the units, or null if even the cheapest take more than `budget` bytes
 */
export function chooseOptions<Option extends BitOption>(
  units: readonly BitUnit<Option>[],
  budget: number,
): Option[] | null {
  const hulls = units.map(({ options }) => convexHull(options));
  const chosen = hulls.map(() => 0);
  let bytes = hulls.reduce((sum, [cheapest]) => sum + (cheapest?.bytes ?? 0), 0);
  if (bytes > budget) return null;
  const steps = hulls.flatMap((hull, unit) =>
    hull.slice(1).map((option, i) => {
      const from = hull[i] as Option;
      return { unit, to: i + 1, bytes: option.bytes - from.bytes, gain: gain(from, option) };
    }),
  );
  const priority = (unit: number) => units[unit]?.priority ?? 0;
  steps.sort(
    (a, b) => b.gain - a.gain || priority(b.unit) - priority(a.unit) || a.unit - b.unit || a.to - b.to,
  );
  for (const step of steps) {
    // After a step that did not fit, its unit stays where it is; smaller ones may still find room.
    if (chosen[step.unit] !== step.to - 1 || bytes + step.bytes > budget) continue;
    chosen[step.unit] = step.to;
    bytes += step.bytes;
  }
  return hulls.map((hull, unit) => hull[chosen[unit] as number] as Option);
}
