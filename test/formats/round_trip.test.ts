import { describe, expect, test } from 'vitest';
import { type FormatName, getFormat, type JsonObject } from '../../lib/formats';
import type { ModelMap } from '../../lib/models';
import { dequantize, quantize } from '../../lib/ops/quantize';
import { QuantizedTensor } from '../../lib/quantized';
import type { IntScheme, QuantScheme } from '../../lib/scheme';
import { type DType, Tensor } from '../../lib/tensor';
import { memoryCheckpoint, type Raw, rawOf } from './memory_checkpoint';
import * as reference from './reference_decoder';
import { difference, nastyWeight } from './weights';

const MODULE = 'model.layers.0.self_attn.q_proj';

const int = (bits: IntScheme['bits'], symmetric: boolean, groupSize?: number): QuantScheme => ({
  kind: 'int',
  bits,
  symmetric,
  ...(symmetric ? { range: 'full' } : {}),
  ...(groupSize === undefined ? { granularity: 'row' } : { granularity: 'group', groupSize }),
});
const grids = (bits: readonly IntScheme['bits'][], groups: readonly (number | undefined)[]) =>
  bits.flatMap((width) => groups.flatMap((group) => [int(width, true, group), int(width, false, group)]));

const fourBit: QuantScheme[] = (['nf4', 'fp4'] as const).flatMap((kind) =>
  [32, 64, 4096].flatMap((blockSize) =>
    [false, true].map((doubleQuant): QuantScheme => ({ kind, blockSize, doubleQuant })),
  ),
);

/** What each format carries, on shapes that it can hold: whole words or not, one row, widths with odd factors. */
const carried: Readonly<
  Record<Exclude<FormatName, 'mxfp4'>, { schemes: QuantScheme[]; shapes: [number, number][] }>
> = {
  gptq: {
    schemes: grids([2, 3, 4, 8], [undefined, 32, 64]),
    shapes: [
      [32, 64],
      [96, 320],
      [64, 32],
    ],
  },
  awq: {
    schemes: grids([4], [undefined, 16, 64]),
    shapes: [
      [8, 64],
      [40, 112],
      [96, 50],
    ],
  },
  'compressed-tensors': {
    schemes: [
      ...grids([2, 3, 4, 5, 6, 8], [undefined, 16, 32]),
      { kind: 'int', bits: 8, symmetric: true, granularity: 'tensor' },
      { kind: 'int', bits: 8, symmetric: true, range: 'restricted', granularity: 'row' },
      { kind: 'fp8', format: 'e4m3', granularity: 'row' },
      { kind: 'fp8', format: 'e4m3', granularity: 'tensor' },
      { kind: 'mx', element: 'e2m1' },
      { kind: 'mx', element: 'e4m3' },
    ],
    shapes: [
      [1, 32],
      [33, 64],
      [5, 172],
      [13, 96],
      [40, 50],
    ],
  },
  bitsandbytes: {
    schemes: [...fourBit, { kind: 'llm.int8', threshold: 6 }],
    shapes: [
      [1, 1],
      [3, 7],
      [13, 50],
      [33, 64],
      [130, 257],
    ],
  },
  quanto: {
    schemes: [
      ...grids([2, 4], [undefined, 128]),
      int(8, true),
      { kind: 'int', bits: 8, symmetric: true, range: 'restricted', granularity: 'row' },
      { kind: 'fp8', format: 'e4m3', granularity: 'row' },
      { kind: 'fp8', format: 'e5m2', granularity: 'row' },
    ],
    shapes: [
      [1, 64],
      [5, 128],
      [13, 320],
      [7, 256],
      [3, 172],
    ],
  },
};

const modelDtypes: DType[] = ['bfloat16', 'float16', 'float32'];

interface Case {
  format: keyof typeof carried;
  scheme: QuantScheme;
  shape: [number, number];
  dtype: DType;
}

const cases: Case[] = Object.entries(carried).flatMap(([format, { schemes, shapes }]) =>
  schemes.flatMap((scheme) =>
    shapes
      .filter(([, width]) => scheme.kind !== 'mx' || width % 32 === 0)
      .map((shape, index) => ({
        format: format as keyof typeof carried,
        scheme,
        shape,
        dtype: modelDtypes[index % modelDtypes.length] as DType,
      })),
  ),
);

const label = ({ format, scheme, shape, dtype }: Case) =>
  `${format} ${JSON.stringify(scheme)} [${shape.join(', ')}] ${dtype}`;

async function encoded(name: FormatName, q: QuantizedTensor, dtype: DType): Promise<Map<string, Raw>> {
  const format = getFormat(name);
  const linear = { name: MODULE, role: 'attention', shape: q.shape, layer: 0 } as never;
  const settled = format.settle([{ module: MODULE, linear, scheme: q.scheme }]);
  const tensors = new Map<string, Raw>();
  for (const [tensor, value] of await settled.encode(MODULE, q, dtype))
    tensors.set(tensor, await rawOf(value));
  return tensors;
}

function decoderOf({ format, scheme }: Case) {
  if (format === 'gptq') return reference.gptq((scheme as IntScheme).symmetric ? 1 : 2);
  return {
    awq: reference.awq,
    'compressed-tensors': reference.compressedTensors,
    bitsandbytes: reference.bitsandbytes,
    quanto: reference.quanto,
  }[format];
}

describe('what is written decodes to the values of the quantized tensor', () => {
  test.each(cases.map((own) => [label(own), own] as const))('%s', async (_name, own) => {
    const { format: name, scheme: asked, shape, dtype } = own;
    const format = getFormat(name);
    const fit = format.fit(asked, shape, dtype);
    expect(fit.scheme).not.toBeNull();
    const scheme = fit.scheme as QuantScheme;
    const seed = shape[0] * 31 + shape[1];
    const q = quantize(Tensor.from(nastyWeight(shape[0], shape[1], seed), shape), scheme);
    const expected = await dequantize(q).toFloat32();
    const tensors = await encoded(name, q, dtype);

    const planned = format.entries(MODULE, scheme, shape, dtype);
    const header = [...tensors].map(([tensor, raw]) => ({
      name: tensor,
      dtype: raw.dtype,
      shape: raw.shape,
    }));
    expect(planned).toEqual(header);
    expect(difference(decoderOf({ ...own, scheme })(tensors, MODULE, shape), expected)).toBeNull();

    const linear = { name: MODULE, role: 'attention', shape, layer: 0, expert: null } as never;
    const plan = [{ module: MODULE, linear, scheme }];
    const config = format.settle(plan).config({
      model: { architecture: 'llama', wrapped: false } as ModelMap,
      modelDtype: dtype,
      quantized: plan,
      kept: [],
      config: null,
      method: 'rtn',
    });
    const json = { quantization_config: config.quantizationConfig } as JsonObject;
    const source = memoryCheckpoint(tensors, json, config.files);
    expect(format.detect(json, new Set(tensors.keys()), config.files)).toBe(true);
    const [found, ...others] = await format.modules(source);
    expect(others).toEqual([]);
    expect(found).toMatchObject({ module: MODULE, shape });
    expect([...found!.tensors].sort()).toEqual([...tensors.keys()].sort());
    const back = await format.decode(found!, source.read);
    expect(back.shape).toEqual(q.shape);
    expect(difference(await dequantize(back).toFloat32(), expected)).toBeNull();
    for (const [part, tensor] of Object.entries(q.stored)) {
      const again = back.stored[part];
      const same = Buffer.from((await rawOf(again as Tensor)).bytes).equals((await rawOf(tensor)).bytes);
      expect([part, same]).toEqual([part, true]);
    }
  });
});

describe('act-order: the group of each column is kept', () => {
  const shape: [number, number] = [32, 96];
  const groupIndex = Int32Array.from({ length: 96 }, (_, column) => (column * 7) % 3);

  test.each(['gptq', 'compressed-tensors'] as const)('%s', async (name) => {
    const format = getFormat(name);
    const scheme = format.fit(int(4, false, 32), shape, 'float16').scheme as QuantScheme;
    const next = quantize(Tensor.from(nastyWeight(32, 96, 5), shape), scheme).parts;
    const q = QuantizedTensor.fromParts(scheme, shape, {
      ...next,
      groupIndex: Tensor.from(groupIndex, [96]),
    });
    const expected = await dequantize(q).toFloat32();
    const tensors = await encoded(name, q, 'float16');
    expect(
      format.entries(MODULE, scheme, shape, 'float16', { groupIndex: true }).map((entry) => entry.name),
    ).toEqual([...tensors.keys()]);
    const decoder = name === 'gptq' ? reference.gptq(2) : reference.compressedTensors;
    expect(difference(decoder(tensors, MODULE, shape), expected)).toBeNull();
    const config = {
      quantization_config: { quant_method: name, checkpoint_format: 'gptq_v2', sym: false, group_size: 32 },
    };
    const source = memoryCheckpoint(tensors, config);
    const back = await format.decode((await format.modules(source))[0]!, source.read);
    expect(await back.parts.groupIndex!.read()).toEqual(groupIndex);
    expect(difference(await dequantize(back).toFloat32(), expected)).toBeNull();
  });
});
