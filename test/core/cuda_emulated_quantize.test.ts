import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { getFormat } from '../../lib/formats';
import { native } from '../../lib/native';
import { offsetCodes, packBits, packPlanar, swapNibbles, unpackBits, unpackPlanar } from '../../lib/ops/bits';
import type { IntScheme } from '../../lib/scheme';
import { DEVICE, hasCuda } from './cuda_device';
import { normals } from './random';

// Quantization and the bit operations of formats by the emulated CUDA device: byte for byte what the CPU gives.

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
      (symmetric) => ({ kind: 'int', bits, symmetric, ...(granularities[bits % 5] as object) }) as IntScheme,
    ),
  ),
  ...granularities.flatMap((granularity) =>
    (['float32', 'float16', 'bfloat16'] as const).map(
      (scaleDtype) => ({ kind: 'int', bits: 4, symmetric: false, scaleDtype, ...granularity }) as IntScheme,
    ),
  ),
  ...granularities.flatMap((granularity) =>
    [true, false].map(
      (symmetric) => ({ kind: 'int', bits: 4, symmetric, search: 'mse', ...granularity }) as IntScheme,
    ),
  ),
  ...([3, 8] as const).map(
    (bits) => ({ kind: 'int', bits, symmetric: true, range: 'full', ...granularities[0] }) as IntScheme,
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
  { kind: 'fp8', format: 'e4m3', granularity: 'row', scaleDtype: 'bfloat16' },
  { kind: 'fp8', format: 'e5m2', granularity: 'tensor', scaleDtype: 'float16' },
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

describe.skipIf(!hasCuda)(`on ${DEVICE}`, () => {
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
        q.quantize(tensor.slice(1, 8, 72).slice(0, 1, 19), scheme),
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

  test('the parts of a weight on the device are those on the CPU, and make the weight again', async () => {
    const w = q.Tensor.from(normals(9 * 64, 7), [9, 64]);
    for (const scheme of SCHEMES) {
      const here = q.quantize(w, scheme);
      const parts = here.to(DEVICE).parts;
      const expected = here.parts;
      expect(Object.keys(parts)).toEqual(Object.keys(expected));
      for (const [name, part] of Object.entries(expected)) {
        expect(parts[name]?.device).toBe(DEVICE);
        expect(await bytesOf(parts[name] as q.Tensor), `${label(scheme)} ${name}`).toEqual(
          await bytesOf(part),
        );
      }
      const again = q.QuantizedTensor.fromParts(scheme, [9, 64], parts);
      expect(again.device).toBe(DEVICE);
      for (const [name, tensor] of Object.entries(here.stored))
        expect(await bytesOf(again.stored[name] as q.Tensor), name).toEqual(await bytesOf(tensor));
    }
  });

  test.each([
    ['gptq', 'int', [32, 64]],
    ['awq', 'int', [40, 112]],
    ['compressed-tensors', 'int', [33, 64]],
    ['bitsandbytes', 'nf4', [13, 50]],
    ['quanto', 'int', [40, 64]],
  ] as const)('%s writes the same tensors for a weight on the device', async (name, kind, [rows, cols]) => {
    const format = getFormat(name);
    const w = q.Tensor.from(normals(rows * cols, 7), [rows, cols]);
    const schemes: q.QuantScheme[] =
      kind === 'nf4'
        ? [
            { kind: 'nf4', blockSize: 32, doubleQuant: true },
            { kind: 'fp4', blockSize: 64 },
            { kind: 'llm.int8' },
          ]
        : [true, false].map((symmetric) => ({
            kind: 'int',
            bits: 4,
            symmetric,
            ...(symmetric ? { range: 'full' } : {}),
            granularity: 'group',
            groupSize: 16,
          }));
    if (name === 'quanto') for (const scheme of schemes) Object.assign(scheme, { groupSize: 64 });
    let held = 0;
    for (const asked of schemes) {
      const { scheme } = format.fit(asked, [rows, cols], 'bfloat16');
      if (scheme === null) continue;
      held++;
      const expected = await format.encode('m', q.quantize(w, scheme), 'bfloat16');
      const found = await format.encode('m', q.quantize(w.to(DEVICE), scheme), 'bfloat16');
      expect([...found.keys()]).toEqual([...expected.keys()]);
      for (const [tensor, values] of expected)
        expect(await bytesOf(found.get(tensor) as q.Tensor), `${label(scheme)} ${tensor}`).toEqual(
          await bytesOf(values),
        );
    }
    expect(held).toBeGreaterThan(0);
  });

  test.each([2, 3, 4, 5, 6, 7, 8, 16])('%i-bit codes are packed and unpacked as on the CPU', async (bits) => {
    for (const dtype of ['uint8', 'int8', 'int16', 'int32'] as const) {
      const offset = dtype === 'uint8' ? 0 : 2 ** (bits - 1);
      if ((dtype === 'uint8' || dtype === 'int8') && bits > 8) continue;
      if (dtype === 'int16' && bits === 16 && offset === 0) continue;
      for (const [rows, cols] of [
        [3, 37],
        [1, 64],
        [5, 1],
        [2, 0],
        [0, 7],
      ] as const) {
        const values = Int32Array.from(
          { length: rows * cols },
          (_, i) => (((i * 2654435761) >>> 7) % 2 ** bits) - offset,
        );
        const codes = q.Tensor.from(values, [rows, cols]).cast(dtype);
        const packed = packBits(codes, bits, undefined, offset);
        const there = packBits(codes.to(DEVICE), bits, undefined, offset);
        expect(await bytesOf(there)).toEqual(await bytesOf(packed));
        const back = unpackBits(there, cols, bits, undefined, { offset, dtype });
        expect(back.device).toBe(DEVICE);
        expect(await back.read()).toEqual(await codes.read());
      }
    }
    const odd = q.Tensor.from(new Uint8Array(3 * 41).fill(0xa7), [3, 41]);
    expect(await unpackBits(odd.to(DEVICE), 10, bits).read()).toEqual(await unpackBits(odd, 10, bits).read());
  });

  test('nibbles are permuted, exchanged and put into planes as on the CPU', async () => {
    const order = [0, 2, 4, 6, 1, 3, 5, 7];
    const codes = q.Tensor.from(
      Uint8Array.from({ length: 5 * 24 }, (_, i) => (i * 7) % 16),
      [5, 24],
    );
    const packed = packBits(codes, 4, order);
    const there = packBits(codes.to(DEVICE), 4, order);
    expect(await there.read()).toEqual(await packed.read());
    expect(await unpackBits(there, 24, 4, order).read()).toEqual(await codes.read());
    for (const length of [0, 1, 15, 16, 100, 1000]) {
      const bytes = q.Tensor.from(
        Uint8Array.from({ length }, (_, i) => i * 37),
        [length],
      );
      expect(await swapNibbles(bytes.to(DEVICE)).read()).toEqual(await swapNibbles(bytes).read());
      const view = (tensor: q.Tensor) => swapNibbles(tensor.slice(0, Math.min(1, length), length));
      expect(await view(bytes.to(DEVICE)).read()).toEqual(await view(bytes).read());
    }
    for (const bits of [2, 4]) {
      for (const rows of [0, 1, 2, 3, 4, 5, 8, 9]) {
        const planes = q.Tensor.from(
          Uint8Array.from({ length: rows * 6 }, (_, i) => (i * 5) % 2 ** bits),
          [rows, 6],
        );
        const planar = packPlanar(planes.to(DEVICE), bits);
        expect(await planar.read()).toEqual(await packPlanar(planes, bits).read());
        expect(await unpackPlanar(planar, rows, bits).read()).toEqual(await planes.read());
      }
    }
  });

  test('codes move to other integers as on the CPU, clamped or refused', async () => {
    const values = BigInt64Array.of(
      -9223372036854775808n,
      -129n,
      -128n,
      -1n,
      0n,
      127n,
      128n,
      255n,
      9223372036854775807n,
    );
    const codes = q.Tensor.from(values, [3, 3], { dtype: 'int64' });
    for (const delta of [0, 1, -1, 128, -(2 ** 53 - 1)])
      for (const dtype of ['int8', 'uint8', 'int16', 'int32'] as const) {
        expect(
          await offsetCodes(codes.to(DEVICE), delta, dtype, [-3, 100])
            .read()
            .catch((e: Error) => e.message),
        ).toEqual(
          await offsetCodes(codes, delta, dtype, [-3, 100])
            .read()
            .catch((e: Error) => e.message),
        );
        expect(
          await offsetCodes(codes.to(DEVICE), delta, dtype)
            .read()
            .catch((e: Error) => e.message),
        ).toEqual(
          await offsetCodes(codes, delta, dtype)
            .read()
            .catch((e: Error) => e.message),
        );
      }
    await q.synchronize(DEVICE).catch(() => {});
  });

  test('codes out of range are refused by their first place, with the words of the CPU', async () => {
    const codes = q.Tensor.from(Int32Array.of(0, 3, 2, 1, -1, 0, 4, 5), [2, 4]);
    const message = (tensor: q.Tensor) =>
      tensor.read().then(
        () => 'none',
        (error: Error) => error.message,
      );
    expect(await message(packBits(codes.to(DEVICE), 2))).toBe(await message(packBits(codes, 2)));
    const bytes = codes.slice(0, 0, 1).cast('uint8').cast('int32').cast('uint8');
    expect(await message(packBits(bytes.to(DEVICE), 2))).toBe('none');
    const planes = q.Tensor.from(Uint8Array.of(1, 2, 3, 0, 1, 16, 7, 200), [4, 2]);
    expect(await message(packPlanar(planes.to(DEVICE), 4))).toBe(await message(packPlanar(planes, 4)));
    expect(await message(packPlanar(planes, 4))).toMatch(/16 at row 2, column 1/);
    await q.synchronize(DEVICE).catch(() => {});
    await q.synchronize().catch(() => {});
  });

  test('sums of squares are those of the CPU to the last bits, NaN and infinities counted', async () => {
    for (const count of [0, 1, 257, 70001]) {
      const values = normals(count, 5);
      if (count > 5) values.set([Number.NaN, Number.POSITIVE_INFINITY], 2);
      const [a, b] = [q.Tensor.from(values, [count]), q.Tensor.from(normals(count, 6), [count])];
      const native_ = (tensor: q.Tensor) => q.Tensor.native(tensor, 'values');
      const here = await native.compare(native_(b), null);
      const there = await native.compare(native_(b.to(DEVICE)), null);
      expect(there.nonFinite).toBe(here.nonFinite);
      expect(Math.abs(there.error - here.error)).toBeLessThanOrEqual(1e-12 * here.error);
      const [both, far] = [
        await native.compare(native_(a), native_(b)),
        await native.compare(native_(a.to(DEVICE)), native_(b.to(DEVICE))),
      ];
      expect(far.nonFinite).toBe(both.nonFinite);
      expect(Math.abs(far.reference - both.reference)).toBeLessThanOrEqual(1e-12 * both.reference);
      expect(Number.isNaN(far.error)).toBe(Number.isNaN(both.error));
    }
  });
});
