import { describe, expect, test } from 'vitest';
import { type Compute, moe, quantize, Tensor } from '../../lib';
import type { Routing } from '../../lib/ops/moe_route';
import { DEVICE, hasCuda } from './cuda_device';
import { rejectsCode, throwsCode } from './errors';
import { choiceOf, choose, column, FLOATS, int, type Make, make, nf4, row, rows } from './moe_layers';
import {
  type DecodedExpert,
  decodedExperts,
  type Expert,
  expectNear,
  expertsReference,
} from './moe_reference';
import { sumsOf } from './products';
import { normals, random } from './random';

// Mixture-of-experts kernels on a GPU or run by the emulator: QUANTARIA_BUILD=emulated npx vitest run cuda_emulated

const int32 = (values: number[]): Tensor => Tensor.from(Int32Array.from(values), [values.length]);
const there = (routing: Routing): Routing => ({
  indices: routing.indices.to(DEVICE),
  weights: routing.weights.to(DEVICE),
  counts: routing.counts.to(DEVICE),
});
const moved = (experts: readonly Expert[]): Expert[] =>
  experts.map(({ gate, up, down }) => ({ gate: gate.to(DEVICE), up: up.to(DEVICE), down: down.to(DEVICE) }));

describe.skipIf(!hasCuda)('moe.route on a CUDA device', () => {
  test.each([
    [1, 1, 1],
    [3, 8, 2],
    [7, 5, 5],
    [65, 64, 6],
    [200, 129, 8],
    [40, 40, 40],
    [300, 3, 2],
  ])('[%i, %i], top %i: the CPU s choice and slots, weights to a float32 rounding', async (T, E, topK) => {
    for (const dtype of FLOATS) {
      const logits = Tensor.from(normals(T * E, 3), [T, E], { dtype });
      for (const order of ['topk-softmax', 'softmax-topk'] as const) {
        for (const normalize of [false, true]) {
          const options = { topK, order, normalize, scale: 2.5 };
          const [here, got] = [moe.route(logits, options), moe.route(logits.to(DEVICE), options)];
          for (const part of ['indices', 'counts', 'offsets', 'order'] as const) {
            expect(got[part].device).toBe(DEVICE);
            expect(await got[part].read(), `${dtype} ${order} ${part}`).toEqual(await here[part].read());
          }
          const expected = await here.weights.toFloat32();
          (await got.weights.toFloat32()).forEach((weight, i) => {
            const wanted = expected[i] as number;
            expect(Math.abs(weight - wanted)).toBeLessThanOrEqual(2 ** -23 * wanted);
          });
        }
      }
    }
  });

  test('NaN, infinities, ties and signed zeros are chosen and weighed as on the CPU', async () => {
    const [nan, inf] = [Number.NaN, Number.POSITIVE_INFINITY];
    const traps = [
      [1, nan, inf, 2],
      [1, inf, 2, inf],
      [-inf, 1, -inf, 1],
      [-inf, -inf, -inf, -inf],
      [nan, nan, nan, nan],
      [-0, 0, -0, 0],
      [2, 1, 2, 2],
    ];
    const logits = Tensor.from(traps.flat(), [traps.length, 4]);
    for (const order of ['topk-softmax', 'softmax-topk'] as const) {
      const [here, got] = [logits, logits.to(DEVICE)].map((x) => moe.route(x, { topK: 3, order }));
      expect(await got!.indices.read()).toEqual(await here!.indices.read());
      expect(await got!.weights.read()).toEqual(await here!.weights.read());
    }
  });

  test('no tokens, and indices from elsewhere: an index out of range fails with its place', async () => {
    const none = moe.route(Tensor.zeros([0, 5], { device: DEVICE }), { topK: 2, order: 'topk-softmax' });
    expect(await none.counts.read()).toEqual(new Int32Array(5));
    expect(await none.offsets.read()).toEqual(new Int32Array(6));
    const routing = there({
      indices: Tensor.from(Int32Array.from([0, 1, 1, 4]), [2, 2]) as Tensor<'int32'>,
      weights: Tensor.zeros([2, 2]) as Tensor<'float32'>,
      counts: int32([1, 2, 0, 1]) as Tensor<'int32'>,
    });
    const list = moved(make([['float32', 'float32', 'float32']], 4, 8, 8));
    const y = moe.experts(Tensor.zeros([2, 8], { device: DEVICE }), list as never, routing);
    await rejectsCode(y.read(), 'ERR_ARGUMENT', /4 at row 1, column 1, 0 to 3 expected/);
    throwsCode(
      () => moe.experts(Tensor.zeros([2, 8]), list as never, routing),
      'ERR_DEVICE',
      /cuda-emulated/,
    );
  });
});

const COUNTS = [[1], [70], [0, 0, 0], [3, 0, 5, 1], [0, 33, 0, 64, 2], [63, 65, 17], [1, 2, 3, 4, 5, 6, 7]];
describe.skipIf(!hasCuda)('moe.groupedMatmul on a CUDA device', () => {
  test.each(COUNTS.map((counts) => [counts]))(
    'runs of %j rows of integers come out exact',
    async (counts) => {
      const next = random(counts.length);
      const integers = (length: number) => Float32Array.from({ length }, () => Math.floor(next() * 15) - 7);
      const total = counts.reduce((a, b) => a + b, 0);
      for (const [depth, out] of [
        [40, 72],
        [33, 50],
        [5, 1],
        [0, 3],
      ] as const) {
        for (const dtype of FLOATS) {
          const x = Tensor.from(integers(total * depth), [total, depth], { dtype });
          const w = Tensor.from(integers(counts.length * depth * out), [counts.length, depth, out], {
            dtype,
          });
          const y = moe.groupedMatmul(x.to(DEVICE), w.to(DEVICE), int32(counts).to(DEVICE));
          expect(y).toMatchObject({ dtype, device: DEVICE, shape: [total, out] });
          expect(await y.read()).toEqual(await moe.groupedMatmul(x, w, int32(counts)).read());
        }
      }
    },
  );

  test('any factors lie within 4 eps sqrt(K) sum |x||w| of float64', async () => {
    const [counts, depth, out] = [[3, 0, 40, 1], 72, 45];
    for (const dtype of FLOATS) {
      for (const other of FLOATS) {
        const x = Tensor.from(normals(44 * depth, 1), [44, depth], { dtype });
        const w = Tensor.from(normals(4 * depth * out, 2), [4, depth, out], { dtype: other });
        const [a, b] = [await x.toFloat32(), await w.toFloat32()];
        const y = await moe.groupedMatmul(x.to(DEVICE), w.to(DEVICE), int32(counts).to(DEVICE)).toFloat32();
        let first = 0;
        for (const [e, count] of counts.entries()) {
          const values = b.map(
            (_, i) => b[(e * depth + (i % depth)) * out + Math.floor(i / depth)] as number,
          );
          const factor = { out, in: depth, values, zeros: null, group: depth };
          const sums = sumsOf(a.subarray(first * depth, (first + count) * depth), factor);
          const last = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
          sums.exact.forEach((value, i) => {
            const allowed = 2 ** -22 * Math.sqrt(depth) * sums.magnitude[i]! + last * Math.abs(value) * 1.01;
            const error = Math.abs(y[first * out + i]! - value);
            if (!(error <= allowed + 2 ** -25)) expect.fail(`${dtype} ${other}: expert ${e}, ${i}: ${error}`);
          });
          first += count;
        }
      }
    }
  });

  test('counts that do not fit the rows fail as on the CPU, and leave the queue in order', async () => {
    const x = Tensor.zeros([4, 8], { device: DEVICE });
    const w = Tensor.zeros([3, 8, 5], { device: DEVICE });
    for (const [counts, message] of [
      [[1, -1, 4], /counts\[1\]: -1, at least 0/],
      [[1, 2, 2], /more than the 4 rows/],
      [[2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1], /more than the 4 rows/],
      [[1, 1, 1], /3 rows in all, but x has 4/],
    ] as const) {
      const y = moe.groupedMatmul(x, w, int32([...counts]).to(DEVICE));
      await rejectsCode(y.read(), 'ERR_ARGUMENT', message);
    }
    expect(await moe.groupedMatmul(x, w, int32([0, 4, 0]).to(DEVICE)).read()).toEqual(new Float32Array(20));
    throwsCode(() => moe.groupedMatmul(x, w.to('cpu'), int32([0, 4, 0]).to(DEVICE)), 'ERR_DEVICE');
  });
});

/** Experts take these in turn. */
const KINDS: Record<string, readonly Make[]> = {
  float32: [['float32', 'float32', 'float32']],
  bfloat16: [['bfloat16', 'bfloat16', 'bfloat16']],
  float16: [['float16', 'float16', 'float16']],
  'dense, a dtype for each': [
    ['float32', 'float16', 'bfloat16'],
    ['bfloat16', 'bfloat16', 'float16'],
  ],
  int4: [[int(4), int(4), int(4)]],
  'int8 and int2, symmetric, and int3': [
    [int(8, true), int(8, true), int(8, true)],
    [int(2, true), int(2, true), int(2, true)],
    [int(3), int(3), int(3)],
  ],
  nf4: [[nf4, nf4, nf4]],
  'gate int4, up int2, down int8': [[int(4), int(2), row]],
  'books, blocks and columns': [
    [nf4, { kind: 'mx', element: 'e2m1' }, { kind: 'fp8', format: 'e4m3', granularity: 'row' }],
    [column, { kind: 'llm.int8' }, { kind: 'nf4', blockSize: 64, doubleQuant: true }],
    [{ kind: 'dynamic8', blockSize: 64 }, nf4, column],
  ],
  'quantized beside dense': [
    [int(4), 'float32', nf4],
    ['bfloat16', row, 'float16'],
  ],
};

const isInt = (kinds: readonly Make[]): boolean =>
  kinds
    .flat()
    .every((made) => typeof made === 'object' && made.kind === 'int' && made.granularity !== 'column');

describe.skipIf(!hasCuda).each(Object.entries(KINDS))('experts of %s on a CUDA device', (_, kinds) => {
  const check = async (
    T: number,
    hidden: number,
    experts: Expert[],
    reference: DecodedExpert[],
    dtype: (typeof FLOATS)[number],
    compute: Compute,
  ) => {
    const [x, routing] = [rows(T, hidden, dtype), choose(T, experts.length, 2)];
    const y = moe.experts(x.to(DEVICE), experts as never, there(routing), { compute });
    expect(y).toMatchObject({ dtype, device: DEVICE, shape: [T, hidden] });
    const expected = expertsReference(
      await x.toFloat32(),
      reference,
      await choiceOf(routing),
      bound(dtype, compute),
    );
    expectNear(await y.toFloat32(), expected, dtype, `${dtype}, T ${T}, ${compute}`);
    const again = moe.experts(x.to(DEVICE), experts as never, there(routing), { compute });
    expect(await again.read()).toEqual(await y.read());
  };
  // auto and bfloat16 round 16-bit operands, by at most what the bound of bfloat16 has for each factor.
  const bound = (dtype: string, compute: Compute) =>
    compute !== 'auto' ? compute : dtype === 'float32' ? 'float32' : 'bfloat16';
  const computes: Compute[] = isInt(kinds) ? ['auto', 'float32', 'int8'] : ['auto', 'float32'];

  test('any number of tokens lies within the bound of float64, and has the same bits again', async () => {
    const [E, hidden, inter] = [5, 64, 40];
    const here = make(kinds, E, hidden, inter);
    const reference = await decodedExperts(here);
    const experts = moved(here);
    for (const [i, T] of [0, 1, 2, 3, 5, 8, 17, 33, 70].entries()) {
      const dtype = FLOATS[i % 3]!;
      for (const compute of computes) await check(T, hidden, experts, reference, dtype, compute);
    }
  });

  test('sizes off every tile', async () => {
    for (const [hidden, inter] of [
      [33, 37],
      [72, 7],
      [128, 96],
    ] as const) {
      const here = make(kinds, 3, hidden, inter);
      const reference = await decodedExperts(here);
      for (const dtype of FLOATS)
        for (const compute of computes) await check(9, hidden, moved(here), reference, dtype, compute);
    }
  });
});

test.skipIf(!hasCuda)('int8 experts whose gates are wide open have the bits of the CPU', async () => {
  // Beyond 18 silu is the identity in float32, whoever computes it: all else is exact or in one order.
  const [E, T] = [4, 37];
  for (const [hidden, inter] of [
    [64, 40],
    [96, 33],
    [40, 130],
  ] as const) {
    for (const kinds of [
      [int(4, true), int(4, true), row],
      [int(8), int(4), int(3)],
    ] as const) {
      const experts = make([kinds], E, hidden, inter).map((expert, e) => ({
        ...expert,
        gate: quantize(
          Tensor.from(
            normals(inter * hidden, e + 20).map((value) => 1 + Math.abs(value)),
            [inter, hidden],
          ),
          kinds[0],
        ),
      }));
      const routing = choose(T, E, 2);
      for (const dtype of FLOATS) {
        const x = Tensor.from(
          normals(T * hidden, 9).map((value) => 1 + Math.abs(value)),
          [T, hidden],
          { dtype },
        );
        const here = moe.experts(x, experts as never, routing, { compute: 'int8' });
        const got = moe.experts(x.to(DEVICE), moved(experts) as never, there(routing), { compute: 'int8' });
        expect(await got.read(), `${dtype} ${hidden} ${inter}`).toEqual(await here.read());
      }
    }
  }
});
