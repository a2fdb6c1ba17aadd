import { describe, expect, test } from 'vitest';
import { llmInt8, quantize, Tensor } from '../../lib';
import { rejectsCode } from './errors';
import { roundEven } from './quant_reference';
import { normals } from './random';

const DTYPES = ['float32', 'float16', 'bfloat16'] as const;

/** The rules, one value at a time. */
function reference(x: Float32Array, columns: number, threshold: number) {
  const isLarge = (value: number) => threshold > 0 && Math.abs(value) >= Math.fround(threshold);
  const outliers = Array.from({ length: columns }, (_, c) => c).filter((c) =>
    x.some((value, i) => i % columns === c && isLarge(value)),
  );
  const scales = Float32Array.from({ length: x.length / columns }, (_, r) =>
    x
      .subarray(r * columns, (r + 1) * columns)
      .reduce((most, value) => (isLarge(value) ? most : Math.max(most, Math.abs(value))), 0),
  );
  const codes = Array.from(x, (value, i) => {
    const scale = scales[Math.floor(i / columns)] as number;
    if (outliers.includes(i % columns) || !(scale > 0) || scale === Number.POSITIVE_INFINITY) return 0;
    return roundEven(Math.fround(value * Math.fround(127 / scale)));
  });
  return { outliers, scales, codes };
}

describe('llmInt8', () => {
  const widths = [1, 2, 15, 16, 17, 31, 33, 64, 65, 127, 300];
  test.each(widths)(
    'rows of %i: columns, outliers, codes and scales follow the rules exactly',
    async (columns) => {
      for (const dtype of DTYPES) {
        for (const threshold of [0, 3.5, 6, 1e9]) {
          const rows = 9;
          const x = Tensor.from(normals(rows * columns, columns), [rows, columns], { dtype });
          const values = await x.toFloat32();
          const expected = reference(values, columns, threshold);
          const split = await llmInt8.split(x, { threshold });
          expect(split.columns).toEqual(expected.outliers);
          expect(await llmInt8.outlierColumns(x, { threshold })).toEqual(expected.outliers);
          expect(await split.scales.read()).toEqual(expected.scales);
          expect(Array.from((await split.codes.read()) as Int8Array)).toEqual(
            expected.codes.map((code) => code + 0),
          );
          expect(split.outliers).toMatchObject({ dtype, shape: [rows, expected.outliers.length] });
          expect(Array.from(await split.outliers.toFloat32())).toEqual(
            Array.from({ length: rows }, (_, r) =>
              expected.outliers.map((c) => values[r * columns + c]),
            ).flat(),
          );
        }
      }
    },
  );

  test('the threshold is 6 unless given, compared in float32, and belongs to the outliers', async () => {
    const x = Tensor.from([5.999999, 6, -6, 7, 1, 0.1], [1, 6]);
    expect(await llmInt8.outlierColumns(x)).toEqual([1, 2, 3]);
    expect(await llmInt8.outlierColumns(x, { threshold: 0.1 })).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await llmInt8.outlierColumns(x, { threshold: 1e-50 })).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await llmInt8.outlierColumns(x, { threshold: 1e300 })).toEqual([]);
    expect(await llmInt8.outlierColumns(x, { threshold: 0 })).toEqual([]);
  });

  test('a large value does not count in its row, the small ones of its column do and get code 0', async () => {
    const x = Tensor.from([100, 2, 1, 4, 2, 1], [2, 3]);
    const { columns, codes, scales } = await llmInt8.split(x);
    expect(columns).toEqual([0]);
    expect(await scales.read()).toEqual(Float32Array.of(2, 4));
    expect(await codes.read()).toEqual(Int8Array.of(0, 127, 64, 0, 64, 32));
  });

  test('NaN and infinity stay in their row s scale or outliers; codes stay in range', async () => {
    const [nan, inf] = [Number.NaN, Number.POSITIVE_INFINITY];
    const x = Tensor.from([1, nan, 2, 1, -inf, 3, 0, 0, 0, 1e-42, -1e-42, 0], [4, 3]);
    const split = await llmInt8.split(x);
    expect(split.columns).toEqual([1]);
    expect(await split.scales.read()).toEqual(Float32Array.of(nan, 3, 0, 1e-42));
    expect(await split.codes.read()).toEqual(Int8Array.of(0, 0, 0, 42, 0, 127, 0, 0, 0, 127, 0, 0));
    expect(await split.outliers.read()).toEqual(Float32Array.of(nan, -inf, 0, -1e-42));
    const none = await llmInt8.split(x, { threshold: 0 });
    expect(none.columns).toEqual([]);
    expect(await none.scales.read()).toEqual(Float32Array.of(nan, inf, 0, 1e-42));
    expect(await none.codes.read()).toEqual(Int8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 127, -127, 0));
  });

  test('leading dimensions are rows; empty tensors give empty results', async () => {
    const x = Tensor.from(normals(24, 2), [2, 3, 4]);
    const [split, flat] = [await llmInt8.split(x), await llmInt8.split(x.reshape([6, 4]))];
    expect([split.codes.shape, split.scales.shape]).toEqual([[6, 4], [6]]);
    expect(await split.codes.read()).toEqual(await flat.codes.read());
    for (const shape of [[0, 4], [3, 0], [0, 0], [0]]) {
      const empty = await llmInt8.split(Tensor.zeros(shape));
      expect(empty.columns).toEqual([]);
      expect(empty.codes.size).toBe(0);
      expect((await empty.scales.toFloat32()).every((scale) => scale === 0)).toBe(true);
    }
  });

  test('bad arguments and failed inputs reject with their code', async () => {
    const x = Tensor.zeros([2, 2]);
    for (const call of [llmInt8.split, llmInt8.outlierColumns]) {
      for (const threshold of [-1, Number.NaN, '6', Number.POSITIVE_INFINITY])
        await rejectsCode(call(x, { threshold } as { threshold: number }), 'ERR_ARGUMENT', /threshold/);
      await rejectsCode(call(Tensor.zeros([2, 2], { dtype: 'int8' })), 'ERR_DTYPE', /x.dtype/);
      await rejectsCode(call(Tensor.zeros([])), 'ERR_SHAPE', /\[\.\.\., in\]/);
      await rejectsCode(call(null as unknown as Tensor), 'ERR_ARGUMENT', /x: null/);
      const { scales } = quantize(Tensor.from([1, Number.NaN], [1, 2]), { kind: 'llm.int8' }).parts;
      await rejectsCode(call(scales as Tensor), 'ERR_ARGUMENT', /row 0, column 1/);
    }
  });
});
