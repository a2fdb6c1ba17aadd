import type { Tensor } from '../../../lib';
import { llmInt8, quantize } from '../../../lib';
import { roundEven } from '../../core/quant_reference';
import { type Check, type DocumentedDifference, type Runner, type Runners, valuesOf } from '../harness';

/** The names of one matrix's outputs in a case. */
interface Names {
  codes: string;
  absmax: string;
}

const f32 = Math.fround;

/**
 * Here a code is x * (127 / absmax) in float32, rounded. The peer divides by multiplying with the reciprocal, and where
 * the value lies within a rounding of the middle between two codes, the two part.
 */
async function nearTies(check: Check, x: Tensor, names: Names): Promise<DocumentedDifference> {
  const { data, shape } = await valuesOf(x);
  const absmax = await check.values(names.absmax);
  const outliers = new Set(Array.from((await check.values('outlier_cols')).data));
  const columns = shape[1] as number;
  const scaled = (flat: number, factor: (absmax: number) => number) =>
    f32((data[flat] as number) * factor(absmax.data[Math.floor(flat / columns)] as number));
  const here = (flat: number) => roundEven(scaled(flat, (a) => f32(127 / a)));
  const peer = (flat: number) => roundEven(scaled(flat, (a) => f32(127 * f32(1 / a))));
  return {
    at: (flat) => !outliers.has(flat % columns) && Math.abs(here(flat) - peer(flat)) === 1,
    instead: here,
  };
}

/** Activations: outlier columns apart, the rest with a scale for each row. */
async function splitOf(check: Check, x: Tensor, names: Names): Promise<void> {
  const options = { threshold: check.param<number>('threshold') };
  const { columns, codes, scales } = await llmInt8.split(x, options);
  await check.output('outlier_cols', { shape: [columns.length], data: columns });
  await check.output(names.codes, codes, { difference: await nearTies(check, x, names) });
  await check.output(names.absmax, scales);
  const alone = await llmInt8.outlierColumns(x, options);
  await check.also(
    'outlier columns by themselves',
    { shape: [alone.length], data: alone },
    { shape: [columns.length], data: columns },
    { mode: 'exact' },
  );
}

const int8Vectorwise: Runner = {
  async run(check) {
    await splitOf(check, await check.input('x'), { codes: 'codes', absmax: 'row_absmax' });
  },
};

/** The weight is quantized without outliers; the peer rounds the activations to float16 first. */
const int8Linear: Runner = {
  async run(check) {
    const { codes, scales } = quantize(await check.input('w'), { kind: 'llm.int8' }).parts;
    await check.output('w_codes', codes as Tensor);
    await check.output('w_absmax', scales as Tensor);
    const x = await check.input('x');
    await splitOf(check, x.cast('float16'), { codes: 'x_codes', absmax: 'x_absmax' });
    check.omit('the product', 'acc_int32', 'y');
  },
};

export const llmInt8Cases: Runners = { int8_vectorwise: int8Vectorwise, llm_int8_linear: int8Linear };
