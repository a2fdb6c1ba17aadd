import { expect } from 'vitest';
import { Hessian, quantize } from '../../../lib/ops/gptq';
import { dequantize } from '../../../lib/ops/quantize';
import type { IntBits, IntScheme } from '../../../lib/scheme';
import type { Runner, Runners } from '../harness';
import { mapValues, valuesOf } from '../harness';

/**
 * gptq: the Hessian of several batches, and the solver by the error of the layer's output. The peer fits a group that
 * starts inside a block of columns on weights that lack the block's own updates; here a grid is always fitted on weights
 * as they stand, and where that is worse the case allows for it.
 */
const solver: Runner = {
  async run(check) {
    const groupSize = check.param<number>('group_size');
    const symmetric = check.param<boolean>('sym');
    const scheme: IntScheme = {
      kind: 'int',
      bits: check.param<IntBits>('bits'),
      symmetric,
      ...(symmetric ? { range: 'full' } : {}),
      search: check.param<boolean>('mse') ? 'mse' : 'minmax',
      ...(groupSize === -1 ? { granularity: 'row' } : { granularity: 'group', groupSize }),
    };
    const w = await check.input('w');
    using hessian = new Hessian(w.shape[1] as number);
    for (const name of check.named('x*')) hessian.update(await check.input(name));
    expect(hessian.samples).toBe(check.param('nsamples'));
    using value = hessian.value();
    const h = await valuesOf(value);
    const columns = w.shape[1] as number;
    if (check.has('hessian')) await check.output('hessian', h);
    const diagonal = mapValues({ shape: [columns], data: Array.from({ length: columns }) }, (_, i) => {
      return h.data[i * (columns + 1)] as number;
    });
    if (check.has('hessian_diag')) await check.output('hessian_diag', diagonal);

    const actOrder = check.param<boolean>('act_order');
    const staticGroups = check.param<boolean>('static_groups');
    const result = await quantize(w, hessian, {
      scheme,
      actOrder,
      staticGroups,
      damping: check.param('percdamp'),
      blockSize: check.param('block_size'),
    });
    using quantized = result.quantized.to('cpu');
    const values = await valuesOf(dequantize(quantized));
    await check.output('deq', values);
    await check.output('rel_err', { shape: [], data: [result.relativeError] });
    expect(quantized.parts.groupIndex !== undefined).toBe(actOrder && !staticGroups && groupSize !== -1);

    const dead = check.param<number[]>('dead_columns');
    expect(result.deadColumns).toBe(dead.length);
    const rows = w.shape[0] as number;
    for (const column of dead) {
      for (let row = 0; row < rows; row++) expect(values.data[row * columns + column]).toBe(0);
    }
  },
};

export const gptqCases: Runners = { gptq: solver };
