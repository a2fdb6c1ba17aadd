import { describe, expect, test } from 'vitest';
import {
  type DType,
  dequantize,
  gptq,
  Hessian,
  type QuantizedTensor,
  type QuantScheme,
  quantize,
  Tensor,
} from '../../lib';
import { type MeasuredResult, quantizeAll } from '../../lib/ops/gptq';
import { DEVICE, hasCuda } from './cuda_device';
import { normals } from './random';

// GPTQ by CUDA kernels, run by the emulator: QUANTARIA_BUILD=emulated npx vitest run

const int = (bits: 2 | 3 | 4 | 5 | 8, rest: object): QuantScheme =>
  ({ kind: 'int', bits, symmetric: bits % 2 === 1, granularity: 'group', ...rest }) as QuantScheme;
const INT4 = int(4, { groupSize: 32 });

/** Every kind of grid: fitted on the way or before, short and long groups, constants of rows, columns and all. */
const SCHEMES: QuantScheme[] = [
  INT4,
  int(3, { range: 'full', groupSize: 200 }),
  int(2, { groupSize: 10, search: 'mse' }),
  int(8, { granularity: 'row', scaleDtype: 'float16' }),
  int(5, { granularity: 'tensor' }),
  int(4, { granularity: 'column', search: 'mse' }),
  { kind: 'nf4', blockSize: 20 },
  { kind: 'nf4', blockSize: 32, doubleQuant: true },
  { kind: 'fp4', blockSize: 48 },
  { kind: 'e3m0', blockSize: 160 },
  { kind: 'dynamic8', blockSize: 32 },
  { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  { kind: 'fp8', format: 'e5m2', granularity: 'tensor' },
  { kind: 'mx', element: 'e2m1' },
  { kind: 'mx', element: 'e4m3', preScale: true },
  { kind: 'mx', element: 'e3m2' },
  { kind: 'mx', element: 'e2m3', rounding: 'floor' },
  { kind: 'mx', element: 'int8', rounding: 'nearest' },
];
const label = (scheme: QuantScheme) => JSON.stringify(scheme).replace(/[{}"]/g, '');
const ORDERS = [
  {},
  { actOrder: true },
  { actOrder: true, groupAware: true },
  { staticGroups: true },
  { actOrder: true, staticGroups: true },
];

/** Correlated states of unequal size: each feature takes part of the one before it. */
function states(rows: number, columns: number, seed: number): Float32Array {
  const x = normals(rows * columns, seed);
  for (let i = 0; i < x.length; i++) {
    if (i % columns > 0) x[i] = (x[i] as number) + 0.7 * (x[i - 1] as number);
  }
  return x.map((v, i) => v * (1 + ((i % columns) % 5)));
}

/** Small integers, of which every product and sum is exact. */
const integers = (count: number, seed: number) => normals(count, seed).map((v) => Math.round(2 * v));

/** tr(D X^T X D^T) in float64. */
function energy(d: Float32Array, x: Float32Array, columns: number): number {
  let sum = 0;
  for (let row = 0; row < d.length; row += columns) {
    for (let t = 0; t < x.length; t += columns) {
      let dot = 0;
      for (let i = 0; i < columns; i++) dot += (d[row + i] as number) * (x[t + i] as number);
      sum += dot * dot;
    }
  }
  return sum;
}

async function stored(q: QuantizedTensor): Promise<Record<string, unknown>> {
  const there = q.to('cpu');
  const read = Object.entries(there.stored).map(async ([name, t]) => [
    name,
    t.dtype,
    t.shape,
    await t.read(),
  ]);
  return Object.fromEntries((await Promise.all(read)).map(([name, ...rest]) => [name, rest]));
}

/** Without a difference of thousands of lines. */
function expectSame(got: Record<string, unknown>, expected: Record<string, unknown>, what: string): void {
  expect(Object.keys(got), what).toEqual(Object.keys(expected));
  for (const name of Object.keys(got)) {
    expect(JSON.stringify(got[name]) === JSON.stringify(expected[name]), `${what}: ${name}`).toBe(true);
  }
}

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => null,
    (error: Error & { code: string }) => ({ code: error.code, message: error.message }),
  );

describe.skipIf(!hasCuda)(DEVICE, () => {
  test.each([
    [1, 1],
    [3, 7],
    [33, 65],
    [129, 136],
    [300, 130],
  ])('Hessians of %i states of %i small integers are those of the CPU', async (rows, columns) => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as DType[]) {
      using here = new Hessian(columns);
      using there = new Hessian(columns, { device: DEVICE });
      expect(await there.value().read()).toEqual(new Float32Array(columns * columns));
      for (const seed of [1, 2]) {
        const x = Tensor.from(integers(rows * columns, seed), [rows, columns], { dtype });
        here.update(x);
        there.update(x.to(DEVICE));
      }
      there.update(Tensor.zeros([0, columns], { dtype, device: DEVICE }));
      here.update(Tensor.zeros([0, columns], { dtype }));
      expect(await there.value().read(), dtype).toEqual(await here.value().read());
      there.fill(there, 5);
      here.fill(here, 5);
      expect(there.samples).toBe(here.samples);
      expect(await there.value().read()).toEqual(await here.value().read());
    }
  });

  test('Hessians stay within c eps sqrt(K) sum |a||b| over many updates', async () => {
    const [rows, columns, updates] = [700, 33, 3];
    for (const dtype of ['float32', 'float16', 'bfloat16'] as DType[]) {
      using hessian = new Hessian(columns, { device: DEVICE });
      const sums = new Float64Array(columns * columns);
      const magnitudes = new Float64Array(columns * columns);
      for (let u = 0; u < updates; u++) {
        const x = Tensor.from(states(rows, columns, u), [rows, columns], { dtype });
        hessian.update(x.to(DEVICE));
        const values = await x.toFloat32();
        for (let t = 0; t < values.length; t += columns) {
          for (let i = 0; i < columns; i++) {
            for (let j = 0; j < columns; j++) {
              const term = (2 / updates) * (values[t + i] as number) * (values[t + j] as number);
              (sums[i * columns + j] as number) += term;
              (magnitudes[i * columns + j] as number) += Math.abs(term);
            }
          }
        }
      }
      const value = await hessian.value().toFloat32();
      for (const [i, sum] of sums.entries()) {
        const bound = 2 * 2 ** -24 * Math.sqrt(updates * rows) * (magnitudes[i] as number);
        expect(Math.abs((value[i] as number) - sum), `${dtype} at ${i}`).toBeLessThanOrEqual(bound);
      }
    }
  });

  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    "%s: with states that do not depend on each other the bytes are the CPU's, and round-to-nearest's",
    async (_, scheme) => {
      for (const [rows, columns] of [
        [33, 160],
        [1, 320],
        [5, 1],
      ] as const) {
        const w = Tensor.from(normals(rows * columns, 3), [rows, columns]);
        const x = new Float32Array(columns * columns);
        for (let i = 0; i < columns; i++) x[i * (columns + 1)] = 1 + ((columns - i) % 7);
        using here = new Hessian(columns);
        here.update(Tensor.from(x, [columns, columns]));
        using there = new Hessian(columns, { device: DEVICE });
        there.update(Tensor.from(x, [columns, columns], { device: DEVICE }));
        const nearest = await stored(quantize(w, scheme));
        for (const options of [{}, { actOrder: true, staticGroups: true }]) {
          const expected = await stored((await gptq.quantize(w, here, { scheme, ...options })).quantized);
          const got = await stored(
            (await gptq.quantize(w.to(DEVICE), there, { scheme, ...options })).quantized,
          );
          const what = `${rows} x ${columns} ${JSON.stringify(options)}`;
          expectSame(got, expected, what);
          // GPTQ rounds by the constants that double quantization's codes decode to.
          if (!('doubleQuant' in scheme)) expectSame(got, nearest, what);
        }
      }
    },
  );

  test.each(SCHEMES.map((scheme) => [label(scheme), scheme] as const))(
    "%s: the error is that of the result, and no more than 1.02 of the CPU's",
    async (_, scheme) => {
      for (const [rows, columns, dtype, orders] of [
        [20, 160, 'bfloat16', ORDERS],
        [9, 300, 'float32', ORDERS.slice(0, 3)],
        [17, 1, 'float32', ORDERS.slice(0, 1)],
        [1, 33, 'float16', ORDERS.slice(4)],
      ] as const) {
        const x = states(columns + 40, columns, 5);
        const w = Tensor.from(normals(rows * columns, 6), [rows, columns], { dtype });
        using here = new Hessian(columns);
        here.update(Tensor.from(x, [columns + 40, columns]));
        using there = new Hessian(columns, { device: DEVICE });
        there.update(Tensor.from(x, [columns + 40, columns], { device: DEVICE }));
        for (const options of orders) {
          const expected = await gptq.quantize(w, here, { scheme, ...options });
          const result = await gptq.quantize(w.to(DEVICE), there, { scheme, ...options });
          const values = await dequantize(result.quantized.to('cpu')).toFloat32();
          const lost = (await w.toFloat32()).map((v, i) => v - (values[i] as number));
          const error = 2 * energy(lost, x, columns);
          const what = `${rows} x ${columns} ${JSON.stringify(options)}`;
          // Float32 sums, of weights of this energy where next to nothing is lost.
          const digits = 1e-4 * error + 1e-10 * expected.energy;
          expect(Math.abs(result.error - error), what).toBeLessThanOrEqual(digits);
          expect(result.error, what).toBeLessThanOrEqual(1.02 * expected.error + digits);
          expect(Math.abs(result.energy / expected.energy - 1), what).toBeLessThan(1e-5);
          expect(result).toMatchObject({ damping: 0.01, deadColumns: 0 });
          expect(Object.keys(result.quantized.stored)).toEqual(Object.keys(expected.quantized.stored));
        }
      }
    },
  );

  test('of few states, where the scaled errors are nearly all damping, errors and those beside are those of the results', async () => {
    const [rows, columns, samples] = [16, 160, 3];
    const problems = [1, 2].map((seed) => {
      const x = states(samples, columns, seed);
      const w = Tensor.from(normals(rows * columns, 10 + seed), [rows, columns], { device: DEVICE });
      const hessian = new Hessian(columns, { device: DEVICE });
      hessian.update(Tensor.from(x, [samples, columns], { device: DEVICE }));
      return { x, w, hessian, beside: dequantize(quantize(w, INT4)) };
    });
    const lostBy = async (values: Tensor, { x, w }: (typeof problems)[number]) => {
      const [there, original] = [await values.toFloat32(), await w.toFloat32()];
      return (
        2 *
        energy(
          original.map((v, i) => v - (there[i] as number)),
          x,
          columns,
        )
      );
    };
    for (const options of ORDERS) {
      const results = await quantizeAll(problems, { scheme: int(5, { granularity: 'row' }), ...options });
      for (const [i, { error, besideError, energy: all, quantized }] of results.entries()) {
        const problem = problems[i] as (typeof problems)[number];
        const what = `${JSON.stringify(options)}, problem ${i}`;
        const expected = await lostBy(dequantize(quantized), problem);
        expect(expected, what).toBeLessThan(1e-3 * all);
        expect(Math.abs(error - expected), what).toBeLessThanOrEqual(1e-4 * expected + 1e-10 * all);
        const beside = await lostBy(problem.beside, problem);
        expect(Math.abs(besideError / beside - 1), what).toBeLessThan(1e-5);
      }
    }
  });

  test('groupIndex names the group of each column by falling diagonal, ties to the lower column', async () => {
    const columns = 300;
    using here = new Hessian(columns);
    const x = new Float32Array(columns * columns);
    for (let i = 0; i < columns; i++) x[i * (columns + 1)] = 1 + ((i * 37) % 11);
    here.update(Tensor.from(x, [columns, columns]));
    using there = new Hessian(columns, { device: DEVICE });
    there.update(Tensor.from(x, [columns, columns], { device: DEVICE }));
    const w = Tensor.from(normals(4 * columns, 4), [4, columns]);
    const options = { scheme: INT4, actOrder: true };
    const expected = await gptq.quantize(w, here, options);
    const result = await gptq.quantize(w.to(DEVICE), there, options);
    expect(await stored(result.quantized)).toEqual(await stored(expected.quantized));
    expect(result.quantized.stored.groupIndex?.shape).toEqual([columns]);
    // Groups that stay whole, one of them short, have no index: their constants are in the plain layout.
    for (const groupSize of [32, 140]) {
      const whole = { ...options, scheme: int(4, { groupSize }), groupAware: true };
      const plain = await gptq.quantize(w.to(DEVICE), there, whole);
      expect(plain.quantized.stored.groupIndex).toBeUndefined();
      expect(await stored(plain.quantized)).toEqual(
        await stored((await gptq.quantize(w, here, whole)).quantized),
      );
    }
  });

  test('a run gives the same bits every time', async () => {
    const [rows, columns] = [40, 150];
    const runs = [];
    for (let i = 0; i < 2; i++) {
      using hessian = new Hessian(columns, { device: DEVICE });
      hessian.update(
        Tensor.from(states(200, columns, 5), [200, columns], { dtype: 'bfloat16', device: DEVICE }),
      );
      const w = Tensor.from(normals(rows * columns, 6), [rows, columns], { device: DEVICE });
      const result = await gptq.quantize(w, hessian, {
        scheme: int(4, { groupSize: 32, search: 'mse' }),
        actOrder: true,
      });
      runs.push([result.error, result.energy, await stored(result.quantized)]);
    }
    expect(runs[1]).toEqual(runs[0]);
  });

  test('columns that no state reached become 0 and are counted', async () => {
    const columns = 70;
    const x = states(90, columns, 7).map((v, i) => (i % columns === 3 || i % columns === 66 ? 0 : v));
    using hessian = new Hessian(columns, { device: DEVICE });
    hessian.update(Tensor.from(x, [90, columns], { device: DEVICE }));
    const w = Tensor.from(normals(5 * columns, 8), [5, columns], { device: DEVICE });
    for (const options of ORDERS) {
      for (const scheme of SCHEMES) {
        const result = await gptq.quantize(w, hessian, { scheme, ...options });
        const values = await dequantize(result.quantized.to('cpu')).toFloat32();
        const dead = values.filter((_, i) => i % columns === 3 || i % columns === 66);
        expect(dead.map(Math.abs), label(scheme)).toEqual(new Float32Array(10));
        expect(result.deadColumns).toBe(2);
      }
    }
    using nothing = new Hessian(columns, { device: DEVICE });
    nothing.update(Tensor.zeros([4, columns], { device: DEVICE }));
    const result = await gptq.quantize(w, nothing, { scheme: INT4 });
    expect(result).toMatchObject({ error: 0, energy: 0, relativeError: 0, deadColumns: columns });
  });

  test('a Hessian that is not positive definite gets the damping that the CPU gives it', async () => {
    const columns = 130;
    // Every column eight times over, the diagonal a power of two: singular without any rounding.
    const x = Float32Array.from({ length: 16 * columns }, (_, i) => {
      const [row, column] = [Math.floor(i / columns), i % columns];
      return ((row * (1 + (column % 13))) >> 2) & 1 ? -1 : 1;
    });
    const w = Tensor.from(normals(6 * columns, 9), [6, columns]);
    using here = new Hessian(columns);
    here.update(Tensor.from(x, [16, columns]));
    using there = new Hessian(columns, { device: DEVICE });
    there.update(Tensor.from(x, [16, columns], { device: DEVICE }));
    const options = { scheme: INT4, damping: 0 };
    const expected = await gptq.quantize(w, here, options);
    const result = await gptq.quantize(w.to(DEVICE), there, options);
    expect(expected.damping).toBe(1e-4);
    expect(result.damping).toBe(1e-4);
    const values = await dequantize(result.quantized.to('cpu')).toFloat32();
    const lost = (await w.toFloat32()).map((v, i) => v - (values[i] as number));
    const error = 2 * energy(lost, x, columns);
    expect(Math.abs(result.error / error - 1)).toBeLessThan(1e-3);
    expect(result.error).toBeLessThanOrEqual(1.02 * expected.error);
  });

  test('NaN and infinities are told as on the CPU, told once', async () => {
    const columns = 40;
    const messages = [];
    for (const device of ['cpu', DEVICE] as const) {
      using hessian = new Hessian(columns, { device });
      hessian.update(Tensor.from(states(90, columns, 8), [90, columns], { device }));
      const w = normals(3 * columns, 9);
      w[2 * columns + 33] = Number.NaN;
      w[2 * columns + 7] = Number.NEGATIVE_INFINITY;
      const weight = Tensor.from(w, [3, columns], { device });
      const told = [];
      for (const scheme of [INT4, int(4, { granularity: 'row' }), SCHEMES[8] as QuantScheme]) {
        told.push(await failure(gptq.quantize(weight, hessian, { scheme, actOrder: true })));
      }
      const x = states(2, columns, 10);
      x[columns + 12] = Number.NEGATIVE_INFINITY;
      x[20] = Number.NaN;
      hessian.update(Tensor.from(x, [2, columns], { device }));
      told.push(
        await failure(gptq.quantize(Tensor.zeros([3, columns], { device }), hessian, { scheme: INT4 })),
      );
      const value = await hessian.value().toFloat32();
      expect(value[20 * columns + 20]).toBeNaN();
      expect(value[12 * columns + 12]).toBe(Number.POSITIVE_INFINITY);
      expect(value[0]).toBeGreaterThan(0);
      messages.push(told);
    }
    expect(messages[0]?.[0]?.message).toMatch(/^w: -Infinity|^w: -inf/i);
    expect(messages[1]).toEqual(messages[0]);
  });

  test('the error of any other weight is that of the CPU, by itself and beside a result', async () => {
    const [rows, columns] = [70, 65];
    const x = Tensor.from(states(100, columns, 11), [100, columns]);
    const w = Tensor.from(normals(rows * columns, 12), [rows, columns]);
    const values = Tensor.from(normals(rows * columns, 13), [rows, columns], { dtype: 'bfloat16' });
    using here = new Hessian(columns);
    here.update(x);
    using there = new Hessian(columns, { device: DEVICE });
    there.update(x.to(DEVICE));
    const scheme = int(4, { granularity: 'row' });
    const nearest = quantize(w, scheme);
    const beside = dequantize(nearest, { dtype: 'float32' });
    const run = async (weight: Tensor, hessian: Hessian, other: Tensor) => {
      const [result] = await quantizeAll([{ w: weight, hessian, beside: other }], { scheme, actOrder: true });
      return result as MeasuredResult;
    };
    const expected = await run(w, here, beside);
    const got = await run(w.to(DEVICE), there, beside.to(DEVICE));
    expect(Math.abs(got.besideError / expected.besideError - 1)).toBeLessThan(1e-5);
    expect(got.error).toBeLessThan(got.besideError);
    for (const other of [null, values]) {
      const expected = await here.outputError(w, other);
      const got = await there.outputError(w.to(DEVICE), other === null ? null : other.to(DEVICE));
      expect(Math.abs(got / expected - 1)).toBeLessThan(1e-5);
    }
  });

  test('empty weights and Hessians work', async () => {
    using none = new Hessian(0, { device: DEVICE });
    none.update(Tensor.zeros([4, 0], { device: DEVICE }));
    expect((await none.value().read()).length).toBe(0);
    using some = new Hessian(64, { device: DEVICE });
    some.update(Tensor.from(states(90, 64, 7), [90, 64], { device: DEVICE }));
    for (const scheme of SCHEMES) {
      for (const [shape, hessian] of [
        [[3, 0], none],
        [[0, 0], none],
        [[0, 64], some],
      ] as const) {
        const w = Tensor.zeros([...shape], { device: DEVICE });
        const result = await gptq.quantize(w, hessian, { scheme, actOrder: true });
        expect(result, `${label(scheme)} ${shape}`).toMatchObject({
          error: 0,
          relativeError: 0,
          damping: 0.01,
        });
        const expected = await gptq
          .quantize(w.to('cpu'), new Hessian(0), { scheme, actOrder: true })
          .catch(() => null);
        if (expected) expect(await stored(result.quantized)).toEqual(await stored(expected.quantized));
      }
    }
  });

  test('weight, states and Hessian have to be on one device', async () => {
    using there = new Hessian(4, { device: DEVICE });
    const x = Tensor.from([1, 2, 3, 4], [1, 4]);
    expect(() => there.update(x)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }));
    there.update(x.to(DEVICE));
    expect(await failure(gptq.quantize(x, there, { scheme: INT4 }))).toMatchObject({
      code: 'ERR_DEVICE',
    });
    using here = new Hessian(4);
    here.update(x);
    expect(() => there.fill(here, 1)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }));
  });

  test('weight and Hessian may be disposed while the work is queued', async () => {
    const columns = 70;
    const hessian = new Hessian(columns, { device: DEVICE });
    const x = Tensor.from(states(90, columns, 11), [90, columns], { device: DEVICE });
    const w = Tensor.from(normals(20 * columns, 12), [20, columns], { device: DEVICE });
    hessian.update(x);
    const running = gptq.quantize(w, hessian, { scheme: INT4 });
    for (const used of [x, w, hessian]) used.dispose();
    const { relativeError } = await running;
    expect(relativeError).toBeGreaterThan(0);
    expect(relativeError).toBeLessThan(0.2);
  });
});
