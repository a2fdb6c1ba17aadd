import { describe, expect, test } from 'vitest';
import { type FormatName, getFormat, type JsonObject } from '../../lib/formats';
import { quantize } from '../../lib/ops/quantize';
import type { QuantScheme } from '../../lib/scheme';
import { Tensor } from '../../lib/tensor';
import { memoryCheckpoint, type Raw, rawOf } from './memory_checkpoint';
import { nastyWeight } from './weights';

type Change = (tensors: Map<string, Raw>, config: { quantization_config: Record<string, unknown> }) => void;

const int4: QuantScheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 };
const row8: QuantScheme = { kind: 'int', bits: 8, symmetric: true, range: 'full', granularity: 'row' };
const nf4: QuantScheme = { kind: 'nf4', blockSize: 64 };

async function checkpoint(name: FormatName, asked: QuantScheme) {
  const shape: [number, number] = [32, 256];
  const format = getFormat(name);
  const fit = format.fit(asked, shape, 'bfloat16');
  const q = quantize(Tensor.from(nastyWeight(32, 256, 3), shape), fit.scheme as QuantScheme);
  const tensors = new Map<string, Raw>();
  for (const [tensor, value] of await format.encode('m', q, 'bfloat16'))
    tensors.set(tensor, await rawOf(value));
  const config: Record<string, unknown> = { quant_method: name };
  if (name === 'gptq')
    Object.assign(config, { checkpoint_format: 'gptq_v2', bits: 4, group_size: 32, sym: false });
  if (name === 'quanto') delete config.quant_method;
  return { tensors, config: { quantization_config: config } };
}

async function readAll(
  name: FormatName,
  tensors: Map<string, Raw>,
  config: object,
  files: Record<string, string> = {},
) {
  const format = getFormat(name);
  const source = memoryCheckpoint(tensors, config as JsonObject, files);
  for (const module of await format.modules(source)) {
    for (const tensor of Object.values((await format.decode(module, source.read)).stored))
      await tensor.read();
  }
}

const remove =
  (name: string): Change =>
  (tensors) =>
    void tensors.delete(name);
const set =
  (name: string, part: Partial<Raw>): Change =>
  (tensors) =>
    void tensors.set(name, { ...(tensors.get(name) as Raw), ...part });
const raw = (dtype: string, shape: number[], size: number): Raw => ({
  dtype,
  shape,
  bytes: new Uint8Array(shape.reduce((product, count) => product * count, size)),
});
const text = (json: string): Partial<Raw> => ({
  shape: [json.length],
  bytes: new TextEncoder().encode(json),
});
const configure =
  (change: object): Change =>
  (_, { quantization_config: config }) =>
    void Object.assign(config, change);
const both =
  (...changes: Change[]): Change =>
  (tensors, config) => {
    for (const change of changes) change(tensors, config);
  };
const STATE = 'm.weight.quant_state.bitsandbytes__nf4';
const state = (changes: object): Change =>
  set(
    STATE,
    text(
      JSON.stringify({ quant_type: 'nf4', blocksize: 64, dtype: 'bfloat16', shape: [32, 256], ...changes }),
    ),
  );

/** what is wrong, how it comes about, and the tensor that the error must name */
const faults: [FormatName, QuantScheme, string, Change, string][] = [
  ['gptq', int4, 'no scales', remove('m.scales'), 'm.scales'],
  ['gptq', int4, 'no zero points', remove('m.qzeros'), 'm.qzeros'],
  ['gptq', int4, 'codes of another dtype', set('m.qweight', raw('U8', [32, 32], 1)), 'm.qweight'],
  ['gptq', int4, 'codes of three dimensions', set('m.qweight', { shape: [1, 32, 32] }), 'm.qweight'],
  ['gptq', int4, 'too few zero points', set('m.qzeros', raw('I32', [8, 3], 4)), 'm.qzeros'],
  ['gptq', int4, 'bits that no scheme has', set('m.qweight', raw('I32', [40, 32], 4)), 'm.qweight'],
  ['gptq', int4, 'groups that do not split the width', set('m.scales', raw('F16', [7, 32], 2)), 'm.qzeros'],
  [
    'gptq',
    int4,
    'a negative group',
    (tensors) => void new Int32Array(tensors.get('m.g_idx')!.bytes.buffer).set([-1], 3),
    'm.g_idx',
  ],
  [
    'gptq',
    int4,
    'a group that is not there',
    (tensors) => void new Int32Array(tensors.get('m.g_idx')!.bytes.buffer).set([8], 3),
    'm.g_idx',
  ],
  ['gptq', int4, 'no g_idx and no bits', both(remove('m.g_idx'), configure({ bits: undefined })), 'bits'],
  ['gptq', int4, 'a pattern that is none', configure({ dynamic: { '+:(': {} } }), 'dynamic'],
  ['awq', int4, 'no scales', remove('m.scales'), 'm.scales'],
  ['awq', int4, 'scales of another width', set('m.scales', raw('F16', [8, 40], 2)), 'm.qweight'],
  ['compressed-tensors', int4, 'no shape', remove('m.weight_shape'), 'm.weight_shape'],
  [
    'compressed-tensors',
    int4,
    'a negative shape',
    (tensors) => void new BigInt64Array(tensors.get('m.weight_shape')!.bytes.buffer).set([-32n]),
    'm.weight_shape',
  ],
  [
    'compressed-tensors',
    int4,
    'a shape past 2^53',
    (tensors) => void new BigInt64Array(tensors.get('m.weight_shape')!.bytes.buffer).set([32n, 2n ** 62n]),
    'm.weight_shape',
  ],
  [
    'compressed-tensors',
    int4,
    'another shape',
    (tensors) => void new BigInt64Array(tensors.get('m.weight_shape')!.bytes.buffer).set([31n, 256n]),
    'm.weight_packed',
  ],
  [
    'compressed-tensors',
    int4,
    'a width of no bits',
    (tensors) => void new BigInt64Array(tensors.get('m.weight_shape')!.bytes.buffer).set([32n, 999n]),
    'm.weight_packed',
  ],
  [
    'compressed-tensors',
    int4,
    'groups that do not divide',
    set('m.weight_scale', raw('BF16', [32, 7], 2)),
    'm.weight_scale',
  ],
  [
    'compressed-tensors',
    int4,
    'zero points of another shape',
    set('m.weight_zero_point', raw('I32', [3, 8], 4)),
    'm.weight_zero_point',
  ],
  [
    'compressed-tensors',
    row8,
    'integer scales',
    set('m.weight_scale', raw('I8', [32, 1], 1)),
    'm.weight_scale',
  ],
  [
    'compressed-tensors',
    { kind: 'mx', element: 'e2m1' },
    'half a block',
    set('m.weight_packed', raw('U8', [32, 120], 1)),
    'm.weight_packed',
  ],
  [
    'compressed-tensors',
    { kind: 'mx', element: 'e4m3' },
    'too few scales',
    set('m.weight_scale', raw('U8', [32, 7], 1)),
    'm.weight_scale',
  ],
  [
    'compressed-tensors',
    { kind: 'fp8', format: 'e4m3', granularity: 'row' },
    'an E5M2 weight',
    set('m.weight', { dtype: 'F8_E5M2' }),
    'm.weight',
  ],
  ['bitsandbytes', nf4, 'no absmax', remove('m.weight.absmax'), 'm.weight.absmax'],
  ['bitsandbytes', nf4, 'state that is no JSON', set(STATE, text('{"quant_type": ')), STATE],
  ['bitsandbytes', nf4, 'state that is no object', set(STATE, text('[]')), STATE],
  ['bitsandbytes', nf4, 'state of megabytes', set(STATE, raw('U8', [1 << 20], 1)), STATE],
  ['bitsandbytes', nf4, 'another quant_type', state({ quant_type: 'fp4' }), STATE],
  ['bitsandbytes', nf4, 'blocks of zero', state({ blocksize: 0 }), STATE],
  ['bitsandbytes', nf4, 'blocks of 1.5', state({ blocksize: 1.5 }), STATE],
  ['bitsandbytes', nf4, 'a shape of three sizes', state({ shape: [32, 16, 16] }), STATE],
  ['bitsandbytes', nf4, 'a shape of text', state({ shape: ['32', 256] }), STATE],
  ['bitsandbytes', nf4, 'a shape of more weights', state({ shape: [33, 256] }), 'm.weight'],
  [
    'bitsandbytes',
    nf4,
    'another map',
    (tensors) => void new Float32Array(tensors.get('m.weight.quant_map')!.bytes.buffer).set([0.5], 3),
    'm.weight.quant_map',
  ],
  [
    'bitsandbytes',
    { ...nf4, doubleQuant: true } as QuantScheme,
    'nested blocks without an offset',
    (tensors, config) => {
      state({ nested_blocksize: 256 })(tensors, config);
    },
    STATE,
  ],
  [
    'bitsandbytes',
    { ...nf4, doubleQuant: true } as QuantScheme,
    'no nested absmax',
    remove('m.weight.nested_absmax'),
    'm.weight.nested_absmax',
  ],
  [
    'bitsandbytes',
    { kind: 'llm.int8' },
    'another layout',
    set('m.weight_format', { bytes: Uint8Array.of(1) }),
    'm.weight_format',
  ],
  ['bitsandbytes', { kind: 'llm.int8' }, 'too few absmax', set('m.SCB', raw('F32', [31], 4)), 'm.SCB'],
  ['quanto', int4, 'no shift', remove('m.weight._shift'), 'm.weight._shift'],
  [
    'quanto',
    int4,
    'planes of no bits',
    set('m.weight._data._data', raw('U8', [31, 128], 1)),
    'm.weight._data._data',
  ],
  ['quanto', int4, 'a shape that nothing tells', () => undefined, 'm.weight._data._data'],
  ['quanto', row8, 'too few scales', set('m.weight._scale', raw('BF16', [31, 1], 2)), 'm.weight._scale'],
];

describe('what is not the format is refused, naming the tensor', () => {
  test.each(faults)('%s %j: %s', async (name, scheme, _fault, change, tensor) => {
    const { tensors, config } = await checkpoint(name, scheme);
    change(tensors, config);
    await expect(readAll(name, tensors, config)).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining(tensor),
    });
  });
});

describe('what the library writes but this one cannot hold is unsupported, not malformed', () => {
  const cases: [FormatName, QuantScheme, string, Change, string][] = [
    ['awq', int4, 'the gemv layout', configure({ version: 'gemv' }), 'gemv'],
    [
      'compressed-tensors',
      int4,
      'NVFP4',
      (tensors) => void tensors.set('m.weight_global_scale', raw('F32', [1], 4)),
      'nvfp4',
    ],
    ['quanto', int4, 'float shifts', set('m.weight._shift', raw('BF16', [64, 1], 2)), 'float shift'],
  ];
  test.each(cases)('%s %j: %s', async (name, scheme, _what, change, words) => {
    const { tensors, config } = await checkpoint(name, scheme);
    change(tensors, config);
    await expect(readAll(name, tensors, config)).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED',
      message: expect.stringContaining(words),
    });
  });
});

describe('what other tools write differently is read', () => {
  test('gptq: a configuration that says symmetric over zero points that are not is read as affine', async () => {
    const { tensors, config } = await checkpoint('gptq', int4);
    config.quantization_config.sym = true;
    const format = getFormat('gptq');
    const source = memoryCheckpoint(tensors, config as JsonObject);
    const back = await format.decode((await format.modules(source))[0]!, source.read);
    expect(back.scheme).toMatchObject({ symmetric: false });
  });

  test('gptq: bits and groups come from the configuration where g_idx is left out', async () => {
    const { tensors, config } = await checkpoint('gptq', int4);
    tensors.delete('m.g_idx');
    const [module] = await getFormat('gptq').modules(memoryCheckpoint(tensors, config as JsonObject));
    expect(module).toMatchObject({ shape: [32, 256], scheme: { bits: 4, groupSize: 32 } });
  });

  test('gptq: a quantize_config.json alone says the same', async () => {
    const { tensors, config } = await checkpoint('gptq', int4);
    const files = { 'quantize_config.json': JSON.stringify(config.quantization_config) };
    const format = getFormat('gptq');
    expect(format.detect({}, new Set(tensors.keys()), files)).toBe(true);
    expect((await format.modules(memoryCheckpoint(tensors, {}, files)))[0]?.detail.version).toBe(2);
  });

  test('bitsandbytes: storage in bfloat16 is the same bytes', async () => {
    const { tensors, config } = await checkpoint('bitsandbytes', nf4);
    const weight = tensors.get('m.weight')!;
    tensors.set('m.weight', { ...weight, dtype: 'BF16', shape: [weight.bytes.length / 2, 1] });
    const format = getFormat('bitsandbytes');
    const source = memoryCheckpoint(tensors, config as JsonObject);
    const back = await format.decode((await format.modules(source))[0]!, source.read);
    const again = await format.encode('m', back, 'bfloat16');
    expect((await rawOf(again.get('m.weight')!)).bytes).toEqual(weight.bytes);
  });

  test('quanto: the shape of grouped weights comes from the hidden size where the map has none', async () => {
    const { tensors, config } = await checkpoint('quanto', int4);
    const source = memoryCheckpoint(tensors, { ...config, hidden_size: 256 } as JsonObject);
    expect((await getFormat('quanto').modules(source))[0]).toMatchObject({ shape: [32, 256] });
  });

  test('compressed-tensors: int-quantized weights, as W8A8 checkpoints hold them', async () => {
    const tensors = new Map<string, Raw>([
      ['m.weight', { dtype: 'I8', shape: [2, 3], bytes: Uint8Array.from([1, 2, 128, 255, 127, 0]) }],
      [
        'm.weight_scale',
        { dtype: 'F32', shape: [2, 1], bytes: new Uint8Array(Float32Array.of(0.5, 2).buffer) },
      ],
    ]);
    const source = memoryCheckpoint(tensors, { quantization_config: { quant_method: 'compressed-tensors' } });
    const format = getFormat('compressed-tensors');
    const back = await format.decode((await format.modules(source))[0]!, source.read);
    expect([...(await back.parts.codes!.read())]).toEqual([1, 2, -128, -1, 127, 0]);
    expect([...(await back.parts.scales!.read())]).toEqual([0.5, 2]);
  });
});
