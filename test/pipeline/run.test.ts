import { expect, test } from 'vitest';
import type { OutputDirectory } from '../../lib/pipeline/output';
import { runUnits, type WorkUnit } from '../../lib/pipeline/run';

/** Takes every write, and has nothing of an earlier run. */
const nowhere = {
  resultOf: () => undefined,
  write: async () => 0,
  complete: async () => {},
} as unknown as OutputDirectory;

/** Units of so much memory each, and how many of them, and how much of it, were under way at most. */
async function peaksOf(memory: readonly number[], maxMemoryBytes: number) {
  const underWay: number[] = [];
  let most = 0;
  let bytes = 0;
  const units = memory.map(
    (memoryBytes, i): WorkUnit => ({
      key: `${i}`,
      inputBytes: 1,
      memoryBytes,
      outputs: [],
      async run() {
        underWay.push(memoryBytes);
        most = Math.max(most, underWay.length);
        bytes = Math.max(
          bytes,
          underWay.reduce((a, b) => a + b),
        );
        await new Promise((resolve) => setTimeout(resolve, 1 + (i % 3)));
        underWay.splice(underWay.indexOf(memoryBytes), 1);
        return {};
      },
    }),
  );
  await runUnits(units, nowhere, { maxMemoryBytes });
  return { most, bytes };
}

test('units that need all memory run one at a time, however many there are', async () => {
  const all = Number.POSITIVE_INFINITY;
  expect((await peaksOf([1, 1, all, all, all, all, 1, all], 10)).most).toBe(2);
  expect((await peaksOf([all, all, all, all], 10)).most).toBe(1);
});

test('units under way take the memory that there is together, or one of them more', async () => {
  const { most, bytes } = await peaksOf([3, 3, 3, 3, 20, 3, 3, 3], 10);
  expect(most).toBe(3);
  expect(bytes).toBe(20);
});
