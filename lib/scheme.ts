import { QuantariaError } from './errors';

export type IntBits = 2 | 3 | 4 | 5 | 6 | 8 | 16;

/** Integers on an affine or symmetric grid. `group` runs along `in`; the last group may be short. */
export interface IntScheme {
  kind: 'int';
  bits: IntBits;
  symmetric: boolean;
  /** Symmetric grids only: codes within +-(2^(bits-1) - 1), or all 2^bits of them. */
  range?: 'restricted' | 'full';
  search?: 'minmax' | 'mse';
  granularity: 'tensor' | 'row' | 'column' | 'group';
  groupSize?: number;
  /** The scale is rounded to this type first and the codes derived from it; float32 if left out. */
  scaleDtype?: 'float32' | 'float16' | 'bfloat16';
}

/** 4-bit code books over flat blocks of the row-major weight. */
export interface CodebookScheme {
  kind: 'nf4' | 'fp4' | 'e3m0';
  blockSize: number;
  /** absmax nested in blocks of 256 */
  doubleQuant?: boolean;
}

/** The 8-bit dynamic map over flat blocks of the row-major weight. */
export interface Dynamic8Scheme {
  kind: 'dynamic8';
  blockSize: number;
}

export interface Fp8Scheme {
  kind: 'fp8';
  format: 'e4m3' | 'e5m2';
  granularity: 'tensor' | 'row';
  /** Scales are rounded to it before codes are derived. */
  scaleDtype?: 'float32' | 'float16' | 'bfloat16';
}

/** OCP Microscaling v1: blocks of 32 along `in` share a power of two. */
export interface MxScheme {
  kind: 'mx';
  element: 'e4m3' | 'e5m2' | 'e3m2' | 'e2m3' | 'e2m1' | 'int8';
  blockSize?: 32;
  preScale?: boolean;
  rounding?: 'even' | 'nearest' | 'floor';
}

export interface LlmInt8Scheme {
  kind: 'llm.int8';
  threshold?: number;
}

export interface SpqrScheme {
  kind: 'spqr';
  bits: 3 | 4;
  groupSize: number;
  outlierThreshold: number;
}

export type QuantScheme =
  | IntScheme
  | CodebookScheme
  | Dynamic8Scheme
  | Fp8Scheme
  | MxScheme
  | LlmInt8Scheme
  | SpqrScheme;

/** What one field of a scheme may hold, in code and in words. */
interface Field {
  expected: string;
  accepts: (value: unknown) => boolean;
  required: boolean;
  /** Filled in when the field is left out. */
  fallback?: unknown;
}

const oneOf = (...choices: readonly (string | number)[]): Field => ({
  expected: choices.map((choice) => JSON.stringify(choice)).join(', '),
  accepts: (value) => choices.some((choice) => choice === value),
  required: true,
});
const boolean: Field = {
  expected: 'true or false',
  accepts: (value) => typeof value === 'boolean',
  required: true,
};
const positiveInteger: Field = {
  expected: 'a positive integer',
  accepts: (value) => Number.isSafeInteger(value) && (value as number) > 0,
  required: true,
};
const nonNegative: Field = {
  expected: 'a finite number, 0 or more',
  accepts: (value) => typeof value === 'number' && Number.isFinite(value) && value >= 0,
  required: true,
};
const optional = (field: Field, fallback?: unknown): Field => ({ ...field, required: false, fallback });

const codebookFields: Record<string, Field> = {
  blockSize: positiveInteger,
  doubleQuant: optional(boolean, false),
};

/** The fields of each kind, in the order in which a validated scheme lists them. */
const FIELDS: Record<QuantScheme['kind'], Record<string, Field>> = {
  int: {
    bits: oneOf(2, 3, 4, 5, 6, 8, 16),
    symmetric: boolean,
    range: optional(oneOf('restricted', 'full')),
    search: optional(oneOf('minmax', 'mse'), 'minmax'),
    granularity: oneOf('tensor', 'row', 'column', 'group'),
    groupSize: optional(positiveInteger),
    scaleDtype: optional(oneOf('float32', 'float16', 'bfloat16')),
  },
  nf4: codebookFields,
  fp4: codebookFields,
  e3m0: codebookFields,
  dynamic8: { blockSize: positiveInteger },
  fp8: {
    format: oneOf('e4m3', 'e5m2'),
    granularity: oneOf('tensor', 'row'),
    scaleDtype: optional(oneOf('float32', 'float16', 'bfloat16')),
  },
  mx: {
    element: oneOf('e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'),
    blockSize: optional(oneOf(32), 32),
    preScale: optional(boolean, false),
    rounding: optional(oneOf('even', 'nearest', 'floor'), 'even'),
  },
  'llm.int8': { threshold: optional(nonNegative, 6) },
  spqr: { bits: oneOf(3, 4), groupSize: positiveInteger, outlierThreshold: nonNegative },
};

/** A value for a message, as JSON where it has some of a sensible length. */
function shownValue(value: unknown): string {
  if (Array.isArray(value) && value.length > 16) return `an array of ${value.length}`;
  if (typeof value !== 'object' && typeof value !== 'string')
    return typeof value === 'function' ? 'a function' : String(value);
  try {
    return JSON.stringify(value) ?? 'an object';
  } catch {
    return 'an object'; // cycles, bigints, getters that throw
  }
}

function refuse(field: string, came: unknown, expected: string): never {
  const shown = shownValue(came);
  throw new QuantariaError('ERR_ARGUMENT', `${field}: ${shown} came, expected ${expected}`);
}

/**
 * Checks a scheme and fills its defaults, always in the same order of fields, so that equal schemes have
 * equal JSON. `scaleDtype` stays out if it was left out: a format then stores scales in its own type.
 * @throws QuantariaError `ERR_ARGUMENT` naming the field, what came and what was expected; unknown fields are
 *   refused
 */
export function validateScheme(value: unknown): QuantScheme {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    refuse('scheme', value, 'an object with a `kind`');
  }
  const given = value as Record<string, unknown>;
  const kind = given.kind;
  if (typeof kind !== 'string' || !Object.hasOwn(FIELDS, kind)) {
    refuse(
      'scheme.kind',
      kind,
      Object.keys(FIELDS)
        .map((name) => `"${name}"`)
        .join(', '),
    );
  }
  const fields = FIELDS[kind as QuantScheme['kind']];
  for (const name of Object.keys(given)) {
    if (name !== 'kind' && !Object.hasOwn(fields, name)) {
      refuse(
        `scheme.${name}`,
        given[name],
        `no such field: a scheme of kind ${kind} has ${Object.keys(fields).join(', ')}`,
      );
    }
  }
  const scheme: Record<string, unknown> = { kind };
  for (const [name, field] of Object.entries(fields)) {
    const came = given[name];
    if (came === undefined) {
      if (field.required) refuse(`scheme.${name}`, came, field.expected);
      if (field.fallback !== undefined) scheme[name] = field.fallback;
    } else {
      if (!field.accepts(came)) refuse(`scheme.${name}`, came, field.expected);
      scheme[name] = came;
    }
  }
  return kind === 'int' ? settleInt(scheme as unknown as IntScheme) : (scheme as unknown as QuantScheme);
}

/** The fields of an int scheme that depend on each other: group size on granularity, range on symmetry. */
function settleInt(given: IntScheme): IntScheme {
  const { kind, bits, symmetric, range, search, granularity, groupSize, scaleDtype } = given;
  if (granularity === 'group' && groupSize === undefined) {
    refuse('scheme.groupSize', groupSize, 'a positive integer, as the granularity is "group"');
  }
  if (granularity !== 'group' && groupSize !== undefined) {
    refuse('scheme.groupSize', groupSize, `none, as the granularity is "${granularity}"`);
  }
  if (!symmetric && range === 'restricted') {
    refuse('scheme.range', range, 'none, as an affine grid always has all its codes');
  }
  return {
    kind,
    bits,
    symmetric,
    ...(symmetric ? { range: range ?? 'restricted' } : {}),
    search,
    granularity,
    ...(groupSize === undefined ? {} : { groupSize }),
    ...(scaleDtype === undefined ? {} : { scaleDtype }),
  };
}

/** A few words for tables and reports: `int4 g128 sym`, `nf4 b64`, `mx e2m1`. */
export function schemeLabel(scheme: QuantScheme): string {
  switch (scheme.kind) {
    case 'int': {
      const where = scheme.granularity === 'group' ? `g${scheme.groupSize}` : scheme.granularity;
      return `int${scheme.bits} ${where} ${scheme.symmetric ? 'sym' : 'affine'}${scheme.search === 'mse' ? ' mse' : ''}`;
    }
    case 'nf4':
    case 'fp4':
    case 'e3m0':
      return `${scheme.kind} b${scheme.blockSize}${scheme.doubleQuant ? ' dq' : ''}`;
    case 'dynamic8':
      return `dynamic8 b${scheme.blockSize}`;
    case 'fp8':
      return `fp8 ${scheme.format} ${scheme.granularity}`;
    case 'mx':
      return `mx ${scheme.element}${scheme.preScale ? ' pre-scaled' : ''}`;
    case 'llm.int8':
      return `llm.int8 t${scheme.threshold ?? 6}`;
    case 'spqr':
      return `spqr${scheme.bits} g${scheme.groupSize}`;
  }
}

/** Blocks of absmax values that share the constants of double quantization. */
export const NESTED_BLOCK = 256;
/** Bits of one element of an MX format. */
export const ELEMENT_BITS: Readonly<Record<MxScheme['element'], number>> = {
  e4m3: 8,
  e5m2: 8,
  e3m2: 6,
  e2m3: 6,
  e2m1: 4,
  int8: 8,
};
/** SpQR: scales and zeros take 3 bits each, in groups of 16 that share two 16-bit constants each. */
const SPQR_STATISTIC_BITS = 2 * 3 + (2 * 2 * 16) / 16;
/** Outliers depend on the data; SpQR's authors report about 1 % of the weights, 32 bits each. */
const SPQR_OUTLIER_BITS = 0.01 * 32;

/**
 * Stored bits per weight of a `[out, in]` matrix, constants included: what every format stores give or take
 * its alignment. Scales count 16 bits unless `scaleDtype` says otherwise, absmax values and llm.int8's scales
 * 32, zeros as many as a code, MX scales 8. SpQR's outliers are taken as 1 % of the weights.
 */
export function bitsPerWeight(scheme: QuantScheme, shape: readonly [number, number]): number {
  const [rows, width] = shape;
  const weights = rows * width;
  if (weights === 0) return 0;
  switch (scheme.kind) {
    case 'int': {
      const constants = constantCount(scheme, rows, width);
      const scaleBits = scheme.scaleDtype === 'float32' ? 32 : 16;
      return scheme.bits + (constants * (scaleBits + (scheme.symmetric ? 0 : scheme.bits))) / weights;
    }
    case 'nf4':
    case 'fp4':
    case 'e3m0':
    case 'dynamic8': {
      const codeBits = scheme.kind === 'dynamic8' ? 8 : 4;
      const blocks = Math.ceil(weights / scheme.blockSize);
      const nested = scheme.kind !== 'dynamic8' && scheme.doubleQuant;
      const constantBits = nested ? 8 * blocks + 32 * Math.ceil(blocks / NESTED_BLOCK) + 32 : 32 * blocks;
      return codeBits + constantBits / weights;
    }
    case 'fp8':
      return (
        8 +
        ((scheme.scaleDtype === 'float32' ? 32 : 16) * (scheme.granularity === 'row' ? rows : 1)) / weights
      );
    case 'mx':
      return ELEMENT_BITS[scheme.element] + (8 * Math.ceil(width / 32) + (scheme.preScale ? 32 : 0)) / width;
    case 'llm.int8':
      return 8 + 32 / width;
    case 'spqr':
      return (
        scheme.bits + (Math.ceil(width / scheme.groupSize) * SPQR_STATISTIC_BITS) / width + SPQR_OUTLIER_BITS
      );
  }
}

function constantCount(scheme: IntScheme, rows: number, width: number): number {
  switch (scheme.granularity) {
    case 'tensor':
      return 1;
    case 'row':
      return rows;
    case 'column':
      return width;
    case 'group':
      return rows * Math.ceil(width / (scheme.groupSize ?? width));
  }
}
