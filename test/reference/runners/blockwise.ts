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
    await check.output('absmax', single.parts.absmax as Tensor, zeroAbsmax(zero));
    await check.output('absmax_codes', parts.absmaxCodes as Tensor);
    await check.output('absmax2', parts.absmaxScales as Tensor);
    await check.output('absmax_offset', parts.absmaxOffset as Tensor);
    await check.output('absmax_dequant', parts.absmax as Tensor);
  },
};

/** The bytes as a bitsandbytes checkpoint holds them. */
async function checkPacked(check: Check, q: QuantizedTensor, x: Tensor): Promise<void> {
  const encoded = await getFormat('bitsandbytes').encode('m', q, x.dtype);
  await check.output('packed', encoded.get('m.weight') as Tensor);
}

/** The 256 values of the dynamic map, by way of a block with absmax 1. */
async function dynamicMap(): Promise<Values> {
  const codes = Tensor.from(Uint8Array.from({ length: 256 }, (_, code) => code), [1, 256]);
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
