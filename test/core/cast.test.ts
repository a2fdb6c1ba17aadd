import { expect, test } from 'vitest';
import { type DType, Tensor, type TypedArray } from '../../lib';
import { ISAS, withIsa } from './machine';
import { random } from './random';
import { cast, decode, FORMATS, magnitudeBits, type SmallFloat } from './small_floats';

const SMALL = ['float16', 'bfloat16', 'float8_e4m3', 'float8_e5m2'] as const;
const codesOf = (format: SmallFloat): number[] =>
  Array.from({ length: 2 << magnitudeBits(format) }, (_, code) => code);
const bitsArray = (dtype: DType, codes: number[]): TypedArray =>
  dtype.startsWith('float8') ? Uint8Array.from(codes) : Uint16Array.from(codes);

async function convert(values: ArrayLike<number>, from: DType, to: DType): Promise<TypedArray> {
  using tensor = Tensor.from(Float32Array.from(values), [values.length], { dtype: from });
  using cast = tensor.cast(to);
  return await cast.read();
}

/** Where the bits differ from the reference, as a list of at most three descriptions; NaN equals any NaN. */
function wrong(format: SmallFloat, values: ArrayLike<number>, found: TypedArray): string[] {
  const bad: string[] = [];
  for (let i = 0; i < values.length && bad.length < 3; i++) {
    const expected = cast(format, values[i] as number);
    const code = Number(found[i]);
    const same = Number.isNaN(expected) ? Number.isNaN(decode(format, code)) : code === expected;
    if (!same) bad.push(`${values[i]} became ${code}, expected ${expected}`);
  }
  return bad;
}

test.each(SMALL)(
  '%s: each code is read as the value that its fields say, and goes back to itself',
  async (dtype) => {
    const format = FORMATS[dtype];
    const codes = codesOf(format);
    using tensor = Tensor.from(bitsArray(dtype, codes), [codes.length], { dtype });
    for (const isa of ISAS) {
      await withIsa(isa, async () => {
        const values = await tensor.toFloat32();
        expect(codes.filter((code) => !Object.is(values[code], decode(format, code)))).toEqual([]);
        using wide = tensor.cast('float32');
        using narrow = wide.cast(dtype);
        expect(wrong(format, values, await narrow.read())).toEqual([]);
      });
    }
  },
);

/** Around every border of rounding: each value, each midpoint, and the float32 numbers next to both. */
function borders(format: SmallFloat): Float32Array {
  const finite = codesOf(format)
    .map((code) => decode(format, code))
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  const words: number[] = [];
  const view = new DataView(new ArrayBuffer(4));
  const add = (x: number) => {
    view.setFloat32(0, x);
    const bits = view.getUint32(0);
    for (const delta of [-1, 0, 1]) words.push((bits + delta) >>> 0);
  };
  finite.forEach((value, i) => {
    add(value);
    if (i > 0) add((value + (finite[i - 1] as number)) / 2);
  });
  const greatest = finite[finite.length - 1] as number;
  for (const factor of [1.01, 1.03, 1.0625, 1.07, 1.125, 1.25, 2, 1e6])
    for (const s of [-1, 1]) add(s * factor * greatest);
  add(Number.POSITIVE_INFINITY);
  add(Number.NEGATIVE_INFINITY);
  const values = new Uint32Array(words);
  return new Float32Array(values.buffer);
}

test.each(SMALL)(
  '%s: float32 is rounded to nearest even at every border; too much saturates or overflows',
  async (dtype) => {
    const values = borders(FORMATS[dtype]);
    for (const isa of ISAS) {
      expect(
        wrong(FORMATS[dtype], values, await withIsa(isa, () => convert(values, 'float32', dtype))),
      ).toEqual([]);
    }
  },
);

test.each(SMALL)(
  '%s: random float32 bit patterns of every exponent are rounded to nearest even',
  async (dtype) => {
    const next = random(11);
    const words = Uint32Array.from({ length: 200_003 }, () => next() * 2 ** 32);
    const values = new Float32Array(words.buffer);
    for (const isa of ISAS) {
      expect(
        wrong(FORMATS[dtype], values, await withIsa(isa, () => convert(values, 'float32', dtype))),
      ).toEqual([]);
    }
  },
);

const PAIRS = SMALL.flatMap((from) => SMALL.filter((to) => to !== from).map((to) => [from, to] as const));
test.each(PAIRS)('%s to %s is one rounding of each value', async (from, to) => {
  const codes = codesOf(FORMATS[from]);
  using tensor = Tensor.from(bitsArray(from, codes), [codes.length], { dtype: from });
  using result = tensor.cast(to);
  const values = codes.map((code) => decode(FORMATS[from], code));
  expect(wrong(FORMATS[to], values, await result.read())).toEqual([]);
});

test('values of every float dtype are converted as a cast of their float32 values would', async () => {
  for (const dtype of SMALL) {
    const values = borders(FORMATS[dtype]).subarray(0, 3000);
    using direct = Tensor.from(Array.from(values), [values.length], { dtype });
    expect(wrong(FORMATS[dtype], values, await direct.read())).toEqual([]);
  }
});

const INTEGERS = [
  ['int8', -(2 ** 7), 2 ** 7 - 1],
  ['uint8', 0, 255],
  ['int16', -(2 ** 15), 2 ** 15 - 1],
  ['int32', -(2 ** 31), 2 ** 31 - 1],
] as const;

/** Nearest integer, ties to even, within the range; NaN is 0. */
function toInteger(x: number, least: number, most: number): number {
  if (Number.isNaN(x)) return 0;
  const floor = Math.floor(x);
  const rounded = x - floor === 0.5 ? floor + (floor % 2 === 0 ? 0 : 1) : Math.round(x);
  return Math.min(most, Math.max(least, rounded));
}

test.each(INTEGERS)(
  'float32 to %s is the nearest integer, ties to even, saturated; NaN is 0',
  async (dtype, least, most) => {
    const next = random(5);
    const values = Float32Array.from([
      ...Array.from({ length: 1025 }, (_, i) => (i - 512) / 2),
      ...Array.from({ length: 3000 }, () => (next() - 0.5) * 2 ** (40 * next())),
      ...[least, most].flatMap((limit) => [-1, -0.5, 0, 0.5, 1, 200].map((delta) => limit + delta)),
      ...[Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e38, -1e38, 1e-40, -0],
    ]);
    for (const isa of ISAS) {
      const found = (await withIsa(isa, () => convert(values, 'float32', dtype))) as Int32Array;
      const bad = found.findIndex((value, i) => value !== toInteger(values[i] as number, least, most) + 0);
      expect(bad < 0 ? 'same' : `${values[bad]} became ${found[bad]}`).toBe('same');
    }
  },
);

test('float32 to int64 is the nearest integer, saturated', async () => {
  const found = await convert(
    [0.5, 1.5, -2.5, 2 ** 40, -(2 ** 62), 1e30, -1e30, Number.NaN],
    'float32',
    'int64',
  );
  const limit = 2n ** 63n;
  expect([...found]).toEqual([0n, 2n, -2n, 2n ** 40n, -(2n ** 62n), limit - 1n, -limit, 0n]);
});

test('float32 to bool is true for all but zeros', async () => {
  const found = await convert([0, -0, 1, 0.25, -3, Number.NaN, Number.POSITIVE_INFINITY], 'float32', 'bool');
  expect([...found]).toEqual([0, 0, 1, 1, 1, 1, 1]);
});

test.each(INTEGERS)('every small %s is exact in float32, and comes back', async (dtype, least, most) => {
  const range = [least, most].every((limit) => Math.abs(limit) <= 2 ** 15);
  const values = range
    ? Array.from({ length: most - least + 1 }, (_, i) => least + i)
    : Array.from({ length: 4097 }, (_, i) => (i - 2048) * 8191);
  using tensor = Tensor.from(values, [values.length], { dtype });
  const floats = await tensor.toFloat32();
  expect(floats.findIndex((value, i) => value !== values[i])).toBe(-1);
  using wide = tensor.cast('int64');
  using back = wide.cast(dtype);
  expect(await back.read()).toEqual(await tensor.read());
});

test('large integers are rounded to nearest even in float32', async () => {
  using tensor = Tensor.from(Int32Array.of(2 ** 24 + 1, 2 ** 24 + 3, 2 ** 31 - 1, -(2 ** 31)), [4]);
  expect([...(await tensor.toFloat32())]).toEqual([2 ** 24, 2 ** 24 + 4, 2 ** 31, -(2 ** 31)]);
});

test('integers to narrower integers saturate', async () => {
  using tensor = Tensor.from(Int32Array.of(300, -300, 5, 2 ** 31 - 1), [4]);
  expect([...(await tensor.cast('int8').read())]).toEqual([127, -128, 5, 127]);
  expect([...(await tensor.cast('uint8').read())]).toEqual([255, 0, 5, 255]);
});
