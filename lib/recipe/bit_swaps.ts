/**
 * A plan made better where it stands: units take a step up or down in bits, and what each costs or pays was found around the
 * plan itself. Steps up are paid for by steps down, so that the size stays within its limit.
 */

/** One unit's change. */
export interface BitStep {
  unit: number;
  /** That the step adds, negative for a step down. */
  bytes: number;
  /** That the loss grows by. */
  loss: number;
}

/** Steps that are taken together. */
export interface Swap<Step extends BitStep = BitStep> {
  steps: readonly Step[];
  /** Sums over the steps. */
  bytes: number;
  loss: number;
}

/** Steps pay a loss that they take away, or cost one. */
const gain = ({ loss, bytes }: BitStep): number => -loss / bytes;

/**
 * Swaps that fit and should pay, best first: around each step up the steps down that cost least a byte and make room for it,
 * and around each step down the steps up that pay most a byte and fit into what it frees.
 * @param room bytes that are free now
 * @returns no two with the same steps
 */
export function swapsOf<Step extends BitStep>(steps: readonly Step[], room: number): Swap<Step>[] {
  const rising = steps.filter(({ bytes }) => bytes > 0);
  const falling = steps.filter(({ bytes }) => bytes < 0);
  rising.sort((a, b) => gain(b) - gain(a) || a.unit - b.unit);
  falling.sort((a, b) => gain(a) - gain(b) || a.unit - b.unit);
  const found = new Map<string, Swap<Step>>();
  const add = (own: readonly Step[]) => {
    const swap = sumOf(own);
    if (swap.bytes > room || swap.loss >= 0) return;
    const key = own
      .map(({ unit, bytes }) => `${unit} ${Math.sign(bytes)}`)
      .sort()
      .join();
    if (!found.has(key)) found.set(key, swap);
  };
  for (const up of rising) {
    const own: Step[] = [up];
    for (const down of falling) {
      if (sumOf(own).bytes <= room) break;
      if (down.unit !== up.unit) own.push(down);
    }
    add(own);
  }
  for (const down of falling) {
    const own: Step[] = [down];
    for (const up of rising) {
      if (up.unit !== down.unit && up.loss < 0 && sumOf(own).bytes + up.bytes <= room) own.push(up);
    }
    add(own);
  }
  return [...found.values()].sort((a, b) => a.loss - b.loss);
}

/**
 * Sets of swaps to try: some by themselves, and growing sets of those that share no unit and fit together.
 * @param most how many sets
 */
export function swapSets<Step extends BitStep>(
  swaps: readonly Swap<Step>[],
  room: number,
  most: number,
): Swap<Step>[] {
  const alone = swaps.slice(0, Math.ceil(most / 2));
  const together: Swap<Step>[] = [];
  for (const { steps } of swaps) {
    const before = together.at(-1)?.steps ?? [];
    const units = new Set(before.map(({ unit }) => unit));
    if (steps.some(({ unit }) => units.has(unit))) continue;
    const grown = sumOf([...before, ...steps]);
    if (grown.bytes <= room) together.push(grown);
  }
  // The first is among those alone; of many, the largest count as much as the smallest.
  const grown = together.slice(1);
  const left = most - alone.length;
  const every = Math.max(1, grown.length / left);
  const chosen = Array.from(
    { length: Math.min(left, grown.length) },
    (_, i) => Math.ceil((i + 1) * every) - 1,
  );
  return [...alone, ...chosen.map((index) => grown[Math.min(index, grown.length - 1)] as Swap<Step>)];
}

function sumOf<Step extends BitStep>(steps: readonly Step[]): Swap<Step> {
  let [bytes, loss] = [0, 0];
  for (const step of steps) {
    bytes += step.bytes;
    loss += step.loss;
  }
  return { steps, bytes, loss };
}
