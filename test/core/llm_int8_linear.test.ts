import { describe, expect, test } from 'vitest';
import { dequantize, linear, llmInt8, QuantizedTensor, type QuantScheme, quantize, Tensor } from '../../lib';
import { throwsCode } from './errors';
import { ISAS, withIsa, withThreads } from './machine';
import { expectSame } from './products';
import { normals, random } from './random';

const DTYPES = ['float32', 'float16', 'bfloat16'] as const;
const ROWS = [...Array.from({ length: 17 }, (_, i) => i + 1), 65];
/** `[out, in]`: rows off every tile, depths off every word. */
const SHAPES = [
  [35, 96],
  [50, 33],
  [16, 130],
  [17, 4],
  [3, 5],
  [1, 1],
] as const;

const llm = (threshold?: number): QuantScheme => ({
  kind: 'llm.int8',
  ...(threshold === undefined ? {} : { threshold }),
});

/** Integers whose rows reach 127 and whose quantization is therefore exact, with scales that are powers of two. */
function integers(rows: number, columns: number, seed: number, scale = 1): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    if (column === row % columns) return (row % 2 ? -127 : 127) * scale;
    return (Math.floor(next() * 255) - 127) * scale;
  });
}

/** Exact as long as it stays below 2^53. */
function product(x: ArrayLike<number>, w: ArrayLike<number>, depth: number): Float64Array {
  const [rows, out] = [x.length / depth, w.length / depth];
  return Float64Array.from({ length: rows * out }, (_, i) => {
    const [r, o] = [Math.floor(i / out) * depth, (i % out) * depth];
    let sum = 0;
    for (let k = 0; k < depth; k++) sum += (x[r + k] as number) * (w[o + k] as number);
    return sum;
  });
}

describe('integers come out exact on every instruction set', () => {
  // [threshold, scale of x]: 127 times the scale is below the threshold, 200 times it is not.
  const cases: [number | undefined, number][] = [
    [0, 1],
    [undefined, 2 ** -5],
    [6, 2 ** -5],
    [128, 1],
    [0.7, 2 ** -8],
  ];
  test.each(cases)('threshold %s', async (threshold, scale) => {
    for (const [out, depth] of SHAPES) {
      const w = integers(out, depth, depth);
      using q = quantize(Tensor.from(w, [out, depth]), llm(threshold));
      expect(await dequantize(q).toFloat32()).toEqual(w);
      const most = ROWS.at(-1) as number;
      const plain = integers(most, depth, out, scale);
      const outliers = plain.slice();
      // Every fifth column has one value in any row that is an outlier; where 127 was it stays.
      if (threshold !== 0) {
        for (let i = 0; i < outliers.length; i++) {
          const [row, column] = [Math.floor(i / depth), i % depth];
          const large = column % 5 === 2 && row % 3 === 0;
          if (large && column !== row % depth) outliers[i] = (row % 2 ? 200 : -200) * scale;
        }
      }
      const all = integers(most, depth, out, threshold === 0 ? scale : 256 * scale);
      for (const x of [plain, outliers, all]) {
        const expected = product(x, w, depth);
        for (const dtype of DTYPES) {
          const input = Tensor.from(x, [most, depth], { dtype });
          for (const isa of ISAS) {
            await withIsa(isa, async () => {
              for (const rows of dtype === 'float32' ? ROWS : [1, 5, 65]) {
                const y = linear(input.slice(0, 0, rows), q, { outDtype: 'float32' });
                const label = `${isa} [${out}, ${depth}] ${dtype} ${rows} rows`;
                expectSame(await y.toFloat32(), expected.subarray(0, rows * out), label);
              }
            });
          }
        }
      }
    }
  });
});

/**
 * The codes of llmInt8.split and of the weight multiplied as integers, and the outliers by the dequantized weight; with
 * |error| that float32 may have: four roundings of the integer part, 4 * 2^-24 sqrt(columns) sum |x| |w| of the outliers.
 */
async function reference(x: Tensor, q: QuantizedTensor, threshold: number) {
  const [out, depth] = q.shape as [number, number];
  const { columns, outliers, codes, scales } = await llmInt8.split(x, { threshold });
  const [mine, absmax] = [(await codes.read()) as Int8Array, await scales.toFloat32()];
  const parts = q.parts as Record<'codes' | 'scales', Tensor>;
  const [theirs, weights] = [(await parts.codes.read()) as Int8Array, await parts.scales.toFloat32()];
  const large = await outliers.toFloat32();
  const sums = product(mine, theirs, depth);
  const allowed = new Float64Array(sums.length);
  const values = sums.map((sum, i) => {
    const [row, column] = [Math.floor(i / out), i % out];
    const plain = ((absmax[row] as number) / 127) * ((weights[column] as number) / 127) * sum;
    let [apart, magnitude] = [0, 0];
    columns.forEach((c, at) => {
      const code = theirs[column * depth + c] as number;
      const term = (large[row * columns.length + at] as number) * code * ((weights[column] as number) / 127);
      apart += term;
      magnitude += Math.abs(term);
    });
    allowed[i] = 2 ** -22 * (Math.abs(plain) + magnitude * Math.sqrt(Math.max(1, columns.length)));
    return plain + apart;
  });
  return { values, allowed };
}

describe.each([0, 0.7, 6, 1e-50, 1e300])('threshold %f', (threshold) => {
  test('activations as they come: codes in integers, outliers in float32, one rounding at the end', async () => {
    for (const [out, depth] of SHAPES.slice(0, 4)) {
      using q = quantize(Tensor.from(normals(out * depth, depth), [out, depth]), llm(threshold));
      const bias = normals(out, 9);
      for (const dtype of DTYPES) {
        for (const rows of dtype === 'float32' ? [1, 2, 5, 17, 65] : [1, 6]) {
          const x = Tensor.from(normals(rows * depth, out), [rows, depth], { dtype });
          const { values, allowed } = await reference(x, q, threshold);
          for (const isa of ISAS) {
            await withIsa(isa, async () => {
              const label = `${isa} [${out}, ${depth}] ${dtype} ${rows} rows`;
              const y = await linear(x, q, { outDtype: 'float32' }).toFloat32();
              const wrong = y.findIndex((value, i) => !(Math.abs(value - values[i]!) <= allowed[i]!));
              expect({ label, wrong, y: y[wrong], of: values[wrong] }).toEqual({ label, wrong: -1 });
              const wide = Tensor.from(
                y.map((value, i) => value + (bias[i % out] as number)),
                [rows, out],
              );
              const added = linear(x, q, { bias: Tensor.from(bias, [out]) });
              expect(added.dtype).toBe(dtype);
              expect(await added.read()).toEqual(await wide.cast(dtype).read());
              const same = await linear(x, q, { compute: 'int8', outDtype: 'float32' }).toFloat32();
              expectSame(same, y, `${label}, int8`);
              for (const threads of [1, 2, 3]) {
                const again = () => linear(x, q, { outDtype: 'float32' }).toFloat32();
                expectSame(await withThreads(threads, again), y, `${label}, ${threads} threads`);
              }
            });
          }
        }
      }
    }
  });
});

test('leading dimensions are rows; without rows, outputs or depth the result is empty or the bias', async () => {
  const [out, depth] = [19, 64];
  using q = quantize(Tensor.from(normals(out * depth, 2), [out, depth]), llm());
  const x = Tensor.from(normals(6 * depth, 1), [2, 3, depth]);
  const y = linear(x, q);
  expect(y.shape).toEqual([2, 3, out]);
  expect(await y.read()).toEqual(await linear(x.reshape([6, depth]), q).read());
  for (const [rows, outs, inner] of [
    [0, 5, 40],
    [3, 0, 40],
    [1, 18, 0],
    [7, 18, 0],
    [0, 0, 0],
  ] as const) {
    for (const threshold of [0, 6]) {
      using empty = quantize(Tensor.zeros([outs, inner]), llm(threshold));
      const bias = normals(outs, 4);
      const result = linear(Tensor.zeros([rows, inner]), empty, { bias: Tensor.from(bias, [outs]) });
      expect(result.shape).toEqual([rows, outs]);
      expect(await result.toFloat32()).toEqual(
        Float32Array.from({ length: rows * outs }, (_, i) => bias[i % outs] as number),
      );
    }
  }
});

test('rows of zeros and of subnormals stay near 0, and a row of a weight that is 0 gives 0', async () => {
  const [out, depth, rows] = [20, 40, 6];
  const w = normals(out * depth, 3);
  w.fill(0, 4 * depth, 5 * depth);
  using q = quantize(Tensor.from(w, [out, depth]), llm());
  const x = normals(rows * depth, 5);
  x.fill(0, depth, 2 * depth);
  for (let c = 0; c < depth; c++) x[2 * depth + c] = 1e-42;
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      const y = await linear(Tensor.from(x, [rows, depth]), q).toFloat32();
      expect(Array.from(y.subarray(out, 2 * out), Math.abs)).toEqual(new Array(out).fill(0));
      expect(y.subarray(2 * out, 3 * out).every((value) => Math.abs(value) < 1e-38)).toBe(true);
      for (let r = 0; r < rows; r++) expect(Math.abs(y[r * out + 4] as number)).toBe(0);
      expect(y.every(Number.isFinite)).toBe(true);
    });
  }
});

test('NaN of a row reaches that row only, in an outlier column and beside it; so does an infinity', async () => {
  const [out, depth] = [34, 70];
  // No code is 0, which times infinity would be NaN.
  const w = normals(out * depth, 1).map((value) => (value < 0 ? -1 : 1) + value / 100);
  for (const threshold of [0, 6]) {
    using q = quantize(Tensor.from(w, [out, depth]), llm(threshold));
    for (const isa of ISAS) {
      await withIsa(isa, async () => {
        for (const rows of [2, 4, 9, 40]) {
          // Column 5 is one of outliers, by row 0.
          const x = normals(rows * depth, rows).map((value) => Math.max(-3, Math.min(3, value)));
          x[5] = 10;
          const clean = await linear(Tensor.from(x, [rows, depth]), q).toFloat32();
          for (const column of [5, 69]) {
            for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
              // An infinity makes its column one of outliers, which other rows notice: only where it is one already.
              if (column === 69 && threshold > 0 && !Number.isNaN(bad)) continue;
              const before = x[depth + column] as number;
              x[depth + column] = bad;
              const y = await linear(Tensor.from(x, [rows, depth]), q).toFloat32();
              x[depth + column] = before;
              const label = `${isa} threshold ${threshold} ${bad} in ${column}`;
              const own = y.subarray(out, 2 * out);
              expect([label, own.some(Number.isFinite)]).toEqual([label, false]);
              if (Number.isNaN(bad)) expect([label, own.every(Number.isNaN)]).toEqual([label, true]);
              const others = (all: Float32Array) => all.filter((_, i) => Math.floor(i / out) !== 1);
              expectSame(others(y), others(clean), label);
            }
          }
        }
      });
    }
  }
});

test('float32 and bfloat16 products of the weight are asked for by name, and have no outliers', async () => {
  const [out, depth, rows] = [21, 64, 5];
  using q = quantize(Tensor.from(integers(out, depth, 1), [out, depth]), llm());
  const x = integers(rows, depth, 2);
  const expected = product(x, await dequantize(q).toFloat32(), depth);
  for (const compute of ['float32', 'bfloat16'] as const)
    expectSame(await linear(Tensor.from(x, [rows, depth]), q, { compute }).toFloat32(), expected, compute);
});

test('sums of 32768 columns do not overflow, and wider weights are refused at once', async () => {
  const depth = 32_768;
  const weight = (columns: number) =>
    QuantizedTensor.fromParts(llm(0), [2, columns], {
      codes: Tensor.from(
        new Int8Array(2 * columns).map((_, i) => (i < columns ? -127 : 127)),
        [2, columns],
      ),
      scales: Tensor.from([127, 127], [2]),
    });
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const rows of [1, 5]) {
        const x = Tensor.from(new Float32Array(rows * depth).fill(127), [rows, depth]);
        const y = await linear(x, weight(depth)).toFloat32();
        expect(Array.from(y.subarray(0, 2))).toEqual([-127 * 127 * depth, 127 * 127 * depth]);
      }
    });
  }
  for (const compute of ['auto', 'int8'] as const) {
    throwsCode(
      () => linear(Tensor.zeros([1, depth + 1]), weight(depth + 1), { compute }),
      'ERR_UNSUPPORTED',
      /overflow/,
    );
  }
});
