import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import type { IntScheme } from '../../lib/scheme';
import { DEVICE, hasCuda } from './cuda_device';
import { choiceOf, choose, FLOATS } from './moe_layers';
import { decodedExperts, expectNear, expertsReference } from './moe_reference';
import { normals, random } from './random';

// Weights whose columns name their groups, as act-order GPTQ leaves them, by the emulated CUDA device.
const SCHEMES = ([2, 3, 4, 8] as const).flatMap((bits) =>
  [true, false].map(
    (symmetric) =>
      ({ kind: 'int', bits, symmetric, range: 'full', granularity: 'group', groupSize: 32 }) as const,
  ),
);

/** The columns' groups: as many of each as its size, shuffled, the last group short. */
function shuffled(columns: number, group: number, seed = columns): Int32Array {
  const next = random(seed);
  const index = Int32Array.from({ length: columns }, (_, k) => Math.floor(k / group));
  for (let i = columns - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [index[i], index[j]] = [index[j] as number, index[i] as number];
  }
  return index;
}

/** Random codes, scales that are powers of two, groups by `index`. */
function weightOf(scheme: IntScheme, out: number, columns: number, index: Int32Array): q.QuantizedTensor {
  const next = random(out + columns);
  const [levels, groups] = [2 ** scheme.bits, Math.ceil(columns / (scheme.groupSize as number))];
  const integers = (length: number) => Array.from({ length }, () => Math.floor(next() * levels));
  const codes = integers(out * columns);
  const parts: Record<string, q.Tensor> = {
    codes: scheme.symmetric
      ? q.Tensor.from(
          Int8Array.from(codes, (code) => code - levels / 2),
          [out, columns],
        )
      : q.Tensor.from(Uint8Array.from(codes), [out, columns]),
    scales: q.Tensor.from(
      Float32Array.from({ length: out * groups }, () => 2 ** (Math.floor(next() * 3) - 1)),
      [out, groups],
    ),
    groupIndex: q.Tensor.from(index, [columns]),
  };
  if (!scheme.symmetric) parts.zeros = q.Tensor.from(Int32Array.from(integers(out * groups)), [out, groups]);
  return q.QuantizedTensor.fromParts(scheme, [out, columns], parts);
}

describe.skipIf(!hasCuda)(`on ${DEVICE}`, () => {
  test.each(
    SCHEMES.map((scheme) => [scheme.bits, scheme.symmetric ? '' : ' with zero points', scheme] as const),
  )(
    'linear with %i bits%s and columns that name their groups is exact on whole numbers',
    async (_bits, _zeros, scheme) => {
      for (const [m, n, k] of [
        [1, 33, 96],
        [17, 65, 160],
        [65, 9, 128],
        [5, 9, 45],
        [3, 7, 0],
        [0, 4, 32],
      ] as const) {
        const index = shuffled(k, 32);
        const here = weightOf(scheme, n, k, index);
        const there = here.to(DEVICE);
        for (const dtype of ['float16', 'bfloat16', 'float32'] as const) {
          const whole = Float32Array.from({ length: m * k }, (_, i) => ((i * 7) % 9) - 4);
          const x = q.Tensor.from(whole, [m, k], { dtype });
          const bias = q.Tensor.from(new Float32Array(n).fill(3), [n]);
          const options = { outDtype: 'float32', compute: 'float32' } as const;
          const expected = await q.linear(x, here, { ...options, bias }).read();
          const run = () =>
            q.linear(x.to(DEVICE), there, { outDtype: 'float32', bias: bias.to(DEVICE) }).read();
          expect(await run(), `${dtype} ${m} x ${n} x ${k}`).toEqual(expected);
          expect(await run()).toEqual(expected);
        }
        expect(await there.parts.groupIndex?.read()).toEqual(index);
        expect(await there.parts.codes?.read()).toEqual(await here.parts.codes?.read());
      }
    },
  );

  test('what act-order GPTQ makes lies within the bound of float32 sums', async () => {
    const [m, n, k] = [20, 40, 128];
    const w = q.Tensor.from(normals(n * k, 1), [n, k]);
    const hessian = new q.Hessian(k);
    hessian.update(q.Tensor.from(normals(300 * k, 2), [300, k]));
    const scheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 } as const;
    const { quantized } = await q.gptq.quantize(w, hessian, { scheme, actOrder: true });
    expect(quantized.parts.groupIndex?.shape).toEqual([k]);
    const values = await q.dequantize(quantized).toFloat32();
    for (const dtype of ['float16', 'bfloat16'] as const) {
      const x = q.Tensor.from(normals(m * k, 3), [m, k], { dtype });
      const y = await q.linear(x.to(DEVICE), quantized.to(DEVICE), { outDtype: 'float32' }).toFloat32();
      const rows = await x.toFloat32();
      for (let i = 0; i < m; i++)
        for (let j = 0; j < n; j++) {
          let [sum, magnitude] = [0, 0];
          for (let p = 0; p < k; p++) {
            const term = (rows[i * k + p] as number) * (values[j * k + p] as number);
            [sum, magnitude] = [sum + term, magnitude + Math.abs(term)];
          }
          const error = Math.abs((y[i * n + j] as number) - sum);
          expect(error, `${dtype} (${i}, ${j})`).toBeLessThanOrEqual(2 ** -22 * Math.sqrt(k) * magnitude);
        }
    }
  });

  test.each([
    ['alike', 0],
    ['each in an order of its own', 1],
  ])('experts whose columns name their groups, gate and up %s, lie within the bound', async (_, apart) => {
    const [E, T, hidden, inter] = [4, 21, 96, 45];
    const choice = choose(T, E, 2);
    const there = {
      indices: choice.indices.to(DEVICE),
      weights: choice.weights.to(DEVICE),
      counts: choice.counts.to(DEVICE),
    };
    for (const scheme of SCHEMES.filter(({ bits, symmetric }) => bits === 4 || (bits === 3 && symmetric))) {
      const order = (columns: number, seed: number) => shuffled(columns, 32, seed);
      const experts = Array.from({ length: E }, (_, e) => ({
        gate: weightOf(scheme, inter, hidden, order(hidden, 3 * e)),
        up: weightOf(scheme, inter, hidden, order(hidden, 3 * e + apart)),
        down: weightOf(scheme, hidden, inter, order(inter, 3 * e + 2)),
      }));
      const moved = experts.map(({ gate, up, down }) => ({
        gate: gate.to(DEVICE),
        up: up.to(DEVICE),
        down: down.to(DEVICE),
      }));
      const known = await decodedExperts(experts);
      for (const dtype of FLOATS)
        for (const compute of ['float32', 'bfloat16'] as const) {
          const states = normals(T * hidden, 5).map((value) => value / 64);
          const x = q.Tensor.from(states, [T, hidden], { dtype });
          const run = () => q.moe.experts(x.to(DEVICE), moved, there, { compute }).toFloat32();
          const y = await run();
          const expected = expertsReference(await x.toFloat32(), known, await choiceOf(choice), compute);
          expectNear(y, expected, dtype, `${scheme.bits} bits, ${compute}`);
          expect(await run()).toEqual(y);
        }
    }
  });
});
