import { afterEach, expect, test } from 'vitest';
import { type DType, devices, getDefaultDevice, setDefaultDevice, Tensor, type TypedArray } from '../../lib';
import { DEVICE } from '../device';
import { rejectsCode, throwsCode } from './errors';
import { cast, decode, FORMATS } from './small_floats';

const DTYPES: [DType, number, new (values: number) => TypedArray][] = [
  ['float32', 4, Float32Array],
  ['float16', 2, Uint16Array],
  ['bfloat16', 2, Uint16Array],
  ['float8_e4m3', 1, Uint8Array],
  ['float8_e5m2', 1, Uint8Array],
  ['int8', 1, Int8Array],
  ['uint8', 1, Uint8Array],
  ['int16', 2, Int16Array],
  ['int32', 4, Int32Array],
  ['int64', 8, BigInt64Array],
  ['bool', 1, Uint8Array],
];

afterEach(() => setDefaultDevice(DEVICE));

test.each(DTYPES)('%s: zeros are read as zero bits in the dtype’s own array', async (dtype, bytes, array) => {
  using zeros = Tensor.zeros([2, 3], { dtype });
  expect([zeros.dtype, zeros.shape, zeros.size, zeros.byteLength]).toEqual([dtype, [2, 3], 6, 6 * bytes]);
  expect(await zeros.read()).toEqual(new array(6));
  expect(await zeros.toFloat32()).toEqual(new Float32Array(6));
});

test.each(DTYPES)('%s: small integers come back as the values that they are', async (dtype) => {
  const values = dtype === 'bool' ? [0, 1, 1, 0] : dtype.startsWith('u') ? [0, 1, 2, 7] : [0, 1, -2, 6];
  using tensor = Tensor.from(values, [4], { dtype });
  expect(tensor.dtype).toBe(dtype);
  expect([...(await tensor.toFloat32())]).toEqual(values);
});

test('a tensor has the default device, and none is there that is not listed', () => {
  expect([getDefaultDevice(), Tensor.zeros([1]).device]).toEqual([DEVICE, DEVICE]);
  if (!devices().some(({ kind }) => kind === 'cuda-emulated'))
    throwsCode(() => Tensor.zeros([1], { device: 'cuda-emulated' }), 'ERR_DEVICE', /cuda-emulated/);
  throwsCode(() => Tensor.from([1], [1], { device: 'cuda:99' }), 'ERR_DEVICE', /cuda:99/);
  throwsCode(() => Tensor.zeros([1]).to('gpu' as 'cpu'), 'ERR_DEVICE', /gpu came, expected cpu/);
  throwsCode(() => setDefaultDevice('cuda:99'), 'ERR_DEVICE');
  expect(getDefaultDevice()).toBe(DEVICE);
});

test.each<[TypedArray, DType]>([
  [Float32Array.of(1.5, -2), 'float32'],
  [Float64Array.of(1.5, -2), 'float32'],
  [Uint8Array.of(1, 255), 'uint8'],
  [Int8Array.of(1, -128), 'int8'],
  [Int16Array.of(1, -32768), 'int16'],
  [Int32Array.of(1, -(2 ** 31)), 'int32'],
  [BigInt64Array.of(1n, -(2n ** 63n)), 'int64'],
])('%o without a dtype becomes %s', async (data, dtype) => {
  using tensor = Tensor.from(data, [2]);
  expect(tensor.dtype).toBe(dtype);
  expect(await tensor.read()).toEqual(data instanceof Float64Array ? Float32Array.from(data) : data);
});

test('numbers without a dtype become float32, rounded once', async () => {
  using tensor = Tensor.from([0.1, 2 ** 24 + 1, 1e300, Number.NaN, -0], [5]);
  expect(await tensor.read()).toEqual(
    Float32Array.of(Math.fround(0.1), 2 ** 24, Number.POSITIVE_INFINITY, Number.NaN, -0),
  );
});

test('a Uint16Array is the bits of float16 and bfloat16, and needs to be told which', async () => {
  const bits = Uint16Array.of(0x3c00, 0xffff, 0x8000);
  for (const dtype of ['float16', 'bfloat16'] as const) {
    using tensor = Tensor.from(bits, [3], { dtype });
    expect(await tensor.read()).toEqual(bits);
  }
  using values = Tensor.from(bits, [3], { dtype: 'int32' });
  expect(await values.read()).toEqual(Int32Array.from(bits));
  throwsCode(() => Tensor.from(bits, [3]), 'ERR_DTYPE', /float16 or bfloat16/);
});

test.each(['float8_e4m3', 'float8_e5m2', 'bool'] as const)(
  'a Uint8Array is the bits of %s',
  async (dtype) => {
    using tensor = Tensor.from(Uint8Array.of(1, 0, 1), [3], { dtype });
    expect(await tensor.read()).toEqual(Uint8Array.of(1, 0, 1));
  },
);

test('a Float32Array and numbers are values of every float dtype', async () => {
  for (const data of [Float32Array.of(1, -2.5, 448), [1, -2.5, 448]]) {
    for (const dtype of ['float16', 'bfloat16', 'float8_e4m3'] as const) {
      using tensor = Tensor.from(data, [3], { dtype });
      expect(await tensor.toFloat32()).toEqual(Float32Array.of(1, -2.5, 448));
    }
  }
});

test.each(['float16', 'bfloat16', 'float8_e4m3', 'float8_e5m2'] as const)(
  'numbers are rounded once on their way to %s: what float32 makes a tie is none',
  async (dtype) => {
    const format = FORMATS[dtype];
    const greatest = dtype === 'float8_e4m3' ? 0x7e : ((1 << format.exponentBits) - 1) << format.mantissaBits;
    const step = Math.max(1, Math.floor(greatest / 500));
    const numbers: number[] = [0, -0, 1e-60, -1e-60, 1e300, -1e300, Number.NaN, Number.POSITIVE_INFINITY];
    for (let code = 0; code + 1 < greatest; code += step) {
      const tie = (decode(format, code) + decode(format, code + 1)) / 2;
      for (const off of [-(2 ** -40), 0, 2 ** -40]) numbers.push(tie * (1 + off), -tie * (1 + off));
    }
    const expected = numbers.map((x) => cast(format, x));
    for (const data of [numbers, Float64Array.from(numbers)]) {
      using tensor = Tensor.from(data, [numbers.length], { dtype });
      const codes = [...((await tensor.read()) as Uint16Array)].map((code) =>
        Number.isNaN(decode(format, code)) ? Number.NaN : code,
      );
      const wrong = codes.findIndex((code, i) => !Object.is(code, expected[i]));
      expect(wrong < 0 ? null : [numbers[wrong], codes[wrong], expected[wrong]]).toBeNull();
    }
  },
);

test.each<[DType, number]>([
  ['int8', 128],
  ['int8', 0.5],
  ['uint8', -1],
  ['uint8', 256],
  ['int16', 32768],
  ['int32', 2 ** 31],
  ['int32', Number.NaN],
  ['int64', 2 ** 53],
  ['int64', Number.POSITIVE_INFINITY],
  ['bool', 2],
])('%s holds no %d', (dtype, value) => {
  throwsCode(() => Tensor.from([0, value], [2], { dtype }), 'ERR_ARGUMENT', /data\[1\]: .*does not hold/);
  throwsCode(() => Tensor.from(Float64Array.of(0, value), [2], { dtype }), 'ERR_ARGUMENT', /data\[1\]/);
});

test('data is copied at the call', async () => {
  const data = Float32Array.of(1, 2);
  using tensor = Tensor.from(data, [2]);
  data.fill(9);
  expect(await tensor.read()).toEqual(Float32Array.of(1, 2));
});

test('a part of a buffer, a shared buffer and an array-like are data', async () => {
  const part = new Int16Array(Int16Array.of(1, 2, 3, 4).buffer, 2, 2);
  using a = Tensor.from(part, [2]);
  expect(await a.read()).toEqual(Int16Array.of(2, 3));
  using b = Tensor.from(new Float32Array(new SharedArrayBuffer(8)).fill(3), [2]);
  expect(await b.read()).toEqual(Float32Array.of(3, 3));
  using c = Tensor.from({ length: 2, 0: 5, 1: 6 }, [1, 2]);
  expect(await c.read()).toEqual(Float32Array.of(5, 6));
});

test.each<[string, unknown]>([
  ['null', null],
  ['a string', 'abc'],
  ['an object', {}],
  ['a BigInt64Array as floats', new BigInt64Array(3)],
  ['a BigUint64Array', new BigUint64Array(3)],
  ['a DataView', new DataView(new ArrayBuffer(12))],
  ['a hole', Object.assign(new Array(3), { 0: 1, 2: 3 })],
  ['a string in it', [1, '2', 3]],
  ['a bigint in it', [1, 2n, 3]],
])('data that is %s is refused', (_, data) => {
  throwsCode(() => Tensor.from(data as number[], [3], { dtype: 'float32' }), 'ERR_ARGUMENT', /^data/);
});

test('data of another length than the shape takes is refused', () => {
  throwsCode(() => Tensor.from([1, 2, 3], [2, 2]), 'ERR_SHAPE', /3 values came, .* 4/);
  throwsCode(() => Tensor.from(new Float32Array(5), [2, 2]), 'ERR_SHAPE', /5 values came/);
  throwsCode(() => Tensor.from([], []), 'ERR_SHAPE');
});

test.each<[string, unknown]>([
  ['no array', 3],
  ['a negative dimension', [2, -1]],
  ['a fraction', [1.5]],
  ['NaN', [Number.NaN]],
  ['a string', ['2']],
  ['more than 2^53 elements', [2 ** 30, 2 ** 30]],
  ['more than 16 dimensions', new Array(17).fill(1)],
  ['a hole', new Array(3)],
  ['2^32 - 1 holes', new Array(2 ** 32 - 1)],
])('a shape that is or has %s is refused', (_, shape) => {
  throwsCode(() => Tensor.zeros(shape as number[]), 'ERR_SHAPE', /^shape/);
  throwsCode(() => Tensor.from([], shape as number[]), 'ERR_SHAPE', /^shape/);
  throwsCode(() => Tensor.zeros([1]).reshape(shape as number[]), 'ERR_SHAPE', /^shape/);
});

test('an unknown dtype is refused by name', () => {
  throwsCode(
    () => Tensor.zeros([1], { dtype: 'float64' as DType }),
    'ERR_DTYPE',
    /float64 came, expected float32/,
  );
  throwsCode(() => Tensor.zeros([1]).cast('toString' as DType), 'ERR_DTYPE');
});

test('a scalar has no dimensions and one element', async () => {
  using scalar = Tensor.from([7], []);
  expect([scalar.shape, scalar.size]).toEqual([[], 1]);
  expect(await scalar.read()).toEqual(Float32Array.of(7));
});

test('empty tensors work in every method', async () => {
  for (const shape of [[0], [0, 3], [3, 0], [2, 0, 4]]) {
    const empty = Tensor.from([], shape);
    expect([empty.size, empty.byteLength]).toEqual([0, 0]);
    const made = [
      empty,
      empty.cast('bfloat16'),
      empty.reshape([0, 7]),
      empty.slice(0, 0, 0),
      empty.to('cpu'),
    ];
    if (shape.length === 2) made.push(empty.transpose());
    for (const tensor of made) expect((await tensor.read()).length).toBe(0);
    for (const tensor of made) expect((await tensor.toFloat32()).length).toBe(0);
  }
  expect(Tensor.zeros([3, 0]).transpose().shape).toEqual([0, 3]);
});

test('reshape keeps the values in order, and -1 stands for what is left', async () => {
  using tensor = Tensor.from(
    Int32Array.from({ length: 24 }, (_, i) => i),
    [2, 3, 4],
  );
  for (const [given, result] of [
    [[24], [24]],
    [[-1], [24]],
    [
      [4, -1],
      [4, 6],
    ],
    [
      [-1, 3, 2, 1],
      [4, 3, 2, 1],
    ],
    [
      [2, 12, -1],
      [2, 12, 1],
    ],
  ] as const) {
    using view = tensor.reshape([...given]);
    expect(view.shape).toEqual(result);
    expect(await view.read()).toEqual(await tensor.read());
  }
  expect(Tensor.zeros([0, 4]).reshape([-1, 2]).shape).toEqual([0, 2]);
});

test('reshape refuses what does not come out even', () => {
  const tensor = Tensor.zeros([2, 3]);
  for (const shape of [[5], [-1, 4], [-1, -1], [6, -2], [], [0, -1]]) {
    throwsCode(() => tensor.reshape(shape), 'ERR_SHAPE', /shape/);
  }
});

test('a reshaped tensor shares the bytes and outlives the one it came from', async () => {
  const tensor = Tensor.from([1, 2, 3, 4], [4]);
  const view = tensor.reshape([2, 2]);
  tensor.dispose();
  expect([tensor.disposed, view.disposed]).toEqual([true, false]);
  expect(await view.read()).toEqual(Float32Array.of(1, 2, 3, 4));
});

test.each([0, 1, 2])('slices along dimension %i are the elements that an index loop picks', async (dim) => {
  const shape = [3, 4, 5];
  const data = Float32Array.from({ length: 60 }, (_, i) => i);
  using tensor = Tensor.from(data, shape);
  for (let start = 0; start <= (shape[dim] as number); start++) {
    for (let end = start; end <= (shape[dim] as number); end++) {
      using part = tensor.slice(dim, start, end);
      const expected = data.filter((i) => {
        const at = [Math.floor(i / 20), Math.floor(i / 5) % 4, i % 5][dim] as number;
        return at >= start && at < end;
      });
      expect(part.shape).toEqual(shape.map((n, d) => (d === dim ? end - start : n)));
      expect(await part.read()).toEqual(expected);
    }
  }
});

test('slice refuses ranges outside the dimension', () => {
  const tensor = Tensor.zeros([2, 3]);
  for (const [dim, start, end] of [
    [2, 0, 1],
    [-1, 0, 1],
    [0, 0, 3],
    [0, -1, 1],
    [1, 2, 1],
    [1, 0.5, 1],
  ] as const) {
    throwsCode(() => tensor.slice(dim, start, end), 'ERR_ARGUMENT', /dim|start|end/);
  }
});

test.each(DTYPES)(
  '%s: transposing moves element (r, c) to (c, r), across tile borders',
  async (dtype, _, array) => {
    const [rows, cols] = [67, 131];
    const data = new array(rows * cols);
    data.forEach((_, i) => {
      const bits = dtype === 'bool' ? i % 2 : i % 127;
      data[i] = data instanceof BigInt64Array ? BigInt(bits) : bits;
    });
    using tensor = Tensor.from(data, [rows, cols], { dtype });
    using turned = tensor.transpose();
    expect(turned.shape).toEqual([cols, rows]);
    const read = await turned.read();
    expect(read.every((value, i) => value === data[(i % rows) * cols + Math.floor(i / rows)])).toBe(true);
    using back = turned.transpose();
    expect(await back.read()).toEqual(data);
  },
);

test('only matrices are transposed', () => {
  throwsCode(() => Tensor.zeros([3]).transpose(), 'ERR_SHAPE', /two dimensions/);
  throwsCode(() => Tensor.zeros([3, 3, 3]).transpose(), 'ERR_SHAPE');
});

test('a disposed tensor refuses everything with ERR_DISPOSED, and may be disposed again', async () => {
  const tensor = Tensor.zeros([2, 2]);
  tensor.dispose();
  tensor.dispose();
  tensor[Symbol.dispose]();
  expect(tensor.disposed).toBe(true);
  expect([tensor.shape, tensor.size]).toEqual([[2, 2], 4]);
  const calls = [
    () => tensor.cast('int8'),
    () => tensor.reshape([4]),
    () => tensor.slice(0, 0, 1),
    () => tensor.transpose(),
    () => tensor.to('cpu'),
  ];
  for (const call of calls) throwsCode(call, 'ERR_DISPOSED', /disposed/);
  await rejectsCode(tensor.read(), 'ERR_DISPOSED');
  await rejectsCode(tensor.toFloat32(), 'ERR_DISPOSED');
});

test('using disposes at the end of the block', () => {
  let seen: Tensor;
  {
    using tensor = Tensor.zeros([1]);
    seen = tensor;
    expect(seen.disposed).toBe(false);
  }
  expect(seen.disposed).toBe(true);
});

test('shape, dtype and the rest cannot be written', () => {
  const tensor = Tensor.zeros([2]) as unknown as { shape: number[]; dtype: string };
  expect(() => {
    tensor.shape = [3];
  }).toThrow(TypeError);
  expect(() => tensor.shape.push(1)).toThrow(TypeError);
  expect(() => {
    tensor.dtype = 'int8';
  }).toThrow(TypeError);
});
