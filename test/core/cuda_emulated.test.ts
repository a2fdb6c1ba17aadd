import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { runOnCpu } from '../../lib/cli/flags';
import { DEVICE, hasCuda } from './cuda_device';

// CUDA kernels, on a GPU or, where its build is loaded, by the emulator: QUANTARIA_BUILD=emulated npx vitest run
const emulated = DEVICE === 'cuda-emulated' && hasCuda;
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

/** Every kind of stored form: widths, zero points, short groups, blocks that run across rows, nested scales. */
const SCHEMES: q.QuantScheme[] = [
  ...([2, 3, 4, 5, 6, 8, 16] as const).map(
    (bits) =>
      ({ kind: 'int', bits, symmetric: bits % 2 === 0, granularity: 'group', groupSize: 32 }) as const,
  ),
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 10 },
  { kind: 'int', bits: 4, symmetric: false, granularity: 'column' },
  { kind: 'int', bits: 8, symmetric: true, range: 'full', granularity: 'row' },
  { kind: 'int', bits: 3, symmetric: false, granularity: 'tensor' },
  { kind: 'nf4', blockSize: 64 },
  { kind: 'nf4', blockSize: 32, doubleQuant: true },
  { kind: 'fp4', blockSize: 24 },
  { kind: 'e3m0', blockSize: 33 },
  { kind: 'dynamic8', blockSize: 32 },
  { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  { kind: 'fp8', format: 'e5m2', granularity: 'tensor' },
  ...(['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'] as const).map(
    (element) => ({ kind: 'mx', element, preScale: element === 'e3m2' }) as const,
  ),
  { kind: 'llm.int8' },
];

const label = (scheme: q.QuantScheme) => JSON.stringify(scheme).replace(/[{}"]/g, '');

/** Repeatable values between -1 and 1, some of them large. */
function spread(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    const value = state / 2 ** 31;
    return state % 61 === 0 ? value * 8 : value;
  });
}

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

/** Every coordinate within 4 eps sqrt(K) sum |x||w| of the float64 product, and one rounding of the weight. */
function expectWithinBound(
  got: Float32Array,
  x: Float32Array,
  w: Float32Array,
  bias: Float32Array,
  [m, n, k]: readonly [number, number, number],
  rounding: number,
): void {
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = bias[j] as number;
      let magnitude = Math.abs(sum);
      for (let p = 0; p < k; p++) {
        const term = (x[i * k + p] as number) * (w[j * k + p] as number);
        sum += term;
        magnitude += Math.abs(term);
      }
      const error = Math.abs((got[i * n + j] as number) - sum);
      const bound = (4 * 2 ** -24 * Math.sqrt(k + 1) + rounding) * magnitude;
      if (!(error <= bound))
        throw new Error(`${m} x ${n} x ${k}: (${i}, ${j}) is ${got[i * n + j]}, not ${sum}`);
    }
  }
}

describe.skipIf(!hasCuda)(DEVICE, () => {
  test('is listed and can be the default', async () => {
    const device = q.devices().find((d) => d.id === DEVICE);
    expect(device).toMatchObject({ kind: emulated ? 'cuda-emulated' : 'cuda' });
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
    ['bfloat16', 72, 136], // in pieces of 16 bytes from here on
    ['int32', 36, 100],
    ['uint8', 144, 16],
    ['int64', 34, 2],
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
    [2, 72, 200],
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
      expect(await q.matmul(floats, there[1]).read()).toEqual(await q.matmul(x, w, float32).read());
    },
  );

  test('float32 products carry NaN and infinities within their row', async () => {
    const x = q.Tensor.from([1, 2, Number.NaN, 4, Number.POSITIVE_INFINITY, 6], [3, 2]);
    const w = q.Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]);
    const there = await q.linear(x.to(DEVICE), w.to(DEVICE)).read();
    expect(there).toEqual(await q.linear(x, w).read());
    const empty = q.Tensor.zeros([0, 2], { device: DEVICE });
    expect(q.linear(empty, w.to(DEVICE)).shape).toEqual([0, 3]);
    const nothing = q.Tensor.zeros([3, 0], { device: DEVICE });
    expect(await q.linear(nothing, nothing).read()).toEqual(new Float32Array(9));
  });

  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    'a weight of %s goes there and back, and has the values of the CPU there',
    async (_, scheme) => {
      for (const [out, inFeatures] of [
        [33, 96],
        [7, 45],
        [0, 3],
      ] as const) {
        using w = q.Tensor.from(spread(out * inFeatures, 5), [out, inFeatures]);
        using here = q.quantize(w, scheme);
        using there = here.to(DEVICE);
        expect(there.device).toBe(DEVICE);
        for (const dtype of ['float32', 'bfloat16'] as const) {
          const expected = await q.dequantize(here, { dtype }).read();
          expect(await q.dequantize(there, { dtype }).read()).toEqual(expected);
        }
        using back = there.to('cpu');
        for (const [name, tensor] of Object.entries(here.stored)) {
          expect(await back.stored[name]?.read(), name).toEqual(await tensor.read());
        }
      }
    },
  );

  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    'products with a weight of %s stay within the bound of float32 sums',
    async (_, scheme) => {
      for (const [m, n, k] of [
        [1, 20, 96],
        [17, 65, 128],
        [5, 9, 45],
      ] as const) {
        const x = q.Tensor.from(spread(m * k, 3), [m, k]);
        const weight = q.quantize(q.Tensor.from(spread(n * k, 5), [n, k]), scheme);
        const bias = q.Tensor.from(spread(n, 7), [n]);
        const values = await q.dequantize(weight).toFloat32();
        for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
          const input = x.cast(dtype);
          const rows = await input.toFloat32();
          const opts = { bias: bias.to(DEVICE), outDtype: 'float32', compute: 'float32' } as const;
          const got = await q.linear(input.to(DEVICE), weight.to(DEVICE), opts).toFloat32();
          expectWithinBound(got, rows, values, await bias.toFloat32(), [m, n, k], 0);
          if (scheme.kind === 'llm.int8') continue; // has a product of its own
          const byDefault = await q
            .linear(input.to(DEVICE), weight.to(DEVICE), { ...opts, compute: 'auto' })
            .toFloat32();
          const rounding = dtype === 'float32' ? 0 : dtype === 'float16' ? 2 ** -11 : 2 ** -8;
          const rounded = scheme.kind === 'int' ? 0 : rounding;
          expectWithinBound(byDefault, rows, values, await bias.toFloat32(), [m, n, k], rounded);
        }
      }
    },
  );

  test('a weight that products on the CPU have put into their order moves row by row', async () => {
    using w = q.Tensor.from(spread(40 * 96, 5), [40, 96]);
    using x = q.Tensor.from(spread(3 * 96, 3), [3, 96]);
    for (const scheme of [SCHEMES[2], SCHEMES[13], SCHEMES[20]] as q.QuantScheme[]) {
      using here = q.quantize(w, scheme);
      const values = await q.dequantize(here).read();
      await here.pack();
      const product = await q.linear(x, here).read();
      using there = here.to(DEVICE);
      // Queued while the copy is: it takes the codes as they were.
      expect(await q.linear(x, here).read()).toEqual(product);
      expect(await q.dequantize(there).read()).toEqual(values);
      await there.pack();
      using shared = there.to(DEVICE);
      there.dispose();
      expect(await q.dequantize(shared.to('cpu')).read()).toEqual(values);
    }
  });

  test('a command that moves bytes refuses it, rather than leave it idle in silence', () => {
    expect(() => runOnCpu({ device: DEVICE })).toThrow(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED',
        message: expect.stringContaining(`--device ${DEVICE}`),
      }),
    );
  });

  test('a checkpoint is read to the device that is named, else to the default one', async () => {
    const name = 'language_model.model.layers.0.mlp.experts.fc2.weight';
    const checkpoint = await q.openCheckpoint(path.join(root, 'examples', 'aria-bytes'));
    const expected = await (await checkpoint.read(name, { device: 'cpu', range: [1, 3] })).read();
    const read = [await checkpoint.read(name, { device: DEVICE, range: [1, 3] })];
    const before = q.getDefaultDevice();
    q.setDefaultDevice(DEVICE);
    try {
      read.push(await checkpoint.read(name, { range: [1, 3] }));
    } finally {
      q.setDefaultDevice(before);
    }
    checkpoint.close();
    for (const tensor of read) {
      expect(tensor.device).toBe(DEVICE);
      expect(await tensor.read()).toEqual(expected);
    }
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
  expect(() => q.Tensor.zeros([1], { device: 'cuda-emulated' })).toThrow(/npm run build:emulated/);
});
