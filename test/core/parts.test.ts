import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type DType, dequantize, QuantizedTensor, type QuantScheme, quantize, Tensor } from '../../lib';
import { native } from '../../lib/native';
import { quantizeMatrix } from '../../lib/ops/quantize';
import { tensorInfo } from '../../lib/tensor_info';
import { DEVICE } from '../device';
import { rejectsCode, throwsCode } from './errors';
import { ISAS, withIsa, withThreads } from './machine';
import { normals } from './random';

const int = { kind: 'int', symmetric: true, granularity: 'row' } as const;
const [OUT, IN] = [5, 70];

type Shape = readonly number[];
type Table = Record<string, readonly [DType, Shape]>;
const codes = (dtype: DType): readonly [DType, Shape] => [dtype, [OUT, IN]];

/** The table of parts, written out for a weight of [5, 70]. */
const TABLE: [QuantScheme, Table][] = [
  ...([2, 3, 4, 5, 6, 8] as const).map((bits): [QuantScheme, Table] => [
    { ...int, bits, symmetric: false },
    { codes: codes('uint8'), scales: ['float32', [5, 1]], zeros: ['int32', [5, 1]] },
  ]),
  [
    { ...int, bits: 16, symmetric: false },
    { codes: codes('int32'), scales: ['float32', [5, 1]], zeros: ['int32', [5, 1]] },
  ],
  [
    { ...int, bits: 4 },
    { codes: codes('int8'), scales: ['float32', [5, 1]] },
  ],
  [
    { ...int, bits: 16 },
    { codes: codes('int16'), scales: ['float32', [5, 1]] },
  ],
  [
    { ...int, bits: 4, granularity: 'tensor' },
    { codes: codes('int8'), scales: ['float32', [1, 1]] },
  ],
  [
    { ...int, bits: 4, granularity: 'column' },
    { codes: codes('int8'), scales: ['float32', [1, 70]] },
  ],
  [
    { ...int, bits: 4, granularity: 'group', groupSize: 32 },
    { codes: codes('int8'), scales: ['float32', [5, 3]] },
  ],
  [
    { ...int, bits: 3, symmetric: false, granularity: 'group', groupSize: 32 },
    { codes: codes('uint8'), scales: ['float32', [5, 3]], zeros: ['int32', [5, 3]] },
  ],
  [
    { ...int, bits: 8, range: 'full', scaleDtype: 'float16' },
    { codes: codes('int8'), scales: ['float32', [5, 1]] },
  ],
  ...(['nf4', 'fp4', 'e3m0', 'dynamic8'] as const).map((kind): [QuantScheme, Table] => [
    { kind, blockSize: 64 },
    { codes: codes('uint8'), absmax: ['float32', [6]] },
  ]),
  ...(['nf4', 'fp4', 'e3m0'] as const).map((kind): [QuantScheme, Table] => [
    { kind, blockSize: 1, doubleQuant: true },
    {
      codes: codes('uint8'),
      absmaxCodes: ['uint8', [350]],
      absmaxScales: ['float32', [2]],
      absmaxOffset: ['float32', [1]],
      absmax: ['float32', [350]],
    },
  ]),
  [
    { kind: 'fp8', format: 'e4m3', granularity: 'row' },
    { codes: codes('uint8'), scales: ['float32', [5, 1]] },
  ],
  [
    { kind: 'fp8', format: 'e5m2', granularity: 'tensor' },
    { codes: codes('uint8'), scales: ['float32', [1, 1]] },
  ],
  ...(['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'] as const).map((element): [QuantScheme, Table] => [
    { kind: 'mx', element },
    { codes: codes('uint8'), scales: ['uint8', [5, 3]] },
  ]),
  [
    { kind: 'mx', element: 'e2m1', preScale: true },
    { codes: codes('uint8'), scales: ['uint8', [5, 3]], preScale: ['float32', [5, 1]] },
  ],
  [{ kind: 'llm.int8' }, { codes: codes('int8'), scales: ['float32', [5]] }],
];
const SCHEMES = TABLE.map(([scheme, table]) => [JSON.stringify(scheme), scheme, table] as const);
const weight = () => Tensor.from(normals(OUT * IN, 4), [OUT, IN]);

/** A digest of the bits: comparing large arrays element by element takes seconds. */
async function digest(tensor: Tensor): Promise<string> {
  const { buffer } = await tensor.read();
  return createHash('sha256').update(new Uint8Array(buffer)).digest('hex');
}

async function bitsOf(q: QuantizedTensor): Promise<Record<string, string>> {
  const parts = Object.entries(q.parts).map(async ([name, part]) => [name, await digest(part)] as const);
  return Object.fromEntries(await Promise.all(parts));
}

test.each(SCHEMES)('%s: parts have the names, dtypes and shapes of the table', async (_, scheme, table) => {
  const { parts, shape, device } = quantize(weight(), scheme);
  const found = Object.fromEntries(
    Object.entries(parts).map(([name, part]) => [name, [part.dtype, part.shape]]),
  );
  expect(found).toEqual(table);
  expect([shape, device]).toEqual([[OUT, IN], DEVICE]);
});

test.each(SCHEMES)('%s: made anew from its parts, it has the same parts and values', async (_, scheme) => {
  const made = quantize(weight(), scheme);
  const again = QuantizedTensor.fromParts(scheme, [OUT, IN], made.parts);
  expect(again.scheme).toEqual(made.scheme);
  expect(again.byteLength).toBe(made.byteLength);
  expect(await bitsOf(again)).toEqual(await bitsOf(made));
  expect(await digest(dequantize(again))).toBe(await digest(dequantize(made)));
});

test.each(SCHEMES)(
  '%s: a part that is missing, unknown, of another dtype or shape is refused by name',
  (_, scheme, table) => {
    const { parts } = quantize(weight(), scheme);
    const made = (change: Record<string, Tensor | undefined>) =>
      QuantizedTensor.fromParts(scheme, [OUT, IN], { ...parts, ...change } as Record<string, Tensor>);
    for (const [name, [dtype, shape]] of Object.entries(table)) {
      if (name === 'absmax' && table.absmaxCodes) continue; // follows from the others
      throwsCode(() => made({ [name]: undefined }), 'ERR_ARGUMENT', new RegExp(`parts\\.${name}`));
      throwsCode(() => made({ [name]: {} as Tensor }), 'ERR_ARGUMENT', new RegExp(`parts\\.${name}`));
      throwsCode(
        () => made({ [name]: Tensor.zeros([...shape], { dtype: 'int64' }) }),
        'ERR_DTYPE',
        new RegExp(`parts\\.${name}`),
      );
      throwsCode(
        () => made({ [name]: Tensor.zeros([...shape, 2], { dtype }) }),
        'ERR_SHAPE',
        new RegExp(`parts\\.${name}`),
      );
    }
    throwsCode(() => made({ scale: Tensor.zeros([1]) }), 'ERR_ARGUMENT', /parts\.scale: no such part/);
    for (const bad of [null, 3, undefined]) {
      throwsCode(() => QuantizedTensor.fromParts(scheme, [OUT, IN], bad as never), 'ERR_ARGUMENT', /parts/);
    }
    throwsCode(() => QuantizedTensor.fromParts(scheme, [OUT], parts), 'ERR_SHAPE', /shape/);
  },
);

/** Codes beyond the range of a scheme, by rows of [scheme, dtype, allowed, refused]. */
const RANGES: [QuantScheme, DType, number[], number[]][] = [
  ...([2, 3, 4, 5, 6] as const).flatMap((bits): [QuantScheme, DType, number[], number[]][] => {
    const half = 2 ** (bits - 1);
    return [
      [{ ...int, bits, symmetric: false }, 'uint8', [0, 2 * half - 1], [2 * half, 255]],
      [{ ...int, bits }, 'int8', [1 - half, half - 1], [-half, half, 127, -128]],
      [{ ...int, bits, range: 'full' }, 'int8', [-half, half - 1], [-half - 1, half]],
    ];
  }),
  [{ ...int, bits: 8 }, 'int8', [-127, 127], [-128]],
  [{ ...int, bits: 16 }, 'int16', [-32767, 32767], [-32768]],
  [{ ...int, bits: 16, symmetric: false }, 'int32', [0, 65535], [-1, 65536, 2 ** 31 - 1, -(2 ** 31)]],
  [{ kind: 'llm.int8' }, 'int8', [-127, 127], [-128]],
];
test.each(RANGES)(
  '%o as %s: codes out of range reject the read, naming the code',
  async (scheme, dtype, allowed, refused) => {
    const make = (code: number) => {
      const scales = Tensor.from([1], scheme.kind === 'llm.int8' ? [1] : [1, 1]);
      const parts: Record<string, Tensor> = { codes: Tensor.from([0, 1, code], [1, 3], { dtype }), scales };
      if (scheme.kind === 'int' && !scheme.symmetric) parts.zeros = Tensor.zeros([1, 1], { dtype: 'int32' });
      return QuantizedTensor.fromParts(scheme, [1, 3], parts);
    };
    for (const code of allowed) {
      expect([...(await make(code).parts.codes!.read())]).toEqual([0, 1, code]);
    }
    for (const code of refused) {
      const q = make(code);
      await rejectsCode(dequantize(q).read(), 'ERR_ARGUMENT', /column 2|code/);
      await rejectsCode(q.parts.codes!.read(), 'ERR_ARGUMENT');
      await rejectsCode(q.pack(), 'ERR_ARGUMENT');
    }
  },
);

test.each([
  [{ kind: 'nf4', blockSize: 4 }, 16],
  [{ kind: 'mx', element: 'e2m1' }, 16],
  [{ kind: 'mx', element: 'e3m2' }, 64],
] as [QuantScheme, number][])('%o: a code of too many bits rejects the read', async (scheme, code) => {
  const constants: Record<string, Tensor> =
    scheme.kind === 'mx'
      ? { scales: Tensor.zeros([1, 1], { dtype: 'uint8' }) }
      : { absmax: Tensor.zeros([1]) };
  const q = QuantizedTensor.fromParts(scheme, [1, 2], {
    codes: Tensor.from(Uint8Array.of(code - 1, code), [1, 2]),
    ...constants,
  });
  await rejectsCode(dequantize(q).read(), 'ERR_ARGUMENT');
});

test.each(SCHEMES)('%s: NaN and infinity are refused with their position', async (_, scheme) => {
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
    const w = normals(OUT * IN, 4);
    w[3 * IN + 41] = bad;
    w[4 * IN + 2] = Number.NaN; // the first one is named
    const q = quantize(Tensor.from(w, [OUT, IN]), scheme);
    await rejectsCode(dequantize(q).read(), 'ERR_ARGUMENT', /row 3, column 41/);
    for (const part of Object.values(q.parts))
      await rejectsCode(part.read(), 'ERR_ARGUMENT', /row 3, column 41/);
  }
});

test('llm.int8: a weight that float16 turns into infinity is refused with its position', async () => {
  const q = quantize(Tensor.from([1, 65519, 2, 65520], [2, 2]), { kind: 'llm.int8' });
  await rejectsCode(dequantize(q).read(), 'ERR_ARGUMENT', /row 1, column 1/);
});

test.each(SCHEMES)('%s: empty matrices have empty codes and values', async (_, scheme) => {
  for (const shape of [
    [0, 70],
    [5, 0],
    [0, 0],
  ] as [number, number][]) {
    const q = quantize(Tensor.zeros(shape), scheme);
    const values = dequantize(q);
    expect([values.shape, (await values.read()).length]).toEqual([shape, 0]);
    const { parts } = q;
    expect([parts.codes!.shape, (await parts.codes!.read()).length]).toEqual([shape, 0]);
    for (const part of Object.values(parts)) expect((await part.read()).length).toBe(part.size);
    expect(await bitsOf(QuantizedTensor.fromParts(scheme, shape, parts))).toEqual(await bitsOf(q));
  }
});

test.each(SCHEMES)(
  '%s: float16 and bfloat16 weights give what their float32 values give',
  async (_, scheme) => {
    for (const dtype of ['float16', 'bfloat16'] as const) {
      const narrow = weight().cast(dtype);
      expect(await bitsOf(quantize(narrow, scheme))).toEqual(
        await bitsOf(quantize(narrow.cast('float32'), scheme)),
      );
    }
  },
);

test.each(SCHEMES)(
  '%s: every float dtype of the values is one rounding of the float32 ones',
  async (_, scheme) => {
    const q = quantize(weight(), scheme);
    const wide = dequantize(q);
    for (const dtype of ['float16', 'bfloat16', 'float8_e4m3', 'float8_e5m2'] as const) {
      expect(await digest(dequantize(q, { dtype }))).toBe(await digest(wide.cast(dtype)));
    }
  },
);

test.each(SCHEMES)('%s: a strided view of a larger tensor gives what its copy gives', async (_, scheme) => {
  const [rows, cols] = [67, 90];
  for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
    const whole = Tensor.from(normals(2 * rows * cols, 9), [rows, 2 * cols]).cast(dtype);
    const handle = Tensor.native(whole, 'whole');
    const views = [
      native.tensorSlice(handle, 1, 1, 2 * cols, 2), // every second column
      native.tensorTransposed(native.tensorSlice(handle, 1, 7, 7 + cols, 1)),
      native.tensorTransposed(native.tensorSlice(native.tensorSlice(handle, 0, 0, rows, 3), 1, 0, cols, 2)),
    ];
    for (const view of views) {
      const { shape } = tensorInfo(view);
      const copy = Tensor.wrap(native.tensorCopy(view, dtype));
      const { quantized } = quantizeMatrix(view, shape as [number, number], scheme);
      expect(await bitsOf(quantized)).toEqual(await bitsOf(quantize(copy, scheme)));
    }
  }
});

test.each(SCHEMES)('%s: threads and instruction sets do not change a bit', async (_, scheme) => {
  const [rows, cols] = [131, 333];
  const w = Tensor.from(normals(rows * cols, 6), [rows, cols]);
  const results: unknown[] = [];
  const run = async () => {
    const q = quantize(w, scheme);
    results.push([await bitsOf(q), await digest(dequantize(q, { dtype: 'bfloat16' }))]);
  };
  for (const count of [1, 2]) for (const isa of ISAS) await withThreads(count, () => withIsa(isa, run));
  expect(results).toHaveLength(2 * ISAS.length);
  for (const result of results) expect(result).toEqual(results[0]);
});

test('a weight that is no float matrix is refused at once', () => {
  const scheme: QuantScheme = { kind: 'nf4', blockSize: 64 };
  throwsCode(() => quantize(Tensor.zeros([2, 2, 2]), scheme), 'ERR_SHAPE', /\[out, in\]/);
  throwsCode(() => quantize(Tensor.zeros([4]), scheme), 'ERR_SHAPE');
  throwsCode(() => quantize(Tensor.zeros([2, 2], { dtype: 'int8' }), scheme), 'ERR_DTYPE', /int8 came/);
  throwsCode(() => quantize({} as Tensor, scheme), 'ERR_ARGUMENT', /Tensor/);
  throwsCode(() => dequantize(Tensor.zeros([1]) as never), 'ERR_ARGUMENT', /QuantizedTensor/);
  throwsCode(() => dequantize(quantize(Tensor.zeros([2, 2]), scheme), { dtype: 'int8' }), 'ERR_DTYPE');
});

test('a disposed quantized tensor refuses everything, and what was made of it stays', async () => {
  const q = quantize(weight(), { kind: 'fp8', format: 'e4m3', granularity: 'row' });
  const other = q.to('cpu');
  const values = dequantize(q);
  q.dispose();
  q[Symbol.dispose]();
  throwsCode(() => q.parts, 'ERR_DISPOSED');
  throwsCode(() => dequantize(q), 'ERR_DISPOSED');
  throwsCode(() => q.to('cpu'), 'ERR_DISPOSED');
  await rejectsCode(q.pack(), 'ERR_DISPOSED');
  expect(await dequantize(other).read()).toEqual(await values.read());
});
