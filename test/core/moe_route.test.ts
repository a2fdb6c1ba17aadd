import { describe, expect, test } from 'vitest';
import { moe, Tensor } from '../../lib';
import { native } from '../../lib/native';
import { type Routing, withRouting } from '../../lib/ops/moe_route';
import { rejectsCode, throwsCode } from './errors';
import { normals, random } from './random';

const ORDERS = ['topk-softmax', 'softmax-topk'] as const;

/** The k best of a row by value, ties to the lower index. */
const best = (row: number[], k: number): number[] =>
  row
    .map((_, e) => e)
    .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
    .slice(0, k);

function softmax(row: number[]): number[] {
  const largest = Math.max(...row);
  const raised = row.map((x) => Math.exp(x - largest));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((x) => x / sum);
}

const rowsOf = (data: ArrayLike<number>, columns: number): number[][] =>
  Array.from({ length: data.length / columns }, (_, r) =>
    Array.from(data).slice(r * columns, (r + 1) * columns),
  );

const numbers = async (tensor: Tensor): Promise<number[]> => Array.from((await tensor.read()) as Int32Array);

describe('moe.route', () => {
  const shapes = [
    [1, 1, 1],
    [1, 8, 2],
    [7, 5, 5],
    [65, 64, 6],
    [200, 129, 8],
  ] as const;
  const dtypes = ['float32', 'float16', 'bfloat16'] as const;
  const cases = shapes.flatMap((shape) => dtypes.map((dtype) => [...shape, dtype] as const));

  test.each(cases)(
    '[%i, %i], top %i, %s: the choice, exactly, and weights to a float32 rounding',
    async (T, E, K, dtype) => {
      const logits = Tensor.from(normals(T * E, 3), [T, E], { dtype });
      const rows = rowsOf(await logits.toFloat32(), E);
      for (const order of ORDERS) {
        for (const normalize of [false, true]) {
          const { indices, weights } = moe.route(logits, { topK: K, order, normalize, scale: 2.5 });
          const chosen = rowsOf(await numbers(indices), K);
          expect(chosen).toEqual(rows.map((row) => best(row, K)));
          const got = rowsOf(await weights.toFloat32(), K);
          rows.forEach((row, t) => {
            const own = chosen[t] as number[];
            const among = order === 'topk-softmax' || normalize;
            const all = among ? softmax(own.map((e) => row[e] as number)) : softmax(row);
            own.forEach((e, k) => {
              const expected = 2.5 * (all[among ? k : e] as number);
              expect(Math.abs((got[t]?.[k] as number) - expected)).toBeLessThanOrEqual(2 ** -23 * expected);
            });
          });
        }
      }
    },
  );

  test('counts, offsets and order list each expert s slots in rising order', async () => {
    const [T, E, K] = [150, 20, 3];
    const routing = moe.route(Tensor.from(normals(T * E, 5), [T, E]), { topK: K, order: 'topk-softmax' });
    const indices = await numbers(routing.indices);
    const slots = Array.from({ length: E }, (_, e) =>
      indices.flatMap((index, slot) => (index === e ? [slot] : [])),
    );
    expect(await numbers(routing.order)).toEqual(slots.flat());
    expect(await numbers(routing.counts)).toEqual(slots.map((own) => own.length));
    const offsets = await numbers(routing.offsets);
    expect(offsets).toHaveLength(E + 1);
    expect(offsets.slice(1).map((end, e) => end - (offsets[e] as number))).toEqual(
      slots.map((own) => own.length),
    );
  });

  test.each([
    [12, 4, 2, 3],
    [160, 8, 3, 6],
    [64, 64, 5, 5],
  ])('%i experts in %i groups: a choice among the %i best groups alone', async (E, groups, topGroups, K) => {
    const T = 50;
    const logits = normals(T * E, 7).map((x) => Math.round(x * 8) / 8);
    const size = E / groups;
    const options = { topK: K, order: 'softmax-topk', groups, topGroups } as const;
    const { indices, weights } = moe.route(Tensor.from(logits, [T, E]), options);
    const chosen = rowsOf(await numbers(indices), K);
    const got = rowsOf(await weights.toFloat32(), K);
    rowsOf(logits, E).forEach((row, t) => {
      const bests = rowsOf(row, size).map((group) => Math.max(...group));
      const of = best(bests, topGroups);
      const masked = row.map((x, e) => (of.includes(Math.floor(e / size)) ? x : Number.NEGATIVE_INFINITY));
      expect(chosen[t]).toEqual(best(masked, K));
      const all = softmax(row);
      chosen[t]?.forEach((e, k) => {
        const expected = all[e] as number;
        expect(Math.abs((got[t]?.[k] as number) - expected)).toBeLessThanOrEqual(2 ** -23 * expected);
      });
    });
  });

  test('a group with a NaN is among the best', async () => {
    const row = [1, 2, Number.NaN, -5, 9, 8];
    const routed = moe.route(Tensor.from(row, [1, 6]), {
      topK: 3,
      order: 'topk-softmax',
      groups: 3,
      topGroups: 2,
    });
    expect(await numbers(routed.indices)).toEqual([2, 4, 5]);
  });

  test('groups that do not divide the experts, or hold too few of them, are refused', () => {
    const logits = Tensor.from(normals(12, 1), [1, 12]);
    const order = 'topk-softmax' as const;
    for (const options of [
      { topK: 1, groups: 5 },
      { topK: 1, groups: 0 },
      { topK: 1, groups: 65 },
      { topK: 1, groups: 4, topGroups: 5 },
      { topK: 1, groups: 4, topGroups: 0 },
      { topK: 4, groups: 4, topGroups: 1 },
    ])
      throwsCode(() => moe.route(logits, { ...options, order }), 'ERR_ARGUMENT');
  });

  test('equal logits, signed zeros among them, go to the lower index', async () => {
    const logits = Tensor.from([1, 1, 1, 1, -0, 0, -0, -1, 2, 0, 2, 0], [3, 4]);
    const { indices } = moe.route(logits, { topK: 3, order: 'softmax-topk' });
    expect(await numbers(indices)).toEqual([0, 1, 2, 0, 1, 2, 0, 2, 1]);
  });

  test('NaN and infinity make the weights of their token NaN, minus infinity has weight 0', async () => {
    const [nan, inf] = [Number.NaN, Number.POSITIVE_INFINITY];
    const rows = [
      [1, nan, inf, 2],
      [1, inf, 2, inf],
      [-inf, 1, -inf, 1],
      [-inf, -inf, -inf, -inf],
      [nan, nan, nan, nan],
      [3e38, -3e38, 0, 1e-45],
    ];
    const expected = [
      [1, 2, 3],
      [1, 3, 2],
      [1, 3, 0],
      [0, 1, 2],
      [0, 1, 2],
      [0, 3, 2],
    ];
    for (const order of ORDERS) {
      const { indices, weights, counts } = moe.route(Tensor.from(rows.flat(), [6, 4]), { topK: 3, order });
      expect(rowsOf(await numbers(indices), 3)).toEqual(expected);
      expect((await numbers(counts)).reduce((a, b) => a + b)).toBe(18);
      const [a, b, c, d, e, f] = rowsOf(await weights.toFloat32(), 3);
      for (const row of [a, b, d, e]) expect(row).toEqual([nan, nan, nan]);
      expect([c, f]).toEqual([
        [0.5, 0.5, 0],
        [1, 0, 0],
      ]);
    }
  });

  test('random bit patterns give distinct indices in range', async () => {
    const next = random(7);
    const bits = Uint16Array.from({ length: 400 * 33 }, () => next() * 65536);
    for (const dtype of ['float16', 'bfloat16'] as const) {
      const { indices } = moe.route(Tensor.from(bits, [400, 33], { dtype }), {
        topK: 9,
        order: 'topk-softmax',
      });
      for (const row of rowsOf(await numbers(indices), 9)) {
        expect(new Set(row).size).toBe(9);
        expect(row.every((e) => e >= 0 && e < 33)).toBe(true);
      }
    }
  });

  test('no tokens: empty indices, every count 0', async () => {
    const routing = moe.route(Tensor.zeros([0, 5]), { topK: 2, order: 'topk-softmax' });
    expect(routing.indices.shape).toEqual([0, 2]);
    expect(await numbers(routing.counts)).toEqual([0, 0, 0, 0, 0]);
    expect(await numbers(routing.offsets)).toEqual([0, 0, 0, 0, 0, 0]);
    expect(await numbers(routing.order)).toEqual([]);
  });

  test('arguments are refused at once', () => {
    const logits = Tensor.zeros([2, 4]);
    const order = 'topk-softmax';
    const call =
      (options: object, tensor: unknown = logits) =>
      () =>
        moe.route(tensor as Tensor, options as { topK: number; order: typeof order });
    for (const topK of [0, 5, 1.5, '2', undefined]) throwsCode(call({ topK, order }), 'ERR_ARGUMENT', /topK/);
    throwsCode(call({ topK: 1, order: 'softmax' }), 'ERR_ARGUMENT', /order.*topk-softmax or softmax-topk/);
    throwsCode(call({ topK: 1, order, normalize: 1 }), 'ERR_ARGUMENT', /normalize/);
    throwsCode(call({ topK: 1, order, scale: Number.NaN }), 'ERR_ARGUMENT', /scale/);
    throwsCode(call({ topK: 1, order }, Tensor.zeros([4])), 'ERR_SHAPE', /logits/);
    throwsCode(call({ topK: 1, order }, Tensor.zeros([2, 0])), 'ERR_ARGUMENT', /topK/);
    throwsCode(call({ topK: 1, order }, Tensor.zeros([2, 4], { dtype: 'int32' })), 'ERR_DTYPE', /logits/);
    throwsCode(call({ topK: 1, order }, [1, 2]), 'ERR_ARGUMENT', /logits/);
    logits.dispose();
    throwsCode(call({ topK: 1, order }), 'ERR_DISPOSED', /logits/);
  });
});

describe('a routing that the caller made', () => {
  const ints = (values: number[], shape: number[]) => Tensor.from(Int32Array.from(values), shape);
  const routing = (indices: number[]): Routing => ({
    indices: ints(indices, [3, 2]) as Tensor<'int32'>,
    weights: Tensor.from([1, 1, 1, 1, 1, 1], [3, 2]) as Tensor<'float32'>,
    counts: ints([9, 9, 9, 9], [4]) as Tensor<'int32'>,
    order: ints([99, 99, 99, 99, 99, 99], [6]) as Tensor<'int32'>,
    offsets: ints([7, 7, 7, 7, 7], [5]) as Tensor<'int32'>,
  });
  /** The three lists as a kernel would see them. */
  const seen = (made: Routing) =>
    withRouting(made, 3, 4, ({ counts, order, offsets }) =>
      [counts, order, offsets].map((handle) => numbers(Tensor.wrap(native.tensorCopy(handle, 'int32')))),
    );

  test('is sorted by its indices, whatever else it says', async () => {
    const [counts, order, offsets] = await Promise.all(seen(routing([3, 1, 1, 1, 3, 0])));
    expect({ counts, order, offsets }).toEqual({
      counts: [1, 3, 0, 2],
      order: [5, 1, 2, 3, 0, 4],
      offsets: [0, 1, 4, 4, 6],
    });
  });

  test('is taken as it is if route made it', async () => {
    const made = moe.route(Tensor.from(normals(12, 1), [3, 4]), { topK: 2, order: 'topk-softmax' });
    withRouting(made, 3, 4, ({ order }) => expect(order).toBe(Tensor.native(made.order, 'order')));
    const copied = { ...made, order: routing([0, 0, 0, 0, 0, 0]).order };
    expect(await Promise.all(seen(copied))).toEqual(await Promise.all(seen(made)));
  });

  test('fails on the queue with the place of an index out of range', async () => {
    for (const wrong of [4, -1, 2 ** 31 - 1, -(2 ** 31)]) {
      for (const list of seen(routing([3, 1, 1, wrong, 3, 0])))
        await rejectsCode(
          list,
          'ERR_ARGUMENT',
          new RegExp(`indices: ${wrong} at row 1, column 1, 0 to 3 expected`),
        );
    }
  });

  test('must fit the tokens and the experts', () => {
    const good = routing([0, 0, 0, 0, 0, 0]);
    const body = () => {};
    throwsCode(
      () => withRouting(good, 4, 4, body),
      'ERR_SHAPE',
      /routing.indices: \[3,2\] came, expected \[4,2\]/,
    );
    throwsCode(() => withRouting(good, 3, 5, body), 'ERR_SHAPE', /routing.counts/);
    throwsCode(
      () => withRouting({ ...good, weights: Tensor.zeros([3, 1]) }, 3, 4, body),
      'ERR_SHAPE',
      /weights/,
    );
    throwsCode(
      () => withRouting({ ...good, indices: Tensor.zeros([3, 2]) as unknown as Tensor<'int32'> }, 3, 4, body),
      'ERR_DTYPE',
      /indices/,
    );
    throwsCode(() => withRouting(null as unknown as Routing, 3, 4, body), 'ERR_ARGUMENT', /routing/);
  });
});
