import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import * as q from '../../lib';

// CUDA kernels run by the emulator, where its build is loaded: QUANTARIA_BUILD=emulated npx vitest run
const emulated = q.devices().some((device) => device.id === 'cuda-emulated');
const DEVICE = 'cuda-emulated';
const root = path.join(__dirname, '..', '..');

const DTYPES = [
  'float32',
  'float16',
  'bfloat16',
  'float8_e4m3',
  'float8_e5m2',
  'int8',
  'uint8',
  'int16',
  'int32',
  'int64',
  'bool',
] as const;

/** Values with every trap of a cast: ties, ends of ranges, NaN, infinities, denormals. */
function traps(): Float32Array {
  const values = [
    0,
    -0,
    0.5,
    1.5,
    2.5,
    -0.5,
    1e-40,
    6e-8,
    2 ** -10,
    127.5,
    128,
    255.5,
    448,
    464,
    480,
    57344,
    65504,
  ];
  values.push(
    65520,
    32767.5,
    2 ** 31,
    2 ** 63,
    1e38,
    Number.POSITIVE_INFINITY,
    Number.NaN,
    1.0078125,
    1.00390625,
  );
  return Float32Array.from(values.flatMap((x) => [x, -x, x * 3, x / 3]));
}

describe.skipIf(!emulated)('cuda-emulated', () => {
  test('is listed and can be the default', async () => {
    const device = q.devices().find((d) => d.id === DEVICE);
    expect(device).toMatchObject({ kind: 'cuda-emulated', computeCapability: '8.0' });
    q.setDefaultDevice(DEVICE);
    try {
      expect(q.Tensor.from([1, 2], [2]).device).toBe(DEVICE);
      expect(q.Tensor.zeros([2]).device).toBe(DEVICE);
      await q.synchronize();
    } finally {
      q.setDefaultDevice('cpu');
    }
  });

  test.each(DTYPES)('%s goes there and back bit for bit, empty tensors too', async (dtype) => {
    using source = q.Tensor.from(traps(), [traps().length]).cast(dtype);
    using there = source.to(DEVICE);
    expect(there.device).toBe(DEVICE);
    const bits = await source.read();
    expect(await there.read()).toEqual(bits);
    expect(await there.to('cpu').read()).toEqual(bits);
    expect(await q.Tensor.zeros([0, 3], { dtype, device: DEVICE }).read()).toHaveLength(0);
    expect(await q.Tensor.zeros([3], { dtype, device: DEVICE }).cast('int32').read()).toEqual(
      new Int32Array(3),
    );
  });

  test.each(DTYPES)('casts from %s to every dtype have the bits of the CPU', async (dtype) => {
    using source = q.Tensor.from(traps(), [traps().length]).cast(dtype);
    using there = source.to(DEVICE);
    for (const to of DTYPES) {
      expect(await there.cast(to).read(), `${dtype} to ${to}`).toEqual(await source.cast(to).read());
    }
  });

  test.each([
    ['float32', 33, 65],
    ['bfloat16', 64, 32],
    ['int8', 1, 70],
    ['int64', 31, 3],
    ['float16', 127, 129],
  ] as const)('transposes and slices of %s [%i, %i] are those of the CPU', async (dtype, rows, cols) => {
    const values = Float32Array.from({ length: rows * cols }, (_, i) => (i * 37) % 127);
    using source = q.Tensor.from(values, [rows, cols], { dtype });
    using there = source.to(DEVICE);
    expect(await there.transpose().read()).toEqual(await source.transpose().read());
    const end = cols - 1;
    expect(await there.slice(1, 0, end).read()).toEqual(await source.slice(1, 0, end).read());
    expect(await there.slice(0, rows >> 1, rows).read()).toEqual(
      await source.slice(0, rows >> 1, rows).read(),
    );
  });

  test.each([
    [3, 40, 24],
    [2, 33, 65],
    [1, 1, 1],
  ])(
    'expert layouts of %i experts, hidden %i, inter %i, convert byte for byte',
    async (experts, hidden, inter) => {
      const bits = (n: number, seed: number) =>
        Uint16Array.from({ length: n }, (_, i) => (i * 40503 + seed) & 0xffff);
      const opts = { dtype: 'bfloat16', device: DEVICE } as const;
      const fc1 = q.Tensor.from(bits(experts * hidden * 2 * inter, 1), [experts, hidden, 2 * inter], opts);
      const fc2 = q.Tensor.from(bits(experts * inter * hidden, 2), [experts, inter, hidden], opts);
      const there = q.moe.groupedToSequential(fc1, fc2);
      const here = q.moe.groupedToSequential(fc1.to('cpu'), fc2.to('cpu'));
      for (const [i, expert] of there.entries()) {
        for (const name of ['gate', 'up', 'down'] as const) {
          expect(expert[name].device).toBe(DEVICE);
          expect(await expert[name].read()).toEqual(await here[i]?.[name].read());
        }
      }
      const back = q.moe.sequentialToGrouped(there);
      expect(await back.fc1.read()).toEqual(await fc1.read());
      expect(await back.fc2.read()).toEqual(await fc2.read());
    },
  );

  test.each([
    ['float16', 3, 40, 24],
    ['bfloat16', 17, 33, 7],
    ['bfloat16', 70, 65, 130],
  ] as const)(
    'products of small integers in %s, %i x %i x %i, are those of the CPU',
    async (dtype, m, k, n) => {
      const whole = (count: number, seed: number) =>
        Float32Array.from({ length: count }, (_, i) => ((i * seed) % 17) - 8);
      const x = q.Tensor.from(whole(m * k, 7), [m, k], { dtype });
      const w = q.Tensor.from(whole(k * n, 5), [k, n], { dtype });
      const bias = q.Tensor.from(whole(n, 3), [n]);
      const there = [x, w, bias].map((tensor) => tensor.to(DEVICE)) as [q.Tensor, q.Tensor, q.Tensor];
      const float32 = { outDtype: 'float32' } as const;
      expect(await q.matmul(there[0], there[1], float32).read()).toEqual(
        await q.matmul(x, w, float32).read(),
      );
      const rows = w.transpose();
      const here = await q.linear(x, rows, { bias }).read();
      expect(await q.linear(there[0], rows.to(DEVICE), { bias: there[2] }).read()).toEqual(here);
      expect(() => q.linear(there[0], rows)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }));
      const floats = there[0].cast('float32');
      expect(() => q.matmul(floats, there[1])).toThrow(/^matmul: .*cuda-emulated/);
    },
  );

  test('an operation without a kernel says which and where, and never runs elsewhere', () => {
    const x = q.Tensor.from([1, 2, 3, 4], [2, 2], { device: DEVICE });
    const named = (operation: string) =>
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED',
        message: expect.stringMatching(new RegExp(`^${operation}: .*cuda-emulated`)),
      });
    expect(() => q.hadamard(x)).toThrow(named('hadamard'));
    expect(() => q.quantize(x, { kind: 'nf4', blockSize: 4 })).toThrow(named('quantize'));
  });

  test('tensors of two devices do not meet', () => {
    const x = q.Tensor.zeros([2, 2], { device: DEVICE });
    const gate = q.Tensor.zeros([2, 2]);
    expect(() => q.moe.sequentialToGrouped([{ gate, up: x, down: gate }])).toThrow(
      expect.objectContaining({ code: 'ERR_DEVICE' }),
    );
  });
});

const addon = path.join(root, 'build', 'emulated', 'quantaria.node');
test.skipIf(emulated || !fs.existsSync(addon))(
  'QUANTARIA_BUILD=emulated loads the build that has the device',
  () => {
    const program = "console.log(require('./dist').devices().map((d) => d.id).join())";
    const { stdout } = spawnSync(process.execPath, ['-e', program], {
      cwd: root,
      env: { ...process.env, QUANTARIA_BUILD: 'emulated' },
      encoding: 'utf8',
    });
    expect(stdout).toBe('cpu,cuda-emulated\n');
  },
);

test.skipIf(emulated)('the device is not in the ordinary build, which says how to get it', () => {
  expect(() => q.Tensor.zeros([1], { device: DEVICE })).toThrow(/npm run build:emulated/);
});
