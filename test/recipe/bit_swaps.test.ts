import { describe, expect, test } from 'vitest';
import { type BitStep, swapSets, swapsOf } from '../../lib/recipe/bit_swaps';
import { random } from '../pipeline/helpers';

const step = (unit: number, bytes: number, loss: number): BitStep => ({ unit, bytes, loss });
const unitsOf = (steps: readonly BitStep[]) => steps.map(({ unit }) => unit).sort();

/** A step up and one down of each unit, some of which would even help. */
function randomSteps(seed: number, units: number): BitStep[] {
  const next = random(seed);
  return Array.from({ length: units }, (_, unit) => {
    const size = 1 + Math.floor(8 * next());
    return [step(unit, size, -next()), step(unit, -size, 1.5 * next() - 0.1)];
  }).flat();
}

describe('swaps', () => {
  test('a step up is paid for by the steps down that cost least a byte', () => {
    const steps = [step(0, 4, -5), step(1, -2, 1), step(2, -2, 3), step(3, -2, 0.5)];
    expect(swapsOf(steps, 0).map(({ steps: own }) => unitsOf(own))).toContainEqual([0, 1, 3]);
  });

  test('a step down pays for several steps up, none of which would be worth it alone', () => {
    const steps = [step(0, 1, -0.5), step(1, 1, -0.6), step(2, 1, -0.4), step(3, -3, 1)];
    expect(swapsOf(steps, 0)).toEqual([
      { steps: [steps[3], steps[1], steps[0], steps[2]], bytes: 0, loss: -0.5 },
    ]);
  });

  test('room that is free needs no step down', () => {
    expect(swapsOf([step(0, 2, -1), step(1, -2, 0.1)], 2)[0]).toMatchObject({ bytes: 2, loss: -1 });
    expect(swapsOf([step(0, 2, -1)], 1)).toEqual([]);
  });

  test('nothing where nothing pays', () => {
    expect(swapsOf([step(0, 1, -1), step(1, -1, 2)], 0)).toEqual([]);
    expect(swapsOf([], 10)).toEqual([]);
    expect(swapSets([], 10, 4)).toEqual([]);
  });

  test.each([1, 2, 3, 4, 5])(
    'random steps (%s): all fit, pay, move a unit once, and the best comes first',
    (seed) => {
      const steps = randomSteps(seed, 30);
      for (const room of [0, 3, 20]) {
        const swaps = swapsOf(steps, room);
        expect(swaps.length).toBeGreaterThan(5);
        const losses = swaps.map(({ loss }) => loss);
        expect(losses).toEqual([...losses].sort((a, b) => a - b));
        const sets = swapSets(swaps, room, 12);
        expect(sets.length).toBeLessThanOrEqual(12);
        expect(sets.slice(0, 6)).toEqual(swaps.slice(0, 6));
        for (const { steps: own, bytes, loss } of [...swaps, ...sets]) {
          expect(new Set(own.map(({ unit }) => unit)).size).toBe(own.length);
          expect(bytes).toBe(own.reduce((sum, { bytes: each }) => sum + each, 0));
          expect(bytes).toBeLessThanOrEqual(room);
          expect(loss).toBeCloseTo(
            own.reduce((sum, { loss: each }) => sum + each, 0),
            10,
          );
          expect(loss).toBeLessThan(0);
        }
        const best = Math.min(...sets.map(({ loss }) => loss));
        expect(best).toBeLessThanOrEqual(losses[0] as number);
      }
    },
  );
});
