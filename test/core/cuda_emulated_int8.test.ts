import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import type { IntScheme } from '../../lib/scheme';
import { DEVICE, hasCuda } from './cuda_device';
import { choose, int, make, row } from './moe_layers';
import { normals, random } from './random';

// Integer products and LLM.int8 by the emulated CUDA device.
const DTYPES = ['float32', 'float16', 'bfloat16'] as const;

async function bytesOf(tensor: q.Tensor): Promise<Buffer> {
  const values = await tensor.read();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

const WEIGHTS: IntScheme[] = [
  ...([2, 3, 4, 5, 6, 8] as const).flatMap((bits) =>
    [true, false].map(
      (symmetric) => ({ kind: 'int', bits, symmetric, granularity: 'group', groupSize: 32 }) as const,
    ),
  ),
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 8 },
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 40 },
  { kind: 'int', bits: 8, symmetric: true, granularity: 'row' },
  { kind: 'int', bits: 8, symmetric: false, granularity: 'tensor' },
  { kind: 'int', bits: 8, symmetric: true, range: 'full', granularity: 'group', groupSize: 12 },
  { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 128 },
];

const label = (scheme: q.QuantScheme) => JSON.stringify(scheme).replace(/[{}"]/g, '');

const SHAPES = [
  [1, 33, 96],
  [17, 65, 160],
  [65, 130, 128],
  [5, 9, 45],
  [16, 1, 1],
  [3, 7, 0],
  [0, 4, 32],
] as const;

describe.skipIf(!hasCuda)(`on ${DEVICE}`, () => {
  test.each(WEIGHTS.map((scheme) => [label(scheme), scheme] as const))(
    'int8 products with a weight of %s have the bits of the CPU',
    async (_, scheme) => {
      let turn = 0;
      for (const [m, n, k] of SHAPES) {
        const dtype = DTYPES[turn++ % 3] as (typeof DTYPES)[number];
        const x = q.Tensor.from(normals(m * k, 3), [m, k], { dtype });
        const weight = q.quantize(q.Tensor.from(normals(n * k, 5), [n, k]), scheme);
        const bias = q.Tensor.from(normals(n, 7), [n]);
        const product = (device: q.DeviceId) =>
          q.linear(x.to(device), weight.to(device), {
            bias: bias.to(device),
            compute: 'int8',
            outDtype: 'float32',
          });
        expect(await bytesOf(product(DEVICE)), `${m} x ${n} x ${k}`).toEqual(await bytesOf(product('cpu')));
      }
    },
  );

  test('int8 products take denormals, zeros, NaN and infinities as on the CPU', async () => {
    const rows = [
      () => 0,
      (k: number) => (k % 2 ? 2 ** -149 : -(2 ** -140)),
      (k: number) => (k === 5 ? Number.NaN : 1),
      (k: number) => (k === 40 ? Number.POSITIVE_INFINITY : 1),
      (k: number) => (k === 40 || k === 41 ? Number.NEGATIVE_INFINITY : k),
      (k: number) => (k === 3 ? Number.NEGATIVE_INFINITY : k === 70 ? Number.NaN : 2),
      () => 3.4028234663852886e38,
      (k: number) => (k - 48) / 2,
    ];
    const x = q.Tensor.from(
      rows.flatMap((row) => Array.from({ length: 96 }, (_, k) => row(k))),
      [rows.length, 96],
    );
    for (const scheme of [WEIGHTS[4], WEIGHTS[5], WEIGHTS[14]] as IntScheme[]) {
      const weight = q.quantize(q.Tensor.from(normals(20 * 96, 5), [20, 96]), scheme);
      const here = await q.linear(x, weight, { compute: 'int8' }).read();
      expect(await q.linear(x.to(DEVICE), weight.to(DEVICE), { compute: 'int8' }).read()).toEqual(here);
    }
  });

  test('int8 products refuse the weights that they refuse on the CPU', () => {
    const w = q.Tensor.from(normals(4 * 40, 5), [4, 40]);
    const x = q.Tensor.from(normals(40, 5), [1, 40]);
    for (const scheme of [
      { kind: 'int', bits: 4, symmetric: true, granularity: 'column' },
      { kind: 'int', bits: 16, symmetric: true, granularity: 'row' },
      { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 10 },
      { kind: 'nf4', blockSize: 64 },
    ] as q.QuantScheme[]) {
      const weight = q.quantize(w, scheme).to(DEVICE);
      expect(() => q.linear(x.to(DEVICE), weight, { compute: 'int8' })).toThrow(/compute: int8 needs/);
    }
  });

  /** Rows with some values beyond 6 in a few columns. */
  const activations = (m: number, k: number, outliers: number, dtype: (typeof DTYPES)[number]) => {
    const values = normals(m * k, 3).map((value) => Math.max(-5, Math.min(5, value)));
    const next = random(9);
    for (let i = 0; i < outliers && m * k > 0; i++)
      values[Math.floor(next() * m) * k + Math.floor(next() * k)] = next() > 0.5 ? 6 : -40;
    return q.Tensor.from(values, [m, k], { dtype });
  };

  test.each(DTYPES)('LLM.int8 of %s without outliers has the bits of the CPU', async (dtype) => {
    for (const [m, n, k] of SHAPES) {
      const x = activations(m, k, 0, dtype);
      for (const threshold of [0, 6]) {
        const weight = q.quantize(q.Tensor.from(normals(n * k, 5), [n, k]), { kind: 'llm.int8', threshold });
        const bias = q.Tensor.from(normals(n, 7), [n], { dtype });
        const here = q.linear(x, weight, { bias });
        const there = q.linear(x.to(DEVICE), weight.to(DEVICE), { bias: bias.to(DEVICE) });
        expect(await bytesOf(there), `${m} x ${n} x ${k}`).toEqual(await bytesOf(here));
      }
    }
  });

  test('LLM.int8 sums float32 outliers as large as the CPU does', async () => {
    // 1e36 times 127, a code, would be infinity in a few terms; times the weights it is 3e37 in all.
    const x = q.Tensor.from([...Array(4).fill(1e36), ...Array(28).fill(1)], [1, 32]);
    const weight = q.quantize(q.Tensor.from(normals(6 * 32, 5).fill(7.5, 0, 4), [6, 32]), {
      kind: 'llm.int8',
    });
    const here = await q.linear(x, weight).toFloat32();
    const there = await q.linear(x.to(DEVICE), weight.to(DEVICE)).toFloat32();
    expect(here.every(Number.isFinite)).toBe(true);
    for (const [i, value] of here.entries())
      expect(Math.abs((there[i] as number) / value - 1)).toBeLessThan(1e-5);
  });

  test.each(DTYPES)(
    'LLM.int8 of %s with outliers stays within the bound of their float32 sums',
    async (dtype) => {
      for (const [m, n, k, outliers] of [
        [1, 33, 96, 1],
        [17, 65, 160, 5],
        [65, 130, 128, 60],
        [5, 9, 45, 200],
      ] as const) {
        const x = activations(m, k, outliers, dtype);
        const weight = q.quantize(q.Tensor.from(normals(n * k, 5), [n, k]), { kind: 'llm.int8' });
        const bias = q.Tensor.from(normals(n, 7), [n]);
        const opts = { outDtype: 'float32' } as const;
        const here = await q.linear(x, weight, { ...opts, bias }).toFloat32();
        const there = await q
          .linear(x.to(DEVICE), weight.to(DEVICE), { ...opts, bias: bias.to(DEVICE) })
          .toFloat32();
        const values = await q.dequantize(weight).toFloat32();
        const rows = await x.toFloat32();
        for (let i = 0; i < m; i++)
          for (let j = 0; j < n; j++) {
            let magnitude = Math.abs(here[i * n + j] as number);
            for (let p = 0; p < k; p++)
              magnitude += Math.abs((rows[i * k + p] as number) * (values[j * k + p] as number));
            const apart = Math.abs((here[i * n + j] as number) - (there[i * n + j] as number));
            expect(apart, `(${i}, ${j})`).toBeLessThanOrEqual(8 * 2 ** -24 * Math.sqrt(k) * magnitude);
          }
      }
    },
  );

  test.each(DTYPES)(
    'exact LLM.int8 products of %s are exact: whole activations, scales of 127',
    async (dtype) => {
      // absmax 127 in each row of both factors makes every code the value itself; 254 lies beyond the threshold.
      const [m, n, k] = [18, 40, 96];
      const x = Float32Array.from({ length: m * k }, (_, i) => (i % k === 0 ? 127 : ((i * 7) % 41) - 20));
      for (let i = 0; i < m; i++) if (i % 3 === 0) x[i * k + 17] = 200;
      const w = Float32Array.from({ length: n * k }, (_, i) => (i % k === 0 ? 127 : ((i * 11) % 61) - 30));
      const weight = q.quantize(q.Tensor.from(w, [n, k]), { kind: 'llm.int8', threshold: 150 });
      const input = q.Tensor.from(x, [m, k], { dtype });
      const y = await q.linear(input.to(DEVICE), weight.to(DEVICE), { outDtype: 'float32' }).toFloat32();
      for (let i = 0; i < m; i++)
        for (let j = 0; j < n; j++) {
          let sum = 0;
          for (let p = 0; p < k; p++) sum += (x[i * k + p] as number) * (w[j * k + p] as number);
          expect(y[i * n + j], `(${i}, ${j})`).toBe(sum);
        }
    },
  );

  test('LLM.int8 keeps NaN and infinities within their rows, as on the CPU', async () => {
    const rows = [
      (k: number) => (k === 5 ? Number.NaN : 1),
      (k: number) => (k === 40 ? Number.POSITIVE_INFINITY : 1),
      (k: number) => (k === 40 ? 50 : k % 3),
      () => 0,
      (k: number) => (k % 2 ? 2 ** -149 : 0),
    ];
    const x = q.Tensor.from(
      rows.flatMap((row) => Array.from({ length: 96 }, (_, k) => row(k))),
      [rows.length, 96],
    );
    for (const threshold of [0, 6]) {
      const weight = q.quantize(q.Tensor.from(normals(20 * 96, 5), [20, 96]), {
        kind: 'llm.int8',
        threshold,
      });
      const here = await q.linear(x, weight).toFloat32();
      const there = await q.linear(x.to(DEVICE), weight.to(DEVICE)).toFloat32();
      here.forEach((value, i) => {
        if (Number.isFinite(value)) expect(Math.abs((there[i] as number) - value)).toBeLessThanOrEqual(1e-4);
        else expect(there[i], `${i}`).toBe(value);
      });
    }
  });

  test.each(DTYPES)('outlier columns and split activations of %s are those of the CPU', async (dtype) => {
    for (const [m, k, outliers] of [
      [5, 70, 3],
      [1, 33, 40],
      [3, 9000, 300],
      [4, 64, 0],
      [0, 9, 0],
      [2, 0, 0],
    ] as const) {
      const x = activations(m, k, outliers, dtype);
      for (const threshold of [0, 2, 6, Number.MIN_VALUE]) {
        const columns = await q.llmInt8.outlierColumns(x, { threshold });
        expect(await q.llmInt8.outlierColumns(x.to(DEVICE), { threshold })).toEqual(columns);
        const [here, there] = [
          await q.llmInt8.split(x, { threshold }),
          await q.llmInt8.split(x.to(DEVICE), { threshold }),
        ];
        expect(there.columns).toEqual(here.columns);
        for (const part of ['outliers', 'codes', 'scales'] as const) {
          expect(there[part].device).toBe(DEVICE);
          expect(await bytesOf(there[part]), part).toEqual(await bytesOf(here[part]));
        }
      }
    }
    const odd = q.Tensor.from([Number.NaN, 1, Number.POSITIVE_INFINITY, 2, 3, 4], [2, 3], { dtype });
    for (const threshold of [0, 3]) {
      const [here, there] = [
        await q.llmInt8.split(odd, { threshold }),
        await q.llmInt8.split(odd.to(DEVICE), { threshold }),
      ];
      expect(there.columns).toEqual(here.columns);
      for (const part of ['outliers', 'codes', 'scales'] as const)
        expect(await there[part].read()).toEqual(await here[part].read());
    }
  });

  test('int8 experts whose gates are wide open have the bits of the CPU', async () => {
    // Beyond 18 silu is the identity in float32, whoever computes it: all else is exact or in one order.
    const positive = (count: number, seed: number) =>
      normals(count, seed).map((value) => 1 + Math.abs(value));
    const [E, T] = [4, 37];
    const choice = choose(T, E, 2);
    const { indices, weights, counts } = choice;
    const there = { indices: indices.to(DEVICE), weights: weights.to(DEVICE), counts: counts.to(DEVICE) };
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
          gate: q.quantize(q.Tensor.from(positive(inter * hidden, e + 20), [inter, hidden]), kinds[0]),
        })) as q.QuantizedExpert[];
        const moved = experts.map(({ gate, up, down }) => ({
          gate: gate.to(DEVICE),
          up: up.to(DEVICE),
          down: down.to(DEVICE),
        }));
        for (const dtype of DTYPES) {
          const x = q.Tensor.from(positive(T * hidden, 9), [T, hidden], { dtype });
          const here = q.moe.experts(x, experts, choice, { compute: 'int8' });
          const got = q.moe.experts(x.to(DEVICE), moved, there, { compute: 'int8' });
          expect(await bytesOf(got), `${dtype} ${hidden} ${inter}`).toEqual(await bytesOf(here));
        }
      }
    }
  });
});
