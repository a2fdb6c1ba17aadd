import { describe, expect, test } from 'vitest';
import * as q from '../../lib';
import { DEVICE, hasCuda } from './cuda_device';
import { normals } from './random';

// Hadamard transforms by the emulated CUDA device: the bits of the CPU.
const DTYPES = ['float32', 'float16', 'bfloat16'] as const;

async function bytesOf(tensor: q.Tensor): Promise<Buffer> {
  const values = await tensor.read();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

/** Powers of two through every pass, and each kind of base matrix over sizes of its own. */
const SIZES = [
  ...Array.from({ length: 16 }, (_, k) => 2 ** k),
  ...[12, 20, 28, 36, 40, 44, 60, 92, 108, 116, 252],
  ...[24, 48, 96, 80, 144, 160, 768, 12 * 256, 12 * 512, 20 * 1024, 2560, 92 * 16, 3328 * 4],
];

describe.skipIf(!hasCuda)(`on ${DEVICE}`, () => {
  test.each(SIZES.map((n, i) => [n, DTYPES[i % 3] as (typeof DTYPES)[number]] as const))(
    'a transform of %i elements, %s, has the bits of the CPU',
    async (n, dtype) => {
      const rows = n > 4096 ? 2 : 5;
      const values = normals(rows * n, n);
      values[0] = -0;
      values[n - 1] = 2 ** -149;
      const x = q.Tensor.from(values, [rows, n], { dtype });
      for (const scale of [undefined, 1, 3.7]) {
        const opts = scale === undefined ? {} : { scale };
        expect(await bytesOf(q.hadamard(x.to(DEVICE), opts))).toEqual(await bytesOf(q.hadamard(x, opts)));
      }
    },
  );

  test('rows that do not fit into shared memory have the bits of the CPU', async () => {
    for (const n of [2 ** 15, 2 ** 17, 12 * 2 ** 11]) {
      const x = q.Tensor.from(normals(n, 3), [1, n], { dtype: n % 3 ? 'float32' : 'bfloat16' });
      expect(await bytesOf(q.hadamard(x.to(DEVICE)))).toEqual(await bytesOf(q.hadamard(x)));
    }
  });

  test('views, empty tensors and more dimensions go as on the CPU', async () => {
    const whole = q.Tensor.from(normals(6 * 80, 5), [6, 80]);
    const part = (tensor: q.Tensor) => q.hadamard(tensor.slice(1, 8, 56));
    expect(await bytesOf(part(whole.to(DEVICE)))).toEqual(await bytesOf(part(whole)));
    for (const shape of [[0, 64], [3, 0], [2, 0, 12], [2, 3, 16], [16]]) {
      const x = q.Tensor.from(
        normals(
          shape.reduce((a, b) => a * b, 1),
          5,
        ),
        shape,
      );
      const there = q.hadamard(x.to(DEVICE));
      expect(there.shape).toEqual(shape);
      expect(there.device).toBe(DEVICE);
      expect(await bytesOf(there)).toEqual(await bytesOf(q.hadamard(x)));
    }
    expect(() => q.hadamard(q.Tensor.zeros([2, 7], { device: DEVICE }))).toThrow(/nearest sizes/);
  });

  test.each([64, 48, 2048])('NaN and infinities stay within their row of %i', async (n) => {
    const values = normals(4 * n, 5);
    values[n + 3] = Number.NaN;
    values[2 * n] = Number.POSITIVE_INFINITY;
    const x = q.Tensor.from(values, [4, n]);
    const there = await q.hadamard(x.to(DEVICE)).toFloat32();
    const here = await q.hadamard(x).toFloat32();
    expect(there).toEqual(here);
    expect(there.subarray(0, n).every(Number.isFinite)).toBe(true);
    expect(there.subarray(3 * n).every(Number.isFinite)).toBe(true);
  });

  const group = { granularity: 'group', groupSize: 32 } as const;
  const SCHEMES: q.QuantScheme[] = [
    { kind: 'int', bits: 4, symmetric: true, range: 'full', ...group },
    { kind: 'int', bits: 4, symmetric: false, ...group, groupSize: 128, scaleDtype: 'float16' },
    { kind: 'int', bits: 8, symmetric: true, granularity: 'row' },
    { kind: 'int', bits: 3, symmetric: false, ...group, groupSize: 24 },
    { kind: 'int', bits: 4, symmetric: true, ...group, search: 'mse' },
    { kind: 'int', bits: 8, symmetric: false, granularity: 'tensor' },
    { kind: 'mx', element: 'e2m1' },
    { kind: 'mx', element: 'int8', rounding: 'nearest' },
    { kind: 'mx', element: 'e4m3', preScale: true },
    { kind: 'nf4', blockSize: 64 },
  ];

  test.each(SCHEMES.map((scheme) => [JSON.stringify(scheme).replace(/[{}"]/g, ''), scheme] as const))(
    'rotated and quantized to %s: the bytes of one after the other, on the CPU too',
    async (_, scheme) => {
      let turn = 0;
      for (const [rows, n] of [
        [5, 64],
        [3, 20],
        [1, 1],
        [2, 4096],
        [2, 1536],
        [1, 8192],
        [0, 32],
        [2, 0],
      ] as const) {
        const x = q.Tensor.from(normals(rows * n, 7), [rows, n], { dtype: DTYPES[turn++ % 3] });
        const opts = turn % 2 ? { scale: 1.5 } : undefined;
        const expected = q.quantize(q.hadamard(x, opts), scheme);
        const [here, there] = [
          q.hadamardQuantize(x, scheme, opts),
          q.hadamardQuantize(x.to(DEVICE), scheme, opts),
        ];
        expect(there).toMatchObject({ device: DEVICE, shape: [rows, n] });
        for (const [name, part] of Object.entries(expected.parts)) {
          const bytes = await bytesOf(part);
          expect(await bytesOf(here.parts[name] as q.Tensor), `${rows} x ${n} ${name}`).toEqual(bytes);
          expect(await bytesOf(there.parts[name] as q.Tensor), `${rows} x ${n} ${name}`).toEqual(bytes);
        }
      }
      const wide = q.Tensor.from(normals(3 * 80, 5), [3, 80]);
      const part = (tensor: q.Tensor) => q.hadamardQuantize(tensor.slice(1, 8, 72), scheme).parts.codes;
      expect(await bytesOf(part(wide.to(DEVICE)) as q.Tensor)).toEqual(await bytesOf(part(wide) as q.Tensor));
    },
  );

  test('a rotated row that is not finite is refused as by one after the other, and bad arguments too', async () => {
    const scheme = SCHEMES[0] as q.QuantScheme;
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const values = normals(4 * 64, 3);
      values[2 * 64 + 9] = bad;
      const x = q.Tensor.from(values, [4, 64], { device: DEVICE });
      const message = (quantized: q.QuantizedTensor) =>
        (quantized.parts.codes as q.Tensor).read().then(
          () => 'done',
          (error: q.QuantariaError) => `${error.code} ${error.message.replace(/^.*?: /, '')}`,
        );
      const expected = await message(q.quantize(q.hadamard(x), scheme));
      expect(expected).toMatch(/ERR_ARGUMENT/);
      expect(await message(q.hadamardQuantize(x, scheme))).toBe(expected);
    }
    const x = q.Tensor.zeros([2, 22], { device: DEVICE });
    expect(() => q.hadamardQuantize(x, scheme)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }));
    const wrong = q.Tensor.zeros([64], { device: DEVICE });
    expect(() => q.hadamardQuantize(wrong, scheme)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }));
  });
});
