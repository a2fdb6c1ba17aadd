/** Round-to-nearest quantization as its definitions say, in plain loops: every float32 step is a `Math.fround`. */
import type { IntScheme, MxScheme } from '../../lib/scheme';
import { cast, decode, encodeMagnitude, FORMATS, isNegative, magnitudeBits } from './small_floats';

const f = Math.fround;

/** Nearest integer, ties to even. */
export function roundEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x));

/** `[first, last)` of the groups that `count` elements are in. */
export function groupsOf(count: number, size: number): [number, number][] {
  return Array.from({ length: Math.ceil(count / size) }, (_, g) => [
    g * size,
    Math.min(count, (g + 1) * size),
  ]);
}

export interface Grid {
  scale: number;
  zero: number;
}

/** The scale as its dtype stores it. */
export function storedScale(scale: number, dtype: IntScheme['scaleDtype']): number {
  if (dtype !== 'float16' && dtype !== 'bfloat16') return scale;
  return decode(FORMATS[dtype], cast(FORMATS[dtype], scale));
}

export function gridOf(scheme: IntScheme, low: number, high: number): Grid {
  const { bits, symmetric, range, scaleDtype } = scheme;
  if (symmetric) {
    const absmax = Math.max(-low, high);
    if (absmax === 0) return { scale: 1, zero: 0 };
    const scale = range === 'full' ? f((2 * absmax) / (2 ** bits - 1)) : f(absmax / (2 ** (bits - 1) - 1));
    return { scale: storedScale(scale, scaleDtype), zero: 0 };
  }
  const [least, most] = low === 0 && high === 0 ? [-1, 1] : [Math.min(low, 0), Math.max(high, 0)];
  const scale = storedScale(f(f(most - least) / (2 ** bits - 1)), scaleDtype);
  return { scale, zero: clamp(roundEven(f(-least / scale)), 0, 2 ** bits - 1) };
}

export function codeRange({ bits, symmetric, range }: IntScheme): [number, number] {
  if (!symmetric) return [0, 2 ** bits - 1];
  return [range === 'full' ? -(2 ** (bits - 1)) : 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1];
}

export function codeOf(scheme: IntScheme, { scale, zero }: Grid, w: number): number {
  const [least, most] = codeRange(scheme);
  return clamp(roundEven(f(w / scale)) + zero, least, most);
}

/** Lowest and highest of some values, 0 included. */
export function extrema(values: Iterable<number>): [number, number] {
  let [low, high] = [0, 0];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}

/** sum |error|^2.4 of values on a grid. */
export function gridError(scheme: IntScheme, grid: Grid, values: readonly number[]): number {
  const error = (w: number) => Math.abs((codeOf(scheme, grid, w) - grid.zero) * grid.scale - w);
  return values.reduce((sum, w) => sum + error(w) ** 2.4, 0);
}

// --- code books -----------------------------------------------------------------------------------------------------

const NF4 = [
  ...[
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334,
  ],
  ...[
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224,
  ],
  ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
];
const FP4 = [0, f(1 / 192), f(2 / 3), 1, f(1 / 3), 0.5, f(1 / 6), 0.25];
const E3M0 = [0, ...Array.from({ length: 7 }, (_, i) => 2 ** (i - 6))];

/** [value, code] by rising value, one code for zero. */
type Book = [number, number][];
const signed = (magnitudes: number[]): Book =>
  magnitudes
    .flatMap(
      (value, code): Book =>
        value === 0
          ? [[0, 0]]
          : [
              [value, code],
              [-value, code + 8],
            ],
    )
    .sort(([a], [b]) => a - b);

/** The 8-bit dynamic map: 2^e midpoints of intervals of [0.1, 1] times 10^(e-6), both signs, 0 and 1. */
function dynamicMap(): number[] {
  const start = f(0.1);
  const values = [0, 1];
  for (let e = 0; e < 7; e++) {
    const k = 2 ** e;
    const step = f((1 - start) / k);
    const border = (j: number) => (j < (k + 1) / 2 ? f(start + step * j) : f(1 - step * (k - j)));
    for (let j = 0; j < k; j++) {
      const middle = f(f(border(j) + border(j + 1)) / 2);
      const value = f(f(10 ** (e - 6)) * middle);
      values.push(value, -value);
    }
  }
  return values.sort((a, b) => a - b);
}

export const BOOKS: Readonly<Record<'nf4' | 'fp4' | 'e3m0' | 'dynamic8', Book>> = {
  nf4: NF4.map((value, code) => [value, code]),
  fp4: signed(FP4),
  e3m0: signed(E3M0),
  dynamic8: dynamicMap().map((value, code) => [value, code]),
};

/** The code of w in a block: the upper of two neighbours iff it lies beyond their float32 midpoint. */
export function bookCode(book: Book, w: number, absmax: number): number {
  const v = absmax === 0 ? 0 : f(w * f(1 / absmax));
  let at = 0;
  while (at + 1 < book.length && v > f(f(book[at]![0] + book[at + 1]![0]) / 2)) at++;
  return book[at]![1];
}

export const bookValue = (book: Book, code: number): number => book.find(([, c]) => c === code)![0];

// --- floats in blocks -------------------------------------------------------------------------------------------------

/** Exponent of the greatest element, bits of one. */
const MX = {
  e4m3: { format: FORMATS.float8_e4m3, top: 8 },
  e5m2: { format: FORMATS.float8_e5m2, top: 15 },
  e3m2: { format: FORMATS.e3m2, top: 4 },
  e2m3: { format: FORMATS.e2m3, top: 2 },
  e2m1: { format: FORMATS.e2m1, top: 2 },
  int8: { format: null, top: 0 },
} as const;

/** The shared scale byte of a block. */
export function mxScale(element: MxScheme['element'], absmax: number): number {
  if (absmax === 0) return 0;
  let exponent = Math.floor(Math.log2(absmax));
  if (2 ** exponent > absmax) exponent--;
  if (2 ** (exponent + 1) <= absmax) exponent++;
  return clamp(exponent - MX[element].top + 127, 0, 254);
}

/** The value, not the code, that an element becomes: a code for -0 and one for 0 are both right. */
export function mxElement({ element, rounding }: MxScheme, w: number, scale: number): number {
  const x = Math.abs(w) / 2 ** (scale - 127);
  const sign = isNegative(w) ? -1 : 1;
  const { format } = MX[element];
  if (format) {
    const tie = rounding === 'floor' ? 'floor' : rounding === 'nearest' ? 'away' : 'even';
    return sign * decode(format, encodeMagnitude(format, x, tie));
  }
  const steps = x * 64;
  const n =
    rounding === 'floor'
      ? Math.floor(steps)
      : rounding === 'nearest'
        ? Math.floor(steps + 0.5)
        : roundEven(steps);
  return (sign * Math.min(n, 127)) / 64;
}

export function mxDecode(element: MxScheme['element'], code: number): number {
  const { format } = MX[element];
  return format ? decode(format, code) : ((code << 24) >> 24) / 64;
}

export const mxBits = (element: MxScheme['element']): number => {
  const { format } = MX[element];
  return format ? magnitudeBits(format) + 1 : 8;
};
