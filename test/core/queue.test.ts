import { totalmem } from 'node:os';
import { expect, test } from 'vitest';
import { dequantize, memory, QuantizedTensor, quantize, synchronize, Tensor } from '../../lib';
import { native } from '../../lib/native';
import { DEVICE, EMULATED, ON_CPU } from '../device';
import { rejectsCode, throwsCode } from './errors';
import { normals } from './random';

const NF4 = { kind: 'nf4', blockSize: 64 } as const;
const collect = (globalThis as { gc?: () => void }).gc as () => void;

/** Memory is given back by the queue and by finalizers: both get their turn. */
async function settle(): Promise<void> {
  for (let i = 0; i < 4; i++) {
    collect();
    await synchronize();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A weight whose quantization fails on the queue. */
const poisoned = () => Tensor.from([1, Number.NaN, 3, 4], [2, 2]);

test('an operation sees what those before it wrote, and nothing of those after it', async () => {
  const target = Tensor.native(Tensor.zeros([4]), 'target');
  const seen: Tensor[] = [];
  for (let i = 1; i <= 50; i++) {
    native.tensorCopyInto(Tensor.native(Tensor.from([i, i, i, i], [4]), 'source'), target);
    seen.push(Tensor.wrap(native.tensorCopy(target, 'float32')));
  }
  for (const [i, tensor] of seen.entries()) expect((await tensor.read())[0]).toBe(i + 1);
});

test('reads settle in the order in which they were asked for', async () => {
  const large = Tensor.zeros([3_000_000]);
  const order: number[] = [];
  const reads = [large, Tensor.zeros([1]), large, Tensor.zeros([2])].map((tensor, i) =>
    tensor.read().then(() => order.push(i)),
  );
  await Promise.all(reads);
  expect(order).toEqual([0, 1, 2, 3]);
});

test('a failure rejects the reads of everything that depends on it, and of nothing else', async () => {
  const before = Tensor.from([1], [1]);
  const failed = dequantize(quantize(poisoned(), NF4));
  const after = Tensor.from([2], [1]);
  const dependent = [
    failed,
    failed.cast('int8'),
    failed.transpose(),
    failed.reshape([4]),
    failed.slice(0, 0, 1),
  ];
  dependent.push(dequantize(quantize(failed, NF4)), (dependent[2] as Tensor).cast('bfloat16'));
  for (const tensor of dependent) await rejectsCode(tensor.read(), 'ERR_ARGUMENT', /row 0, column 1/);
  for (const tensor of dependent) await rejectsCode(tensor.toFloat32(), 'ERR_ARGUMENT', /row 0, column 1/);
  expect([await before.read(), await after.read()]).toEqual([Float32Array.of(1), Float32Array.of(2)]);
  await synchronize(); // told already
});

test('synchronize tells a failure that no read has told, once', async () => {
  quantize(poisoned(), NF4);
  quantize(poisoned(), NF4);
  await rejectsCode(synchronize(), 'ERR_ARGUMENT', /row 0, column 1/);
  await synchronize();
});

test('a failure that a read has told is not told again', async () => {
  const failed = dequantize(quantize(poisoned(), NF4));
  await rejectsCode(failed.read(), 'ERR_ARGUMENT');
  await synchronize();
});

test('what is disposed while work is queued on it is read to the end', async () => {
  const side = EMULATED ? 200 : 1000;
  const data = normals(side * side, 1);
  const results = Array.from({ length: 8 }, () => {
    const w = Tensor.from(data, [side, side]);
    const turned = w.transpose();
    w.dispose();
    const q = quantize(turned, NF4);
    turned.dispose();
    const values = dequantize(q);
    q.dispose();
    return values;
  });
  const first = await (results[0] as Tensor).read();
  for (const tensor of results)
    expect(Buffer.compare(Buffer.from((await tensor.read()).buffer), Buffer.from(first.buffer))).toBe(0);
  const reading = (results[0] as Tensor).read();
  for (const tensor of results) tensor.dispose();
  expect((await reading).length).toBe(side * side);
});

test('handles that are forgotten give their memory back when they are collected', async () => {
  await settle();
  const start = memory(DEVICE);
  const forget = (seed: number): void => {
    const q = quantize(Tensor.from(normals(4096, seed), [64, 64]), NF4);
    dequantize(q).transpose();
    void QuantizedTensor.fromParts(NF4, [64, 64], q.parts);
  };
  for (let i = 0; i < 20; i++) forget(i);
  expect(memory(DEVICE).liveBytes).toBeGreaterThan(start.liveBytes + 20 * 4096 * 4);
  await settle();
  expect(memory(DEVICE)).toMatchObject({ liveBytes: start.liveBytes, liveBlocks: start.liveBlocks });
});

test('dispose gives memory back without the collector', async () => {
  await settle();
  const start = memory(DEVICE).liveBytes;
  const tensors = Array.from({ length: 10 }, () => Tensor.zeros([1_000_000]));
  expect(memory(DEVICE).liveBytes - start).toBeGreaterThanOrEqual(40_000_000);
  for (const tensor of tensors) tensor.dispose();
  await synchronize();
  expect(memory(DEVICE).liveBytes).toBe(start);
});

test('garbage alone does not fill the memory: the collector runs for bytes that it cannot see', async () => {
  await settle();
  const start = memory(DEVICE).liveBytes;
  let peak = 0;
  for (let i = 0; i < 300; i++) {
    Tensor.zeros([4_000_000]); // 16 MB each, 4.8 GB in all
    if (i % 10 === 0) await synchronize();
    await new Promise(setImmediate);
    peak = Math.max(peak, memory(DEVICE).liveBytes - start);
  }
  expect(peak).toBeLessThan(1_600_000_000);
});

test('timers fire on time while the queue works', async () => {
  const side = EMULATED ? 64 : 1024;
  const w = Tensor.from(normals(side * side, 2), [side, side]);
  const started = performance.now();
  const work = Array.from({ length: 6 }, () => quantize(w, { kind: 'mx', element: 'e2m1', preScale: true }));
  const queued = performance.now() - started;
  let done = false;
  const finished = synchronize().then(() => {
    done = true;
  });
  let [ticks, latest] = [0, performance.now()];
  let longest = 0;
  while (!done) {
    await new Promise((resolve) => setTimeout(resolve, 1));
    const now = performance.now();
    longest = Math.max(longest, now - latest);
    latest = now;
    ticks++;
  }
  await finished;
  const total = performance.now() - started;
  for (const q of work) q.dispose();
  // Queueing is the checks and the allocations; the rest of the time belongs to the loop.
  expect(total).toBeGreaterThan(100);
  expect(queued).toBeLessThan(total / 4);
  expect(longest).toBeLessThan(Math.max(50, total / 4));
  expect(ticks).toBeGreaterThan(10);
});

test('memory beyond what the machine has is refused at once', () => {
  throwsCode(
    () => Tensor.zeros([10 * totalmem()], { dtype: 'uint8' }),
    'ERR_OUT_OF_MEMORY',
    ON_CPU ? /cannot allocate .* available/ : new RegExp(`on ${DEVICE}: .* are free`),
  );
  throwsCode(() => Tensor.zeros([2 ** 50]), 'ERR_OUT_OF_MEMORY');
  const small = Tensor.zeros([1, 1]);
  throwsCode(
    () =>
      dequantize(quantize(Tensor.zeros([2 ** 45, 0]), { kind: 'fp8', format: 'e4m3', granularity: 'row' })),
    'ERR_OUT_OF_MEMORY',
  );
  small.dispose();
});

test.each([
  ['large blocks', Math.floor(totalmem() / 8)],
  ['blocks of 60 MB', 60_000_000],
])(
  'promises count: %s that nobody has touched yet are refused before they exceed the machine',
  async (_, bytes) => {
    await settle();
    const held: ReturnType<typeof native.tensorEmpty>[] = [];
    try {
      throwsCode(() => {
        while (held.length * bytes < 2 * totalmem()) held.push(native.tensorEmpty('uint8', [bytes], 'cpu'));
      }, 'ERR_OUT_OF_MEMORY');
      expect(held.length * bytes).toBeLessThan(totalmem());
      expect(held.length).toBeGreaterThan(0);
    } finally {
      for (const tensor of held) native.tensorDispose(tensor);
    }
    Tensor.zeros([1000, 1000]).dispose(); // and goes on
  },
);
