import { expect, test } from 'vitest';
import { type BitOption, chooseOptions, convexHull, sizeRange } from '../../lib/recipe/bit_plan';
import { random } from '../core/random';

const sum = (options: readonly BitOption[], field: keyof BitOption) =>
  options.reduce((total, option) => total + option[field], 0);

/** Options of falling error and rising bytes, as quantization has them, and some that no one should take. */
function randomUnits(seed: number, count: number) {
  const next = random(seed);
  return Array.from({ length: count }, () => ({
    options: Array.from({ length: 5 }, (_, i) => ({
      bytes: 8 + 8 * i + Math.floor(4 * next()),
      error: next() * 4 ** -i,
    })),
  }));
}

/** The least error of all choices that fit, by trying each. */
function best(units: readonly { options: readonly BitOption[] }[], budget: number): number {
  const [unit, ...others] = units;
  if (unit === undefined) return 0;
  const fits = unit.options.filter(({ bytes }) => bytes <= budget);
  return Math.min(
    ...fits.map(({ bytes, error }) => error + best(others, budget - bytes)),
    Number.POSITIVE_INFINITY,
  );
}

test('a hull falls in error, rises in bytes, pays less and less a byte, and lies under every option', () => {
  for (let seed = 1; seed <= 50; ++seed) {
    const [{ options }] = randomUnits(seed, 1) as [{ options: BitOption[] }];
    const hull = convexHull(options);
    const slopes = hull.slice(1).map((to, i) => {
      const from = hull[i] as BitOption;
      expect(to.bytes).toBeGreaterThan(from.bytes);
      return (from.error - to.error) / (to.bytes - from.bytes);
    });
    expect(slopes).toEqual([...slopes].sort((a, b) => b - a));
    for (const { bytes, error } of options) {
      const above = hull.findIndex((point) => point.bytes > bytes);
      const from = hull.at(above === -1 ? -1 : Math.max(0, above - 1)) as BitOption;
      const to = above <= 0 ? from : (hull[above] as BitOption);
      const along = to === from ? 0 : (bytes - from.bytes) / (to.bytes - from.bytes);
      expect(error).toBeGreaterThanOrEqual(from.error + along * (to.error - from.error) - 1e-12);
    }
  }
});

test('the choice fits, and is at most one step of one unit worse than the best of all choices', () => {
  for (let seed = 1; seed <= 20; ++seed) {
    const units = randomUnits(seed, 6);
    const [least, most] = sizeRange(units);
    for (const part of [0, 0.1, 0.35, 0.5, 0.8, 1]) {
      const budget = least + part * (most - least);
      const chosen = chooseOptions(units, budget) as BitOption[];
      expect(sum(chosen, 'bytes')).toBeLessThanOrEqual(budget);
      const steps = units.flatMap(({ options }) => {
        const hull = convexHull(options);
        return hull.slice(1).map((to, i) => (hull[i] as BitOption).error - to.error);
      });
      const error = sum(chosen, 'error');
      expect(error).toBeGreaterThanOrEqual(best(units, budget) - 1e-12);
      expect(error).toBeLessThanOrEqual(best(units, budget) + Math.max(...steps));
    }
  }
});

test('more bytes never cost error, and all bytes give every unit its least error', () => {
  const units = randomUnits(7, 40);
  const [least, most] = sizeRange(units);
  const errors = Array.from({ length: 21 }, (_, i) =>
    sum(chooseOptions(units, least + (i / 20) * (most - least)) as BitOption[], 'error'),
  );
  expect(errors).toEqual([...errors].sort((a, b) => b - a));
  expect(errors.at(-1)).toBe(
    units.reduce((total, { options }) => total + Math.min(...options.map((o) => o.error)), 0),
  );
  expect(chooseOptions(units, least - 1)).toBeNull();
});

test('where steps pay equally, priority decides, then order', () => {
  const options = [
    { bytes: 1, error: 2 },
    { bytes: 2, error: 1 },
  ];
  const bytes = (priorities: number[]) =>
    chooseOptions(
      priorities.map((priority) => ({ options, priority })),
      4,
    )?.map((option) => option.bytes);
  expect(bytes([1, 1, 1])).toEqual([2, 1, 1]);
  expect(bytes([1, 5, 2])).toEqual([1, 2, 1]);
});
