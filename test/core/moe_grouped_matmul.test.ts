import { expect, test } from 'vitest';
import { moe, Tensor } from '../../lib';
import { rejectsCode, throwsCode } from './errors';
import { ISAS, withIsa, withThreads } from './machine';
import { expectSame, sumsOf } from './products';
import { normals, random } from './random';

const int32 = (values: number[]): Tensor<'int32'> =>
  Tensor.from(Int32Array.from(values), [values.length]) as Tensor<'int32'>;
const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

const COUNTS = [
  [0],
  [1],
  [70],
  [0, 0, 0],
  [3, 0, 5, 1],
  [0, 33, 0, 0, 2],
  [17, 0, 0],
  [0, 0, 9],
  [1, 2, 3, 4, 5, 6, 7, 8, 9],
];
const FACTORS = ['float32', 'float16', 'bfloat16'] as const;

/** Slice e of `[E, K, N]` as `[N, K]`. */
const transposed = (w: Float32Array, e: number, depth: number, out: number): Float32Array =>
  Float32Array.from(
    { length: depth * out },
    (_, i) => w[(e * depth + (i % depth)) * out + Math.floor(i / depth)] as number,
  );

test.each(COUNTS.map((counts) => [counts]))(
  'runs of %j rows: integers come out exact, on every instruction set',
  async (counts) => {
    const next = random(counts.length);
    for (const [depth, out] of [
      [33, 50],
      [16, 16],
      [5, 1],
      [1, 17],
    ] as const) {
      const integers = (length: number) => Float32Array.from({ length }, () => Math.floor(next() * 31) - 15);
      const [rows, E] = [sum(counts), counts.length];
      const [x, w] = [integers(rows * depth), integers(E * depth * out)];
      const owners = counts.flatMap((count, e) => new Array<number>(count).fill(e));
      const expected = owners.flatMap((e, r) =>
        Array.from({ length: out }, (_, j) =>
          sum(Array.from({ length: depth }, (_, k) => x[r * depth + k]! * w[(e * depth + k) * out + j]!)),
        ),
      );
      for (const dtype of ['float32', 'bfloat16'] as const) {
        const [a, b] = [Tensor.from(x, [rows, depth], { dtype }), Tensor.from(w, [E, depth, out], { dtype })];
        const rounded = await Tensor.from(expected, [rows, out]).cast(dtype).toFloat32();
        for (const isa of ISAS) {
          await withIsa(isa, async () => {
            const y = moe.groupedMatmul(a, b, int32(counts));
            expect(y).toMatchObject({ dtype, shape: [rows, out] });
            expectSame(await y.toFloat32(), rounded, `${isa} ${dtype} [${depth}, ${out}]`);
          });
        }
      }
    }
  },
);

test('any factors lie within c eps sqrt(K) sum |x||w| of float64, with the same bits on 1, 2 and 3 threads', async () => {
  const [counts, depth, out] = [[3, 0, 40, 1], 70, 45];
  const rows = sum(counts);
  for (const dtype of FACTORS) {
    for (const other of FACTORS) {
      const x = Tensor.from(normals(rows * depth, 1), [rows, depth], { dtype });
      const w = Tensor.from(normals(4 * depth * out, 2), [4, depth, out], { dtype: other });
      const [a, b] = [await x.toFloat32(), await w.toFloat32()];
      for (const isa of ISAS) {
        await withIsa(isa, async () => {
          const label = `${isa} ${dtype} ${other}`;
          const y = await moe.groupedMatmul(x, w, int32(counts)).toFloat32();
          for (const threads of [1, 2, 3]) {
            const again = () => moe.groupedMatmul(x, w, int32(counts)).toFloat32();
            expectSame(await withThreads(threads, again), y, `${label}, ${threads} threads`);
          }
          let first = 0;
          for (const [e, count] of counts.entries()) {
            const values = transposed(b, e, depth, out);
            const factor = { out, in: depth, values, zeros: null, group: depth };
            const sums = sumsOf(a.subarray(first * depth, (first + count) * depth), factor);
            const last = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
            sums.exact.forEach((value, i) => {
              const allowed =
                2 ** -22 * Math.sqrt(depth) * sums.magnitude[i]! + last * Math.abs(value) * 1.01;
              const error = Math.abs(y[first * out + i]! - value);
              if (!(error <= allowed + 2 ** -25)) expect.fail(`${label}: expert ${e}, ${i}: ${error}`);
            });
            first += count;
          }
        });
      }
    }
  }
});

test('NaN of a row reaches that row only; views are read where they lie', async () => {
  const [counts, depth, out] = [[2, 5], 20, 18];
  const wide = normals(7 * 2 * depth, 1);
  const w = Tensor.from(normals(2 * depth * out, 2), [2, depth, out]);
  const clean = await moe
    .groupedMatmul(Tensor.from(wide, [7, 2 * depth]).slice(1, 3, 3 + depth), w, int32(counts))
    .toFloat32();
  wide[3 * 2 * depth + 4] = Number.NaN;
  const view = Tensor.from(wide, [7, 2 * depth]).slice(1, 3, 3 + depth);
  const y = await moe.groupedMatmul(view, w, int32(counts)).toFloat32();
  const copy = Tensor.from(await view.toFloat32(), [7, depth]);
  expect(await moe.groupedMatmul(copy, w, int32(counts)).toFloat32()).toEqual(y);
  const isOwn = (_: number, i: number) => Math.floor(i / out) === 3;
  expect(y.filter(isOwn).every(Number.isNaN)).toBe(true);
  expect(y.filter((_, i) => !isOwn(_, i))).toEqual(clean.filter((_, i) => !isOwn(_, i)));
});

test('without experts, rows, depth or columns the result is empty, or zeros', async () => {
  for (const [counts, depth, out] of [
    [[], 4, 5],
    [[0, 0], 4, 5],
    [[2, 1], 0, 5],
    [[2, 1], 4, 0],
    [[], 0, 0],
  ] as [number[], number, number][]) {
    const rows = sum(counts);
    const y = moe.groupedMatmul(
      Tensor.zeros([rows, depth]),
      Tensor.zeros([counts.length, depth, out]),
      int32(counts),
    );
    expect(y.shape).toEqual([rows, out]);
    expect(await y.read()).toEqual(new Float32Array(rows * out));
  }
});

test('counts that do not add up to the rows reject the result', async () => {
  const [x, w] = [Tensor.zeros([5, 4]), Tensor.zeros([2, 4, 3])];
  for (const [counts, message] of [
    [[2, 2], /4 rows in all, but x has 5/],
    [[0, 0], /0 rows in all/],
    [[3, 3], /more than the 5 rows/],
    [[6, -1], /more than the 5 rows/],
    [[-1, 6], /counts\[0\]: -1/],
    [[2 ** 31 - 1, 2 ** 31 - 1], /more than the 5 rows/],
    [[-(2 ** 31), 5], /counts\[0\]: -2147483648/],
  ] as [number[], RegExp][])
    await rejectsCode(moe.groupedMatmul(x, w, int32(counts)).read(), 'ERR_ARGUMENT', message);
  // Without columns nothing is multiplied, and the counts are as wrong.
  await rejectsCode(
    moe.groupedMatmul(x, Tensor.zeros([2, 4, 0]), int32([1, 1])).read(),
    'ERR_ARGUMENT',
    /2 rows in all/,
  );
});

test('wrong arguments are refused at once', () => {
  const [x, w, counts] = [Tensor.zeros([5, 4]), Tensor.zeros([2, 4, 3]), int32([2, 3])];
  const call =
    (...args: unknown[]) =>
    () =>
      moe.groupedMatmul(...(args as [Tensor, Tensor, Tensor]));
  throwsCode(call(Tensor.zeros([5, 3]), w, counts), 'ERR_SHAPE', /\[rows, K\], \[E, K, N\]/);
  throwsCode(call(x, w, int32([1, 2, 2])), 'ERR_SHAPE');
  throwsCode(call(x, Tensor.zeros([4, 3]), counts), 'ERR_SHAPE', /w/);
  throwsCode(call(Tensor.zeros([1, 5, 4]), w, counts), 'ERR_SHAPE', /x/);
  throwsCode(call(x, w, Tensor.zeros([1, 2], { dtype: 'int32' })), 'ERR_SHAPE', /counts/);
  throwsCode(call(x.cast('float8_e4m3'), w, counts), 'ERR_DTYPE', /x/);
  throwsCode(call(x, Tensor.zeros([2, 4, 3], { dtype: 'int8' }), counts), 'ERR_DTYPE', /w/);
  throwsCode(call(x, w, Tensor.zeros([2])), 'ERR_DTYPE', /counts/);
  throwsCode(call(x, w, [2, 3]), 'ERR_ARGUMENT', /counts/);
  throwsCode(call(null, w, counts), 'ERR_ARGUMENT', /x: null/);
  w.dispose();
  throwsCode(call(x, w, counts), 'ERR_DISPOSED');
});
