/**
 * Small float formats by enumeration: every value is listed from its definition, and rounding looks for the nearest of them.
 * Exact in float64, as all their values and all midpoints are.
 */
export interface SmallFloat {
  exponentBits: number;
  mantissaBits: number;
  bias: number;
  /** The codes of the greatest exponent are infinity and NaN (float16, bfloat16, e5m2); else only all ones is NaN (e4m3), or none is. */
  special: 'ieee' | 'nan' | 'none';
}

export const FORMATS = {
  float16: { exponentBits: 5, mantissaBits: 10, bias: 15, special: 'ieee' },
  bfloat16: { exponentBits: 8, mantissaBits: 7, bias: 127, special: 'ieee' },
  float8_e5m2: { exponentBits: 5, mantissaBits: 2, bias: 15, special: 'ieee' },
  float8_e4m3: { exponentBits: 4, mantissaBits: 3, bias: 7, special: 'nan' },
  e3m2: { exponentBits: 3, mantissaBits: 2, bias: 3, special: 'none' },
  e2m3: { exponentBits: 2, mantissaBits: 3, bias: 1, special: 'none' },
  e2m1: { exponentBits: 2, mantissaBits: 1, bias: 1, special: 'none' },
} as const satisfies Record<string, SmallFloat>;

/** The value of a code without its sign bit. */
export function magnitude(format: SmallFloat, code: number): number {
  const { exponentBits, mantissaBits, bias, special } = format;
  const exponent = code >> mantissaBits;
  const mantissa = code & ((1 << mantissaBits) - 1);
  const last = (1 << exponentBits) - 1;
  if (special === 'ieee' && exponent === last) return mantissa === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
  if (special === 'nan' && exponent === last && mantissa === (1 << mantissaBits) - 1) return Number.NaN;
  if (exponent === 0) return mantissa * 2 ** (1 - bias - mantissaBits);
  return (mantissa + (1 << mantissaBits)) * 2 ** (exponent - bias - mantissaBits);
}

/** Bits of a code without the sign. */
export const magnitudeBits = ({ exponentBits, mantissaBits }: SmallFloat): number =>
  exponentBits + mantissaBits;

/** The value of a code, sign bit above the magnitude. */
export function decode(format: SmallFloat, code: number): number {
  const sign = 1 << magnitudeBits(format);
  return (code & sign ? -1 : 1) * magnitude(format, code & (sign - 1));
}

/** Finite magnitudes by rising code, which is also by rising value. */
const finiteMagnitudes = new Map<SmallFloat, Float64Array>();
function finite(format: SmallFloat): Float64Array {
  let values = finiteMagnitudes.get(format);
  if (!values) {
    const all = Array.from({ length: 1 << magnitudeBits(format) }, (_, code) => magnitude(format, code));
    values = Float64Array.from(all.filter(Number.isFinite));
    finiteMagnitudes.set(format, values);
  }
  return values;
}

/** The code of a magnitude: the nearest, between two as near the one that `tie` says; beyond the greatest, the greatest. */
export function encodeMagnitude(
  format: SmallFloat,
  x: number,
  tie: 'even' | 'away' | 'floor' = 'even',
): number {
  const values = finite(format);
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((values[middle] as number) <= x) low = middle;
    else high = middle - 1;
  }
  if (low === values.length - 1 || tie === 'floor') return low;
  const half = ((values[low] as number) + (values[low + 1] as number)) / 2;
  if (x === half) return tie === 'away' || low % 2 === 1 ? low + 1 : low;
  return x > half ? low + 1 : low;
}

/** Whether a float64 is negative, -0 included. */
export const isNegative = (x: number): boolean => x < 0 || Object.is(x, -0);

/**
 * What a cast to the format gives: its code, or NaN where the result is one. float8 saturates, infinities too; the others
 * go to infinity from half a step beyond their greatest value.
 */
export function cast(format: SmallFloat, x: number): number {
  const sign = isNegative(x) ? 1 << magnitudeBits(format) : 0;
  if (Number.isNaN(x)) return Number.NaN;
  const values = finite(format);
  const code = encodeMagnitude(format, Math.abs(x));
  const wide = format === FORMATS.float16 || format === FORMATS.bfloat16;
  const greatest = values[values.length - 1] as number;
  const step = greatest - (values[values.length - 2] as number);
  return sign | (wide && Math.abs(x) >= greatest + step / 2 ? values.length : code);
}
