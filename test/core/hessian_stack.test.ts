import { describe, expect, test } from 'vitest';
import { getDefaultDevice, Hessian, memory, synchronize, Tensor } from '../../lib';
import { native } from '../../lib/native';
import { HessianStack } from '../../lib/ops/hessian_stack';
import { throwsCode } from './errors';
import { normals } from './random';

const DTYPES = ['float32', 'float16', 'bfloat16'] as const;
/** Experts without tokens at the ends and in the middle, with one, and with more rows than a kernel takes at a time. */
const BATCHES = [
  [0, 1, 33, 0, 0, 130, 5, 0],
  [2, 0, 0, 0, 64, 1, 1, 300],
];

const sumOf = (counts: readonly number[]) => counts.reduce((a, b) => a + b, 0);

describe.each(DTYPES)('%s', (dtype) => {
  test.each([7, 64, 136])(
    '%s features: sums and samples are those of each Hessian by itself, bit for bit',
    async (width) => {
      using stack = new HessianStack(8, width);
      const alone = stack.each.map(() => new Hessian(width));
      for (const [seed, counts] of BATCHES.entries()) {
        const rows = sumOf(counts);
        // Two rows more, which are nobody's.
        using all = Tensor.from(normals((rows + 2) * width, 11 + seed), [rows + 2, width], { dtype });
        stack.update(all, counts);
        let first = 0;
        for (const [i, count] of counts.entries()) {
          using own = all.slice(0, first, first + count);
          using samples = own.reshape([count, 1, width]);
          alone[i]?.update(samples);
          first += count;
        }
      }
      for (const [i, hessian] of stack.each.entries()) {
        const other = alone[i] as Hessian;
        expect(hessian.samples).toBe(other.samples);
        using own = hessian.value();
        using expected = other.value();
        expect(await own.read()).toEqual(await expected.read());
        other.dispose();
      }
    },
  );
});

test('a Hessian stays good when the stack and the others are gone, and takes further samples', async () => {
  const stack = new HessianStack(3, 4);
  using x = Tensor.from(normals(6 * 4, 5), [6, 4]);
  stack.update(x, [2, 3, 1]);
  const [first, second, third] = stack.each as [Hessian, Hessian, Hessian];
  stack[Symbol.dispose]();
  first.dispose();
  third.dispose();
  using more = Tensor.from(normals(4, 6), [1, 1, 4]);
  second.update(more);
  using other = new Hessian(4);
  using own = x.slice(0, 2, 5);
  using samples = own.reshape([3, 1, 4]);
  other.update(samples);
  other.update(more);
  expect(second.samples).toBe(4);
  using found = second.value();
  using expected = other.value();
  expect(await found.read()).toEqual(await expected.read());
  second.dispose();
});

test('memory is that of the sums, and comes back with the last of them', async () => {
  const live = async () => {
    await synchronize(); // what is queued holds memory too
    return memory(getDefaultDevice()).liveBytes;
  };
  const before = await live();
  const stack = new HessianStack(4, 32);
  expect((await live()) - before).toBe(4 * 32 * 32 * 4);
  stack[Symbol.dispose]();
  for (const hessian of stack.each) {
    expect((await live()) - before).toBe(4 * 32 * 32 * 4);
    hessian.dispose();
  }
  expect(await live()).toBe(before);
});

test('counts beyond the rows, and below 0, count as far as rows are there', async () => {
  const [width, rows] = [8, 5];
  using x = Tensor.from(normals(rows * width, 3), [rows, width]);
  using products = Tensor.zeros([3, width, width]);
  using counts = Tensor.from(Int32Array.of(3, -7, 2 ** 31 - 1), [3]);
  native.hessianUpdateEach(
    Tensor.native(products, 'products'),
    Tensor.native(x, 'x'),
    Tensor.native(counts, 'counts'),
  );
  using stack = new HessianStack(3, width);
  stack.update(x, [3, 0, 2]);
  const sums = await products.toFloat32();
  for (const [i, hessian] of stack.each.entries()) {
    using own = hessian.sums();
    expect(sums.slice(i * width * width, (i + 1) * width * width)).toEqual(await own.toFloat32());
  }
});

test('what does not fit is refused at once', () => {
  using x = Tensor.zeros([5, 8]);
  using products = Tensor.zeros([3, 8, 8]);
  using counts = Tensor.zeros([3], { dtype: 'int32' });
  const call = (p: Tensor, rows: Tensor, c: Tensor) => () =>
    native.hessianUpdateEach(Tensor.native(p, 'p'), Tensor.native(rows, 'rows'), Tensor.native(c, 'c'));
  using flat = Tensor.zeros([8, 8]);
  using wide = Tensor.zeros([5, 9]);
  using few = Tensor.zeros([2], { dtype: 'int32' });
  using floats = Tensor.zeros([3]);
  throwsCode(call(flat, x, counts), 'ERR_SHAPE', /problems, in, in/);
  throwsCode(call(products, wide, counts), 'ERR_SHAPE', /rows, 8/);
  throwsCode(call(products, x, few), 'ERR_SHAPE', /\[3\] expected/);
  throwsCode(call(products, x, floats), 'ERR_DTYPE', /int32/);
});
