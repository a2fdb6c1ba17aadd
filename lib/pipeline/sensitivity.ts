import type { Checkpoint } from '../checkpoint/reader';
import { QuantariaError } from '../errors';
import type { Linear, ModelMap } from '../models';
import { type NativeTensor, native } from '../native';
import { quantizeMatrix } from '../ops/quantize';
import type { Recipe } from '../recipe';
import { compileMatch } from '../recipe/match';
import { linearCandidate, QUANTIZABLE } from '../recipe/plan';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { linearView } from './copy_units';
import { placedView } from './placement';
import { inTensor } from './quantize_units';

/** What rounding to nearest does to a weight, found without any text. */
export interface WeightMeasure {
  /** Sum of the squared weights. */
  energy: number;
  /** The widest spread of an input feature: its largest magnitude over its mean magnitude. */
  outlierScore: number;
  /** Relative error under each scheme that was asked for, in that order. */
  relativeErrors: number[];
}

export interface MeasureOptions {
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

/** Weights that may be under way together: their codes, and copies of some rows. */
const ELEMENTS_UNDER_WAY = 32e6;
/** Elements that are looked at together in float32. */
const CHUNK_ELEMENTS = 2e6;

/**
 * Rounds weights to nearest under several schemes each, writing nothing.
 * @returns a measure of each, in the order of `wanted`
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for NaN or infinity in a weight, `ERR_ABORTED`
 */
export async function measureWeights(
  source: Checkpoint,
  wanted: readonly { linear: Linear; schemes: readonly QuantScheme[] }[],
  { signal, onProgress }: MeasureOptions = {},
): Promise<WeightMeasure[]> {
  const measures: WeightMeasure[] = [];
  const underWay = new Set<Promise<void>>();
  const sizes = wanted.map(({ linear }) => linear.shape[0] * linear.shape[1]);
  const total = sizes.reduce((a, b) => a + b, 0);
  let done = 0;
  let elements = 0;
  let failure: { error: unknown } | null = null;
  for (const [index, { linear, schemes }] of wanted.entries()) {
    const size = sizes[index] as number;
    while (underWay.size > 0 && elements + size > ELEMENTS_UNDER_WAY) await Promise.race(underWay);
    if (failure !== null || signal?.aborted) break;
    elements += size;
    const task = measureWeight(source, linear, schemes)
      .then((measure) => {
        measures[index] = measure;
        done += size;
        onProgress?.(done, total);
      })
      .catch((error: unknown) => {
        failure ??= { error: inTensor(linear.name, error) };
      })
      .finally(() => {
        elements -= size;
        underWay.delete(task);
      });
    underWay.add(task);
  }
  await Promise.all(underWay);
  if (failure !== null) throw (failure as { error: unknown }).error;
  if (signal?.aborted) throw new QuantariaError('ERR_ABORTED', 'interrupted');
  return measures;
}

/** Outlier scores of the decoder's weights for a recipe that asks them; undefined for one that does not. */
export async function spreadsFor(
  source: Checkpoint,
  { linears }: ModelMap,
  { rules }: Recipe,
  options: MeasureOptions,
): Promise<ReadonlyMap<Linear, number> | undefined> {
  // All that could be among the most used are measured.
  const asking = rules.flatMap(({ match: { usage, outliers, ...rest } }) =>
    outliers === undefined ? [] : [compileMatch(rest, null)],
  );
  if (asking.length === 0) return undefined;
  const wanted = linears
    .filter(({ dtype }) => QUANTIZABLE.includes(dtype))
    .filter((linear) => asking.some((matches) => matches(linearCandidate(linear))))
    .map((linear) => ({ linear, schemes: [] }));
  const measures = await measureWeights(source, wanted, options);
  return new Map(wanted.map(({ linear }, i) => [linear, (measures[i] as WeightMeasure).outlierScore]));
}

async function measureWeight(
  source: Checkpoint,
  linear: Linear,
  schemes: readonly QuantScheme[],
): Promise<WeightMeasure> {
  const relativeErrors: number[] = [];
  if (schemes.length > 0) {
    using weight = placedView(linearView(source, linear));
    for (const scheme of schemes) {
      const { quantized, relativeError } = quantizeMatrix(
        Tensor.native(weight, linear.name),
        linear.shape,
        scheme,
      );
      quantized.dispose();
      using error = relativeError;
      relativeErrors.push((await error.toFloat32())[0] as number);
    }
  }
  // Summed by the host, next to the file.
  const view = linearView(source, linear);
  try {
    return { ...(await spreadOf(view, linear.shape)), relativeErrors };
  } finally {
    native.tensorDispose(view);
  }
}

async function spreadOf(
  view: NativeTensor,
  [rows, width]: readonly [number, number],
): Promise<Pick<WeightMeasure, 'energy' | 'outlierScore'>> {
  const largest = new Float64Array(width);
  const sums = new Float64Array(width);
  let energy = 0;
  const step = Math.max(1, Math.floor(CHUNK_ELEMENTS / Math.max(1, width)));
  for (let begin = 0; begin < rows; begin += step) {
    const part = native.tensorSlice(view, 0, begin, Math.min(rows, begin + step), 1);
    using floats = Tensor.wrap(native.tensorCopy(part, 'float32'));
    native.tensorDispose(part);
    const values = await floats.toFloat32();
    for (let at = 0, column = 0; at < values.length; ++at) {
      const value = values[at] as number;
      const magnitude = Math.abs(value);
      energy += value * value;
      sums[column] = (sums[column] as number) + magnitude;
      if (magnitude > (largest[column] as number)) largest[column] = magnitude;
      if (++column === width) column = 0;
    }
  }
  let outlierScore = 0;
  largest.forEach((most, column) => {
    if (most > 0) outlierScore = Math.max(outlierScore, (most * rows) / (sums[column] as number));
  });
  return { energy, outlierScore };
}
