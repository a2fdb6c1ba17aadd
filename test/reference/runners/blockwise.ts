import { getFormat } from '../../../lib/formats';
import { dequantize, quantize } from '../../../lib/ops/quantize';
import { QuantizedTensor } from '../../../lib/quantized';
import type { CodebookScheme } from '../../../lib/scheme';
import { Tensor } from '../../../lib/tensor';
import type { Values } from '../compare';
import { type Check, type DocumentedDifference, type Runner, type Runners, valuesOf } from '../harness';

/** Blocks run over the flat tensor; whether each one holds anything but zeros. */
function zeroBlocks({ data }: Values, blockSize: number): boolean[] {
  const zero = new Array<boolean>(Math.ceil(data.length / blockSize)).fill(true);
  for (let i = 0; i < data.length; i++) if (data[i] !== 0) zero[Math.floor(i / blockSize)] = false;
  return zero;
}

/** A short last block of zeros has absmax 1e-38 in the peer, a full one 0. Here both have 0. */
function zeroAbsmax(zero: readonly boolean[]): { difference: DocumentedDifference } {
  return { difference: { at: (block) => zero[block] as boolean, instead: () => 0 } };
}

const blockwise4: Runner = {
  unfit: ({ params }) =>
    params.format === 'nf4' || params.format === 'fp4' ? null : `${params.format}: no such code book`,
  async run(check) {
    const kind = check.param<'nf4' | 'fp4'>('format');
    const scheme: CodebookScheme = {
      kind,
      blockSize: check.param<number>('block_size'),
      doubleQuant: check.param<boolean>('double_quant'),
    };
    const x = await check.input('x');
    const zero = zeroBlocks(await valuesOf(x), scheme.blockSize);
    using q = quantize(x, scheme);
    const parts = q.parts;
    await check.output('codes', parts.codes as Tensor);
    await check.output('deq', dequantize(q));
    await checkPacked(check, q, x);
    if (!scheme.doubleQuant) return check.output('absmax', parts.absmax as Tensor, zeroAbsmax(zero));

    using single = quantize(x, { ...scheme, doubleQuant: false });
    const absmax = await valuesOf(single.parts.absmax as Tensor);
    await check.output('absmax', absmax, zeroAbsmax(zero));
    await check.output('absmax_codes', parts.absmaxCodes as Tensor);
    await check.output('absmax2', parts.absmaxScales as Tensor);
    await check.output('absmax_offset', parts.absmaxOffset as Tensor);
    await check.output('absmax_dequant', parts.absmax as Tensor, await movedOffset(check, parts, absmax));
  },
};

/**
 * The peer sums absmax in float32, so that its mean can be a unit in the last place off. Decoded values, small beside a
 * large mean, show that unit. Here the mean is at least as close, and all values move by the same amount.
 */
async function movedOffset(check: Check, parts: Readonly<Record<string, Tensor>>, absmax: Values) {
  const [mine] = (await valuesOf(parts.absmaxOffset as Tensor)).data as ArrayLike<number> & [number];
  const [theirs] = (await check.values('absmax_offset')).data as ArrayLike<number> & [number];
  const mean = Array.from(absmax.data).reduce((sum, value) => sum + value, 0) / absmax.data.length;
  const apart = Math.abs(mine - mean);
  check.verdict('absmax_offset', apart <= Math.abs(theirs - mean) ? null : `: ${mine} for a mean of ${mean}`);
  const recorded = await check.values('absmax_dequant');
  return {
    difference: { at: () => true, instead: (i: number) => (recorded.data[i] as number) - theirs + mine },
  };
}

/** The bytes as a bitsandbytes checkpoint holds them. After an odd number of codes, the last nibble means nothing. */
async function checkPacked(check: Check, q: QuantizedTensor, x: Tensor): Promise<void> {
  const encoded = await getFormat('bitsandbytes').encode('m', q, x.dtype);
  const recorded = await check.values('packed');
  const last = recorded.data.length - 1;
  const isHalf = x.size % 2 === 1;
  await check.output('packed', encoded.get('m.weight') as Tensor, {
    difference: { at: (i) => isHalf && i === last, instead: (i) => (recorded.data[i] as number) & 0xf0 },
  });
}

/** The 256 values of the dynamic map, by way of a block with absmax 1. */
async function dynamicMap(): Promise<Values> {
  const codes = Tensor.from(
    Uint8Array.from({ length: 256 }, (_, code) => code),
    [1, 256],
  );
  const absmax = Tensor.from(Float32Array.of(1), [1]);
  using q = QuantizedTensor.fromParts({ kind: 'dynamic8', blockSize: 256 }, [1, 256], { codes, absmax });
  return valuesOf(dequantize(q));
}

const blockwise8: Runner = {
  unfit: ({ params }) =>
    params.codebook === 'dynamic' ? null : `the code book is ${params.codebook}, not the signed dynamic map`,
  async run(check) {
    const blockSize = check.param<number>('block_size');
    await check.also('codebook', await dynamicMap(), await check.values('codebook'), { mode: 'exact' });
    const x = await check.input('x');
    const zero = zeroBlocks(await valuesOf(x), blockSize);
    using q = quantize(x, { kind: 'dynamic8', blockSize });
    await check.output('codes', q.parts.codes as Tensor);
    await check.output('absmax', q.parts.absmax as Tensor, zeroAbsmax(zero));
    await check.output('deq', dequantize(q));
  },
};

export const blockwise: Runners = { blockwise_4bit: blockwise4, blockwise_8bit: blockwise8 };
