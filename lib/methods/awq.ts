import { native } from '../native';
import type { Hessian } from '../ops/gptq';
import { dequantize, quantizeMatrix } from '../ops/quantize';
import { clampGroups, groupErrors, scaleMatrix } from '../ops/scaling';
import type { QuantScheme } from '../scheme';
import { Tensor } from '../tensor';

/** AWQ (arXiv 2306.00978): factors that make the important input features large before rounding, and clipped groups. */

/** Exponents tried: 0, 1/20, ... 19/20. */
const GRID = 20;
const SMALLEST_FACTOR = 1e-4;
/** The loss is measured on so many rows of a weight, evenly taken. */
const SEARCH_ROWS = 256;

/** A linear layer that shares the factors of its input with others. */
export interface ScaledLinear {
  /** `[out, in]` */
  weight: Tensor;
  scheme: QuantScheme;
  /** Of the states that enter it. */
  hessian: Hessian;
  /** Of its loss; 1 if left out. */
  share?: number;
}

export interface FoundScale {
  /** By input feature: weights are multiplied by it, what makes the input is divided by it. */
  factors: Float32Array;
  /** The exponent that was best. */
  ratio: number;
  /** Squared error of the outputs for each exponent that was tried. */
  losses: number[];
}

/** `mean^ratio`, of which the largest times the smallest is 1. A feature without magnitude has the least factor. */
export function awqFactors(means: ArrayLike<number>, ratio: number): Float32Array {
  const raw = Array.from(means, (mean) => Math.max(mean ** ratio, SMALLEST_FACTOR));
  const middle = Math.sqrt(Math.max(...raw) * Math.min(...raw));
  return Float32Array.from(raw, (factor) => factor / middle);
}

/**
 * The factors of a shared input that cost the outputs of its linear layers least after rounding.
 * @param means mean magnitude of each input feature
 * @param settle what becomes of factors that cannot all be had, such as those of features that share a producer
 */
export async function searchScale(
  linears: readonly ScaledLinear[],
  means: ArrayLike<number>,
  settle: (factors: Float32Array) => Float32Array = (factors) => factors,
): Promise<FoundScale> {
  const losses: number[] = [];
  let best: FoundScale | null = null;
  for (let step = 0; step < GRID; ++step) {
    const ratio = step / GRID;
    const factors = settle(awqFactors(means, ratio));
    let loss = 0;
    for (const linear of linears) loss += (linear.share ?? 1) * (await scaledLoss(linear, factors));
    losses.push(loss);
    if (best === null || loss < (losses[Math.round(best.ratio * GRID)] as number)) {
      best = { factors, ratio, losses };
    }
  }
  return best as FoundScale;
}

/** Squared error, summed over the samples, of the output if the scaled weight is rounded. */
async function scaledLoss({ weight, scheme, hessian }: ScaledLinear, factors: Float32Array): Promise<number> {
  using rows = someRows(weight);
  using columns = vector(factors);
  using inverse = vector(factors.map((factor) => 1 / factor));
  using scaled = scaleMatrix(rows, null, columns);
  using values = roundedValues(scaled, scheme);
  using back = scaleMatrix(values, null, inverse);
  return (await hessian.outputError(rows, back)) / hessian.samples;
}

export const vector = (values: Float32Array): Tensor<'float32'> =>
  Tensor.from(values, [values.length], { dtype: 'float32' }) as Tensor<'float32'>;

/** A view of every n-th row. */
function someRows(weight: Tensor): Tensor {
  const out = weight.shape[0] as number;
  const step = Math.max(1, Math.floor(out / SEARCH_ROWS));
  return Tensor.wrap(native.tensorSlice(Tensor.native(weight, 'weight'), 0, 0, out, step));
}

/** What a weight is after rounding to nearest. */
function roundedValues(weight: Tensor, scheme: QuantScheme): Tensor {
  const shape = weight.shape as [number, number];
  const { quantized, relativeError } = quantizeMatrix(Tensor.native(weight, 'weight'), shape, scheme);
  relativeError.dispose();
  try {
    return dequantize(quantized);
  } finally {
    quantized.dispose();
  }
}

/** Steps of a twentieth of a group's range that are tried, down to 0.55 of it. */
const CLIP_STEPS = 10;
const CLIP_GRID = 20;

/** Columns that share a scale; a row is one group where there are none. */
export function groupOf(scheme: QuantScheme, width: number): number {
  if (scheme.kind === 'int' && scheme.granularity === 'group') return scheme.groupSize as number;
  if (scheme.kind === 'mx') return 32;
  return width;
}

/**
 * Clamps each group of a weight to the part of its range that costs the layer's output least after rounding, each group by
 * itself; ties keep the larger range.
 * @param weight `[out, in]`, scaled
 * @param products sums of x^T x of what then enters the layer, `[in, in]`, the upper triangle
 * @returns the clamped weight, and the ratio of each group, `[out, groups]`
 */
export async function clip(
  weight: Tensor,
  products: Tensor,
  scheme: QuantScheme,
): Promise<{ clipped: Tensor<'float32'>; ratios: Float32Array; errors: Float32Array }> {
  const [out, width] = weight.shape as [number, number];
  const group = groupOf(scheme, width);
  const groups = Math.ceil(width / group);
  const ratios = new Float32Array(out * groups).fill(1);
  const errors = new Float32Array(out * groups).fill(Number.POSITIVE_INFINITY);
  for (let step = 0; step < CLIP_STEPS; ++step) {
    const ratio = 1 - step / CLIP_GRID;
    using tried = ratioTensor(new Float32Array(out * groups).fill(ratio), out, groups);
    using clamped = clampGroups(weight, group, tried);
    using values = roundedValues(clamped, scheme);
    using found = groupErrors(weight, values, products, group);
    for (const [i, error] of (await found.toFloat32()).entries()) {
      if (error >= (errors[i] as number)) continue;
      errors[i] = error;
      ratios[i] = ratio;
    }
  }
  using chosen = ratioTensor(ratios, out, groups);
  return { clipped: clampGroups(weight, group, chosen), ratios, errors };
}

const ratioTensor = (ratios: Float32Array, out: number, groups: number): Tensor =>
  Tensor.from(ratios, [out, groups], { dtype: 'float32' });
