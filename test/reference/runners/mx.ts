import { dequantize, quantize } from '../../../lib/ops/quantize';
import type { MxScheme } from '../../../lib/scheme';
import type { Tensor } from '../../../lib/tensor';
import { type Check, type Runner, type Runners, valuesOf } from '../harness';
import { transposed } from './integer_grid';

const elements: Readonly<Record<string, { element: MxScheme['element']; signBit: number }>> = {
  fp8_e4m3: { element: 'e4m3', signBit: 0x80 },
  fp8_e5m2: { element: 'e5m2', signBit: 0x80 },
  fp6_e3m2: { element: 'e3m2', signBit: 0x20 },
  fp6_e2m3: { element: 'e2m3', signBit: 0x20 },
  fp4_e2m1: { element: 'e2m1', signBit: 0x8 },
  // Two's complement has one zero.
  int8: { element: 'int8', signBit: 0 },
};

const mxQuant: Runner = {
  unfit({ params }) {
    if (params.block_size !== 32) return `blocks of ${params.block_size}, and ours are of 32`;
    if (params.scale !== 'e8m0') return `the scale is ${params.scale}`;
    if (!elements[params.element as string]) return `${params.element}: no such element type`;
    return null;
  },
  async run(check: Check) {
    const { element, signBit } = elements[check.param<string>('element')] as (typeof elements)[string];
    const x = await check.input('x');
    // Blocks down the columns are blocks along the rows of the transpose.
    const down = check.param<number>('axis') === 0;
    using q = quantize(down ? x.transpose() : x, {
      kind: 'mx',
      element,
      rounding: check.param<'even' | 'nearest' | 'floor'>('round'),
    });
    const upright = async (tensor: Tensor) => {
      const values = await valuesOf(tensor);
      return down ? transposed(values) : values;
    };
    await check.output('codes', await upright(q.parts.codes as Tensor), { context: { signBit } });
    await check.output('scale_e8m0', await upright(q.parts.scales as Tensor));
    await check.output('y', await upright(dequantize(q)));
  },
};

export const mx: Runners = { mx_quant: mxQuant };
