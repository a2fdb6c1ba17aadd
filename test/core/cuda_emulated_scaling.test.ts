import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { native } from '../../lib/native';
import { ColumnMagnitudes, clampGroups, groupErrors, roundToScale, scaleMatrix } from '../../lib/ops/scaling';
import { DEVICE, hasCuda } from './cuda_device';
import { normals } from './random';

// Scaling, clipping and act-order weights by the CUDA device, held against the CPU.
const DTYPES = ['float32', 'float16', 'bfloat16'] as const;
const SHAPES = [
  [1, 1],
  [5, 70],
  [33, 96],
  [0, 5],
  [3, 0],
] as const;

async function bytesOf(tensor: q.Tensor): Promise<Buffer> {
  const values = await tensor.read();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

describe.skipIf(!hasCuda)(`on ${DEVICE}`, () => {
  test.each(DTYPES)('factors, clipping and rounding of %s have the bits of the CPU', async (dtype) => {
    for (const [rows, cols] of SHAPES) {
      const w = q.Tensor.from(normals(rows * cols, 3), [rows, cols], { dtype });
      const byRow = q.Tensor.from(normals(rows, 5), [rows]);
      const byColumn = q.Tensor.from(normals(cols, 7), [cols]);
      for (const [r, c] of [
        [byRow, byColumn],
        [null, byColumn],
        [byRow, null],
        [null, null],
      ] as const) {
        const there = scaleMatrix(w.to(DEVICE), r?.to(DEVICE) ?? null, c?.to(DEVICE) ?? null);
        expect(await bytesOf(there)).toEqual(await bytesOf(scaleMatrix(w, r, c)));
      }
      for (const group of [1, 32, 50, 1000]) {
        const groups = Math.ceil(cols / group);
        const ratios = q.Tensor.from(normals(rows * groups, 9).map(Math.abs), [rows, groups]);
        const there = clampGroups(w.to(DEVICE), group, ratios.to(DEVICE));
        expect(await bytesOf(there)).toEqual(await bytesOf(clampGroups(w, group, ratios)));
      }
      expect(await bytesOf(roundToScale(w.to(DEVICE), 0.013))).toEqual(await bytesOf(roundToScale(w, 0.013)));
    }
    const odd = q.Tensor.from([Number.NaN, 1, Number.POSITIVE_INFINITY, -2, 0, -0], [1, 6], { dtype });
    expect(await roundToScale(odd.to(DEVICE), 1).read()).toEqual(await roundToScale(odd, 1).read());
  });

  test('magnitudes of columns are gathered where the rows are, whatever the default device', async () => {
    using there = new ColumnMagnitudes(3);
    expect([...(await there.maxima()), ...(await there.means())]).toEqual([0, 0, 0, 0, 0, 0]);
    there.update(q.Tensor.from([1, -2, 0, 3, 0, 0.5], [2, 3], { device: DEVICE }));
    there.update(q.Tensor.from([-4, 1, 2], [1, 3], { device: DEVICE }));
    using copy = new ColumnMagnitudes(3);
    copy.replace(there);
    there[Symbol.dispose]();
    expect([...(await copy.maxima())]).toEqual([4, 2, 2]);
    expect([...(await copy.means())]).toEqual([8 / 3, 1, 2.5 / 3].map(Math.fround));
    expect(copy.rows).toBe(3);
  });

  test.each(DTYPES)('magnitudes of columns of %s have the bits of the CPU', async (dtype) => {
    for (const [rows, cols] of [...SHAPES, [300, 17]] as const) {
      const sums = async (device: q.DeviceId) => {
        const totals = [q.Tensor.zeros([cols], { device }), q.Tensor.zeros([cols], { device })];
        for (const seed of [3, 4]) {
          const x = q.Tensor.from(normals(rows * cols, seed), [rows, cols], { dtype }).to(device);
          native.columnMagnitudes(
            q.Tensor.native(x, 'x'),
            ...(totals.map((total) => q.Tensor.native(total, 'total')) as [never, never]),
          );
        }
        return Promise.all(totals.map(bytesOf));
      };
      expect(await sums(DEVICE)).toEqual(await sums('cpu'));
    }
  });

  test('what groups cost by themselves stays within the bound of float32 products', async () => {
    for (const [rows, cols, group] of [
      [9, 70, 32],
      [1, 64, 64],
      [17, 40, 100],
      [0, 8, 4],
    ] as const) {
      const w = q.Tensor.from(normals(rows * cols, 3), [rows, cols]);
      const v = q.Tensor.from(normals(rows * cols, 4), [rows, cols], { dtype: 'bfloat16' });
      const products = q.Tensor.from(normals(cols * cols, 5), [cols, cols]);
      const here = await groupErrors(w, v, products, group).toFloat32();
      const there = await groupErrors(w.to(DEVICE), v.to(DEVICE), products.to(DEVICE), group).toFloat32();
      const [a, b, p] = await Promise.all([w, v, products].map((tensor) => tensor.toFloat32()));
      const groups = Math.ceil(cols / group);
      for (let r = 0; r < rows; r++)
        for (let g = 0; g < groups; g++) {
          let magnitude = 0;
          const end = Math.min(cols, (g + 1) * group);
          const lost = (c: number) => Math.abs((a![r * cols + c] as number) - (b![r * cols + c] as number));
          for (let i = g * group; i < end; i++)
            for (let j = g * group; j < end; j++)
              magnitude += lost(i) * lost(j) * Math.abs(p![Math.min(i, j) * cols + Math.max(i, j)] as number);
          const apart = Math.abs((here[r * groups + g] as number) - (there[r * groups + g] as number));
          expect(apart, `(${r}, ${g})`).toBeLessThanOrEqual(4 * 2 ** -24 * Math.sqrt(cols) * magnitude);
        }
    }
    const x = q.Tensor.zeros([2, 2], { device: DEVICE });
    expect(() => groupErrors(x, q.Tensor.zeros([2, 2]), x, 2)).toThrow(
      expect.objectContaining({ code: 'ERR_DEVICE' }),
    );
  });

  test.each([
    [4, true, 32, 96],
    [4, false, 32, 96],
    [3, false, 10, 45],
    [8, true, 64, 128],
  ] as const)(
    'act-order weights of %i bits (symmetric %s, groups of %i of %i) have the values and products of the CPU',
    async (bits, symmetric, groupSize, cols) => {
      const rows = 33;
      const scheme = { kind: 'int', bits, symmetric, granularity: 'group', groupSize } as const;
      const plain = q.quantize(q.Tensor.from(normals(rows * cols, 5), [rows, cols]), scheme);
      const groups = Math.ceil(cols / groupSize);
      const named = Int32Array.from({ length: cols }, (_, c) => (c * 7 + 3) % groups);
      const groupIndex = q.Tensor.from(named, [cols]);
      const here = q.QuantizedTensor.fromParts(scheme, [rows, cols], { ...plain.parts, groupIndex });
      const there = here.to(DEVICE);
      expect(await there.parts.groupIndex?.read()).toEqual(named);
      for (const dtype of DTYPES)
        expect(await bytesOf(q.dequantize(there, { dtype }))).toEqual(
          await bytesOf(q.dequantize(here, { dtype })),
        );
      const values = await q.dequantize(here).toFloat32();
      for (const dtype of DTYPES)
        for (const m of [1, 17, 65]) {
          const x = q.Tensor.from(normals(m * cols, 3), [m, cols], { dtype });
          const got = await q.linear(x.to(DEVICE), there, { outDtype: 'float32' }).toFloat32();
          const rowsOfX = await x.toFloat32();
          for (let i = 0; i < m; i++)
            for (let j = 0; j < rows; j++) {
              let sum = 0;
              let magnitude = 0;
              for (let p = 0; p < cols; p++) {
                const term = (rowsOfX[i * cols + p] as number) * (values[j * cols + p] as number);
                sum += term;
                magnitude += Math.abs(term);
              }
              const apart = Math.abs((got[i * rows + j] as number) - sum);
              expect(apart, `(${i}, ${j})`).toBeLessThanOrEqual(4 * 2 ** -24 * Math.sqrt(cols) * magnitude);
            }
        }
      expect(() =>
        q.linear(q.Tensor.zeros([1, cols], { device: DEVICE }), there, { compute: 'int8' }),
      ).toThrow(/compute: int8 needs/);
    },
  );

  test('a column that names no group is refused, with the words of the CPU', async () => {
    const scheme = { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 8 } as const;
    const plain = q.quantize(q.Tensor.from(normals(4 * 16, 5), [4, 16]), scheme);
    for (const bad of [2, -1]) {
      const groupIndex = q.Tensor.from(new Int32Array(16).fill(1).fill(bad, 5, 6), [16]);
      const weight = q.QuantizedTensor.fromParts(scheme, [4, 16], { ...plain.parts, groupIndex });
      const message = (promise: Promise<unknown>) =>
        promise.then(
          () => 'none',
          (error: Error) => error.message,
        );
      const there = weight.to(DEVICE);
      const expected = await message(q.dequantize(weight).read());
      expect(expected).toMatch(/groupIndex: -?\d at column 5, 0 \.\. 1 expected/);
      expect(await message(q.dequantize(there).read())).toBe(expected);
      const x = q.Tensor.zeros([1, 16], { device: DEVICE });
      expect(await message(q.linear(x, there).read())).toBe(expected);
    }
    for (const device of ['cpu', DEVICE] as const) await q.synchronize(device).catch(() => {});
  });
});
