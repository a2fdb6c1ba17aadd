import { linear, llmInt8, QuantizedTensor, type QuantScheme, quantize, Tensor } from '../../../lib';
import { roundEven } from '../../core/quant_reference';
import type { Values } from '../compare';
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

/**
 * The sums of integers, of the recorded codes: activations and a weight with scales of 1. A last column of 127, which the
 * weight takes times 0, gives every row the absmax that keeps its codes.
 */
async function integerProduct(check: Check): Promise<Tensor> {
  const [x, w] = [await check.values('x_codes'), await check.values('w_codes')];
  const widened = ({ shape, data }: Values, last: number): [number[], [number, number]] => {
    const [rows, columns] = shape as [number, number];
    const values = Array.from({ length: rows }, (_, r) =>
      Array.from(data)
        .slice(r * columns, (r + 1) * columns)
        .concat(last),
    );
    return [values.flat(), [rows, columns + 1]];
  };
  const [codes, shape] = widened(w, 0);
  const weight = QuantizedTensor.fromParts({ kind: 'llm.int8', threshold: 0 }, shape, {
    codes: Tensor.from(codes, shape, { dtype: 'int8' }),
    scales: Tensor.from(new Float32Array(shape[0]).fill(127), [shape[0]]),
  });
  return linear(Tensor.from(...widened(x, 127)), weight);
}

/** The weight is quantized without outliers; the peer rounds the activations to float16 first. */
const int8Linear: Runner = {
  async run(check) {
    const scheme: QuantScheme = { kind: 'llm.int8', threshold: check.param<number>('threshold') };
    const weight = quantize(await check.input('w'), scheme);
    const { codes, scales } = weight.parts;
    await check.output('w_codes', codes as Tensor);
    await check.output('w_absmax', scales as Tensor);
    const x = await check.input('x');
    await splitOf(check, x.cast('float16'), { codes: 'x_codes', absmax: 'x_absmax' });
    const sums = await integerProduct(check);
    await check.output('acc_int32', sums);
    await check.also('acc_int32, exactly', sums, await check.values('acc_int32'), { mode: 'exact' });
    const bias = check.has('bias') ? await check.input('bias') : undefined;
    await check.output('y', linear(x, weight, { ...(bias && { bias }), outDtype: 'float32' }));
  },
};

export const llmInt8Cases: Runners = { int8_vectorwise: int8Vectorwise, llm_int8_linear: int8Linear };
