import { expect, test } from 'vitest';
import { type DType, matmul, Tensor } from '../../lib';
import { throwsCode } from './errors';
import { ISAS, withIsa, withThreads } from './machine';
import { expectSame, expectWithin, ROWS, sumsOf } from './products';
import { normals } from './random';

/** The transpose of `[rows, columns]`. */
const transposed = (x: ArrayLike<number>, rows: number, columns: number): Float32Array =>
  Float32Array.from({ length: rows * columns }, (_, i) => x[(i % rows) * columns + Math.floor(i / rows)]!);

const dense = (values: ArrayLike<number>, out: number, depth: number) => ({
  out,
  in: depth,
  values,
  zeros: null,
  group: Math.max(1, depth),
});

/** Small whole numbers, whose products and sums float32 and bfloat16 hold exactly. */
const integers = (count: number, seed: number): Float32Array =>
  normals(count, seed).map((x) => Math.round(Math.max(-9, Math.min(9, 3 * x))));

test.each(['float32', 'float16', 'bfloat16'] as const)(
  '%s: every count of rows, on every instruction set, within c eps sqrt(K) sum |a||b| of float64',
  async (dtype) => {
    const most = ROWS.at(-1) as number;
    for (const [n, k] of [
      [50, 70],
      [33, 129],
      [1, 300],
      [17, 1],
    ] as const) {
      const a = Tensor.from(normals(most * k, n), [most, k], { dtype });
      const b = Tensor.from(normals(n * k, k), [n, k], { dtype });
      const bt = Tensor.from(transposed(await b.toFloat32(), n, k), [k, n], { dtype });
      const sums = sumsOf(await a.toFloat32(), dense(await b.toFloat32(), n, k));
      for (const isa of ISAS) {
        await withIsa(isa, async () => {
          for (const rows of ROWS) {
            const part = a.slice(0, 0, rows);
            const y = await matmul(part, b, { transposeB: true, outDtype: 'float32' }).toFloat32();
            // The factors hold what they are multiplied as: only sums round.
            expectWithin(y, rows, sums, 'float32', `${isa}, [${n}, ${k}]`);
            const same = await matmul(part, bt, { outDtype: 'float32' }).toFloat32();
            expectSame(same, y, `${isa}, [${n}, ${k}], ${rows} rows, as [K, N]`);
          }
        });
      }
    }
  },
);

test('products of small integers are exact on every instruction set, for any mix of dtypes', async () => {
  const dtypes: DType[] = ['float32', 'float16', 'bfloat16'];
  const [m, n, k] = [21, 37, 65];
  const [a, b] = [integers(m * k, 1), integers(n * k, 2)];
  const expected = Float32Array.from(sumsOf(a, dense(b, n, k)).exact);
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const left of dtypes) {
        for (const right of dtypes) {
          const [x, w] = [Tensor.from(a, [m, k], { dtype: left }), Tensor.from(b, [n, k], { dtype: right })];
          const y = matmul(x, w, { transposeB: true, outDtype: 'float32' });
          expect(await y.toFloat32()).toEqual(expected);
        }
      }
    });
  }
});

test('the same bits on 1, 2 and 3 threads', async () => {
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const [m, k, n] of [
        [1, 700, 300],
        [300, 130, 70],
      ] as const) {
        const a = Tensor.from(normals(m * k, 3), [m, k]);
        const b = Tensor.from(normals(k * n, 4), [k, n]);
        const run = (threads: number) => withThreads(threads, () => matmul(a, b).read());
        const one = await run(1);
        for (const threads of [2, 3]) {
          expectSame((await run(threads)) as Float32Array, one as Float32Array, `${isa}, ${threads} threads`);
        }
      }
    });
  }
});

test('leading dimensions are rows, and the result is rounded once to the dtype asked for', async () => {
  const a = Tensor.from(normals(2 * 3 * 5 * 20, 5), [2, 3, 5, 20]);
  const b = Tensor.from(normals(20 * 18, 6), [20, 18]);
  const y = matmul(a, b);
  expect(y.shape).toEqual([2, 3, 5, 18]);
  expect(y.dtype).toBe('float32');
  expect(await matmul(a.reshape([30, 20]), b).read()).toEqual(await y.read());
  for (const outDtype of ['float16', 'bfloat16', 'float8_e4m3', 'float8_e5m2'] as const) {
    const narrow = matmul(a, b, { outDtype });
    expect(narrow.dtype).toBe(outDtype);
    expect(await narrow.read()).toEqual(await y.cast(outDtype).read());
  }
  const half = a.cast('float16');
  expect(matmul(half, b).dtype).toBe('float16');
  expect(matmul(half, b.cast('bfloat16')).dtype).toBe('float16');
});

test('slices are multiplied as what they show', async () => {
  const a = Tensor.from(normals(9 * 40, 7), [9, 40]);
  const b = Tensor.from(normals(50 * 30, 8), [50, 30]);
  const copy = async (t: Tensor) => Tensor.from(await t.toFloat32(), [...t.shape]);
  const [x, w] = [a.slice(1, 3, 20).slice(0, 2, 8), b.slice(0, 5, 22).slice(1, 11, 28)];
  expect(await matmul(x, w).read()).toEqual(await matmul(await copy(x), await copy(w)).read());
  const v = b.slice(1, 3, 20);
  expect(await matmul(x, v, { transposeB: true }).read()).toEqual(
    await matmul(await copy(x), await copy(v), { transposeB: true }).read(),
  );
});

test('without rows or columns the result is empty, without depth it is zero', async () => {
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const zeros = (shape: number[]) => Tensor.zeros(shape, { dtype });
    expect(matmul(zeros([0, 4]), zeros([4, 3])).shape).toEqual([0, 3]);
    expect(await matmul(zeros([0, 4]), zeros([4, 3])).toFloat32()).toEqual(new Float32Array(0));
    expect(await matmul(zeros([2, 0, 4]), zeros([4, 3])).toFloat32()).toEqual(new Float32Array(0));
    expect(matmul(zeros([2, 4]), zeros([4, 0])).shape).toEqual([2, 0]);
    expect(await matmul(zeros([2, 4]), zeros([4, 0])).toFloat32()).toEqual(new Float32Array(0));
    for (const rows of [1, 5, 40]) {
      const y = matmul(zeros([rows, 0]), zeros([0, 35]));
      expect(await y.toFloat32()).toEqual(new Float32Array(rows * 35));
    }
  }
});

test('NaN and infinities reach the sums that they belong to and no other', async () => {
  const a = normals(14 * 20, 9);
  a[3 * 20 + 4] = Number.NaN;
  a[13 * 20 + 19] = Number.POSITIVE_INFINITY;
  const b = normals(20 * 34, 10).map((x) => x + (x < 0 ? -0.1 : 0.1)); // no zero, as infinity times it is NaN
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const dtype of ['float32', 'bfloat16'] as const) {
        const [x, w] = [Tensor.from(a, [14, 20], { dtype }), Tensor.from(b, [20, 34], { dtype })];
        const y = await matmul(x, w, { outDtype: 'float32' }).toFloat32();
        y.forEach((value, i) => {
          const row = Math.floor(i / 34);
          expect([row, Number.isNaN(value)]).toEqual([row, row === 3]);
          expect([row, Math.abs(value) === Number.POSITIVE_INFINITY]).toEqual([row, row === 13]);
        });
      }
    });
  }
});

test('factors may be disposed of while the product is queued', async () => {
  const [a, b] = [Tensor.from(integers(64 * 64, 1), [64, 64]), Tensor.from(integers(64 * 64, 2), [64, 64])];
  const expected = await matmul(a, b).read();
  const y = matmul(a, b);
  a.dispose();
  b.dispose();
  expect(await y.read()).toEqual(expected);
});

test('wrong arguments are refused at once', () => {
  const [a, b] = [Tensor.zeros([2, 3]), Tensor.zeros([3, 4])];
  throwsCode(() => matmul(a, Tensor.zeros([4, 4])), 'ERR_SHAPE', /K/);
  throwsCode(() => matmul(a, b, { transposeB: true }), 'ERR_SHAPE');
  throwsCode(() => matmul(Tensor.zeros([3]), b), 'ERR_SHAPE', /\.\.\., M, K/);
  throwsCode(() => matmul(a, Tensor.zeros([1, 3, 4])), 'ERR_SHAPE');
  throwsCode(() => matmul(Tensor.zeros([2, 3], { dtype: 'int8' }), b), 'ERR_DTYPE', /a\.dtype/);
  throwsCode(() => matmul(a, Tensor.zeros([3, 4], { dtype: 'float8_e4m3' })), 'ERR_DTYPE', /b\.dtype/);
  throwsCode(() => matmul(a, b, { outDtype: 'int32' }), 'ERR_DTYPE');
  throwsCode(() => matmul(a, b, { outDtype: 'float' as never }), 'ERR_DTYPE');
  throwsCode(() => matmul(a, b, { transposeB: 1 as never }), 'ERR_ARGUMENT', /transposeB/);
  throwsCode(() => matmul(a, b, null as never), 'ERR_ARGUMENT');
  throwsCode(() => matmul({} as never, b), 'ERR_ARGUMENT', /a: /);
  b.dispose();
  throwsCode(() => matmul(a, b), 'ERR_DISPOSED', /b: /);
});
