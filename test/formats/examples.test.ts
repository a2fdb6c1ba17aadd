import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type FormatName, getFormat } from '../../lib/formats';
import { dynamicMap, fp4Map, nf4Map } from '../../lib/formats/bnb_maps';
import { quantize } from '../../lib/ops/quantize';
import { QuantizedTensor } from '../../lib/quantized';
import type { QuantScheme } from '../../lib/scheme';
import { Tensor } from '../../lib/tensor';
import { type Raw, rawOf } from './memory_checkpoint';

/** Byte examples of the formats' descriptions, each checked there against the library that defines the format. */

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex').replace(/../g, '$& ').trim();

async function write(
  name: FormatName,
  q: QuantizedTensor,
  settleOn: QuantScheme = q.scheme,
): Promise<Map<string, Raw>> {
  const linear = { name: 'm', role: 'attention', shape: q.shape, layer: 0 } as never;
  const format = getFormat(name).settle([{ module: 'm', linear, scheme: settleOn }]);
  const tensors = new Map<string, Raw>();
  for (const [tensor, value] of await format.encode('m', q, 'bfloat16'))
    tensors.set(tensor, await rawOf(value));
  return tensors;
}

/** A weight of these unsigned codes, `code(row, column)`, one scale of 1 per row. */
function ofCodes(
  scheme: QuantScheme & { kind: 'int' },
  [rows, width]: readonly [number, number],
  code: (row: number, column: number) => number,
  zero = 0,
): QuantizedTensor {
  const values = Array.from({ length: rows * width }, (_, index) =>
    code(Math.floor(index / width), index % width),
  );
  return QuantizedTensor.fromParts(scheme, [rows, width], {
    codes: Tensor.from(scheme.symmetric ? Int8Array.from(values) : Uint8Array.from(values), [rows, width]),
    scales: Tensor.from(new Float32Array(rows).fill(1), [rows, 1]),
    ...(scheme.symmetric ? {} : { zeros: Tensor.from(new Int32Array(rows).fill(zero), [rows, 1]) }),
  });
}

const grid = (
  bits: 2 | 3 | 4 | 8,
  symmetric: boolean,
  scaleDtype: 'float16' | 'bfloat16',
): QuantScheme & { kind: 'int' } => ({
  kind: 'int',
  bits,
  symmetric,
  ...(symmetric ? { range: 'full' as const } : {}),
  granularity: 'row',
  scaleDtype,
});

test('gptq: inputs 0 to 7 with codes 0 to 7 are the word 0x76543210', async () => {
  const q = ofCodes(grid(4, false, 'float16'), [32, 32], (_, column) => column % 8, 1);
  const tensors = await write('gptq', q);
  expect(hex(tensors.get('m.qweight')!.bytes.subarray(0, 4))).toBe('10 32 54 76');
});

test.each([
  [4, '77 77 77 77', '88 88 88 88'],
  [8, '7f 7f 7f 7f', '80 80 80 80'],
  [2, '55 55 55 55', 'aa aa aa aa'],
] as const)(
  'gptq: symmetric %i-bit zero points, version 1 less one and version 2 as they are',
  async (bits, one, two) => {
    const q = ofCodes(grid(bits, true, 'float16'), [32, 32], () => 0);
    expect(hex((await write('gptq', q)).get('m.qzeros')!.bytes.subarray(0, 4))).toBe(one);
    const mixed = await write('gptq', q, grid(bits, false, 'float16'));
    expect(hex(mixed.get('m.qzeros')!.bytes.subarray(0, 4))).toBe(two);
  },
);

test('awq: outputs 0 to 7 with codes 0 to 7 are the word 0x75316420', async () => {
  const tensors = await write(
    'awq',
    ofCodes(grid(4, false, 'float16'), [8, 16], (row) => row),
  );
  expect(hex(tensors.get('m.qweight')!.bytes.subarray(0, 4))).toBe('20 64 31 75');
});

test('awq: a symmetric grid has zero points of 8', async () => {
  const tensors = await write(
    'awq',
    ofCodes(grid(4, true, 'float16'), [8, 16], () => 0),
  );
  expect(hex(tensors.get('m.qzeros')!.bytes)).toBe('88 88 88 88');
});

test('compressed-tensors: 4-bit -8 to -1 and 8-bit -128, -1, 0, 127, offset and packed along the input', async () => {
  const narrow = await write(
    'compressed-tensors',
    ofCodes(grid(4, true, 'bfloat16'), [1, 8], (_, column) => column - 8),
  );
  expect(hex(narrow.get('m.weight_packed')!.bytes)).toBe('10 32 54 76');
  const codes = [-128, -1, 0, 127];
  const wide = await write(
    'compressed-tensors',
    ofCodes(grid(8, true, 'bfloat16'), [1, 4], (_, column) => codes[column]!),
  );
  expect(hex(wide.get('m.weight_packed')!.bytes)).toBe('00 7f 80 ff');
});

test('compressed-tensors: E2M1 0.5, -6, 1.5, -0, even column in the low nibble', async () => {
  const codes = [0x1, 0xf, 0x3, 0x8];
  const q = QuantizedTensor.fromParts({ kind: 'mx', element: 'e2m1' }, [1, 32], {
    codes: Tensor.from(
      Uint8Array.from({ length: 32 }, (_, column) => codes[column] ?? 0),
      [1, 32],
    ),
    scales: Tensor.from(Uint8Array.of(127), [1, 1]),
  });
  const tensors = await write('compressed-tensors', q);
  expect(hex(tensors.get('m.weight_packed')!.bytes.subarray(0, 2))).toBe('f1 83');
  expect(hex(tensors.get('m.weight_scale')!.bytes)).toBe('7f');
});

test.each([
  ['nf4', 'f1 c7 86 b0'],
  ['fp4', '3a 50 19 4b'],
] as const)(
  'bitsandbytes: %s bytes of the example, first element in the high nibble',
  async (kind, expected) => {
    const weight = Tensor.from([1.0, -0.7, 0.5, 0, 0.08, -0.05, 0.3, -1.0], [1, 8]);
    const tensors = await write('bitsandbytes', quantize(weight, { kind, blockSize: 64 }));
    expect(hex(tensors.get('m.weight')!.bytes)).toBe(expected);
    expect(tensors.get('m.weight')!.shape).toEqual([4, 1]);
  },
);

test('bitsandbytes: the quant_state text has the spacing of Python, and spaces after it only where digits vary', async () => {
  const weight = Tensor.from(
    Float32Array.from({ length: 96 * 128 }, (_, index) => Math.sin(index)),
    [96, 128],
  );
  const plain = await write('bitsandbytes', quantize(weight, { kind: 'nf4', blockSize: 64 }));
  const text = (tensors: Map<string, Raw>) =>
    Buffer.from(tensors.get('m.weight.quant_state.bitsandbytes__nf4')!.bytes).toString('utf8');
  expect(text(plain)).toBe('{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [96, 128]}');
  const nested = await write(
    'bitsandbytes',
    quantize(weight, { kind: 'nf4', blockSize: 64, doubleQuant: true }),
  );
  expect(text(nested)).toMatch(
    /^\{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": \[96, 128\], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": [0-9.e-]+\} *$/,
  );
});

test('bitsandbytes: the maps are those of the library, bit for bit', () => {
  const bytes = (map: Float32Array) => new Uint8Array(map.buffer);
  const hash = (map: Float32Array) => createHash('sha256').update(bytes(map)).digest('hex');
  expect(hash(nf4Map)).toBe('8501941daa1b8a90ad1bbfeb632e5101b5dddbc4bb52d6e55abcfd777e60c06a');
  expect(hash(dynamicMap)).toBe('e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c');
  expect(hex(bytes(fp4Map)).replaceAll(' ', '')).toBe(
    '00000000abaaaa3babaa2a3f0000803fabaaaa3e0000003fabaa2a3e0000803e00000000abaaaabbabaa2abf000080bfabaaaabe000000bfabaa2abe000080be',
  );
});

test.each([
  [4, [1, 2, 3, 4, 5], '41 52 03'],
  [2, [0, 1, 2, 3, 1], '18 0d'],
] as const)('quanto: %i-bit rows are packed in planes', async (bits, rows, expected) => {
  // One column: the planes of the example, each byte of it.
  const q = ofCodes(grid(bits, false, 'bfloat16'), [5, 1], (row) => rows[row]!);
  expect(hex((await write('quanto', q)).get('m.weight._data._data')!.bytes)).toBe(expected);
});

test('llm.int8: absmax as it is, not divided by 127, and layout 0', async () => {
  const tensors = await write(
    'bitsandbytes',
    quantize(Tensor.from([1, -2, 0.5, 4], [2, 2]), { kind: 'llm.int8' }),
  );
  expect([...new Float32Array(tensors.get('m.SCB')!.bytes.buffer)]).toEqual([2, 4]);
  expect([...new Int8Array(tensors.get('m.weight')!.bytes.buffer)]).toEqual([64, -127, 16, 127]);
  expect(tensors.get('m.weight_format')).toMatchObject({ dtype: 'U8', shape: [] });
  expect(tensors.get('m.weight_format')!.bytes[0]).toBe(0);
});
