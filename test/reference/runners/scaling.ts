import { expect } from 'vitest';
import { clip, searchScale } from '../../../lib/methods/awq';
import { smoothingFactors } from '../../../lib/methods/smoothquant';
import { Hessian } from '../../../lib/ops/gptq';
import { ColumnMagnitudes } from '../../../lib/ops/scaling';
import type { IntBits, IntScheme } from '../../../lib/scheme';
import type { Tensor } from '../../../lib/tensor';
import type { Check, Runner, Runners } from '../harness';
import { mapValues, valuesOf } from '../harness';

const affine = (check: Check): IntScheme => ({
  kind: 'int',
  bits: check.param<IntBits>('bits'),
  symmetric: false,
  granularity: 'group',
  groupSize: check.param<number>('group_size'),
});

/** Every token a sample. */
function hessianOf(x: Tensor): Hessian {
  const [tokens, width] = x.shape as [number, number];
  const hessian = new Hessian(width);
  using samples = x.reshape([tokens, 1, width]);
  hessian.update(samples);
  return hessian;
}

/** smoothquant: factors, and what becomes of norm and weights. */
const smoothing: Runner = {
  async run(check) {
    const activations = await check.values('act_absmax');
    using weights = new ColumnMagnitudes(activations.data.length);
    const names = check.named('w*').filter((name) => !name.endsWith('_out'));
    for (const name of names) weights.update(await check.input(name));
    const factors = smoothingFactors(activations.data, await weights.maxima(), check.param('alpha'));
    await check.output('scale', { shape: [factors.length], data: factors });
    for (const name of ['norm_weight', 'norm_bias']) {
      if (!check.has(name)) continue;
      const folded = mapValues(await check.values(name), (value, i) => value / (factors[i] as number));
      await check.output(`${name}_out`, folded);
    }
    for (const name of names) {
      const folded = mapValues(
        await check.values(name),
        (value, i) => value * (factors[i % factors.length] as number),
      );
      await check.output(`${name}_out`, folded);
    }
  },
};

/** awq_scale_search: the loss of the factors that are found, for a linear layer by itself. */
const scaleSearch: Runner = {
  unfit: ({ params }) =>
    params.target === 'gated_mlp' ? 'the error is taken at the linear layers, not behind a gate' : null,
  async run(check) {
    const x = await check.input('x');
    const weight = await check.input('w0');
    using hessian = hessianOf(x);
    using magnitudes = new ColumnMagnitudes(x.shape[1] as number);
    magnitudes.update(x);
    const linear = { weight, scheme: affine(check), hessian };
    const { ratio, losses } = await searchScale([linear], await magnitudes.means());
    const mean = losses.map((loss) => loss / (weight.shape[0] as number));
    await check.output('loss_curve', { shape: [mean.length], data: mean });
    expect(mean[Math.round(20 * ratio)]).toBeLessThanOrEqual(1.01 * check.param<number>('best_loss'));
    check.omit('judged by its loss', 'scale');
  },
};

/** awq_clip_search: the error that clipping leaves. */
const clipSearch: Runner = {
  async run(check) {
    const x = await check.input('x');
    using hessian = hessianOf(x);
    using products = hessian.sums();
    const { clipped, ratios, errors } = await clip(await check.input('w'), products, affine(check));
    using _ = clipped;
    const expected = await check.values('group_err');
    const sum = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0);
    expect(sum(errors) / (x.shape[0] as number)).toBeLessThanOrEqual(1.01 * sum(expected.data));
    expect(ratios.some((ratio) => ratio < 1)).toBe(true);
    const weight = await valuesOf(await check.input('w'));
    const most = Math.max(...Array.from(weight.data, Math.abs));
    expect(Math.max(...Array.from((await valuesOf(clipped)).data, Math.abs))).toBeLessThanOrEqual(most);
    check.omit('judged by its error', 'max_val', 'group_err');
  },
};

export const scalingCases: Runners = {
  smoothquant: smoothing,
  awq_scale_search: scaleSearch,
  awq_clip_search: clipSearch,
};
