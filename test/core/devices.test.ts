import { expect, test } from 'vitest';
import * as q from '../../lib';
import { bestDevice, runOnDevice } from '../../lib/cli/flags';
import { native } from '../../lib/native';
import { DEVICE, hasCuda } from './cuda_device';
import { rejectsCode, throwsCode } from './errors';

const usable = new Set<string>(q.devices().map((device) => device.id));
const missing = (['cuda:0', 'cuda:1', 'cuda:99'] as const).filter((id) => !usable.has(id));

test('CUDA is available exactly where a device of its kind is listed, and else there is one reason', () => {
  const { available, reason } = q.cudaStatus();
  expect(available).toBe(q.devices().some((device) => device.kind === 'cuda'));
  expect(reason === null).toBe(available);
  if (reason !== null) expect(reason).toMatch(/^[a-zA-Z][^\n]{15,}$/);
});

test.each(missing)(
  '%s, which is not here, is refused with the reason wherever it is asked for',
  async (id) => {
    const { available, reason } = q.cudaStatus();
    const why = available ? 'the devices here are cpu' : `no CUDA device can be used: ${reason}`;
    const message = new RegExp(`${id} asked for, but ${why.replace(/[()?]/g, '\\$&')}`);
    using tensor = q.Tensor.from([1], [1]);
    throwsCode(() => q.setDefaultDevice(id), 'ERR_DEVICE', message);
    throwsCode(() => q.Tensor.zeros([1], { device: id }), 'ERR_DEVICE', message);
    throwsCode(() => q.Tensor.from([1], [1], { device: id }), 'ERR_DEVICE', message);
    throwsCode(() => tensor.to(id), 'ERR_DEVICE', message);
    throwsCode(() => q.memory(id), 'ERR_DEVICE', message);
    await rejectsCode(q.synchronize(id), 'ERR_DEVICE', message);
    await rejectsCode(q.startTimer(id), 'ERR_DEVICE', message);
    await rejectsCode(q.stopTimer(id), 'ERR_DEVICE', message);
    expect(q.getDefaultDevice()).toBe('cpu');
  },
);

test('the native side refuses devices that are not here as well', () => {
  throwsCode(() => native.tensorZeros('float32', [1], 'cuda:99'), 'ERR_DEVICE');
  throwsCode(() => native.memory('gpu'), 'ERR_DEVICE');
});

test.each(['cpu', ...(hasCuda ? [DEVICE] : [])] as const)(
  '%s: a timer gives the seconds of the work between its ends, not of what came before',
  async (device) => {
    const x = q.Tensor.zeros([256, 256], { device });
    const started = process.hrtime.bigint();
    await q.startTimer(device);
    const product = q.matmul(x, x);
    const seconds = await q.stopTimer(device);
    const elapsed = Number(process.hrtime.bigint() - started) / 1e9;
    expect(seconds).toBeGreaterThan(0);
    expect(seconds).toBeLessThan(elapsed);
    for (const tensor of [x, product]) tensor.dispose();
  },
);

test.skipIf(!hasCuda)(
  'memory on a CUDA device is counted from allocation to dispose, views not at all',
  async () => {
    await q.synchronize(DEVICE);
    const before = q.memory(DEVICE);
    const host = q.memory().liveBlocks;
    const tensor = q.Tensor.zeros([1000, 7], { device: DEVICE });
    const view = tensor.reshape([7000]);
    expect(q.memory(DEVICE).liveBytes - before.liveBytes).toBe(28_000);
    expect(q.memory(DEVICE).liveBlocks - before.liveBlocks).toBe(1);
    expect(q.memory().liveBlocks).toBe(host);
    tensor.dispose();
    view.dispose();
    await q.synchronize(DEVICE);
    expect(q.memory(DEVICE)).toMatchObject({ liveBytes: before.liveBytes, liveBlocks: before.liveBlocks });
  },
);

test.skipIf(!hasCuda)(
  'more memory than a CUDA device has is refused by name, and the device goes on',
  async () => {
    const bytes = q.devices().find((device) => device.id === DEVICE)?.memoryBytes as number;
    throwsCode(
      () => q.Tensor.zeros([Math.floor(bytes / 4) + 1024], { device: DEVICE }),
      'ERR_OUT_OF_MEMORY',
      new RegExp(`on ${DEVICE}: \\d+ of ${bytes} are free; \\d+ tensors hold \\d+`),
    );
    using tensor = q.Tensor.from([1, 2, 3], [3], { device: DEVICE });
    expect(await tensor.read()).toEqual(Float32Array.of(1, 2, 3));
  },
);

test('a command that is told no device takes the first GPU, never an emulated one, else the CPU', () => {
  const cpu = { id: 'cpu', kind: 'cpu' } as const;
  const emulated = { id: 'cuda-emulated', kind: 'cuda-emulated' } as const;
  const gpu = (n: number) => ({ id: `cuda:${n}`, kind: 'cuda' }) as const;
  expect(bestDevice([cpu])).toBe('cpu');
  expect(bestDevice([cpu, emulated])).toBe('cpu');
  expect(bestDevice([cpu, gpu(1), gpu(2)])).toBe('cuda:1');

  const before = q.getDefaultDevice();
  try {
    runOnDevice({});
    expect(q.getDefaultDevice()).toBe(bestDevice(q.devices()));
    runOnDevice({ device: 'cpu' });
    expect(q.getDefaultDevice()).toBe('cpu');
  } finally {
    q.setDefaultDevice(before);
  }
});
