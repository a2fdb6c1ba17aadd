import { expect, test } from 'vitest';
import {
  dequantize,
  gptq,
  Hessian,
  memory,
  QuantizedTensor,
  type QuantScheme,
  quantize,
  setThreads,
  synchronize,
  Tensor,
} from '../../lib';
import { type MeasuredResult, quantizeAll } from '../../lib/ops/gptq';
import { rejectsCode, throwsCode } from './errors';
import { normals } from './random';

const INT4: QuantScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 };

/** Correlated states: each feature takes part of the one before it. */
function states(shape: number[], seed: number): Float32Array {
  const x = normals(
    shape.reduce((a, b) => a * b, 1),
    seed,
  );
  const columns = shape.at(-1) as number;
  for (let i = 0; i < x.length; i++) {
    if (i % columns > 0) x[i] = (x[i] as number) + 0.7 * (x[i - 1] as number);
  }
  return x;
}

/** 2 / samples times the sum of x^T x in float64. */
function hessianOf(batches: Float32Array[], columns: number, samples: number): Float64Array {
  const h = new Float64Array(columns * columns);
  for (const x of batches) {
    for (let row = 0; row < x.length; row += columns) {
      for (let i = 0; i < columns; i++) {
        for (let j = 0; j < columns; j++) {
          (h[i * columns + j] as number) += (2 / samples) * (x[row + i] as number) * (x[row + j] as number);
        }
      }
    }
  }
  return h;
}

/** tr(D H D^T), float64. */
function energy(d: ArrayLike<number>, h: Float64Array, columns: number): number {
  let sum = 0;
  for (let row = 0; row < d.length; row += columns) {
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < columns; j++) {
        sum += (d[row + i] as number) * (h[i * columns + j] as number) * (d[row + j] as number);
      }
    }
  }
  return sum;
}

/** Bytes of live tensors once the queue and the finalizers have had their turn. */
async function liveBytes(): Promise<number> {
  for (let i = 0; i < 4; i++) {
    (globalThis as { gc?: () => void }).gc?.();
    await synchronize();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return memory().liveBytes;
}

const difference = (a: Float32Array, b: Float32Array) => a.map((x, i) => x - (b[i] as number));

test('a batch of sequences counts as its sequences, rows as one sample, and the Hessian is their mean', async () => {
  const columns = 7;
  using hessian = new Hessian(columns);
  expect(hessian.samples).toBe(0);
  expect(Array.from(await hessian.value().toFloat32())).toEqual(new Array(columns * columns).fill(0));
  const shapes: [number[], number][] = [
    [[3, 5, columns], 3],
    [[4, columns], 1],
    [[columns], 1],
    [[2, 3, 4, columns], 6],
    [[0, columns], 1],
    [[0, 5, columns], 0],
  ];
  const batches: Float32Array[] = [];
  let samples = 0;
  for (const [shape, counted] of shapes) {
    // Small integers: every product and sum is exact.
    const x = normals(
      shape.reduce((a, b) => a * b, 1),
      samples + 1,
    ).map((v) => Math.round(Math.max(-9, Math.min(9, 3 * v))));
    batches.push(x);
    samples += counted;
    hessian.update(Tensor.from(x, shape, { dtype: samples % 2 ? 'bfloat16' : 'float32' }));
    expect(hessian.samples).toBe(samples);
  }
  const expected = hessianOf(batches, columns, samples);
  const value = await hessian.value().toFloat32();
  for (let i = 0; i < expected.length; i++) {
    expect(Math.abs((value[i] as number) - (expected[i] as number))).toBeLessThanOrEqual(
      2 ** -23 * Math.abs(expected[i] as number),
    );
  }
});

test('the Hessian stays within c eps sqrt(K) sum |a||b| over many updates', async () => {
  const columns = 65;
  const rows = 300;
  using hessian = new Hessian(columns);
  const batches = Array.from({ length: 20 }, (_, i) => states([rows, columns], i));
  for (const x of batches) hessian.update(Tensor.from(x, [rows, columns]));
  const expected = hessianOf(batches, columns, 20);
  const magnitudes = hessianOf(
    batches.map((x) => x.map(Math.abs)),
    columns,
    20,
  );
  const value = await hessian.value().toFloat32();
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs((value[i] as number) - (expected[i] as number));
    worst = Math.max(worst, error / (2 ** -24 * Math.sqrt(20 * rows) * (magnitudes[i] as number)));
  }
  expect(worst).toBeLessThanOrEqual(2);
});

test('error and relativeError are those of the result, and less than round-to-nearest has', async () => {
  const [rows, columns] = [40, 160];
  const w = normals(rows * columns, 1);
  const x = states([500, columns], 2);
  using hessian = new Hessian(columns);
  hessian.update(Tensor.from(x, [5, 100, columns]));
  const h = hessianOf([x], columns, 5);
  const weight = Tensor.from(w, [rows, columns]);
  const nearest = await dequantize(quantize(weight, INT4)).toFloat32();
  for (const actOrder of [false, true]) {
    for (const staticGroups of [false, true]) {
      const result = await gptq.quantize(weight, hessian, { scheme: INT4, actOrder, staticGroups });
      const values = await dequantize(result.quantized).toFloat32();
      const error = energy(difference(w, values), h, columns);
      expect(Math.abs(result.error / error - 1)).toBeLessThan(1e-4);
      expect(Math.abs(result.relativeError / Math.sqrt(error / energy(w, h, columns)) - 1)).toBeLessThan(
        1e-4,
      );
      expect(error).toBeLessThan(energy(difference(w, nearest), h, columns));
      expect(result).toMatchObject({ damping: 0.01, deadColumns: 0 });
    }
  }
});

const ELEMENT_SCHEMES: QuantScheme[] = [
  { kind: 'nf4', blockSize: 64 },
  { kind: 'nf4', blockSize: 64, doubleQuant: true },
  { kind: 'fp4', blockSize: 48 }, // blocks span rows
  { kind: 'e3m0', blockSize: 32 },
  { kind: 'dynamic8', blockSize: 64 },
  { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  { kind: 'fp8', format: 'e5m2', granularity: 'tensor' },
  { kind: 'mx', element: 'e2m1' },
  { kind: 'mx', element: 'e4m3', preScale: true },
  { kind: 'mx', element: 'int8', rounding: 'nearest' },
];

test('code books, fp8 and MX are stored as quantize stores them, with less error of the output', async () => {
  const [rows, columns] = [24, 128];
  const w = normals(rows * columns, 21);
  const x = states([600, columns], 22);
  using hessian = new Hessian(columns);
  hessian.update(Tensor.from(x, [6, 100, columns]));
  const h = hessianOf([x], columns, 6);
  const weight = Tensor.from(w, [rows, columns]);
  for (const scheme of ELEMENT_SCHEMES) {
    const nearest = quantize(weight, scheme);
    const rounded = energy(difference(w, await dequantize(nearest).toFloat32()), h, columns);
    for (const actOrder of [false, true]) {
      const { quantized, error } = await gptq.quantize(weight, hessian, { scheme, actOrder });
      const described = (q: typeof nearest) =>
        [...Object.entries(q.stored), ...Object.entries(q.parts)].map(([name, t]) => [
          name,
          t.dtype,
          t.shape,
        ]);
      expect(described(quantized)).toEqual(described(nearest));
      expect(quantized.scheme).toEqual(nearest.scheme);
      const values = await dequantize(quantized).toFloat32();
      const again = QuantizedTensor.fromParts(scheme, [rows, columns], quantized.parts);
      expect(await dequantize(again).toFloat32()).toEqual(values);
      const lost = energy(difference(w, values), h, columns);
      expect(Math.abs(error / lost - 1)).toBeLessThan(1e-4);
      expect(lost).toBeLessThan(rounded);
    }
  }
});

test('a block is fitted to the weights as they stand at its first column', async () => {
  const columns = 128;
  using hessian = new Hessian(columns);
  hessian.update(Tensor.from(states([600, columns], 23), [600, columns]));
  const weight = Tensor.from(normals(64 * columns, 24), [64, columns]);
  for (const [scheme, part] of [
    [{ kind: 'nf4', blockSize: 64 }, 'absmax'],
    [{ kind: 'mx', element: 'e2m1' }, 'scales'],
  ] as const) {
    const constants = async (q: QuantizedTensor) => Array.from((await q.parts[part]!.read()) as Float32Array);
    const nearest = await constants(quantize(weight, scheme));
    const run = async (options: object) =>
      constants((await gptq.quantize(weight, hessian, { scheme, ...options })).quantized);
    const blocks = nearest.length / 64;
    const fitted = await run({});
    // Nothing is made up for in the first block of a row.
    for (let i = 0; i < nearest.length; i += blocks) expect(fitted[i]).toBe(nearest[i]);
    expect(fitted).not.toEqual(nearest);
    expect(await run({ staticGroups: true })).toEqual(nearest);
    expect(await run({ actOrder: true })).toEqual(nearest);
  }
});

test('groupIndex names the group of each column by falling diagonal, and only where groups follow that order', async () => {
  const columns = 100;
  using hessian = new Hessian(columns);
  const x = states([300, columns], 3).map((v, i) => v * (1 + (((i % columns) * 37) % columns)));
  hessian.update(Tensor.from(x, [300, columns]));
  const h = await hessian.value().toFloat32();
  const order = Array.from({ length: columns }, (_, i) => i).sort(
    (a, b) => (h[b * (columns + 1)] as number) - (h[a * (columns + 1)] as number),
  );
  const expected = new Array<number>(columns);
  for (const [position, column] of order.entries()) expected[column] = Math.floor(position / 32);
  const weight = Tensor.from(normals(9 * columns, 4), [9, columns], { dtype: 'bfloat16' });
  const run = async (options: Omit<Parameters<typeof gptq.quantize>[2], 'scheme'>, scheme = INT4) =>
    (await gptq.quantize(weight, hessian, { scheme, ...options })).quantized;
  const { codes, scales, zeros, groupIndex } = (await run({ actOrder: true })).parts;
  expect(Array.from((await groupIndex!.read()) as Int32Array)).toEqual(expected);
  expect(groupIndex!.dtype).toBe('int32');
  // The parts alone give the values: code - zero, times scale, by the group of the column.
  const values = await dequantize(await run({ actOrder: true })).toFloat32();
  const [q, s, z] = await Promise.all([codes!.read(), scales!.toFloat32(), zeros!.read()]);
  for (let i = 0; i < values.length; i++) {
    const g = Math.floor(i / columns) * 4 + (expected[i % columns] as number);
    expect(values[i]).toBe(Math.fround(((q[i] as number) - (z[g] as number)) * (s[g] as number)));
  }
  expect((await run({ actOrder: true, staticGroups: true })).parts.groupIndex).toBeUndefined();
  expect((await run({})).parts.groupIndex).toBeUndefined();
  expect((await run({ actOrder: true, groupAware: true })).parts.groupIndex).toBeUndefined();
  const row: QuantScheme = { kind: 'int', bits: 4, symmetric: true, granularity: 'row' };
  expect((await run({ actOrder: true }, row)).parts.groupIndex).toBeUndefined();
});

test('groups that stay whole are those of the plain layout, fitted in the order of their largest diagonal', async () => {
  const [rows, columns, size] = [9, 100, 32];
  using hessian = new Hessian(columns);
  const x = states([300, columns], 3).map((v, i) => v * (1 + (((i % columns) * 37) % columns)));
  hessian.update(Tensor.from(x, [300, columns]));
  const h = await hessian.value().toFloat32();
  const largest = [0, 1, 2].map((g) =>
    Math.max(...Array.from({ length: size }, (_, i) => h[(g * size + i) * (columns + 1)] as number)),
  );
  const first = largest.indexOf(Math.max(...largest));
  const w = normals(rows * columns, 4);
  const weight = Tensor.from(w, [rows, columns]);
  const { scales } = (
    await gptq.quantize(weight, hessian, { scheme: INT4, actOrder: true, groupAware: true })
  ).quantized.parts;
  const found = await scales!.toFloat32();
  // The group that comes first is fitted before anything has changed: its grid is round-to-nearest's, and no other one is.
  const nearest = await quantize(weight, INT4).parts.scales!.toFloat32();
  const same = [0, 1, 2, 3].filter((g) =>
    Array.from({ length: rows }, (_, r) => found[4 * r + g] === nearest[4 * r + g]).every((equal) => equal),
  );
  expect(same).toEqual([first]);
  expect(first).not.toBe(0);
});

test('the result does not depend on the number of threads', async () => {
  const [rows, columns] = [70, 140];
  const results: unknown[] = [];
  try {
    for (const threads of [1, 2, 3]) {
      setThreads(threads);
      using hessian = new Hessian(columns);
      hessian.update(Tensor.from(states([400, columns], 5), [400, columns], { dtype: 'float16' }));
      const weight = Tensor.from(normals(rows * columns, 6), [rows, columns]);
      const { quantized, error } = await gptq.quantize(weight, hessian, { scheme: INT4, actOrder: true });
      const { codes, scales, zeros } = quantized.parts;
      results.push([error, ...(await Promise.all([codes!.read(), scales!.read(), zeros!.read()]))]);
    }
  } finally {
    setThreads(2);
  }
  expect(results[1]).toEqual(results[0]);
  expect(results[2]).toEqual(results[0]);
});

test('several weights in one go, also of one Hessian, are what each is alone', async () => {
  const columns = 140;
  using hessian = new Hessian(columns);
  using other = new Hessian(columns);
  hessian.update(Tensor.from(states([400, columns], 5), [400, columns]));
  other.update(Tensor.from(states([300, columns], 6), [300, columns]));
  const weights = [70, 33, 33, 1, 17].map((rows, i) =>
    Tensor.from(normals(rows * columns, 10 + i), [rows, columns], { dtype: 'bfloat16' }),
  );
  const own = [hessian, hessian, other, other, hessian];
  const problems = weights.map((w, i) => ({ w, hessian: own[i] as Hessian, beside: i === 1 ? w : null }));
  const described = async ({ quantized, ...rest }: Omit<MeasuredResult, 'besideError'>) => ({
    ...rest,
    parts: await Promise.all(Object.values(quantized.parts).map((part) => part.read())),
  });
  for (const settings of [
    { scheme: INT4 },
    { scheme: INT4, actOrder: true },
    { scheme: INT4, actOrder: true, groupAware: true },
    { scheme: INT4, actOrder: true, staticGroups: true, damping: 0.1 },
    { scheme: { kind: 'nf4', blockSize: 20 } as const },
    { scheme: { kind: 'mx', element: 'e2m1' } as const },
  ]) {
    const together = await quantizeAll(problems, settings);
    for (const [i, { besideError, ...result }] of together.entries()) {
      const alone = await gptq.quantize(weights[i] as Tensor, own[i] as Hessian, settings);
      expect(await described(result)).toEqual(await described(alone));
      // A weight beside itself loses nothing.
      expect(besideError).toBe(0);
    }
  }
});

test('empty weights and Hessians work', async () => {
  const schemes: QuantScheme[] = [INT4, ...ELEMENT_SCHEMES];
  using none = new Hessian(0);
  none.update(Tensor.zeros([4, 0]));
  expect((await none.value().read()).length).toBe(0);
  using some = new Hessian(64);
  some.update(Tensor.from(states([90, 64], 7), [90, 64]));
  const cases: [number[], Hessian][] = [
    [[3, 0], none],
    [[0, 0], none],
    [[0, 64], some],
  ];
  for (const [shape, hessian] of cases) {
    for (const scheme of schemes) {
      const result = await gptq.quantize(Tensor.zeros(shape), hessian, { scheme, actOrder: true });
      expect(result).toMatchObject({ error: 0, relativeError: 0 });
      expect(await dequantize(result.quantized).toFloat32()).toEqual(new Float32Array(0));
    }
  }
});

test('columns that no state reached become 0 and are counted', async () => {
  using hessian = new Hessian(3);
  hessian.update(Tensor.from([1, 0, 2, -1, 0, 1], [2, 3]));
  const w = Tensor.from([5, 7, -3, 1, 9, 2], [2, 3]);
  const scheme: QuantScheme = { kind: 'int', bits: 8, symmetric: true, granularity: 'row' };
  const result = await gptq.quantize(w, hessian, { scheme });
  const values = await dequantize(result.quantized).toFloat32();
  expect([values[1], values[4], result.deadColumns]).toEqual([0, 0, 1]);
});

test('NaN in a weight is told with its position, NaN in a state with its column', async () => {
  const columns = 40;
  const scheme = INT4;
  using hessian = new Hessian(columns);
  hessian.update(Tensor.from(states([90, columns], 8), [90, columns]));
  const w = normals(3 * columns, 9);
  w[2 * columns + 33] = Number.NaN;
  await rejectsCode(
    gptq.quantize(Tensor.from(w, [3, columns]), hessian, { scheme }),
    'ERR_ARGUMENT',
    /^w: .* row 2, column 33/,
  );
  const x = states([2, columns], 10);
  x[columns + 12] = Number.NEGATIVE_INFINITY;
  hessian.update(Tensor.from(x, [2, columns]));
  await rejectsCode(
    gptq.quantize(Tensor.zeros([3, columns]), hessian, { scheme }),
    'ERR_ARGUMENT',
    /^hessian: .* column 12/,
  );
  await synchronize(); // has been told already
});

test('a failed weight or state fails the result, told once', async () => {
  using hessian = new Hessian(2);
  const failed = dequantize(quantize(Tensor.from([1, Number.NaN, 3, 4], [2, 2]), INT4));
  hessian.update(failed);
  await rejectsCode(hessian.value().read(), 'ERR_ARGUMENT', /row 0, column 1/);
  await rejectsCode(gptq.quantize(Tensor.zeros([2, 2]), hessian, { scheme: INT4 }), 'ERR_ARGUMENT', /row 0/);
  await synchronize();
});

test('arguments are checked at once', async () => {
  throwsCode(() => new Hessian(-1), 'ERR_ARGUMENT', /inFeatures/);
  throwsCode(() => new Hessian(1.5), 'ERR_ARGUMENT', /inFeatures/);
  throwsCode(() => new Hessian(4, { device: 'gpu' as 'cpu' }), 'ERR_DEVICE');
  throwsCode(() => new Hessian(2 ** 26), 'ERR_OUT_OF_MEMORY');
  using hessian = new Hessian(4);
  throwsCode(() => hessian.update(Tensor.zeros([2, 5])), 'ERR_SHAPE', /x: shape \[2,5\]/);
  throwsCode(() => hessian.update(Tensor.zeros([])), 'ERR_SHAPE');
  throwsCode(() => hessian.update(Tensor.zeros([2, 4], { dtype: 'int8' })), 'ERR_DTYPE');
  throwsCode(() => hessian.update(7 as unknown as Tensor), 'ERR_ARGUMENT', /x/);
  const w = Tensor.zeros([3, 4]);
  const run = (weight: Tensor, options: object, h: unknown = hessian) =>
    gptq.quantize(weight, h as Hessian, { scheme: INT4, ...options });
  await rejectsCode(run(w, {}), 'ERR_ARGUMENT', /no samples/);
  hessian.update(Tensor.zeros([2, 4]));
  await rejectsCode(run(w, { scheme: undefined }), 'ERR_ARGUMENT', /scheme/);
  await rejectsCode(run(w, { actOrder: 1 }), 'ERR_ARGUMENT', /actOrder/);
  await rejectsCode(run(w, { staticGroups: 'yes' }), 'ERR_ARGUMENT', /staticGroups/);
  for (const damping of [-1, Number.NaN, Number.POSITIVE_INFINITY, '0.01']) {
    await rejectsCode(run(w, { damping }), 'ERR_ARGUMENT', /damping/);
  }
  for (const blockSize of [0, 1.5, '128']) {
    await rejectsCode(run(w, { blockSize }), 'ERR_ARGUMENT', /blockSize/);
  }
  await rejectsCode(run(Tensor.zeros([3, 5]), {}), 'ERR_SHAPE', /\[out, 4\]/);
  await rejectsCode(run(Tensor.zeros([4]), {}), 'ERR_SHAPE');
  await rejectsCode(run(Tensor.zeros([3, 4], { dtype: 'int8' }), {}), 'ERR_DTYPE');
  await rejectsCode(run(w, {}, {}), 'ERR_ARGUMENT', /Hessian/);
  const unsupported: QuantScheme[] = [
    { kind: 'int', bits: 16, symmetric: true, granularity: 'row' },
    { kind: 'llm.int8' },
    { kind: 'spqr', bits: 3, groupSize: 16, outlierThreshold: 0.2 },
  ];
  for (const scheme of unsupported) await rejectsCode(run(w, { scheme }), 'ERR_UNSUPPORTED', /GPTQ/);
  hessian.dispose();
  throwsCode(() => hessian.update(w), 'ERR_DISPOSED');
  throwsCode(() => hessian.value(), 'ERR_DISPOSED');
  await rejectsCode(run(w, {}), 'ERR_DISPOSED');
});

test('weight and Hessian may be disposed while the work is queued, and all memory comes back', async () => {
  const columns = 200;
  const before = await liveBytes();
  const hessian = new Hessian(columns);
  const x = Tensor.from(states([300, columns], 11), [300, columns]);
  const w = Tensor.from(normals(20 * columns, 12), [20, columns]);
  hessian.update(x);
  const running = gptq.quantize(w, hessian, { scheme: INT4 });
  for (const used of [x, w, hessian]) used.dispose();
  const { quantized, relativeError } = await running;
  expect(relativeError).toBeGreaterThan(0);
  expect(relativeError).toBeLessThan(0.2);
  quantized.dispose();
  expect(await liveBytes()).toBe(before);
});

test('the event loop goes on while a weight is quantized', async () => {
  const columns = 768;
  using hessian = new Hessian(columns);
  hessian.update(Tensor.from(states([1000, columns], 13), [1000, columns]));
  let turns = 0;
  let done = false;
  const running = gptq
    .quantize(Tensor.from(normals(columns * columns, 14), [columns, columns]), hessian, { scheme: INT4 })
    .then(() => {
      done = true;
    });
  while (!done) {
    turns++;
    await new Promise((resolve) => setImmediate(resolve));
  }
  await running;
  expect(turns).toBeGreaterThan(10);
});
