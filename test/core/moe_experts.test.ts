import { describe, expect, test } from 'vitest';
import { type Compute, moe, QuantizedTensor, Tensor } from '../../lib';
import type { Routing } from '../../lib/ops/moe_route';
import { EMULATED, ON_CPU, SUBSET } from '../device';
import { ISAS, THREADS, withIsa, withThreads } from './machine';
import {
  choiceOf,
  choose,
  column,
  FLOATS,
  int,
  type Make,
  make,
  matrix,
  nf4,
  routingOf,
  row,
  rows,
  run,
} from './moe_layers';
import { type DecodedExpert, decodedExperts, expectNear, expertsReference } from './moe_reference';
import { expectSame } from './products';
import { normals, random } from './random';

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
  'gate int4, up int2, down int8': [[int(4), int(2), row]],
  'integers, another width for each expert': [
    [int(3), int(3), int(3)],
    [int(8, true), int(5), int(2, true)],
    [int(6), row, int(4, true)],
  ],
  'books, blocks and columns': [
    [nf4, { kind: 'mx', element: 'e2m1' }, { kind: 'fp8', format: 'e4m3', granularity: 'row' }],
    [column, { kind: 'llm.int8' }, { kind: 'nf4', blockSize: 100, doubleQuant: true }],
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
const computesOf = (kinds: readonly Make[]): Compute[] =>
  isInt(kinds) ? ['float32', 'bfloat16', 'int8'] : ['float32', 'bfloat16'];

/** The reference for a result of `run`. */
async function check(
  y: Tensor,
  x: Tensor,
  experts: readonly DecodedExpert[],
  routing: Routing,
  compute: string,
  label: string,
): Promise<Float32Array> {
  expect(y).toMatchObject({ dtype: x.dtype, shape: x.shape });
  const values = await y.toFloat32();
  const expected = expertsReference(await x.toFloat32(), experts, await choiceOf(routing), compute);
  expectNear(values, expected, x.dtype, `${label}, ${compute}`);
  return values;
}

const TOKENS = SUBSET ? [0, 1, 2, 5, 9, 17, 33] : [...Array.from({ length: 18 }, (_, t) => t), 33, 70];
describe.each(Object.entries(KINDS))('experts of %s', (_, kinds) => {
  test('any number of tokens lies within the bound of float64, in every dtype of x', async () => {
    const [E, hidden, inter] = [5, 40, 37];
    const experts = make(kinds, E, hidden, inter);
    const reference = await decodedExperts(experts);
    for (const T of TOKENS) {
      const routing = choose(T, E, 2);
      for (const dtype of T % 3 === 0 ? FLOATS : (['float32'] as const)) {
        const x = rows(T, hidden, dtype);
        for (const compute of computesOf(kinds))
          await check(run(x, experts, routing, compute), x, reference, routing, compute, `${dtype} T ${T}`);
      }
    }
  });

  test('so it does on every instruction set, with the same bits on 1, 2 and 3 threads', async () => {
    const [E, hidden, inter] = [3, 64, 96];
    const experts = make(kinds, E, hidden, inter);
    const reference = await decodedExperts(experts);
    const first = new Map<string, Float32Array>();
    const onOne = async (isa: string, threads: number) => {
      for (const [i, T] of [1, 5, 40].entries()) {
        // Tensor cores, which other devices may have, take 16-bit activations only.
        const dtype = ON_CPU ? 'float32' : FLOATS[i]!;
        const [x, routing] = [rows(T, hidden, dtype), choose(T, E, 2)];
        for (const compute of computesOf(kinds)) {
          const label = `${isa} T ${T} ${compute}`;
          const y = run(x, experts, routing, compute);
          if (threads > 1) expectSame(await y.toFloat32(), first.get(label)!, `${label}, ${threads} threads`);
          else first.set(label, await check(y, x, reference, routing, compute, label));
        }
      }
    };
    for (const threads of THREADS) {
      await withThreads(threads, async () => {
        for (const isa of ISAS) await withIsa(isa, () => onOne(isa, threads));
      });
    }
  });

  test('auto is bfloat16 for bfloat16 x and weights that are bfloat16 or quantized, else float32', async () => {
    const [E, hidden, inter, T] = [4, 48, 33, 9];
    const experts = make(kinds, E, hidden, inter);
    const routing = choose(T, E, 2);
    const narrow = kinds.flat().every((made) => typeof made === 'object' || made === 'bfloat16');
    for (const dtype of FLOATS) {
      const x = rows(T, hidden, dtype);
      const compute = dtype === 'bfloat16' && narrow ? 'bfloat16' : 'float32';
      const y = await run(x, experts, routing).read();
      expect(y).toEqual(await run(x, experts, routing, 'auto').read());
      if (ON_CPU) {
        expect(y).toEqual(await run(x, experts, routing, compute).read());
      } else {
        // Tensor cores sum in another order, and round to 16 bits what they take: activations of either kind.
        const reference = await decodedExperts(experts);
        const rounded = dtype === 'float32' ? 'float32' : 'bfloat16';
        await check(run(x, experts, routing), x, reference, routing, rounded, `${dtype} auto`);
      }
    }
  });
});

test.each(FLOATS)('stacks of %s give the bits of the same experts one by one', async (dtype) => {
  const [E, hidden, inter] = [4, 33, 18];
  const fc1 = matrix(E * hidden, 2 * inter, 1, dtype).reshape([E, hidden, 2 * inter]);
  const fc2 = matrix(E * inter, hidden, 2, dtype).reshape([E, inter, hidden]);
  const list = moe.groupedToSequential(fc1, fc2);
  const reference = await decodedExperts(list);
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const T of [0, 1, 3, 17, 70]) {
        const [x, routing] = [rows(T, hidden, dtype), choose(T, E, 3)];
        for (const compute of ['auto', 'float32', 'bfloat16'] as const) {
          const rounds = ON_CPU ? dtype === 'bfloat16' : dtype !== 'float32';
          const products = compute === 'auto' ? (rounds ? 'bfloat16' : 'float32') : compute;
          const y = moe.experts(x, { fc1, fc2 }, routing, { compute });
          await check(y, x, reference, routing, products, `${isa} stacks T ${T}`);
          expect(await y.read()).toEqual(await run(x, list, routing, compute).read());
        }
      }
    });
  }
});

test('integers whose gates are far from 0 come out exact, on every instruction set', async () => {
  const [E, hidden, inter, topK] = [4, 45, 70, 3];
  const next = random(3);
  const below = (n: number) => Math.floor(next() * n);
  const scheme = int(4, true);
  const integers = (out: number, depth: number, value: (k: number) => number) =>
    Int8Array.from({ length: out * depth }, (_, i) => value(i % depth));
  const codes = Array.from({ length: E }, () => ({
    // 7 times 12 and at most 44 less: beyond 18 silu is the identity in float32.
    gate: integers(inter, hidden, (k) => (k === 0 ? 7 : below(3) - 1)),
    up: integers(inter, hidden, () => below(15) - 7),
    down: integers(hidden, inter, () => below(15) - 7),
  }));
  const quantized = (data: Int8Array, out: number, depth: number) =>
    QuantizedTensor.fromParts(scheme, [out, depth], {
      codes: Tensor.from(data, [out, depth]),
      scales: Tensor.from(new Float32Array(out * Math.ceil(depth / 32)).fill(1), [
        out,
        Math.ceil(depth / 32),
      ]),
    });
  const dense = (data: Int8Array, out: number, depth: number) =>
    Tensor.from(Float32Array.from(data), [out, depth]);
  const lists = [dense, quantized].map((of) =>
    codes.map(({ gate, up, down }) => ({
      gate: of(gate, inter, hidden),
      up: of(up, inter, hidden),
      down: of(down, hidden, inter),
    })),
  );
  for (const T of [1, 2, 6, 33]) {
    const x = Float32Array.from({ length: T * hidden }, (_, i) => (i % hidden === 0 ? 12 : below(3) - 1));
    const indices = Array.from({ length: T }, () => Array.from({ length: topK }, () => below(E)));
    const weights = indices.map((own) => own.map(() => 2 ** (below(4) - 2) * (below(2) ? 1 : -1)));
    const routing = routingOf(indices, weights, E);
    for (const compute of ['float32', 'bfloat16'] as const) {
      const expected = new Float64Array(T * hidden);
      for (const [t, own] of indices.entries()) {
        for (const [k, e] of own.entries()) {
          const { gate, up, down } = codes[e]!;
          const dot = (w: Int8Array, j: number, values: ArrayLike<number>, from: number, depth: number) => {
            let sum = 0;
            for (let i = 0; i < depth; i++) sum += w[j * depth + i]! * values[from + i]!;
            return sum;
          };
          const between = Float32Array.from({ length: inter }, (_, j) => {
            const g = dot(gate, j, x, t * hidden, hidden);
            expect(g).toBeGreaterThan(18);
            return g * dot(up, j, x, t * hidden, hidden);
          });
          // Other devices multiply float32 activations in float32, which every compute allows.
          const rounded = await Tensor.from(between, [inter])
            .cast(ON_CPU ? compute : 'float32')
            .toFloat32();
          for (let h = 0; h < hidden; h++)
            expected[t * hidden + h]! += weights[t]![k]! * dot(down, h, rounded, 0, inter);
        }
      }
      expect(expected.every((value) => Number.isInteger(4 * value) && Math.abs(value) < 2 ** 22)).toBe(true);
      for (const isa of ISAS) {
        await withIsa(isa, async () => {
          for (const [i, experts] of lists.entries()) {
            const y = await run(Tensor.from(x, [T, hidden]), experts, routing, compute).toFloat32();
            expectSame(y, expected, `${isa} ${compute} T ${T} ${i ? 'quantized' : 'dense'}`);
          }
        });
      }
    }
  }
});

test('experts some of whose zero points lie far from the codes lie within the bound', async () => {
  const [E, T, hidden, inter] = [4, 21, 64, 96];
  const next = random(11);
  // Scales bring the values of each into -1 .. 1; 16 bits do not hold a code less the last two.
  const affine = (out: number, depth: number, zero: number) => {
    const groups = depth / 32;
    return QuantizedTensor.fromParts(int(4), [out, depth], {
      codes: Tensor.from(
        Uint8Array.from({ length: out * depth }, () => Math.floor(next() * 16)),
        [out, depth],
      ),
      scales: Tensor.from(
        Float32Array.from({ length: out * groups }, (_, i) => (i % 2 ? 1 : -1) / Math.max(zero, 8)),
        [out, groups],
      ),
      zeros: Tensor.from(new Int32Array(out * groups).fill(zero), [out, groups]),
    });
  };
  const experts = [8, 70_000, 0, 1025].map((zero) => ({
    gate: affine(inter, hidden, zero),
    up: affine(inter, hidden, zero),
    down: affine(hidden, inter, zero),
  }));
  const known = await decodedExperts(experts);
  const routing = choose(T, E, 2);
  for (const dtype of FLOATS) {
    const x = rows(T, hidden, dtype);
    for (const compute of ['float32', 'bfloat16'] as const)
      await check(run(x, experts, routing, compute), x, known, routing, compute, `zero points, ${dtype}`);
  }
});

describe('routing', () => {
  const [E, hidden, inter] = [6, 32, 32];
  const experts = make(
    [
      [int(4), int(2), int(8)],
      ['float32', 'float32', 'float32'],
    ],
    E,
    hidden,
    inter,
  );

  test.each([
    ['all tokens to one expert', 3, (_: number, k: number) => [4, 1, 0][k]!],
    ['one expert only, the others without tokens', 1, () => 5],
    ['every expert', E, (t: number, k: number) => (t + k) % E],
    ['an expert twice for a token', 4, (t: number, k: number) => (k < 2 ? t % E : (t + k) % E)],
    ['no expert at all', 0, () => 0],
  ] as const)('%s', async (label, topK, of) => {
    const reference = await decodedExperts(experts);
    for (const T of [1, 3, 70]) {
      const indices = Array.from({ length: T }, (_, t) => Array.from({ length: topK }, (_, k) => of(t, k)));
      const weights = indices.map((own, t) => own.map((_, k) => (k % 2 ? -1 : 1) / (1 + t + k)));
      const routing = routingOf(indices, weights, E);
      const x = rows(T, hidden);
      for (const compute of ['float32', 'bfloat16'] as const) {
        const y = await check(run(x, experts, routing, compute), x, reference, routing, compute, label);
        if (topK === 0) expect(y.every((value) => value === 0)).toBe(true);
      }
    }
  });

  test('what a routing says beside indices and weights changes nothing', async () => {
    const x = rows(20, hidden);
    const routed = choose(20, E, 2);
    const expected = await run(x, experts, routed).read();
    const { indices, weights, counts } = routed;
    const wrong = Tensor.zeros([40], { dtype: 'int32' });
    const offsets = Tensor.zeros([E + 1], { dtype: 'int32' });
    for (const other of [
      { indices, weights, counts },
      { ...routed },
      { indices, weights, counts, order: wrong, offsets },
      { indices, weights, counts: Tensor.zeros([E], { dtype: 'int32' }) },
    ])
      expect(await run(x, experts, other).read()).toEqual(expected);
  });

  test('one expert, and none', async () => {
    const one = make([[int(4), int(2), int(8)]], 1, hidden, inter);
    const reference = await decodedExperts(one);
    for (const T of [0, 1, 19]) {
      const [x, routing] = [rows(T, hidden), choose(T, 1, 1)];
      await check(run(x, one, routing, 'float32'), x, reference, routing, 'float32', 'one expert');
      const none = {
        indices: Tensor.zeros([T, 0], { dtype: 'int32' }),
        weights: Tensor.zeros([T, 0]),
        counts: Tensor.zeros([0], { dtype: 'int32' }),
      };
      expect(await run(x, [], none).read()).toEqual(new Float32Array(T * hidden));
    }
  });

  test('NaN and infinity of a token, and a NaN weight of it, reach that token only', async () => {
    const T = 40;
    const routing = choose(T, E, 2);
    for (const isa of ISAS) {
      await withIsa(isa, async () => {
        for (const [list, computes] of [
          [experts, ['float32', 'bfloat16']],
          [make([[int(4), int(2), int(8)]], E, hidden, inter), computesOf([[int(4), int(2), int(8)]])],
        ] as const) {
          for (const compute of computes) {
            const x = normals(T * hidden, 3);
            const clean = await run(Tensor.from(x, [T, hidden]), list, routing, compute).toFloat32();
            const others = (y: Float32Array) => y.filter((_, i) => Math.floor(i / hidden) !== 13);
            const own = (y: Float32Array) => y.subarray(13 * hidden, 14 * hidden);
            for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
              x[13 * hidden + 7] = bad;
              const y = await run(Tensor.from(x, [T, hidden]), list, routing, compute).toFloat32();
              expectSame(others(y), others(clean), `${isa} ${compute} ${bad}`);
              expect(own(y).some(Number.isFinite)).toBe(false);
              if (Number.isNaN(bad)) expect(own(y).every(Number.isNaN)).toBe(true);
            }
            x[13 * hidden + 7] = 1;
            const weights = await routing.weights.toFloat32();
            weights[26] = Number.NaN;
            const marked = { ...routing, weights: Tensor.from(weights, [T, 2]) as Tensor<'float32'> };
            const y = await run(Tensor.from(x, [T, hidden]), list, marked, compute).toFloat32();
            expectSame(others(y), others(clean), `${isa} ${compute} weight`);
            expect(own(y).every(Number.isNaN)).toBe(true);
          }
        }
      });
    }
  });
});

test('more tokens than go through at a time come out as the others do', async () => {
  // 1024 values between the products for each token: 16384 tokens at a time.
  // The emulator, whose kernels know no such limit, gets as many as take it seconds.
  const [E, topK, hidden, inter, T] = [4, 4, 4, 252, EMULATED ? 300 : 33_000];
  const experts = make(
    [
      ['float32', 'float32', 'float32'],
      [int(4), int(4), int(4)],
    ],
    E,
    hidden,
    inter,
  );
  const reference = await decodedExperts(experts);
  const [x, routing] = [rows(T, hidden), choose(T, E, topK)];
  const values = await x.toFloat32();
  const { indices, weights } = await choiceOf(routing);
  const bits = new Map<number, Float32Array>();
  for (const threads of [1, 3])
    bits.set(threads, await withThreads(threads, () => run(x, experts, routing, 'float32').toFloat32()));
  const y = bits.get(1)!;
  expectSame(bits.get(3)!, y, '3 threads');
  for (const first of EMULATED ? [0, 100, 200] : [0, 16_300, 16_384, 16_400, 32_768, 32_900]) {
    const part = <A extends { slice(a: number, b: number): A }>(all: A, width: number): A =>
      all.slice(first * width, (first + 100) * width);
    const choice = {
      topK,
      indices: part(indices as Int32Array, topK),
      weights: part(weights as Float32Array, topK),
    };
    const expected = expertsReference(part(values, hidden), reference, choice, 'float32');
    expectNear(part(y, hidden), expected, 'float32', `tokens from ${first}`);
  }
});

test('views of activations, matrices and routings are what they show', async () => {
  const [E, hidden, inter, T] = [3, 20, 24, 11];
  const view = (rows: number, columns: number, seed: number) =>
    Tensor.from(normals(rows * 2 * columns, seed), [rows, 2 * columns]).slice(1, 5, 5 + columns);
  const copy = async (tensor: Tensor) => Tensor.from(await tensor.toFloat32(), [...tensor.shape]);
  const views = Array.from({ length: E }, (_, e) => ({
    gate: view(inter, hidden, e),
    up: view(inter, hidden, e + 10),
    down: view(hidden, inter, e + 20),
  }));
  const copies = await Promise.all(
    views.map(async ({ gate, up, down }) => ({
      gate: await copy(gate),
      up: await copy(up),
      down: await copy(down),
    })),
  );
  const [x, { indices, weights, counts }] = [view(T, hidden, 4), choose(T, E, 3)];
  const seen = { indices: indices.slice(1, 1, 3), weights: weights.slice(1, 1, 3), counts };
  const [chosen, shares] = [(await seen.indices.read()) as Int32Array, await seen.weights.toFloat32()];
  const pairs = (values: ArrayLike<number>) =>
    Array.from({ length: T }, (_, t) => [values[2 * t] as number, values[2 * t + 1] as number]);
  const plain = routingOf(pairs(chosen), pairs(shares), E);
  expect(await run(x, views, seen).read()).toEqual(await run(await copy(x), copies, plain).read());
});
