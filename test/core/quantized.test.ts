import { expect, test } from 'vitest';
import { dequantize, type QuantScheme, quantize, Tensor } from '../../lib';
import type { CodebookScheme, Fp8Scheme, IntScheme, MxScheme } from '../../lib/scheme';
import * as reference from './quant_reference';
import { normals } from './random';
import { cast, decode, FORMATS } from './small_floats';

const f = Math.fround;
const SHAPES: [number, number][] = [
  [1, 1],
  [5, 7],
  [3, 64],
  [9, 100],
  [4, 257],
];

interface Case {
  shape: [number, number];
  w: Float32Array;
}

/** Weights of several shapes: normal values, and a row each of zeros, of one sign, of ties, of tiny and of huge values. */
const CASES: Case[] = SHAPES.map((shape, seed) => {
  const [rows, cols] = shape;
  const w = normals(rows * cols, seed + 1);
  const rules = [
    (x: number) => x,
    () => 0,
    (x: number) => -Math.abs(x),
    (_: number, c: number) => ((c % 15) - 7) / 2,
    (x: number) => x * 2 ** -30,
    (x: number) => x * 2 ** 40,
    (x: number) => Math.abs(x),
    (_: number, c: number) => (c === 0 ? 1 : -0),
    (x: number) => x * 1e-3,
  ];
  w.forEach((x, i) => {
    const rule = rules[Math.floor(i / cols) % rules.length] as (x: number, column: number) => number;
    w[i] = rule(x, i % cols);
  });
  return { shape, w };
});

interface Result {
  parts: Record<string, ArrayLike<number>>;
  values: Float32Array;
}

async function run({ shape, w }: Case, scheme: QuantScheme): Promise<Result> {
  using tensor = Tensor.from(w, shape);
  using quantized = quantize(tensor, scheme);
  using values = dequantize(quantized);
  const parts: Result['parts'] = {};
  for (const [name, part] of Object.entries(quantized.parts)) {
    parts[name] = (await part.read()) as Float32Array;
    part.dispose();
  }
  return { parts, values: (await values.read()) as Float32Array };
}

/** The first index at which two lists differ, in words. Zeros of both signs are one value. */
function difference(found: ArrayLike<number>, expected: ArrayLike<number>): string | null {
  if (found.length !== expected.length) return `${found.length} elements, expected ${expected.length}`;
  for (let i = 0; i < found.length; i++) {
    if (found[i] !== expected[i]) return `element ${i}: ${found[i]}, expected ${expected[i]}`;
  }
  return null;
}

// --- integers ---------------------------------------------------------------------------------------------------------

/** For each element, the index of its group in `scales`, by granularity. */
function groupIndex({ granularity, groupSize = 1 }: IntScheme, [, cols]: [number, number]) {
  const groups = Math.ceil(cols / groupSize);
  return (r: number, c: number): number => {
    if (granularity === 'tensor') return 0;
    if (granularity === 'row') return r;
    return granularity === 'column' ? c : r * groups + Math.floor(c / groupSize);
  };
}

function groupValues(scheme: IntScheme, { shape, w }: Case): number[][] {
  const groups: number[][] = [];
  const at = groupIndex(scheme, shape);
  w.forEach((x, i) => {
    const g = at(Math.floor(i / shape[1]), i % shape[1]);
    groups[g] ??= [];
    groups[g].push(x);
  });
  return groups;
}

const INT: IntScheme[] = ([2, 3, 4, 5, 6, 8, 16] as const).flatMap((bits) =>
  ([{ symmetric: false }, { symmetric: true }, { symmetric: true, range: 'full' }] as const).flatMap((kind) =>
    (
      [
        { granularity: 'tensor' },
        { granularity: 'row' },
        { granularity: 'column' },
        { granularity: 'group', groupSize: 16 },
      ] as const
    ).map((where): IntScheme => ({ kind: 'int', bits, ...kind, ...where })),
  ),
);
const labelled = <T extends QuantScheme>(schemes: T[]): [string, T][] =>
  schemes.map((s) => [JSON.stringify(s), s]);

function expectGrid(
  scheme: IntScheme,
  item: Case,
  grids: readonly reference.Grid[],
  { parts, values }: Result,
): void {
  const at = groupIndex(scheme, item.shape);
  const grid = (i: number) => grids[at(Math.floor(i / item.shape[1]), i % item.shape[1])] as reference.Grid;
  const codes = Array.from(item.w, (x, i) => reference.codeOf(scheme, grid(i), x));
  expect(
    difference(
      parts.scales!,
      grids.map(({ scale }) => scale),
    ),
  ).toBeNull();
  if (!scheme.symmetric)
    expect(
      difference(
        parts.zeros!,
        grids.map(({ zero }) => zero),
      ),
    ).toBeNull();
  expect(difference(parts.codes!, codes)).toBeNull();
  expect(
    difference(
      values,
      codes.map((code, i) => f((code - grid(i).zero) * grid(i).scale)),
    ),
  ).toBeNull();
}

test.each(labelled(INT))(
  '%s: scales, zeros, codes and values are those of the definition',
  async (_, scheme) => {
    for (const item of CASES) {
      const grids = groupValues(scheme, item).map((values) =>
        reference.gridOf(scheme, ...reference.extrema(values)),
      );
      expectGrid(scheme, item, grids, await run(item, scheme));
    }
  },
);

const ROUNDED: IntScheme[] = (['float16', 'bfloat16'] as const).flatMap((scaleDtype) =>
  [true, false].map(
    (symmetric): IntScheme => ({ kind: 'int', bits: 4, symmetric, granularity: 'row', scaleDtype }),
  ),
);
test.each(labelled(ROUNDED))(
  '%s: the scale is rounded first and the codes follow from it',
  async (_, scheme) => {
    // Scales in float16's normal range; beyond it, what is stored is not the rounded scale.
    const item: Case = { shape: [40, 50], w: normals(2000, 3) };
    const grids = groupValues(scheme, item).map((values) =>
      reference.gridOf(scheme, ...reference.extrema(values)),
    );
    expectGrid(scheme, item, grids, await run(item, scheme));
  },
);

const SEARCHED: IntScheme[] = INT.filter(({ bits }) => bits < 16).map((scheme) => ({
  ...scheme,
  search: 'mse',
}));
test.each(labelled(SEARCHED))('%s: no shrunken range has a smaller sum of |error|^2.4', async (_, scheme) => {
  for (const item of CASES) {
    const result = await run(item, scheme);
    const found: reference.Grid[] = groupValues(scheme, item).map((values, g) => {
      const grid = {
        scale: result.parts.scales![g] as number,
        zero: (result.parts.zeros?.[g] ?? 0) as number,
      };
      const [low, high] = reference.extrema(values);
      const candidates = Array.from({ length: 80 }, (_, k) => {
        const factor = f(1 - f(k / 100));
        return reference.gridOf(scheme, f(factor * low), f(factor * high));
      });
      // Factors are rounded to float32 in one way or another: two roundings of the scale at most.
      const near = candidates.find(({ scale }) => Math.abs(scale / grid.scale - 1) < 2 ** -22);
      expect(near, `group ${g}: scale ${grid.scale} is no candidate`).toBeDefined();
      // Sums of float32 terms |error|^2.4: each term is right to about 2.4 ulp of the error, and an error to one ulp of the
      // weight, so that sums nearer to each other than 1e-4 may be told apart either way.
      const least = Math.min(
        ...candidates.map((candidate) => reference.gridError(scheme, candidate, values)),
      );
      expect(reference.gridError(scheme, grid, values)).toBeLessThanOrEqual(least * (1 + 1e-4));
      return grid;
    });
    expectGrid(scheme, item, found, result);
  }
});

// --- code books -------------------------------------------------------------------------------------------------------

const BOOKS: QuantScheme[] = (['nf4', 'fp4', 'e3m0', 'dynamic8'] as const).flatMap((kind) =>
  [1, 7, 32, 64, 100, 4096].map((blockSize): QuantScheme => ({ kind, blockSize })),
);
test.each(labelled(BOOKS))('%s: absmax, codes and values are those of the definition', async (_, scheme) => {
  const { kind, blockSize } = scheme as CodebookScheme;
  const book = reference.BOOKS[kind];
  for (const item of CASES) {
    const { parts, values } = await run(item, scheme);
    const blocks = reference.groupsOf(item.w.length, blockSize);
    const absmax = blocks.map(([from, to]) => Math.max(...item.w.subarray(from, to).map(Math.abs)));
    const codes = Array.from(item.w, (x, i) =>
      reference.bookCode(book, x, absmax[Math.floor(i / blockSize)] as number),
    );
    expect(difference(parts.absmax!, absmax)).toBeNull();
    expect(difference(parts.codes!, codes)).toBeNull();
    const decoded = codes.map((code, i) =>
      f(reference.bookValue(book, code) * (absmax[Math.floor(i / blockSize)] as number)),
    );
    expect(difference(values, decoded)).toBeNull();
  }
});

test.each(['nf4', 'fp4', 'e3m0'] as const)(
  '%s, double quantization: absmax less its mean is in the dynamic map, and codes come from the unrounded absmax',
  async (kind) => {
    const item: Case = { shape: [70, 130], w: normals(9100, 8) };
    const scheme: CodebookScheme = { kind, blockSize: 16, doubleQuant: true };
    const { parts, values } = await run(item, scheme);
    const exact = reference
      .groupsOf(item.w.length, 16)
      .map(([from, to]) => Math.max(...item.w.subarray(from, to).map(Math.abs)));
    const mean = exact.reduce((a, b) => a + b) / exact.length;
    const offset = parts.absmaxOffset![0] as number;
    // Added in float32 in cascades: no value is in more than about 40 additions of 569, each right to 2^-24.
    expect(Math.abs(offset - mean)).toBeLessThan(40 * 2 ** -24 * mean);
    const map = reference.BOOKS.dynamic8;
    reference.groupsOf(exact.length, 256).forEach(([from, to], n) => {
      const centred = exact.slice(from, to).map((a) => f(a - offset));
      const scale = Math.max(...centred.map(Math.abs));
      expect(parts.absmaxScales![n]).toBe(scale);
      const codes = centred.map((d) => reference.bookCode(map, d, scale));
      expect(difference(Array.from(parts.absmaxCodes!).slice(from, to), codes)).toBeNull();
    });
    const decoded = exact.map((_, b) => {
      const code = parts.absmaxCodes![b] as number;
      return f(f(reference.bookValue(map, code) * (parts.absmaxScales![b >> 8] as number)) + offset);
    });
    expect(difference(parts.absmax!, decoded)).toBeNull();
    const book = reference.BOOKS[kind];
    const codes = Array.from(item.w, (x, i) => reference.bookCode(book, x, exact[i >> 4] as number));
    expect(difference(parts.codes!, codes)).toBeNull();
    expect(
      difference(
        values,
        codes.map((code, i) => f(reference.bookValue(book, code) * (decoded[i >> 4] as number))),
      ),
    ).toBeNull();
  },
);

// --- small floats -----------------------------------------------------------------------------------------------------

const FP8: Fp8Scheme[] = (['e4m3', 'e5m2'] as const).flatMap((format) =>
  (['tensor', 'row'] as const).flatMap((granularity) =>
    ([undefined, 'float16', 'bfloat16'] as const).map(
      (scaleDtype): Fp8Scheme => ({
        kind: 'fp8',
        format,
        granularity,
        ...(scaleDtype === undefined ? {} : { scaleDtype }),
      }),
    ),
  ),
);
test.each(labelled(FP8))('%s: scale absmax / greatest, codes to nearest even', async (_, scheme) => {
  const format = FORMATS[scheme.format === 'e4m3' ? 'float8_e4m3' : 'float8_e5m2'];
  const greatest = scheme.format === 'e4m3' ? 448 : 57344;
  // Of the dtype of scales, which are never rounded to 0 nor to infinity.
  const [smallest, largest] = {
    float32: [2 ** -149, (2 - 2 ** -23) * 2 ** 127],
    float16: [2 ** -24, 65504],
    bfloat16: [2 ** -133, (2 - 2 ** -7) * 2 ** 127],
  }[scheme.scaleDtype ?? 'float32'] as [number, number];
  for (const item of CASES) {
    const { parts, values } = await run(item, scheme);
    const cols = scheme.granularity === 'row' ? item.shape[1] : item.w.length;
    const rows = reference.groupsOf(item.w.length, cols);
    const scales = rows.map(([from, to]) => {
      const absmax = Math.max(...item.w.subarray(from, to).map(Math.abs));
      const rounded = reference.storedScale(f(absmax / greatest), scheme.scaleDtype);
      return absmax === 0 ? 1 : Math.min(Math.max(rounded, smallest), largest);
    });
    expect(difference(parts.scales!, scales)).toBeNull();
    const scaleOf = (i: number) => scales[Math.floor(i / cols)] as number;
    const codes = Array.from(item.w, (x, i) => cast(format, f(x / scaleOf(i))));
    expect(difference(parts.codes!, codes)).toBeNull();
    expect(
      difference(
        values,
        codes.map((code, i) => f(decode(format, code) * scaleOf(i))),
      ),
    ).toBeNull();
  }
});

const ELEMENTS = ['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'] as const;
const MX: MxScheme[] = ELEMENTS.flatMap((element) =>
  (['even', 'nearest', 'floor'] as const).map((rounding): MxScheme => ({ kind: 'mx', element, rounding })),
);
test.each(labelled(MX))(
  '%s: shared exponents by floor, elements rounded as told, saturating',
  async (_, scheme) => {
    for (const item of CASES) {
      const { parts, values } = await run(item, scheme);
      const [rows, cols] = item.shape;
      const blocks = reference.groupsOf(cols, 32);
      const scales = Array.from({ length: rows }, (_, r) =>
        blocks.map(([from, to]) => {
          const block = item.w.subarray(r * cols + from, r * cols + to);
          return reference.mxScale(scheme.element, Math.max(...block.map(Math.abs)));
        }),
      ).flat();
      expect(difference(parts.scales!, scales)).toBeNull();
      const scaleOf = (i: number) =>
        scales[Math.floor(i / cols) * blocks.length + Math.floor((i % cols) / 32)] as number;
      const elements = Array.from(item.w, (x, i) => reference.mxElement(scheme, x, scaleOf(i)));
      expect(
        difference(
          Array.from(parts.codes!, (code) => reference.mxDecode(scheme.element, code)),
          elements,
        ),
      ).toBeNull();
      expect(
        difference(
          values,
          elements.map((x, i) => f(x * 2 ** (scaleOf(i) - 127))),
        ),
      ).toBeNull();
    }
  },
);

test.each(ELEMENTS)(
  'mx %s, preScale: of 2^(-i/32), i = 0..31, none has a smaller squared error',
  async (element) => {
    const item: Case = { shape: [6, 100], w: normals(600, 21) };
    const { parts, values } = await run(item, { kind: 'mx', element, preScale: true });
    const error = (r: number, factor: number) => {
      let sum = 0;
      for (const [from, to] of reference.groupsOf(100, 32)) {
        const block = Array.from(item.w.subarray(r * 100 + from, r * 100 + to), (x) => f(x * factor));
        const scale = reference.mxScale(element, Math.max(...block.map(Math.abs)));
        block.forEach((x, c) => {
          const decoded =
            (reference.mxElement({ kind: 'mx', element }, x, scale) * 2 ** (scale - 127)) / factor;
          sum += (decoded - (item.w[r * 100 + from + c] as number)) ** 2;
        });
      }
      return sum;
    };
    for (let r = 0; r < 6; r++) {
      const found = parts.preScale![r] as number;
      const candidates = Array.from({ length: 32 }, (_, i) => f(2 ** (-i / 32)));
      expect(candidates).toContain(found);
      const least = Math.min(...candidates.map((factor) => error(r, factor)));
      // Squares summed in float32 over 100 elements: 100 * 2^-24 relative, doubled for what they are sums of.
      expect(error(r, found)).toBeLessThanOrEqual(least * (1 + 200 * 2 ** -24));
      const own = values
        .subarray(r * 100, r * 100 + 100)
        .reduce((sum, x, c) => sum + (x - (item.w[r * 100 + c] as number)) ** 2, 0);
      expect(Math.abs(own / error(r, found) - 1)).toBeLessThan(1e-4);
    }
  },
);

test('llm.int8: absmax and codes are those of the weight in float16', async () => {
  for (const item of CASES) {
    // float16 ends at 65504; larger weights are refused.
    const w = item.w.map((x) => Math.max(-6e4, Math.min(6e4, x)));
    const { parts, values } = await run({ ...item, w }, { kind: 'llm.int8' });
    const half = Array.from(w, (x) => decode(FORMATS.float16, cast(FORMATS.float16, x)));
    const [rows, cols] = item.shape;
    const absmax = Array.from({ length: rows }, (_, r) =>
      Math.max(...half.slice(r * cols, (r + 1) * cols).map(Math.abs)),
    );
    expect(difference(parts.scales!, absmax)).toBeNull();
    const scaleOf = (i: number) => absmax[Math.floor(i / cols)] as number;
    const codes = half.map((x, i) =>
      scaleOf(i) === 0 ? 0 : reference.roundEven(f(x * f(127 / scaleOf(i)))),
    );
    expect(difference(parts.codes!, codes)).toBeNull();
    // code * scale / 127 in either order of two float32 roundings
    codes.forEach((code, i) => {
      const exact = (code * scaleOf(i)) / 127;
      expect(Math.abs((values[i] as number) - exact)).toBeLessThanOrEqual(2 ** -22 * Math.abs(exact));
    });
  }
});
