import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { DEVICE, hasCuda } from './cuda_device';
import { rejectsCode, throwsCode } from './errors';
import { normals } from './random';

/** Workers run plain JavaScript: the compiled package, which loads the same addon. */
const compiled = join(__dirname, '..', '..', 'dist', 'index.js');

// Operations noted down in CUDA graphs.
const int4 = { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 32 } as const;

const bitsOf = async (tensor: q.Tensor) => Array.from((await tensor.read()) as Uint16Array);

function operands() {
  const x = q.Tensor.from(normals(3 * 64, 1), [3, 64], { dtype: 'float16', device: DEVICE });
  const weight = q.quantize(q.Tensor.from(normals(40 * 64, 2), [40, 64]), int4).to(DEVICE);
  return { x, weight };
}

describe.skipIf(!hasCuda)(`graphs on ${DEVICE}`, () => {
  test('a launch gives the bits of the calls it stands for, each time', async () => {
    const { x, weight } = operands();
    const once = q.linear(x, weight);
    const twice = q.matmul(
      once,
      q.Tensor.from(normals(40 * 8, 3), [40, 8], { dtype: 'float16', device: DEVICE }),
    );
    const wanted = [await bitsOf(once), await bitsOf(twice)];
    const right = q.Tensor.from(normals(40 * 8, 3), [40, 8], { dtype: 'float16', device: DEVICE });
    let results: q.Tensor[] = [];
    const graph = await q.captureGraph(DEVICE, () => {
      const y = q.linear(x, weight);
      results = [y, q.matmul(y, right)];
    });
    expect(await bitsOf(results[0] as q.Tensor)).not.toEqual(wanted[0]); // noted down, not done
    for (let i = 0; i < 3; i++) {
      graph.launch();
      expect(await Promise.all(results.map(bitsOf))).toEqual(wanted);
    }
    graph.dispose();
  });

  test('its memory is kept until it is disposed of, though its results were', async () => {
    const { x, weight } = operands();
    q.linear(x, weight).dispose();
    await q.synchronize(DEVICE);
    const before = q.memory(DEVICE).liveBlocks;
    const graph = await q.captureGraph(DEVICE, () => {
      for (let i = 0; i < 5; i++) q.linear(x, weight).dispose();
    });
    expect(q.memory(DEVICE).liveBlocks).toBeGreaterThanOrEqual(before + 5);
    graph.launch();
    await q.synchronize(DEVICE);
    graph.dispose();
    graph.dispose();
    await q.synchronize(DEVICE);
    expect(q.memory(DEVICE).liveBlocks).toBe(before);
    throwsCode(() => graph.launch(), 'ERR_DISPOSED');
  });

  test('tensors that are disposed of meanwhile go back afterwards', async () => {
    const { x, weight } = operands();
    q.linear(x, weight).dispose();
    const unneeded = q.Tensor.zeros([1000], { device: DEVICE });
    await q.synchronize(DEVICE);
    const before = q.memory(DEVICE).liveBlocks;
    const graph = await q.captureGraph(DEVICE, () => unneeded.dispose());
    await q.synchronize(DEVICE);
    expect(q.memory(DEVICE).liveBlocks).toBe(before - 1);
    graph.dispose();
  });

  test('what waits for the device is refused, with a graph that lacks it, and the device goes on', async () => {
    const { x, weight } = operands();
    const wanted = await bitsOf(q.linear(x, weight));
    await rejectsCode(
      q.captureGraph(DEVICE, () => {
        q.linear(x, weight).dispose();
        q.Tensor.from([1, 2, 3], [3], { device: DEVICE });
      }),
      'ERR_UNSUPPORTED',
      /a copy from the host cannot be part of a graph/,
    );
    expect(await bitsOf(q.linear(x, weight))).toEqual(wanted);
    await q.synchronize(DEVICE);
  });

  test('an error of the caller ends the capture', async () => {
    const { x, weight } = operands();
    const wanted = await bitsOf(q.linear(x, weight));
    await expect(
      q.captureGraph(DEVICE, () => {
        throw new RangeError('mine');
      }),
    ).rejects.toThrow('mine');
    expect(await bitsOf(q.linear(x, weight))).toEqual(wanted);
  });

  test('what is no function is refused before a capture begins', async () => {
    for (const run of [undefined, null, 3, [], {}])
      await rejectsCode(q.captureGraph(DEVICE, run as never), 'ERR_ARGUMENT', /^run: .* a function$/);
    const { x, weight } = operands();
    expect((await q.linear(x, weight).toFloat32()).every(Number.isFinite)).toBe(true);
  });

  test('two captures of one device at a time are refused', async () => {
    let second: Promise<unknown> = Promise.resolve();
    const first = await q.captureGraph(DEVICE, () => {
      second = rejectsCode(
        q.captureGraph(DEVICE, () => {}),
        'ERR_ARGUMENT',
        /captured already/,
      );
    });
    await second;
    first.dispose();
  });

  test.skipIf(!existsSync(compiled))(
    'a worker that ends within a capture leaves the device to others',
    async () => {
      const worker = new Worker(
        `const q = require(${JSON.stringify(compiled)});
       q.captureGraph('${DEVICE}', () => {
         q.Tensor.zeros([4], { device: '${DEVICE}' }).cast('float16');
         require('node:worker_threads').parentPort.postMessage('within');
         for (;;);
       });`,
        { eval: true },
      );
      await new Promise((resolve) => worker.once('message', resolve));
      await rejectsCode(
        q.captureGraph(DEVICE, () => {}),
        'ERR_ARGUMENT',
      );
      await worker.terminate();
      const x = q.Tensor.from([1, 2, 3], [3], { device: DEVICE });
      expect(await x.cast('float16').toFloat32()).toEqual(Float32Array.of(1, 2, 3));
      let y = x;
      const graph = await q.captureGraph(DEVICE, () => {
        y = x.cast('float16');
      });
      graph.launch();
      expect(await y.toFloat32()).toEqual(Float32Array.of(1, 2, 3));
      graph.dispose();
    },
  );
});

test('operations of the CPU are not launched from graphs', async () => {
  await rejectsCode(
    q.captureGraph('cpu', () => {}),
    'ERR_UNSUPPORTED',
  );
});
