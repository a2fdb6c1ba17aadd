import { expect, test } from 'vitest';
import { moe, quantize, Tensor } from '../../lib';
import { ON_CPU } from '../device';
import { rejectsCode, throwsCode } from './errors';
import { choose, column, int, make, nf4, routingOf, row, rows, run } from './moe_layers';
import type { Expert } from './moe_reference';

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
    // Of other devices it is the arithmetic that has no kernel, whatever the weight.
    throwsCode(call(experts, { compute: 'int8' }), 'ERR_UNSUPPORTED', ON_CPU ? message : /compute: int8/);
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
