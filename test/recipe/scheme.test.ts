import { describe, expect, test } from 'vitest';
import { bitsPerWeight, type QuantScheme, schemeLabel, validateScheme } from '../../lib/scheme';

const int4 = { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 128 };

describe('validateScheme', () => {
  test('fills defaults, in one order of fields', () => {
    const scheme = {
      kind: 'int',
      bits: 4,
      symmetric: true,
      range: 'restricted',
      search: 'minmax',
      granularity: 'group',
      groupSize: 128,
    };
    expect(JSON.stringify(validateScheme(int4))).toBe(JSON.stringify(scheme));
    const reversed = Object.fromEntries(Object.entries(int4).reverse());
    expect(JSON.stringify(validateScheme(reversed))).toBe(JSON.stringify(scheme));
    expect(validateScheme({ kind: 'nf4', blockSize: 64 })).toEqual({
      kind: 'nf4',
      blockSize: 64,
      doubleQuant: false,
    });
    expect(validateScheme({ kind: 'mx', element: 'e2m1' })).toEqual({
      kind: 'mx',
      element: 'e2m1',
      blockSize: 32,
      preScale: false,
      rounding: 'even',
    });
    expect(validateScheme({ kind: 'llm.int8' })).toEqual({ kind: 'llm.int8', threshold: 6 });
  });

  test.each([
    int4,
    { ...int4, scaleDtype: 'bfloat16', search: 'mse', range: 'full' },
    { kind: 'int', bits: 16, symmetric: false, granularity: 'column' },
    { kind: 'int', bits: 8, symmetric: false, range: 'full', granularity: 'tensor' },
    { kind: 'fp4', blockSize: 64, doubleQuant: true },
    { kind: 'dynamic8', blockSize: 256 },
    { kind: 'fp8', format: 'e5m2', granularity: 'row' },
    { kind: 'llm.int8', threshold: 0 },
    { kind: 'spqr', bits: 3, groupSize: 16, outlierThreshold: 0.2 },
  ])('validating twice is validating once: %j', (scheme) => {
    const once = validateScheme(scheme);
    expect(validateScheme(once)).toEqual(once);
  });

  test.each([
    [null, 'scheme'],
    ['int4', 'scheme'],
    [[int4], 'scheme'],
    [{}, 'scheme.kind'],
    [{ kind: 'int7' }, 'scheme.kind'],
    [{ kind: 'constructor' }, 'scheme.kind'],
    [{ ...int4, bits: 7 }, 'scheme.bits'],
    [{ ...int4, bits: '4' }, 'scheme.bits'],
    [{ ...int4, symmetric: 1 }, 'scheme.symmetric'],
    [{ ...int4, groupSize: 0 }, 'scheme.groupSize'],
    [{ ...int4, groupSize: 1.5 }, 'scheme.groupSize'],
    [{ ...int4, groupSize: Number.NaN }, 'scheme.groupSize'],
    [{ ...int4, groupSize: undefined }, 'scheme.groupSize'],
    [{ ...int4, granularity: 'row' }, 'scheme.groupSize'],
    [{ ...int4, symmetric: false, range: 'restricted' }, 'scheme.range'],
    [{ ...int4, group_size: 128 }, 'scheme.group_size'],
    [{ ...int4, scaleDtype: 'int8' }, 'scheme.scaleDtype'],
    [{ kind: 'nf4' }, 'scheme.blockSize'],
    [{ kind: 'dynamic8', blockSize: 256, doubleQuant: true }, 'scheme.doubleQuant'],
    [{ kind: 'mx', element: 'e2m1', blockSize: 16 }, 'scheme.blockSize'],
    [{ kind: 'llm.int8', threshold: -1 }, 'scheme.threshold'],
    [{ kind: 'llm.int8', threshold: Number.POSITIVE_INFINITY }, 'scheme.threshold'],
    [{ kind: 'fp8', format: 'e4m3', granularity: 'group' }, 'scheme.granularity'],
    [{ kind: 'spqr', bits: 5, groupSize: 16, outlierThreshold: 0.2 }, 'scheme.bits'],
    [{ kind: 'int', bits: 10n }, 'scheme.bits'],
  ])('refuses %o, naming %s', (scheme, field) => {
    expect(() => validateScheme(scheme)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
    expect(() => validateScheme(scheme)).toThrow(new RegExp(`^${field}: .* came, expected `));
  });
});

test.each<[QuantScheme, string, [number, number], number]>([
  // Codes, and 16 bits of scale for 128 of them.
  [validateScheme(int4), 'int4 g128 sym', [256, 1024], 4 + 16 / 128],
  [validateScheme({ ...int4, symmetric: false }), 'int4 g128 affine', [256, 1024], 4 + (16 + 4) / 128],
  // 300 columns have three groups, the last one short.
  [validateScheme({ ...int4, scaleDtype: 'float32' }), 'int4 g128 sym', [7, 300], 4 + (3 * 32) / 300],
  [
    validateScheme({ kind: 'int', bits: 8, symmetric: true, granularity: 'row' }),
    'int8 row sym',
    [64, 512],
    8 + 16 / 512,
  ],
  [
    validateScheme({ kind: 'int', bits: 8, symmetric: true, granularity: 'column' }),
    'int8 column sym',
    [64, 512],
    8 + 16 / 64,
  ],
  [
    validateScheme({ kind: 'int', bits: 8, symmetric: true, granularity: 'tensor' }),
    'int8 tensor sym',
    [4, 4],
    9,
  ],
  [validateScheme({ kind: 'nf4', blockSize: 64 }), 'nf4 b64', [64, 256], 4.5],
  // 256 blocks make one nested block: 8 bits a block, a scale and an offset.
  [
    validateScheme({ kind: 'nf4', blockSize: 64, doubleQuant: true }),
    'nf4 b64 dq',
    [64, 256],
    4 + 8 / 64 + 64 / 16384,
  ],
  [validateScheme({ kind: 'dynamic8', blockSize: 256 }), 'dynamic8 b256', [64, 256], 8 + 32 / 256],
  [
    validateScheme({ kind: 'fp8', format: 'e4m3', granularity: 'row' }),
    'fp8 e4m3 row',
    [64, 256],
    8 + 16 / 256,
  ],
  [validateScheme({ kind: 'mx', element: 'e2m1' }), 'mx e2m1', [64, 256], 4.25],
  [validateScheme({ kind: 'mx', element: 'e4m3' }), 'mx e4m3', [64, 256], 8.25],
  [
    validateScheme({ kind: 'mx', element: 'e3m2', preScale: true }),
    'mx e3m2 pre-scaled',
    [64, 40],
    6 + (2 * 8 + 32) / 40,
  ],
  [validateScheme({ kind: 'llm.int8' }), 'llm.int8 t6', [64, 256], 8 + 32 / 256],
])('%o is called %s; stored bits a weight of %j are %d', (scheme, label, shape, bits) => {
  expect(schemeLabel(scheme)).toBe(label);
  expect(bitsPerWeight(scheme, shape)).toBeCloseTo(bits, 12);
});

test('an empty weight has no bits', () => {
  expect(bitsPerWeight(validateScheme(int4), [0, 64])).toBe(0);
});
