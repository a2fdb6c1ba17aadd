import { describe, expect, test } from 'vitest';
import {
  type Compute,
  type DType,
  moe,
  QuantizedTensor,
  type QuantScheme,
  quantize,
  Tensor,
} from '../../lib';
import type { Routing } from '../../lib/ops/moe_route';
import { rejectsCode, throwsCode } from './errors';
import { ISAS, withIsa, withThreads } from './machine';
import {
  type Choice,
  type DecodedExpert,
  decodedExperts,
  type Expert,
  expectNear,
  expertsReference,
} from './moe_reference';
import { expectSame } from './products';
import { normals, random } from './random';

type Float = 'float32' | 'float16' | 'bfloat16';
const FLOATS: Float[] = ['float32', 'float16', 'bfloat16'];

const int = (bits: 2 | 3 | 4 | 5 | 6 | 8, symmetric = false): QuantScheme => ({
  kind: 'int',
  bits,
  symmetric,
  granularity: 'group',
  groupSize: 32,
});
const column: QuantScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'column' };
const row: QuantScheme = { kind: 'int', bits: 8, symmetric: true, granularity: 'row' };
const nf4: QuantScheme = { kind: 'nf4', blockSize: 32 };

/** What an expert's gate, up and down are made of: a scheme or a dtype. */
type Make = readonly [QuantScheme | Float, QuantScheme | Float, QuantScheme | Float];

/** Experts take these in turn. */
const KINDS: Record<string, readonly Make[]> = {
  float32: [['float32', 'float32', 'float32']],
  bfloat16: [['bfloat16', 'bfloat16', 'bfloat16']],
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

const matrix = (out: number, depth: number, seed: number, dtype: DType = 'float32'): Tensor => {
  const scale = 1 / Math.sqrt(depth);
  return Tensor.from(
    normals(out * depth, seed).map((value) => value * scale),
    [out, depth],
    { dtype },
  );
};

function make(kinds: readonly Make[], count: number, hidden: number, inter: number): Expert[] {
  return Array.from({ length: count }, (_, e) => {
    const of = (p: number, out: number, depth: number) => {
      const how = kinds[e % kinds.length]![p]!;
      const seed = 3 * e + p + 1;
      return typeof how === 'string'
        ? matrix(out, depth, seed, how)
        : quantize(matrix(out, depth, seed), how);
    };
    return { gate: of(0, inter, hidden), up: of(1, inter, hidden), down: of(2, hidden, inter) };
  });
}

const run = (x: Tensor, experts: Expert[], routing: Routing, compute?: Compute): Tensor =>
  moe.experts(x, experts as never, routing, compute && { compute });

const choose = (T: number, E: number, topK: number, seed = 7): Required<Routing> =>
  moe.route(Tensor.from(normals(T * E, seed), [T, E]), { topK, order: 'topk-softmax' });

async function choiceOf({ indices, weights }: Routing): Promise<Choice> {
  return {
    topK: indices.shape[1] as number,
    indices: (await indices.read()) as Int32Array,
    weights: await weights.toFloat32(),
  };
}

/** A routing made of numbers, without an order of slots. */
function routingOf(indices: number[][], weights: number[][], E: number): Routing {
  const shape = [indices.length, indices[0]?.length ?? 0];
  const counts = new Int32Array(E);
  for (const e of indices.flat()) if (e >= 0 && e < E) counts[e]!++;
  return {
    indices: Tensor.from(Int32Array.from(indices.flat()), shape),
    weights: Tensor.from(Float32Array.from(weights.flat()), shape),
    counts: Tensor.from(counts, [E]),
  };
}

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

const TOKENS = [...Array.from({ length: 18 }, (_, t) => t), 33, 70];
const rows = (T: number, hidden: number, dtype: DType = 'float32'): Tensor =>
  Tensor.from(normals(T * hidden, T + 1), [T, hidden], { dtype });

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
      for (const T of [1, 5, 40]) {
        const [x, routing] = [rows(T, hidden), choose(T, E, 2)];
        for (const compute of computesOf(kinds)) {
          const label = `${isa} T ${T} ${compute}`;
          const y = run(x, experts, routing, compute);
          if (threads > 1) expectSame(await y.toFloat32(), first.get(label)!, `${label}, ${threads} threads`);
          else first.set(label, await check(y, x, reference, routing, compute, label));
        }
      }
    };
    for (const threads of [1, 2, 3]) {
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
      expect(y).toEqual(await run(x, experts, routing, compute).read());
      expect(y).toEqual(await run(x, experts, routing, 'auto').read());
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
          const products = compute === 'auto' ? (dtype === 'bfloat16' ? 'bfloat16' : 'float32') : compute;
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
          const rounded = await Tensor.from(between, [inter]).cast(compute).toFloat32();
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
          [make([[int(4), int(2), int(8)]], E, hidden, inter), ['float32', 'bfloat16', 'int8']],
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
  const [E, topK, hidden, inter, T] = [4, 4, 4, 252, 33_000];
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
  for (const first of [0, 16_300, 16_384, 16_400, 32_768, 32_900]) {
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

test('views of x and of weights are read where they lie', async () => {
  const [E, hidden, inter, T] = [3, 20, 24, 11];
  const experts = make([['float32', 'bfloat16', 'float16']], E, hidden, inter);
  const wide = Tensor.from(normals(T * 2 * hidden, 4), [T, 2 * hidden]);
  const view = wide.slice(1, 5, 5 + hidden);
  const copy = Tensor.from(await view.toFloat32(), [T, hidden]);
  const routing = choose(T, E, 2);
  expect(await run(view, experts, routing).read()).toEqual(await run(copy, experts, routing).read());
});

test('wrong arguments are refused at once', async () => {
  const [E, hidden, inter, T] = [2, 32, 64, 3];
  const x = rows(T, hidden);
  const routing = choose(T, E, 1);
  const dense = make([['float32', 'float32', 'float32']], E, hidden, inter);
  const [expert] = dense as [Expert];
  const stacks = { fc1: Tensor.zeros([E, hidden, 2 * inter]), fc2: Tensor.zeros([E, inter, hidden]) };
  const call = (experts: unknown, opts?: object) => () =>
    moe.experts(x, experts as never, routing, opts as never);
  for (const [experts, code, message] of [
    [null, 'ERR_ARGUMENT', /experts: null/],
    [[null, null], 'ERR_ARGUMENT', /experts\[0\]: null/],
    [[expert, { gate: expert.gate }], 'ERR_ARGUMENT', /experts\[1\]\.up/],
    [
      [expert, { ...expert, down: expert.up }],
      'ERR_SHAPE',
      /experts\[1\]\.down: \[64,32\] came, expected \[32,64\]/,
    ],
    [[expert, { ...expert, up: Tensor.zeros([inter, 31]) }], 'ERR_SHAPE', /experts\[1\]\.up/],
    [[expert, { ...expert, up: Tensor.zeros([1, inter, hidden]) }], 'ERR_SHAPE', /up/],
    [[expert, { ...expert, gate: Tensor.zeros([inter, hidden], { dtype: 'int8' }) }], 'ERR_DTYPE', /gate/],
    [{ ...stacks, fc1: stacks.fc2 }, 'ERR_SHAPE', /fc1/],
    [{ ...stacks, fc1: Tensor.zeros([E, hidden, 2 * inter + 1]) }, 'ERR_SHAPE', /fc1/],
    [{ ...stacks, fc2: Tensor.zeros([inter, hidden]) }, 'ERR_SHAPE', /fc2/],
    [{ fc1: stacks.fc1 }, 'ERR_ARGUMENT', /fc2/],
    [[expert], 'ERR_SHAPE', /routing\.counts/],
    [[], 'ERR_SHAPE', /routing\.counts/],
  ] as const)
    throwsCode(call(experts), code, message);
  throwsCode(call(dense, { compute: 'float16' }), 'ERR_ARGUMENT', /compute/);
  throwsCode(call(dense, { compute: 'int8' }), 'ERR_UNSUPPORTED', /float32/);
  throwsCode(call(stacks, { compute: 'int8' }), 'ERR_UNSUPPORTED', /float32/);
  for (const [scheme, message] of [
    [nf4, /nf4/],
    [{ kind: 'llm.int8' }, /llm\.int8/],
    [column, /in order/],
    [{ kind: 'int', bits: 16, symmetric: true, granularity: 'row' }, /at most 8 bits/],
  ] as const) {
    const up = quantize(expert.up as Tensor, scheme);
    const [integers] = make([[int(4), int(4), int(4)]], 1, hidden, inter);
    const experts = [integers, { ...integers, up }];
    throwsCode(call(experts, { compute: 'int8' }), 'ERR_UNSUPPORTED', message);
    expect((await moe.experts(x, experts as never, routing).read()).length).toBe(T * hidden);
  }
  for (const [other, code, message] of [
    [null, 'ERR_ARGUMENT', /routing: null/],
    [{}, 'ERR_ARGUMENT', /indices/],
    [choose(T + 1, E, 1), 'ERR_SHAPE', /routing\.indices/],
    [choose(T, E + 1, 1), 'ERR_SHAPE', /routing\.counts/],
    [{ ...routing, weights: Tensor.zeros([T, 2]) }, 'ERR_SHAPE', /routing\.weights/],
    [{ ...routing, indices: routing.weights }, 'ERR_DTYPE', /routing\.indices/],
    [{ ...routing, weights: routing.weights.cast('float16') }, 'ERR_DTYPE', /routing\.weights/],
  ] as const)
    throwsCode(() => run(x, dense, other as never), code, message);
  throwsCode(() => run(Tensor.zeros([T, hidden + 1]), dense, routing), 'ERR_SHAPE', /x: \[3,33\]/);
  throwsCode(() => run(Tensor.zeros([1, T, hidden]), dense, routing), 'ERR_SHAPE', /x/);
  throwsCode(() => run(Tensor.zeros([T, hidden], { dtype: 'int8' }), dense, routing), 'ERR_DTYPE', /x/);
});

test('what is disposed is refused, and queued work outlives it', async () => {
  const [E, hidden, inter, T] = [2, 32, 64, 3];
  const x = rows(T, hidden);
  const experts = make([[int(4), 'float32', int(4)]], E, hidden, inter);
  const routing = choose(T, E, 1);
  const expected = await run(x, experts, routing).read();
  const y = run(x, experts, routing);
  for (const matrix of [experts[0]!.gate, experts[1]!.up, routing.order, x]) matrix.dispose();
  expect(await y.read()).toEqual(expected);
  throwsCode(() => run(rows(T, hidden), experts, choose(T, E, 1)), 'ERR_DISPOSED');
  throwsCode(() => run(x, make([[int(4), nf4, row]], E, hidden, inter), choose(T, E, 1)), 'ERR_DISPOSED');
  const whole = make([[int(4), nf4, row]], E, hidden, inter);
  throwsCode(() => run(rows(T, hidden), whole, routing), 'ERR_DISPOSED');
});

test('an index out of range, and a weight that failed, reject the result', async () => {
  const experts = make([[nf4, nf4, nf4]], 2, 32, 32);
  for (const index of [2, -1]) {
    const routing = routingOf([[0], [index]], [[1], [1]], 2);
    await rejectsCode(run(rows(2, 32), experts, routing).read(), 'ERR_ARGUMENT', new RegExp(`${index}`));
  }
  const bad = quantize(Tensor.from(new Float32Array(1024).fill(Number.NaN), [32, 32]), nf4);
  const routing = routingOf([[0], [1]], [[1], [1]], 2);
  const y = run(rows(2, 32), [experts[0]!, { ...experts[1]!, up: bad }], routing);
  await rejectsCode(y.read(), 'ERR_ARGUMENT', /nan at row 0/);
});
