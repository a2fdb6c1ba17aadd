import { describe, expect, test } from 'vitest';
import { QuantariaError } from '../../lib/errors';
import { type FormatName, getFormat } from '../../lib/formats';
import { quantize } from '../../lib/ops/quantize';
import type { QuantScheme } from '../../lib/scheme';
import { Tensor } from '../../lib/tensor';

const int = (
  bits: 2 | 3 | 4 | 5 | 6 | 8 | 16,
  rest: Partial<QuantScheme & { kind: 'int' }> = {},
): QuantScheme => ({
  kind: 'int',
  bits,
  symmetric: true,
  range: 'full',
  granularity: 'row',
  ...rest,
});
const group = (groupSize: number) => ({ granularity: 'group' as const, groupSize });
const nf4: QuantScheme = { kind: 'nf4', blockSize: 64 };
const mxfp4: QuantScheme = { kind: 'mx', element: 'e2m1' };

/** format, asked, shape, what is stored (the fields that matter), how many notes */
const held: [FormatName, QuantScheme, [number, number], Partial<QuantScheme & { kind: 'int' }>, number][] = [
  ['gptq', int(4, group(128)), [64, 256], { ...group(128), scaleDtype: 'float16' }, 0],
  ['gptq', int(3, group(128)), [64, 320], group(80), 1],
  ['gptq', int(4, group(128)), [64, 64], { granularity: 'row' }, 1],
  [
    'gptq',
    int(4, { ...group(64), symmetric: false, range: undefined }),
    [64, 64],
    { granularity: 'row', symmetric: false },
    0,
  ],
  ['gptq', int(8, { granularity: 'tensor' }), [64, 64], { granularity: 'row' }, 1],
  ['gptq', int(8, { scaleDtype: 'float32' }), [64, 64], { scaleDtype: 'float16' }, 1],
  ['awq', int(4, group(128)), [8, 172], group(86), 1],
  [
    'awq',
    int(4, { symmetric: false, range: undefined }),
    [8, 30],
    { granularity: 'row', symmetric: false },
    0,
  ],
  ['compressed-tensors', int(4, group(128)), [7, 172], { ...group(86), scaleDtype: 'bfloat16' }, 1],
  ['compressed-tensors', int(4, group(128)), [7, 4304], group(16), 1],
  ['compressed-tensors', int(4, group(16)), [7, 31], { granularity: 'row' }, 1],
  [
    'compressed-tensors',
    int(8, { range: 'restricted' }),
    [7, 31],
    { granularity: 'row', range: 'restricted' },
    0,
  ],
  ['compressed-tensors', int(8, { granularity: 'tensor' }), [7, 31], { granularity: 'tensor' }, 0],
  ['quanto', int(4, group(128)), [7, 256], group(128), 0],
  ['quanto', int(4, group(128)), [7, 320], group(64), 1],
  ['quanto', int(4, group(128)), [7, 128], { granularity: 'row' }, 1],
  ['quanto', int(2), [7, 4304], { granularity: 'row' }, 0],
  ['quanto', int(8, group(32)), [7, 64], { granularity: 'row' }, 1],
];

test.each(held)('%s holds %j on %j as %j', (name, scheme, shape, stored, notes) => {
  const fit = getFormat(name).fit(scheme, shape, 'bfloat16');
  expect(fit.scheme).toMatchObject(stored);
  expect(fit.scheme !== null && fit.notes.length).toBe(notes);
});

const refused: [FormatName, QuantScheme, [number, number], RegExp][] = [
  ['gptq', int(4), [64, 48], /48/],
  ['gptq', int(4), [40, 64], /40/],
  ['gptq', int(6), [64, 64], /6/],
  ['gptq', nf4, [64, 64], /nf4/],
  ['awq', int(8), [64, 64], /4-bit/],
  ['awq', int(4), [12, 64], /12/],
  ['compressed-tensors', int(16), [64, 64], /16/],
  ['compressed-tensors', int(8, { granularity: 'column' }), [64, 64], /column/],
  ['compressed-tensors', nf4, [64, 64], /bitsandbytes/],
  ['compressed-tensors', mxfp4, [64, 48], /48/],
  ['compressed-tensors', { kind: 'mx', element: 'e3m2' }, [64, 64], /e3m2/],
  ['compressed-tensors', { kind: 'fp8', format: 'e5m2', granularity: 'row' }, [64, 64], /e5m2/],
  ['bitsandbytes', int(4), [64, 64], /8-bit/],
  ['bitsandbytes', { kind: 'e3m0', blockSize: 64 }, [64, 64], /e3m0/],
  ['quanto', int(3), [64, 64], /3/],
  ['quanto', nf4, [64, 64], /nf4/],
  ['mxfp4', int(4), [64, 64], /e2m1/],
];

test.each(refused)('%s refuses %j on %j and says why', (name, scheme, shape, reason) => {
  const fit = getFormat(name).fit(scheme, shape, 'bfloat16');
  expect(fit).toMatchObject({ scheme: null, reason: expect.stringMatching(reason) });
});

test('bitsandbytes: block sizes become powers of two from 32 to 4096', () => {
  const blockOf = (blockSize: number) =>
    getFormat('bitsandbytes').fit({ ...nf4, blockSize } as QuantScheme, [3, 3], 'float32');
  expect([16, 48, 64, 8192].map((size) => blockOf(size).scheme)).toMatchObject(
    [32, 32, 64, 4096].map((blockSize) => ({ blockSize })),
  );
});

test('bitsandbytes: 8-bit symmetric rows become llm.int8, whose scale is the absmax', () => {
  expect(getFormat('bitsandbytes').fit(int(8), [3, 3], 'float32').scheme).toEqual({
    kind: 'llm.int8',
    threshold: 6,
  });
});

test('a pre-scale is left out, said so, by the formats that carry MX', () => {
  for (const name of ['compressed-tensors', 'mxfp4'] as const) {
    const fit = getFormat(name).fit({ ...mxfp4, preScale: true } as QuantScheme, [3, 64], 'float32');
    expect(fit).toMatchObject({ scheme: { preScale: false }, notes: [expect.stringContaining('pre-scale')] });
  }
});

test.each(['gptq', 'awq', 'compressed-tensors', 'bitsandbytes', 'quanto', 'mxfp4'] as const)(
  '%s: what fit returns, fit returns again without notes',
  (name) => {
    const asked: QuantScheme[] = [
      ...([2, 3, 4, 5, 6, 8] as const).flatMap((bits) => [
        int(bits),
        int(bits, group(128)),
        int(bits, { granularity: 'tensor' }),
      ]),
      nf4,
      { kind: 'fp4', blockSize: 100, doubleQuant: true },
      { kind: 'llm.int8' },
      { kind: 'fp8', format: 'e4m3', granularity: 'tensor' },
      mxfp4,
      { kind: 'mx', element: 'e4m3', preScale: true },
    ];
    for (const scheme of asked) {
      for (const shape of [
        [32, 32],
        [64, 160],
        [96, 4320],
      ] as [number, number][]) {
        const first = getFormat(name).fit(scheme, shape, 'bfloat16');
        if (first.scheme === null) continue;
        expect(getFormat(name).fit(first.scheme, shape, 'bfloat16')).toEqual({
          scheme: first.scheme,
          notes: [],
        });
      }
    }
  },
);

describe('encode takes what fit returned and nothing else', () => {
  test.each(['gptq', 'awq', 'compressed-tensors', 'quanto'] as const)(
    '%s refuses float32 scales for a bfloat16 model',
    async (name) => {
      const scheme = int(4, group(32));
      const q = quantize(Tensor.zeros([32, 64]), scheme);
      await expect(getFormat(name).encode('m', q, 'bfloat16')).rejects.toThrow(QuantariaError);
      await expect(getFormat(name).encode('m', q, 'bfloat16')).rejects.toMatchObject({
        code: 'ERR_ARGUMENT',
      });
    },
  );
});

test('presets go with the formats that carry them', () => {
  const presets: Record<string, [QuantScheme, FormatName[]]> = {
    int4: [int(4, group(128)), ['gptq', 'awq', 'compressed-tensors', 'quanto']],
    int8: [int(8, { range: 'restricted' }), ['gptq', 'compressed-tensors', 'bitsandbytes', 'quanto']],
    nf4: [nf4, ['bitsandbytes']],
    mxfp4: [mxfp4, ['compressed-tensors', 'mxfp4']],
    mxfp8: [{ kind: 'mx', element: 'e4m3' }, ['compressed-tensors']],
    'llm.int8': [{ kind: 'llm.int8', threshold: 6 }, ['bitsandbytes']],
  };
  for (const [preset, [scheme, names]] of Object.entries(presets)) {
    const carrying = (
      ['gptq', 'awq', 'compressed-tensors', 'bitsandbytes', 'quanto', 'mxfp4'] as const
    ).filter((name) => getFormat(name).fit(scheme, [256, 256], 'bfloat16').scheme !== null);
    expect([preset, carrying]).toEqual([preset, names]);
  }
});
