import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { expect, test } from 'vitest';
import { memory, synchronize, Tensor } from '../../lib';

const root = join(__dirname, '..', '..');
/** Workers run plain JavaScript: the compiled package, which loads the same addon. */
const compiled = join(root, 'dist', 'index.js');

function start(body: string): Worker {
  return new Worker(
    `const q = require(${JSON.stringify(compiled)}); const { parentPort } = require('node:worker_threads'); ${body}`,
    {
      eval: true,
    },
  );
}
const message = (worker: Worker) =>
  new Promise<unknown>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });

test.skipIf(!existsSync(compiled))(
  'several workers and the main thread use the package at once',
  async () => {
    const workers = [1, 2, 3].map((n) =>
      start(`
      const w = q.Tensor.from(Float32Array.from({ length: 4096 }, (_, i) => (i % 7) - ${n}), [64, 64]);
      q.dequantize(q.quantize(w, { kind: 'int', bits: 8, symmetric: true, granularity: 'row' })).read()
        .then((values) => parentPort.postMessage(values.slice(0, 3)));
    `),
    );
    using own = Tensor.from([1, 2], [2]);
    const results = (await Promise.all(workers.map(message))) as Float32Array[];
    expect(await own.read()).toEqual(Float32Array.of(1, 2));
    results.forEach((values, i) => {
      const n = i + 1;
      const absmax = Math.max(6 - n, n);
      // Half a step of 8 bits is the most that a value can be off.
      for (const [j, value] of values.entries()) {
        expect(Math.abs(value - (j - n))).toBeLessThanOrEqual((absmax / 127) * 0.501);
      }
    });
    await Promise.all(workers.map((worker) => worker.terminate()));
  },
);

test.skipIf(!existsSync(compiled))(
  'a worker that ends by itself waits for the promises that are pending',
  async () => {
    const worker = start(`
    const t = q.Tensor.zeros([2000000]);
    t.read().then((values) => parentPort.postMessage(values.length));
  `);
    const exit = new Promise((resolve) => worker.once('exit', resolve));
    expect(await message(worker)).toBe(2_000_000);
    expect(await exit).toBe(0);
  },
);

test.skipIf(!existsSync(compiled))(
  'terminating workers with work under way ends neither the process nor the queue',
  async () => {
    await synchronize('cpu'); // which workers use, whatever the device of these tests
    const before = memory('cpu').liveBlocks;
    for (let round = 0; round < 6; round++) {
      const worker = start(`
      const w = q.Tensor.from(Float32Array.from({ length: 1 << 18 }, (_, i) => Math.sin(i)), [512, 512]);
      for (let i = 0; i < 20; i++) {
        const values = q.dequantize(q.quantize(w, { kind: 'mx', element: 'e2m1', preScale: true }));
        values.read().then(() => {}); // into memory of the worker
        q.openCheckpoint('/nowhere').catch(() => {});
      }
      parentPort.postMessage('queued');
    `);
      await message(worker);
      await worker.terminate();
      using tensor = Tensor.from([round], [1]);
      expect(await tensor.read()).toEqual(Float32Array.of(round));
    }
    await synchronize('cpu');
    expect(memory('cpu').liveBlocks).toBe(before);
  },
);
