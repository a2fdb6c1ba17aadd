import { expect, test } from 'vitest';
import { type DType, hadamard, Tensor } from '../../lib';
import { throwsCode } from './errors';
import { normals } from './random';

const FLOATS = ['float32', 'float16', 'bfloat16'] as const;

/** The Sylvester matrix's entry: the parity of the bits that both indices have. */
const sign = (i: number, j: number): number => {
  let bits = i & j;
  let parity = 1;
  for (; bits !== 0; bits &= bits - 1) parity = -parity;
  return parity;
};

test.each(FLOATS)(
  '%s: integers transform exactly, over the last of any number of dimensions',
  async (dtype) => {
    const n = 64;
    const values = Float32Array.from({ length: 2 * 3 * n }, (_, i) => ((i * 7) % 3) - 1);
    using x = Tensor.from(values, [2, 3, n], { dtype });
    using y = hadamard(x, { scale: 1 });
    expect([y.shape, y.dtype]).toEqual([[2, 3, n], dtype]);
    const expected = Float32Array.from(values, (_, at) => {
      let sum = 0;
      for (let j = 0; j < n; j++) sum += sign(at % n, j) * (values[at - (at % n) + j] as number);
      return sum;
    });
    expect(await y.toFloat32()).toEqual(expected);
  },
);

test('the default scale keeps lengths, and twice a Sylvester transform is the identity', async () => {
  const values = normals(5 * 256, 3);
  using twice = hadamard(hadamard(Tensor.from(values, [5, 256])));
  const back = await twice.toFloat32();
  // Eight stages and a scaling each way, of rows whose entries are under 20 * 5.
  const bound = 2 * 9 * 2 ** -24 * 256 * 100;
  const worst = back.reduce((most, value, i) => Math.max(most, Math.abs(value - (values[i] as number))), 0);
  expect(worst).toBeLessThan(bound);
  using row = hadamard(Tensor.from(new Float32Array(144).fill(1), [144]));
  const energy = (await row.toFloat32()).reduce((sum, value) => sum + value * value, 0);
  expect(Math.abs(energy - 144)).toBeLessThan(144 * 2 ** -18);
});

test('views give what their copies give', async () => {
  const values = normals(6 * 80, 5);
  using whole = Tensor.from(values, [6, 80]);
  using part = whole.slice(1, 8, 56);
  using copy = Tensor.from(
    Float32Array.from({ length: 6 * 48 }, (_, i) => values[Math.floor(i / 48) * 80 + 8 + (i % 48)] as number),
    [6, 48],
  );
  expect(await hadamard(part).read()).toEqual(await hadamard(copy).read());
  expect(await whole.read()).toEqual(values);
});

test.each([[[0, 64]], [[3, 0]], [[0]], [[2, 0, 12]]])(
  'an empty tensor of shape %j stays one',
  async (shape) => {
    using y = hadamard(Tensor.zeros(shape));
    expect([y.shape, (await y.read()).length]).toEqual([shape, 0]);
  },
);

test('NaN stays within its row', async () => {
  const values = new Float32Array(3 * 12).fill(1);
  values[17] = Number.NaN;
  const y = await hadamard(Tensor.from(values, [3, 12])).toFloat32();
  expect(Array.from(y, (value) => Number.isNaN(value))).toEqual(
    Array.from({ length: 36 }, (_, i) => Math.floor(i / 12) === 1),
  );
});

test('a size without a matrix is refused at once, with its nearest neighbours', () => {
  using x = Tensor.zeros([2, 172]);
  throwsCode(() => hadamard(x), 'ERR_SHAPE', /172.*168 and 176/);
  throwsCode(() => hadamard(Tensor.zeros([3])), 'ERR_SHAPE', /2 and 4/);
  throwsCode(() => hadamard(Tensor.zeros([])), 'ERR_SHAPE', /\[\.\.\., n\]/);
});

test('other dtypes, scales and arguments are refused at once', () => {
  for (const dtype of ['int8', 'float8_e4m3', 'bool'] as DType[]) {
    throwsCode(() => hadamard(Tensor.zeros([4], { dtype })), 'ERR_DTYPE', new RegExp(dtype));
  }
  using x = Tensor.zeros([4]);
  for (const scale of [Number.NaN, Number.POSITIVE_INFINITY, '1', {}]) {
    throwsCode(() => hadamard(x, { scale: scale as number }), 'ERR_ARGUMENT', /scale/);
  }
  throwsCode(() => hadamard([1] as unknown as Tensor), 'ERR_ARGUMENT', /x/);
  x.dispose();
  throwsCode(() => hadamard(x), 'ERR_DISPOSED');
});
