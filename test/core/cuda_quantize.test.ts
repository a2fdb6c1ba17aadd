import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { native } from '../../lib/native';
import {
  bitcast,
  offsetCodes,
  packBits,
  packPlanar,
  swapNibbles,
  unpackBits,
  unpackPlanar,
} from '../../lib/ops/bits';
import { normals } from './random';

// Quantization and the bit operations of formats by the emulated CUDA device: byte for byte what the CPU gives.
const emulated = q.devices().some((device) => device.id === 'cuda-emulated');
const DEVICE = 'cuda-emulated';

const granularities = [
  { granularity: 'group', groupSize: 32 },
  { granularity: 'group', groupSize: 10 },
  { granularity: 'row' },
  { granularity: 'column' },
  { granularity: 'tensor' },
] as const;

const INTEGERS: q.QuantScheme[] = [
  ...([2, 3, 4, 5, 6, 8, 16] as const).flatMap((bits) =>
    [true, false].map(
      (symmetric) =>
        ({ kind: 'int', bits, symmetric, ...(granularities[bits % 5] as object) }) as q.IntScheme,
    ),
  ),
  ...granularities.flatMap((granularity) =>
    (['float32', 'float16', 'bfloat16'] as const).map(
      (scaleDtype) => ({ kind: 'int', bits: 4, symmetric: false, scaleDtype, ...granularity }) as q.IntScheme,
    ),
  ),
  ...granularities.flatMap((granularity) =>
    [true, false].map(
      (symmetric) => ({ kind: 'int', bits: 4, symmetric, search: 'mse', ...granularity }) as q.IntScheme,
    ),
  ),
  ...([3, 8] as const).map(
    (bits) => ({ kind: 'int', bits, symmetric: true, range: 'full', ...granularities[0] }) as q.IntScheme,
  ),
];

const BOOKS: q.QuantScheme[] = (['nf4', 'fp4', 'e3m0'] as const).flatMap((kind) => [
  { kind, blockSize: 64 },
  { kind, blockSize: 24, doubleQuant: true },
  { kind, blockSize: 33 },
]);

const FLOATS: q.QuantScheme[] = [
  ...(['e4m3', 'e5m2'] as const).flatMap((format) =>
    (['row', 'tensor'] as const).map((granularity) => ({ kind: 'fp8', format, granularity }) as const),
  ),
  ...(['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'] as const).flatMap((element) =>
    (['even', 'nearest', 'floor'] as const).map(
      (rounding) => ({ kind: 'mx', element, rounding, preScale: rounding === 'even' }) as const,
    ),
  ),
];

const SCHEMES: q.QuantScheme[] = [
  ...INTEGERS,
  ...BOOKS,
  { kind: 'dynamic8', blockSize: 32 },
  { kind: 'dynamic8', blockSize: 45 },
  ...FLOATS,
  { kind: 'llm.int8' },
];

const label = (scheme: q.QuantScheme) => JSON.stringify(scheme).replace(/[{}"]/g, '');

/** Groups of zeros of both signs, denormals, one value, ties of a grid, float32's ends; then ordinary ones. */
function traps(count: number, most: number): Float32Array {
  const values = normals(count, 11);
  const put = (from: number, pattern: readonly number[], length: number) => {
    for (let i = 0; i < length && from + i < count; i++)
      values[from + i] = pattern[i % pattern.length] as number;
  };
  put(0, [0, -0], 64);
  put(64, [2 ** -140, -(2 ** -149), 0], 64);
  put(128, [-0, 2 ** -149], 64);
  put(192, [most, -most, most / 2, 1], 64);
  put(256, [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, 7], 64);
  put(320, [1e-30, -3e-31], 64);
  put(384, [most, 0, 2 ** -126], 64);
  return values;
}

async function bytesOf(tensor: q.Tensor): Promise<Buffer> {
  const values = await tensor.read();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

/** The stored form of both devices, and how far the relative errors are apart. */
async function expectSameForm(w: q.Tensor, scheme: q.QuantScheme, transposed: boolean): Promise<void> {
  const there = w.to(DEVICE);
  const matrix = (tensor: q.Tensor) => {
    const handle = q.Tensor.native(tensor, 'w');
    return transposed ? native.tensorTransposed(handle) : handle;
  };
  const here = native.quantize(matrix(w), scheme);
  const form = native.quantize(matrix(there), scheme);
  expect(Object.keys(form)).toEqual(Object.keys(here));
  const [relative, expected] = await Promise.all(
    [form, here].map(async (stored) => (await q.Tensor.wrap(stored.relativeError!).toFloat32())[0] as number),
  );
  // The CPU sums in float32 lanes.
  const tolerance = 2e-5 * (expected as number) + 1e-12;
  if (Number.isFinite(expected))
    expect(Math.abs((relative as number) - (expected as number))).toBeLessThanOrEqual(tolerance);
  for (const name of Object.keys(here)) {
    if (name === 'relativeError') continue;
    const [got, wanted] = await Promise.all(
      [form, here].map((stored) => bytesOf(q.Tensor.wrap(stored[name]!))),
    );
    const at = (wanted as Buffer).findIndex((byte, i) => byte !== got![i]);
    expect(`${name}: byte ${at} of ${got!.length}`).toBe(`${name}: byte -1 of ${wanted!.length}`);
  }
}

describe.skipIf(!emulated)('on cuda-emulated', () => {
  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    'quantize by %s gives the bytes of the CPU: ties, denormals, zeros, ends of float32',
    async (_, scheme) => {
      for (const [rows, cols] of [
        [13, 70],
        [4, 128],
        [1, 1],
      ] as const) {
        const most = scheme.kind === 'llm.int8' ? 65504 : 3.4028234663852886e38;
        const w = q.Tensor.from(traps(rows * cols, most), [rows, cols]);
        await expectSameForm(w, scheme, false);
        await expectSameForm(w, scheme, true);
        for (const dtype of ['float16', 'bfloat16'] as const)
          await expectSameForm(
            q.Tensor.from(normals(rows * cols, 3), [rows, cols], { dtype }),
            scheme,
            dtype === 'float16',
          );
      }
    },
  );

  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    'quantize by %s takes matrices without elements, and views',
    async (_, scheme) => {
      for (const shape of [
        [0, 5],
        [3, 0],
        [0, 0],
      ] as const)
        await expectSameForm(q.Tensor.from(new Float32Array(0), [...shape]), scheme, false);
      const whole = q.Tensor.from(normals(20 * 96, 5), [20, 96], { dtype: 'bfloat16' });
      const [here, there] = [whole, whole.to(DEVICE)].map((tensor) =>
        q.quantize(tensor.slice(1, 8, 72).slice(0, 1, 19, 2), scheme),
      );
      for (const [name, tensor] of Object.entries(here!.stored))
        expect(await bytesOf(there!.stored[name] as q.Tensor), name).toEqual(await bytesOf(tensor));
    },
  );

  test('the offset of nested absmax is that of the CPU for any number of blocks', async () => {
    for (const blocks of [1, 7, 8, 31, 32, 33, 100, 255, 256, 257, 600, 1100, 20000]) {
      const w = q.Tensor.from(normals(blocks * 2, blocks), [2, blocks]);
      await expectSameForm(w, { kind: 'nf4', blockSize: 2, doubleQuant: true }, false);
    }
  });

  test('NaN and infinities are refused where the weight is read, by their first place, as on the CPU', async () => {
    const kinds = SCHEMES.filter((scheme, i) => SCHEMES.findIndex((s) => s.kind === scheme.kind) === i);
    for (const scheme of [...kinds, ...INTEGERS.slice(-16)]) {
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const values = normals(6 * 40, 3);
        values[3 * 40 + 7] = bad;
        values[3 * 40 + 30] = Number.NaN;
        values[5 * 40 + 1] = Number.NEGATIVE_INFINITY;
        const w = q.Tensor.from(values, [6, 40]);
        const message = async (tensor: q.Tensor) => {
          const form = q.quantize(tensor, scheme);
          return await (form.stored.packed as q.Tensor).read().then(
            () => 'no error',
            (error: Error) => error.message,
          );
        };
        const here = await message(w);
        expect(here).toMatch(/^w: .* at row 3, column 7, magnitudes under/);
        expect(await message(w.to(DEVICE)), label(scheme)).toBe(here);
      }
    }
    const large = q.Tensor.from([1, 65519, 2, 65520], [2, 2]);
    await expect(
      (q.quantize(large.to(DEVICE), { kind: 'llm.int8' }).stored.packed as q.Tensor).read(),
    ).rejects.toThrow(/65520 at row 1, column 1, magnitudes under 65520/);
    await q.synchronize(DEVICE);
  });

  test('the parts of a weight on the device are those on the CPU, and make it again', async () => {
    const w = q.Tensor.from(normals(9 * 64, 7), [9, 64]);
    for (const scheme of SCHEMES) {
      const here = q.quantize(w, scheme);
      const there = here.to(DEVICE);
      const [parts, expected] = [there.parts, here.parts];
      expect(Object.keys(parts)).toEqual(Object.keys(expected));
      for (const [name, part] of Object.entries(expected))
        expect(await bytesOf(parts[name] as q.Tensor), `${label(scheme)} ${name}`).toEqual(
          await bytesOf(part),
        );
    }
  });
});
