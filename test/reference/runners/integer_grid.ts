import { dequantize, quantize } from '../../../lib/ops/quantize';
import type { IntBits, IntScheme, QuantScheme } from '../../../lib/scheme';
import type { Tensor } from '../../../lib/tensor';
import type { Values } from '../compare';
import {
  type Check,
  checkNoWorse,
  type DocumentedDifference,
  largestError,
  mapValues,
  type Runner,
  type Runners,
  squaredError,
  valuesOf,
} from '../harness';

interface Quantized {
  codes: Values;
  scales: Values;
  zeros: Values | null;
  dequantized: Values;
}

export async function quantized(w: Tensor, scheme: QuantScheme): Promise<Quantized> {
  using q = quantize(w, scheme);
  const { codes, scales, zeros } = q.parts;
  return {
    codes: await valuesOf(codes as Tensor),
    scales: await valuesOf(scales as Tensor),
    zeros: zeros ? await valuesOf(zeros) : null,
    dequantized: await valuesOf(dequantize(q)),
  };
}

/** The group of each flat index, and per group the largest magnitude and whether anything is negative. */
function groupsOf(w: Values, scheme: IntScheme) {
  const [rows, columns] = w.shape as [number, number];
  const size = scheme.granularity === 'group' ? (scheme.groupSize as number) : columns;
  const perRow = Math.ceil(columns / size);
  const of = (flat: number): number => {
    if (scheme.granularity === 'tensor') return 0;
    if (scheme.granularity === 'column') return flat % columns;
    return Math.floor(flat / columns) * perRow + Math.floor((flat % columns) / size);
  };
  const count = { tensor: 1, column: columns, row: rows, group: rows * perRow }[scheme.granularity];
  const absmax = new Float64Array(count);
  const negative = new Array<boolean>(count).fill(false);
  for (let i = 0; i < w.data.length; i++) {
    const [group, value] = [of(i), w.data[i] as number];
    absmax[group] = Math.max(absmax[group] as number, Math.abs(value));
    if (value < 0) negative[group] = true;
  }
  return { of, absmax, negative };
}

/** Half to even, for magnitudes far below 2^51. */
const roundEven = (x: number): number => x + 1.5 * 2 ** 52 - 1.5 * 2 ** 52;

/**
 * With 2 bits a symmetric grid has one step above zero. Clipping halves that step, which can be worth more in the sum of
 * squares than the entries that it clips; in the largest error it never is.
 */
const COARSEST_BITS = 2;

/**
 * quant_grid_gptq. A symmetric group without negative entries keeps 0 as its lower end in the peer: the scale is half of
 * what its codes need, and the upper half of the group clips. Here the grid is symmetric whatever the signs; an all-zero
 * group has scale 1.
 */
const gptqGrid: Runner = {
  unfit: ({ params }) =>
    params.granularity === 'tensor' && params.group_size !== -1
      ? 'one grid for each block of columns: no granularity of an integer scheme'
      : null,
  async run(check) {
    const bits = check.param<IntBits>('bits');
    const symmetric = check.param<boolean>('sym');
    const groupSize = check.param<number>('group_size');
    const grouped = groupSize !== -1;
    const scheme: IntScheme = {
      kind: 'int',
      bits,
      symmetric,
      ...(symmetric ? { range: 'full' } : {}),
      search: check.param<boolean>('mse') ? 'mse' : 'minmax',
      granularity: grouped ? 'group' : check.param<'row' | 'tensor'>('granularity'),
      ...(grouped ? { groupSize } : {}),
    };
    const input = await check.input('w');
    const w = await valuesOf(input);
    const result = await quantized(input, scheme);
    const middle = symmetric ? 2 ** (bits - 1) : 0;
    const codes = mapValues(result.codes, (code) => code + middle);
    const zeros = result.zeros ?? mapValues(result.scales, () => middle);

    const groups = groupsOf(w, scheme);
    const isOneSigned = (group: number) => symmetric && !groups.negative[group];
    const scaleOf = (group: number) => {
      const absmax = groups.absmax[group] as number;
      return absmax === 0 ? 1 : Math.fround((2 * absmax) / (2 ** bits - 1));
    };
    const codeOf = (flat: number) => {
      const ratio = Math.fround((w.data[flat] as number) / scaleOf(groups.of(flat)));
      return Math.min(Math.max(roundEven(ratio), -middle), middle - 1);
    };
    const constants = await check.values('scale');
    // Recorded once for each row even where one grid serves the tensor.
    const groupOfConstant = (i: number) => (scheme.granularity === 'tensor' ? 0 : i);
    const spread = (values: Values): Values => ({
      shape: constants.shape,
      data: Array.from(constants.data, (_, i) => values.data[groupOfConstant(i)] as number),
    });
    const atEntry = (instead: (flat: number) => number): { difference: DocumentedDifference } => ({
      difference: { at: (flat) => isOneSigned(groups.of(flat)), instead },
    });
    await check.output('scale', spread(result.scales), {
      difference: {
        at: (i) => isOneSigned(groupOfConstant(i)),
        instead: (i) => scaleOf(groupOfConstant(i)),
      },
    });
    await check.output('zero', spread(zeros));
    await check.output(
      'codes',
      codes,
      atEntry((flat) => codeOf(flat) + middle),
    );
    await check.output(
      'deq',
      result.dequantized,
      scheme.search === 'mse' ? {} : atEntry((flat) => Math.fround(codeOf(flat) * scaleOf(groups.of(flat)))),
    );
    const sides = { got: result.dequantized, peer: await check.values('deq'), of: w };
    const oneSigned = (flat: number) => {
      const group = groups.of(flat);
      return isOneSigned(group) ? group : null;
    };
    checkNoWorse(check, sides, largestError, oneSigned);
    if (bits > COARSEST_BITS) checkNoWorse(check, sides, squaredError, oneSigned);
  },
};

const granularityOfAxis = (axis: unknown): 'row' | 'column' | 'tensor' =>
  axis === 0 ? 'row' : axis === null ? 'tensor' : 'column';

/** quant_sym_quanto, int8. An all-zero group has scale 0 in the peer and 1 here; both stand for zeros. */
async function quantoInt8(check: Check): Promise<void> {
  const scheme: IntScheme = {
    kind: 'int',
    bits: 8,
    symmetric: true,
    range: 'restricted',
    granularity: granularityOfAxis(check.param('axis')),
  };
  const result = await quantized(await check.input('w'), scheme);
  await check.output('codes', result.codes);
  await check.output('scale', result.scales, { difference: await oneWhereZero(check) });
  await check.output('deq', result.dequantized);
}

async function oneWhereZero(check: Check): Promise<DocumentedDifference> {
  const recorded = await check.values('scale');
  return { at: (i) => recorded.data[i] === 0, instead: () => 1 };
}

/** quant_sym_quanto, float8; one scale for each column by way of the transpose, whose rows they are. */
async function quantoFloat8(check: Check): Promise<void> {
  const granularity = granularityOfAxis(check.param('axis'));
  const format = check.param<string>('qtype') === 'qfloat8_e5m2' ? 'e5m2' : 'e4m3';
  const w = await check.input('w');
  const byColumn = granularity === 'column';
  const result = await quantized(byColumn ? w.transpose() : w, {
    kind: 'fp8',
    format,
    granularity: granularity === 'tensor' ? 'tensor' : 'row',
  });
  const upright = (values: Values) => (byColumn ? transposed(values) : values);
  await check.output('codes', upright(result.codes));
  await check.output('scale', upright(result.scales), { difference: await oneWhereZero(check) });
  await check.output('deq', upright(result.dequantized));
}

export function transposed({ shape, data }: Values): Values {
  const [rows, columns] = shape as [number, number];
  const turned = Array.from({ length: rows * columns }, (_, i) => {
    return data[(i % rows) * columns + Math.floor(i / rows)] as number;
  });
  return { shape: [columns, rows], data: turned };
}

const quantoSymmetric: Runner = {
  unfit: ({ params }) =>
    ['qint8', 'qfloat8_e4m3fn', 'qfloat8_e5m2'].includes(params.qtype as string)
      ? null
      : `${params.qtype}: no such element type`,
  run: (check) => (check.param('qtype') === 'qint8' ? quantoInt8(check) : quantoFloat8(check)),
};

/** Where the peer raises a small absmax to 1e-5 it rounds the values away; here they keep their own scale. */
const SMOOTH_FLOOR = 1e-5;

const absmaxFake: Runner = {
  async run(check) {
    const scheme: IntScheme = {
      kind: 'int',
      bits: check.param<IntBits>('bits'),
      symmetric: true,
      range: 'restricted',
      granularity: check.param<string>('what').endsWith('tensor') ? 'tensor' : 'row',
    };
    const input = await check.input('x');
    const x = await valuesOf(input);
    const { dequantized } = await quantized(input, scheme);
    const groups = groupsOf(x, scheme);
    const isRaised = (flat: number) => (groups.absmax[groups.of(flat)] as number) < SMOOTH_FLOOR;
    await check.output('y', dequantized, {
      difference: { at: isRaised, instead: (flat) => dequantized.data[flat] as number },
    });
    checkNoWorse(check, { got: dequantized, peer: await check.values('y'), of: x }, squaredError, (flat) =>
      isRaised(flat) ? groups.of(flat) : null,
    );
  },
};

/** Activations are quantized as a weight of the same values is: a token is a row. */
const tokenGrid: Runner = {
  unfit({ params }) {
    if (params.clip_ratio !== 1) return 'the range is clipped by a given ratio';
    if (!params.sym && params.group_size !== -1) return 'the range of a group is not widened to hold 0';
    return null;
  },
  async run(check) {
    const groupSize = check.param<number>('group_size');
    const symmetric = check.param<boolean>('sym');
    const result = await quantized(await check.input('x'), {
      kind: 'int',
      bits: check.param<IntBits>('bits'),
      symmetric,
      ...(symmetric ? { range: 'restricted' } : {}),
      granularity: groupSize === -1 ? 'row' : 'group',
      ...(groupSize === -1 ? {} : { groupSize }),
    });
    await check.output('codes', result.codes);
    await check.output('scale', result.scales);
    await check.output('zero', result.zeros ?? mapValues(result.scales, () => 0));
    await check.output('deq', result.dequantized);
    if (check.has('packed')) check.omit('activations are not packed into nibbles here', 'packed');
  },
};

export const integerGrid: Runners = {
  quant_grid_gptq: gptqGrid,
  quant_sym_quanto: quantoSymmetric,
  absmax_fake_quant: absmaxFake,
  act_quant_token: tokenGrid,
};
