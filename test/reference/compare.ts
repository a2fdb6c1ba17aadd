/** Numbers of a tensor in row-major order. */
export interface Values {
  shape: readonly number[];
  data: ArrayLike<number>;
}

/** How an output is compared, as the manifest gives it: a mode and its tolerances. */
export interface Comparison {
  mode: string;
  tol?: number;
  rtol?: number;
  atol?: number;
  max_frac_diff?: number;
  max_step?: number;
  negative_zero_equals_zero?: boolean;
  format?: string;
  packed?: boolean;
  block?: number;
  eps?: number;
  metric?: string;
  factor?: number;
}

/** Tensors and facts beside the two that are compared. */
export interface Context {
  /** What the quantized values stand for: `nearest`, `err_at_most`. */
  of?: ArrayLike<number>;
  /** Value of each code: `codes_by_value`. */
  codebook?: ArrayLike<number>;
  /** Length of the last dimension: `set_per_row`. */
  columns?: number;
  /** States `[..., in]` that a weight `[out, in]` is multiplied by, `of` being the weight: `gptq_err`. */
  states?: readonly Values[];
  /** Sign bit of a code in sign-magnitude form: `negative_zero_equals_zero`. */
  signBit?: number;
}

/** The worst coordinate of two tensors that are not equal enough. */
export interface Difference {
  /** Flat index. */
  at: number;
  got: number;
  expected: number;
  why: string;
}

type Numbers = ArrayLike<number>;
type Mode = (got: Numbers, expected: Numbers, how: Comparison, context: Context) => Difference | null;

/** How far two numbers are apart; infinite where only one is NaN or infinite. */
function distance(a: number, b: number): number {
  if (a === b) return 0;
  const apart = Math.abs(a - b);
  return Number.isNaN(apart) ? Number.POSITIVE_INFINITY : apart;
}

/** The coordinate with the largest positive `excess`, or null. */
function worst(
  got: Numbers,
  expected: Numbers,
  excess: (i: number) => number,
): Omit<Difference, 'why'> | null {
  let at = -1;
  let most = 0;
  for (let i = 0; i < expected.length; i++) {
    const here = excess(i);
    if (here > most || Number.isNaN(here)) {
      at = i;
      most = Number.isNaN(here) ? Number.POSITIVE_INFINITY : here;
    }
  }
  return at < 0 ? null : { at, got: got[at] as number, expected: expected[at] as number };
}

const apart = (got: Numbers, expected: Numbers) =>
  worst(got, expected, (i) => distance(got[i] as number, expected[i] as number));

const because = (difference: Omit<Difference, 'why'> | null, why: string): Difference | null =>
  difference && { ...difference, why };

const exact: Mode = (got, expected) => because(apart(got, expected), 'not equal');

const exactNanEqual: Mode = (got, expected) => {
  const step = (i: number) => {
    const [a, b] = [got[i] as number, expected[i] as number];
    return Number.isNaN(a) && Number.isNaN(b) ? 0 : distance(a, b);
  };
  return because(worst(got, expected, step), 'not equal');
};

const codes: Mode = (got, expected, how, context) => {
  const sign = how.negative_zero_equals_zero ? (context.signBit ?? 0) : 0;
  const step = (i: number) => {
    const [a, b] = [got[i] as number, expected[i] as number];
    return ((a | b) & ~sign) === 0 ? 0 : distance(a, b);
  };
  const farthest = worst(got, expected, step);
  if (!farthest) return null;
  let differing = 0;
  for (let i = 0; i < expected.length; i++) if (step(i) > 0) differing++;
  const { max_frac_diff: share = 0, max_step: most = 1 } = how;
  if (differing <= share * expected.length && step(farthest.at) <= most) return null;
  const why = `${differing} of ${expected.length} codes differ, by up to ${step(farthest.at)}`;
  return { ...farthest, why: `${why}; allowed are ${share * expected.length}, by up to ${most}` };
};

/** Two codes of each byte, the high nibble first. */
const nibbles = (bytes: Numbers): number[] => Array.from(bytes).flatMap((byte) => [byte >> 4, byte & 15]);

const codes4: Mode = (got, expected, how, context) => codes(nibbles(got), nibbles(expected), how, context);

const codesByValue: Mode = (got, expected, how, context) => {
  const book = context.codebook ?? [];
  const value = (code: number) => book[code] ?? Number.NaN;
  const [a, b] = how.packed ? [nibbles(got), nibbles(expected)] : [got, expected];
  const step = (i: number) => distance(value(a[i] as number), value(b[i] as number));
  return because(worst(a, b, step), 'the codes have different values');
};

/** Whether a float8 byte is NaN. */
const isNanByte: Readonly<Record<string, (byte: number) => boolean>> = {
  e4m3fn: (byte) => (byte & 0x7f) === 0x7f,
  e5m2: (byte) => (byte & 0x7f) > 0x7c,
  e4m3fnuz: (byte) => byte === 0x80,
  e5m2fnuz: (byte) => byte === 0x80,
};

const fp8Codes: Mode = (got, expected, how) => {
  const isNan = isNanByte[how.format ?? ''];
  if (!isNan) throw new Error(`fp8_codes: unknown format ${how.format}`);
  const step = (i: number) => {
    const [a, b] = [got[i] as number, expected[i] as number];
    return a === b || (isNan(a) && isNan(b)) ? 0 : Math.max(1, distance(a, b));
  };
  return because(worst(got, expected, step), 'bytes differ');
};

const relFro: Mode = (got, expected, { tol = 0 }) => {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    error += distance(got[i] as number, expected[i] as number) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  const relative = error === 0 ? 0 : Math.sqrt(error / norm);
  return relative <= tol
    ? null
    : because(apart(got, expected), `relative error ${relative}, allowed is ${tol}`);
};

const maxAbs: Mode = (got, expected, { tol = 0 }) => {
  const excess = (i: number) => distance(got[i] as number, expected[i] as number) - tol;
  return because(worst(got, expected, excess), `apart by more than ${tol}`);
};

const allclose: Mode = (got, expected, { rtol = 0, atol = 0 }) => {
  const excess = (i: number) =>
    distance(got[i] as number, expected[i] as number) - (atol + rtol * Math.abs(expected[i] as number));
  return because(worst(got, expected, excess), `apart by more than ${atol} + ${rtol} |expected|`);
};

const nearest: Mode = (got, expected, { block = 1, eps = 0 }, { of = [] }) => {
  const absmax = new Float64Array(Math.ceil(of.length / block));
  for (let i = 0; i < of.length; i++) {
    const b = Math.floor(i / block);
    absmax[b] = Math.max(absmax[b] as number, Math.abs(of[i] as number));
  }
  const excess = (i: number) =>
    distance(got[i] as number, of[i] as number) -
    distance(expected[i] as number, of[i] as number) -
    eps * (absmax[Math.floor(i / block)] as number);
  return because(worst(got, expected, excess), 'farther from the input than the reference');
};

/** Each row sorted. */
function sortedRows(values: Numbers, columns: number): number[] {
  const rows = Array.from({ length: values.length / columns }, (_, r) =>
    Array.from({ length: columns }, (_, c) => values[r * columns + c] as number).sort((a, b) => a - b),
  );
  return rows.flat();
}

const setPerRow: Mode = (got, expected, _, { columns = 1 }) =>
  because(apart(sortedRows(got, columns), sortedRows(expected, columns)), 'another set, by rank in its row');

const metrics: Readonly<Record<string, (values: Numbers, of: Numbers) => number>> = {
  'sum_abs_pow_2.4': (values, of) =>
    sumOver(of, (i) => distance(values[i] as number, of[i] as number) ** 2.4),
  mean_abs: (values, of) => sumOver(of, (i) => distance(values[i] as number, of[i] as number)) / of.length,
};

function sumOver(values: Numbers, term: (i: number) => number): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += term(i);
  return sum;
}

const errAtMost: Mode = (got, expected, { metric = '', factor = 1 }, { of = [] }) => {
  const measure = metrics[metric];
  if (!measure) throw new Error(`err_at_most: unknown metric ${metric}`);
  const [error, allowed] = [measure(got, of), measure(expected, of) * factor];
  if (error <= allowed) return null;
  return because(apart(got, of), `${metric} is ${error}, allowed is ${allowed}; expected shows the input`);
};

const atMost: Mode = (got, expected, { factor = 1 }) => {
  const excess = (i: number) => (got[i] as number) - factor * (expected[i] as number);
  return because(worst(got, expected, excess), `more than ${factor} times the reference`);
};

/** Norm of X (W - Q)^T over that of X W^T, in float64. */
function outputError(values: Numbers, of: Numbers, states: readonly Values[]): number {
  let error = 0;
  let norm = 0;
  for (const { shape, data } of states) {
    const columns = shape.at(-1) as number;
    for (let x = 0; x < data.length; x += columns) {
      for (let w = 0; w < of.length; w += columns) {
        let lost = 0;
        let output = 0;
        for (let c = 0; c < columns; c++) {
          const state = data[x + c] as number;
          lost += state * ((of[w + c] as number) - (values[w + c] as number));
          output += state * (of[w + c] as number);
        }
        error += lost * lost;
        norm += output * output;
      }
    }
  }
  return Math.sqrt(error / norm);
}

const gptqErr: Mode = (got, expected, { factor = 1 }, { of = [], states = [] }) => {
  const error = outputError(got, of, states);
  const allowed = factor * outputError(expected, of, states);
  if (error <= allowed) return null;
  return because(
    apart(got, of),
    `the output's error is ${error}, allowed is ${allowed}; expected shows the weight`,
  );
};

/** The comparison modes, named as in the manifest. */
export const modes: Readonly<Record<string, Mode>> = {
  exact,
  exact_nan_equal: exactNanEqual,
  codes,
  codes4,
  codes_by_value: codesByValue,
  fp8_codes: fp8Codes,
  rel_fro: relFro,
  max_abs: maxAbs,
  allclose,
  nearest,
  err_at_most: errAtMost,
  set_per_row: setPerRow,
  at_most: atMost,
  gptq_err: gptqErr,
};

/** `[3, 17]` for a flat index into a shape; codes that were unpacked count past the shape's own size. */
export function coordinate(at: number, shape: readonly number[]): string {
  if (at >= shape.reduce((a, b) => a * b, 1)) return `[flat ${at}]`;
  const indices: number[] = [];
  let rest = at;
  for (const n of [...shape].reverse()) {
    indices.unshift(rest % n);
    rest = Math.floor(rest / n);
  }
  return `[${indices.join(', ')}]`;
}

/**
 * Compares a tensor with its reference.
 * @returns null, or what is wrong, to stand after the tensor's name: `[3, 17]: got 5, expected 4 (...)`
 * @throws Error for a mode that is not known here
 */
export function compare(
  got: Values,
  expected: Values,
  how: Comparison,
  context: Context = {},
): string | null {
  const mode = modes[how.mode];
  if (!mode) throw new Error(`no comparison mode ${how.mode}`);
  if (got.data.length !== expected.data.length) {
    return `: shape [${got.shape}] came, expected [${expected.shape}]`;
  }
  const columns = expected.shape.at(-1) ?? 1;
  const difference = mode(got.data, expected.data, how, { columns, ...context });
  if (!difference) return null;
  const where = coordinate(difference.at, how.mode === 'codes4' || how.packed ? [] : expected.shape);
  return `${where}: got ${difference.got}, expected ${difference.expected} (${how.mode}: ${difference.why})`;
}
