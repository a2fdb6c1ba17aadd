import { swapNibbles, unpackBits } from '../../../lib/ops/bits';
import { linear, matmul } from '../../../lib/ops/linear';
import { dequantize, quantize } from '../../../lib/ops/quantize';
import { bitRowBytes } from '../../../lib/ops/stored_form';
import { QuantizedTensor } from '../../../lib/quantized';
import type { IntBits, IntScheme } from '../../../lib/scheme';
import { Tensor } from '../../../lib/tensor';
import type { Values } from '../compare';
import { type Check, mapValues, type Runner, type Runners, valuesOf } from '../harness';
import { quantized } from './integer_grid';

/** x wᵀ + bias in float64. */
function product(x: Values, w: Values, bias?: Values): Values {
  const [tokens, width] = x.shape as [number, number];
  const out = w.shape[0] as number;
  const y = Array.from({ length: tokens * out }, (_, i) => {
    const [t, o] = [Math.floor(i / out), i % out];
    let sum = (bias?.data[o] as number | undefined) ?? 0;
    for (let k = 0; k < width; k++)
      sum += (x.data[t * width + k] as number) * (w.data[o * width + k] as number);
    return sum;
  });
  return { shape: [tokens, out], data: y };
}

/** The codes of byte-aligned bit rows, first code lowest. */
async function unpackRows(check: Check, [rows, columns]: [number, number], bits: number): Promise<Tensor> {
  const packed = await valuesOf(await check.input('packed'));
  const recorded = packed.shape[1] as number;
  const stride = bitRowBytes(columns, bits);
  const bytes = new Uint8Array(rows * stride);
  for (let i = 0; i < packed.data.length; i++) {
    bytes[Math.floor(i / recorded) * stride + (i % recorded)] = packed.data[i] as number;
  }
  return unpackBits(Tensor.from(bytes, [rows, stride]), columns, bits);
}

/** The library's product, to the tolerance of the recorded one. */
async function fusedProduct(check: Check, name: string, y: Tensor): Promise<void> {
  await check.also(`y (${name})`, y, await check.values('y'), check.facts.tensors.y!.compare!);
}

/** Codes, scales and zeros that come from elsewhere; the product in float64 of the dequantized weight, and the fused one. */
const dequantMatmul: Runner = {
  async run(check) {
    const bits = check.param<IntBits>('bits');
    const groupSize = check.param<number>('group_size');
    const shape: [number, number] = [check.param<number>('out'), check.param<number>('in')];
    const granularity = groupSize === -1 ? 'row' : 'group';
    const size = groupSize === -1 ? {} : { groupSize };
    const codes = await unpackRows(check, shape, bits);
    await check.also('codes', codes, await check.values('codes'), { mode: 'exact' });
    const scales = (await check.input('scale')).cast('float32');
    const zero = await check.values('zero');
    const affine: IntScheme = { kind: 'int', bits, symmetric: false, granularity, ...size };
    using q = QuantizedTensor.fromParts(affine, shape, {
      codes,
      scales,
      zeros: Tensor.from(Int32Array.from(zero.data), [...zero.shape]),
    });
    const w = await valuesOf(dequantize(q));
    if (check.has('deq')) await check.output('deq', w);
    const bias = check.has('bias') ? await check.values('bias') : undefined;
    await check.output('y', product(await check.values('x'), w, bias));
    await fusedProduct(check, 'linear', await linearOf(check, q));
    if (check.param<boolean>('sym'))
      await checkSymmetric(check, { ...affine, symmetric: true, range: 'full' }, shape, w);
  },
};

/** x and bias as they are recorded, times a weight. */
async function linearOf(check: Check, q: QuantizedTensor): Promise<Tensor> {
  const bias = check.has('bias') ? await check.input('bias') : undefined;
  return linear(await check.input('x'), q, { bias, outDtype: 'float32' });
}

/** The same codes with the fixed zero point taken off are those of a symmetric scheme. */
async function checkSymmetric(
  check: Check,
  scheme: IntScheme,
  shape: number[],
  expected: Values,
): Promise<void> {
  const middle = 2 ** (scheme.bits - 1);
  const codes = mapValues(await check.values('codes'), (code) => code - middle);
  using q = QuantizedTensor.fromParts(scheme, shape, {
    codes: Tensor.from(Int8Array.from(codes.data), [...codes.shape]),
    scales: (await check.input('scale')).cast('float32'),
  });
  await check.also('deq (symmetric)', dequantize(q), expected, { mode: 'exact' });
  await fusedProduct(check, 'linear, symmetric', await linearOf(check, q));
}

/** The frozen base of an adapter: 4-bit codes, the first one in the high nibble. */
const frozenBase: Runner = {
  async run(check) {
    const recorded = await check.values('w_dequant');
    const [out, width] = recorded.shape as [number, number];
    const packed = await check.input('packed');
    const codes = unpackBits(swapNibbles(packed.reshape([1, -1])), out * width, 4).reshape([out, width]);
    using q = QuantizedTensor.fromParts(
      { kind: check.param<'nf4' | 'fp4'>('format'), blockSize: check.param<number>('block_size') },
      [out, width],
      { codes, absmax: await check.input('absmax') },
    );
    const w = await valuesOf(dequantize(q));
    await check.also('w_dequant', w, recorded, { mode: 'exact' });
    const x = await check.values('x');
    const base = product(x, w);
    const low = product(product(x, await check.values('lora_a')), await check.values('lora_b'));
    const scaling = check.param<number>('scaling');
    await check.output(
      'y',
      mapValues(base, (value, i) => value + scaling * (low.data[i] as number)),
    );
    const input = await check.input('x');
    const fused = await valuesOf(linear(input, q));
    const down = matmul(input, await check.input('lora_a'), { transposeB: true });
    const up = await valuesOf(matmul(down, await check.input('lora_b'), { transposeB: true }));
    const sum = mapValues(fused, (value, i) => value + scaling * (up.data[i] as number));
    await check.also('y (linear)', sum, await check.values('y'), check.facts.tensors.y!.compare!);
    check.omit('adapters are not trained here', 'grad_lora_a', 'grad_lora_b', 'grad_x');
  },
};

/** Both sides in symmetric 4 bits: one scale for each row of the weight and for each token. */
const int4Linear: Runner = {
  async run(check) {
    const scheme: IntScheme = {
      kind: 'int',
      bits: 4,
      symmetric: true,
      range: 'restricted',
      granularity: 'row',
    };
    const [w, x] = [
      await quantized(await check.input('w'), scheme),
      await quantized(await check.input('x'), scheme),
    ];
    await check.output('w_codes', w.codes);
    await check.output('x_codes', x.codes);
    await check.also('w_scale', w.scales, await check.values('w_scale'), { mode: 'exact' });
    await check.also('x_scale', x.scales, await check.values('x_scale'), { mode: 'exact' });
    await check.output('acc', product(x.codes, w.codes));
    await check.output('y', product(x.dequantized, w.dequantized));
    using q = quantize(await check.input('w'), scheme);
    const states = dequantize(quantize(await check.input('x'), scheme));
    await fusedProduct(check, 'linear', linear(states, q));
    const codes = (values: Values) => Tensor.from(Float32Array.from(values.data), [...values.shape]);
    const sums = matmul(codes(x.codes), codes(w.codes), { transposeB: true });
    await check.also('acc (matmul)', sums, await check.values('acc'), { mode: 'exact' });
  },
};

export const dequantization: Runners = {
  dequant_matmul: dequantMatmul,
  lora_4bit_linear: frozenBase,
  int4_int4_linear: int4Linear,
};
