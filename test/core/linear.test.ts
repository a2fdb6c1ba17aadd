import { describe, expect, test } from 'vitest';
import {
  type Compute,
  dequantize,
  linear,
  QuantizedTensor,
  type QuantScheme,
  quantize,
  Tensor,
} from '../../lib';
import type { IntScheme } from '../../lib/scheme';
import { ON_CPU, some } from '../device';
import { rejectsCode, throwsCode } from './errors';
import { ISAS, THREADS, withIsa, withThreads } from './machine';
import { decoded, expectSame, expectWithin, ROWS, sumsOf } from './products';
import { normals, random } from './random';

const GRANULARITIES = [
  { granularity: 'group', groupSize: 32 },
  { granularity: 'group', groupSize: 96 },
  { granularity: 'row' },
  { granularity: 'tensor' },
] as const;

/** Products of these exist in int8 too. */
const INTEGERS: IntScheme[] = ([2, 3, 4, 5, 6, 8] as const).flatMap((bits) =>
  GRANULARITIES.flatMap((where) =>
    [false, true].map((symmetric): IntScheme => ({ kind: 'int', bits, symmetric, ...where })),
  ),
);

const OTHERS: QuantScheme[] = [
  // Scales along the reduced dimension, groups that end inside words, more than 8 bits.
  { kind: 'int', bits: 4, symmetric: false, granularity: 'column' },
  { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 20 },
  { kind: 'int', bits: 3, symmetric: false, granularity: 'group', groupSize: 16 },
  { kind: 'int', bits: 16, symmetric: true, granularity: 'group', groupSize: 32 },
  { kind: 'int', bits: 16, symmetric: false, granularity: 'row' },
  ...(['nf4', 'fp4', 'e3m0'] as const).flatMap((kind): QuantScheme[] => [
    { kind, blockSize: 16 },
    { kind, blockSize: 100 },
    { kind, blockSize: 32, doubleQuant: true },
    { kind, blockSize: 4096, doubleQuant: true },
  ]),
  { kind: 'dynamic8', blockSize: 64 },
  { kind: 'dynamic8', blockSize: 100 },
  ...(['e4m3', 'e5m2'] as const).flatMap((format): QuantScheme[] => [
    { kind: 'fp8', format, granularity: 'row' },
    { kind: 'fp8', format, granularity: 'tensor' },
  ]),
  ...(['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'] as const).flatMap((element): QuantScheme[] => [
    { kind: 'mx', element },
    { kind: 'mx', element, preScale: true },
  ]),
];
const SCHEMES = some([...INTEGERS, ...OTHERS], 5).map((scheme) => [JSON.stringify(scheme), scheme] as const);

const computes = (scheme: QuantScheme): Compute[] =>
  (INTEGERS as QuantScheme[]).includes(scheme) ? ['float32', 'bfloat16', 'int8'] : ['float32', 'bfloat16'];

/** `[out, in]`: rows off every tile, depths that end in the middle of groups, blocks and words. */
const SHAPES = [
  [50, 100],
  [35, 192],
  [17, 33],
  [3, 5],
  [1, 1],
] as const;

describe.each(SCHEMES)('%s', (_, scheme) => {
  test('every count of rows lies within c eps sqrt(K) sum |x||w| of float64', async () => {
    const most = ROWS.at(-1) as number;
    const [out, depth] = SHAPES[SCHEMES.findIndex(([, other]) => other === scheme) % 2]!;
    const x = Tensor.from(normals(most * depth, out), [most, depth]);
    using q = quantize(Tensor.from(normals(out * depth, depth), [out, depth]), scheme);
    const sums = sumsOf(await x.toFloat32(), await decoded(q));
    for (const compute of computes(scheme)) {
      for (const rows of ROWS) {
        const y = linear(x.slice(0, 0, rows), q, { compute });
        expectWithin(await y.toFloat32(), rows, sums, compute, `[${out}, ${depth}]`);
      }
    }
  });

  test('so it does on every instruction set, with the same bits on 1, 2 and 3 threads', async () => {
    for (const [out, depth] of SHAPES) {
      const x = Tensor.from(normals(40 * depth, out), [40, depth]);
      using q = quantize(Tensor.from(normals(out * depth, depth), [out, depth]), scheme);
      const sums = sumsOf(await x.toFloat32(), await decoded(q));
      const first = new Map<string, Float32Array>();
      const onAllSets = async (threads: number) => {
        for (const isa of ISAS) await withIsa(isa, () => products(isa, threads));
      };
      const products = async (isa: string, threads: number) => {
        for (const compute of computes(scheme)) {
          for (const rows of [1, 2, 3, 4, 5, 40]) {
            const label = `${isa} [${out}, ${depth}] ${compute} ${rows}`;
            const y = await linear(x.slice(0, 0, rows), q, { compute }).toFloat32();
            if (threads === 1) expectWithin(y, rows, sums, compute, label);
            if (threads === 1) first.set(label, y);
            else expectSame(y, first.get(label)!, `${label}, ${threads} threads`);
          }
        }
      };
      for (const threads of THREADS) await withThreads(threads, () => onAllSets(threads));
    }
  });

  test('leading dimensions are rows; bias is added before the one rounding to the dtype asked for', async () => {
    const [out, depth] = [19, 64];
    const x = Tensor.from(normals(2 * 3 * depth, 1), [2, 3, depth]);
    using q = quantize(Tensor.from(normals(out * depth, 2), [out, depth]), scheme);
    const plain = linear(x, q);
    expect(plain.shape).toEqual([2, 3, out]);
    expect(plain.dtype).toBe('float32');
    const y = await plain.toFloat32();
    expect(await linear(x.reshape([6, depth]), q).toFloat32()).toEqual(y);
    const bias = Tensor.from(normals(out, 3), [out]);
    const b = await bias.toFloat32();
    const added = Tensor.from(
      y.map((value, i) => Math.fround(value + (b[i % out] as number))),
      [2, 3, out],
    );
    for (const outDtype of ['float32', 'float16', 'bfloat16', 'float8_e4m3', 'float8_e5m2'] as const) {
      const result = linear(x, q, { bias, outDtype });
      expect(result.dtype).toBe(outDtype);
      expect(await result.read()).toEqual(await added.cast(outDtype).read());
    }
  });

  test('16-bit activations are those values: float16 in float32 products, bfloat16 in its own', async () => {
    const [out, depth] = [21, 70];
    using q = quantize(Tensor.from(normals(out * depth, 2), [out, depth]), scheme);
    const weight = await decoded(q);
    for (const [dtype, compute] of [
      ['float16', 'float32'],
      ['bfloat16', 'bfloat16'],
    ] as const) {
      for (const rows of [1, 3, 9]) {
        const x = Tensor.from(normals(rows * depth, rows), [rows, depth], { dtype });
        const wide = Tensor.from(await x.toFloat32(), [rows, depth]);
        const expected = linear(wide, q, { compute });
        const plain = linear(x, q, { outDtype: 'float32' });
        // Tensor cores take both kinds: they sum in another order, and round weights that are not integers to x's dtype.
        if (ON_CPU) expect(await plain.read()).toEqual(await expected.read());
        const sums = sumsOf(await x.toFloat32(), weight);
        expectWithin(await plain.toFloat32(), rows, sums, ON_CPU ? compute : 'bfloat16', `${dtype} x`);
        const y = linear(x, q);
        expect(y.dtype).toBe(dtype);
        expect(await y.read()).toEqual(await plain.cast(dtype).read());
        const narrow = Tensor.from(normals(out, 3), [out], { dtype });
        const same = Tensor.from(await narrow.toFloat32(), [out]);
        expect(await linear(x, q, { bias: narrow }).read()).toEqual(
          await linear(x, q, { bias: same }).read(),
        );
      }
    }
  });

  test('without rows or outputs the result is empty, without depth it is the bias', async () => {
    for (const [rows, out, depth] of [
      [0, 5, 40],
      [3, 0, 40],
      [1, 18, 0],
      [7, 18, 0],
      [0, 0, 0],
    ] as const) {
      using q = quantize(Tensor.zeros([out, depth]), scheme);
      const bias = normals(out, 4);
      for (const compute of computes(scheme)) {
        const y = linear(Tensor.zeros([rows, depth]), q, { compute, bias: Tensor.from(bias, [out]) });
        expect(y.shape).toEqual([rows, out]);
        const expected = Float32Array.from({ length: rows * out }, (_, i) => bias[i % out] as number);
        expect(await y.toFloat32()).toEqual(expected);
      }
    }
  });
});

test.each(some(INTEGERS, 5).map((scheme) => [JSON.stringify(scheme), scheme] as const))(
  '%s: integers under power-of-two scales come out exact in every arithmetic on every instruction set',
  async (_, scheme) => {
    const next = random(5);
    const below = (n: number) => Math.floor(next() * n);
    for (const [out, depth] of [...SHAPES, [9, 2], [5, 14]] as const) {
      const groups = scheme.granularity === 'group' ? Math.ceil(depth / (scheme.groupSize as number)) : 1;
      const group = scheme.granularity === 'group' ? (scheme.groupSize as number) : depth;
      const constants = scheme.granularity === 'tensor' ? [1, 1] : [out, groups];
      const count = constants[0]! * constants[1]!;
      const half = 2 ** (scheme.bits - 1);
      const codes = Array.from({ length: out * depth }, () =>
        scheme.symmetric ? below(2 * half - 1) - half + 1 : below(2 * half),
      );
      const scales = Array.from({ length: count }, () => 2 ** (below(4) - 2));
      const zeros = Array.from({ length: count }, () => (scheme.symmetric ? 0 : below(2 * half)));
      using q = QuantizedTensor.fromParts(scheme, [out, depth], {
        codes: Tensor.from(codes, [out, depth], { dtype: scheme.symmetric ? 'int8' : 'uint8' }),
        scales: Tensor.from(scales, constants),
        ...(scheme.symmetric ? {} : { zeros: Tensor.from(zeros, constants, { dtype: 'int32' }) }),
      });
      const rows = 14;
      // 127 in each group: one step of an int8 activation is 1.
      const x = Float32Array.from({ length: rows * depth }, (_, i) => {
        const [row, place] = [Math.floor(i / depth), (i % depth) % group];
        const last = Math.min(group, depth - ((i % depth) - place));
        return place === row % last ? (row % 2 ? -127 : 127) : below(17) - 8;
      });
      const expected = Float32Array.from({ length: rows * out }, (_, i) => {
        const [r, o] = [Math.floor(i / out), i % out];
        let sum = 0;
        for (let k = 0; k < depth; k++) {
          const at =
            constants[0] === 1 && scheme.granularity === 'tensor' ? 0 : o * groups + Math.floor(k / group);
          sum += x[r * depth + k]! * (codes[o * depth + k]! - zeros[at]!) * scales[at]!;
        }
        return sum;
      });
      const input = Tensor.from(x, [rows, depth]);
      for (const isa of ISAS) {
        await withIsa(isa, async () => {
          for (const compute of computes(scheme)) {
            for (const count of [1, 2, 3, 4, 5, rows]) {
              const y = await linear(input.slice(0, 0, count), q, { compute }).toFloat32();
              const label = `${isa} ${compute} [${out}, ${depth}] ${count} rows`;
              expectSame(y, expected.subarray(0, count * out), label);
            }
          }
        });
      }
    }
  },
);

test('a dense weight is multiplied as matmul does, with bias, in the arithmetic asked for', async () => {
  const [out, depth] = [45, 77];
  const x = Tensor.from(normals(20 * depth, 1), [20, depth]);
  const values = normals(out * depth, 2);
  const w = Tensor.from(values, [out, depth]);
  const bias = normals(out, 3);
  const sums = sumsOf(await x.toFloat32(), { out, in: depth, values, zeros: null, group: depth });
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const compute of ['auto', 'float32', 'bfloat16'] as const) {
        for (const rows of [1, 4, 20]) {
          const part = x.slice(0, 0, rows);
          const y = await linear(part, w, { compute }).toFloat32();
          expectWithin(y, rows, sums, compute === 'auto' ? 'float32' : compute, isa);
          const shifted = await linear(part, w, { compute, bias: Tensor.from(bias, [out]) }).toFloat32();
          expect(shifted).toEqual(y.map((value, i) => value + (bias[i % out] as number)));
        }
      }
      // bfloat16 on both sides: products in it are exact, and auto chooses them.
      const [a, b] = [x.cast('bfloat16'), w.cast('bfloat16')];
      const auto = await linear(a, b, { outDtype: 'float32' }).read();
      expect(auto).toEqual(await linear(a, b, { compute: 'bfloat16', outDtype: 'float32' }).read());
    });
  }
  throwsCode(() => linear(x, w, { compute: 'int8' }), 'ERR_UNSUPPORTED', /quantized/);
});

test('act-order groups are multiplied as their columns say', async () => {
  const [out, depth] = [23, 96];
  const scheme: IntScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 };
  const { codes, scales, zeros } = quantize(Tensor.from(normals(out * depth, 1), [out, depth]), scheme).parts;
  const groupIndex = Tensor.from(
    Int32Array.from({ length: depth }, (_, c) => (c * 7) % 3),
    [depth],
  );
  const q = QuantizedTensor.fromParts(scheme, [out, depth], {
    codes: codes!,
    scales: scales!,
    zeros: zeros!,
    groupIndex,
  });
  const x = normals(13 * depth, 2);
  const sums = sumsOf(x, await decoded(q));
  for (const compute of ['float32', 'bfloat16'] as const) {
    for (const rows of [1, 13]) {
      const input = Tensor.from(x.slice(0, rows * depth), [rows, depth]);
      expectWithin(await linear(input, q, { compute }).toFloat32(), rows, sums, compute, 'act-order');
    }
  }
  throwsCode(() => linear(Tensor.zeros([1, depth]), q, { compute: 'int8' }), 'ERR_UNSUPPORTED', /in order/);
  const beyond = QuantizedTensor.fromParts(scheme, [out, depth], {
    codes: codes!,
    scales: scales!,
    zeros: zeros!,
    groupIndex: Tensor.from(new Int32Array(depth).fill(3), [depth]),
  });
  await rejectsCode(linear(Tensor.zeros([1, depth]), beyond).read(), 'ERR_ARGUMENT', /groupIndex: 3/);
});

test('int8 products that no kernel has are refused at once', () => {
  const x = Tensor.zeros([2, 40]);
  const refuse = (scheme: QuantScheme, message: RegExp) =>
    throwsCode(
      () => linear(x, quantize(Tensor.zeros([4, 40]), scheme), { compute: 'int8' }),
      'ERR_UNSUPPORTED',
      message,
    );
  for (const scheme of OTHERS)
    refuse(scheme, scheme.kind === 'int' ? /in order/ : new RegExp(`is ${scheme.kind}`));
  const wide = quantize(Tensor.zeros([1, 40_000]), {
    kind: 'int',
    bits: 8,
    symmetric: true,
    granularity: 'row',
  });
  throwsCode(
    () => linear(Tensor.zeros([1, 40_000]), wide, { compute: 'int8' }),
    'ERR_UNSUPPORTED',
    /overflow/,
  );
});

test('int8 sums of 32768 columns, each as large as can be, do not overflow', async () => {
  const depth = 32_768;
  for (const symmetric of [true, false]) {
    const q = QuantizedTensor.fromParts(
      { kind: 'int', bits: 8, symmetric, range: 'full', granularity: 'row' },
      [2, depth],
      {
        codes: symmetric
          ? Tensor.from(
              new Int8Array(2 * depth).map((_, i) => (i < depth ? -128 : 127)),
              [2, depth],
            )
          : Tensor.from(
              new Uint8Array(2 * depth).map((_, i) => (i < depth ? 0 : 255)),
              [2, depth],
            ),
        scales: Tensor.from([1, 1], [2, 1]),
        ...(symmetric ? {} : { zeros: Tensor.from(Int32Array.from([255, 0]), [2, 1]) }),
      },
    );
    const expected = symmetric
      ? [-128 * 127 * depth, 127 * 127 * depth]
      : [-255 * 127 * depth, 255 * 127 * depth];
    for (const isa of ISAS) {
      await withIsa(isa, async () => {
        for (const rows of [1, 5]) {
          const x = Tensor.from(new Float32Array(rows * depth).fill(127), [rows, depth]);
          const y = await linear(x, q, { compute: 'int8' }).toFloat32();
          expect(Array.from(y.subarray(0, 2))).toEqual(expected.map(Math.fround));
        }
      });
    }
  }
});

test('wrong arguments are refused at once', () => {
  const x = Tensor.zeros([2, 64]);
  const dense = Tensor.zeros([3, 64]);
  const q = quantize(dense, { kind: 'nf4', blockSize: 64 });
  for (const w of [dense, q]) {
    throwsCode(() => linear(Tensor.zeros([2, 65]), w), 'ERR_SHAPE', /\[\.\.\., 64\]/);
    throwsCode(() => linear(Tensor.zeros([]), w), 'ERR_SHAPE');
    throwsCode(() => linear(Tensor.zeros([2, 64], { dtype: 'int8' }), w), 'ERR_DTYPE', /x\.dtype/);
    throwsCode(() => linear(x, w, { bias: Tensor.zeros([4]) }), 'ERR_SHAPE', /bias/);
    throwsCode(() => linear(x, w, { bias: Tensor.zeros([3, 1]) }), 'ERR_SHAPE', /bias/);
    throwsCode(() => linear(x, w, { bias: Tensor.zeros([3], { dtype: 'bfloat16' }) }), 'ERR_DTYPE', /bias/);
    throwsCode(() => linear(x, w, { bias: [0, 0, 0] as never }), 'ERR_ARGUMENT', /bias/);
    throwsCode(() => linear(x, w, { outDtype: 'int8' }), 'ERR_DTYPE');
    throwsCode(() => linear(x, w, { compute: 'float16' as never }), 'ERR_ARGUMENT', /compute/);
    throwsCode(() => linear(x, w, { compute: null as never }), 'ERR_ARGUMENT', /compute/);
    throwsCode(() => linear({} as never, w), 'ERR_ARGUMENT', /x: /);
  }
  throwsCode(() => linear(x, {} as never), 'ERR_ARGUMENT', /weight/);
  throwsCode(() => linear(x, Tensor.zeros([3, 64], { dtype: 'uint8' })), 'ERR_DTYPE', /weight/);
  throwsCode(() => linear(x, Tensor.zeros([1, 3, 64])), 'ERR_SHAPE', /weight/);
  q.dispose();
  throwsCode(() => linear(x, q), 'ERR_DISPOSED');
  dense.dispose();
  throwsCode(() => linear(x, dense), 'ERR_DISPOSED');
});

test('codes out of range and a weight with NaN reject the product', async () => {
  const scheme: QuantScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'row' };
  const q = QuantizedTensor.fromParts(scheme, [1, 2], {
    codes: Tensor.from(Uint8Array.from([3, 16]), [1, 2]),
    scales: Tensor.from([1], [1, 1]),
    zeros: Tensor.from(Int32Array.from([0]), [1, 1]),
  });
  await rejectsCode(linear(Tensor.zeros([1, 2]), q).read(), 'ERR_ARGUMENT', /16/);
  await rejectsCode(q.pack(), 'ERR_ARGUMENT', /16/);
  const nan = quantize(Tensor.from([1, Number.NaN], [1, 2]), { kind: 'nf4', blockSize: 2 });
  await rejectsCode(linear(Tensor.zeros([1, 2]), nan).read(), 'ERR_ARGUMENT', /nan at row 0, column 1/);
  await rejectsCode(nan.pack(), 'ERR_ARGUMENT');
});

test('dequantize is the product with a unit matrix', async () => {
  for (const [, scheme] of SCHEMES) {
    const [out, depth] = [18, 35];
    const q = quantize(Tensor.from(normals(out * depth, 1), [out, depth]), scheme);
    const unit = Tensor.from(
      Float32Array.from({ length: depth * depth }, (_, i) => (i % (depth + 1) === 0 ? 1 : 0)),
      [depth, depth],
    );
    const columns = await linear(unit, q).toFloat32();
    const values = await dequantize(q).toFloat32();
    // With a pre-scale the block's scale is divided by it once, not each element.
    const slack = scheme.kind === 'mx' && scheme.preScale ? 2 ** -22 : 0;
    const wrong = values.findIndex((value, i) => {
      const found = columns[(i % depth) * out + Math.floor(i / depth)] as number;
      return !(Math.abs(found - value) <= slack * Math.abs(value));
    });
    expect([JSON.stringify(scheme), wrong]).toEqual([JSON.stringify(scheme), -1]);
  }
});
