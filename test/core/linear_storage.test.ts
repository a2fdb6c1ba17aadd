/** Products put a weight's codes into their own order, in place: nobody else may notice. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  dequantize,
  linear,
  memory,
  openCheckpoint,
  QuantizedTensor,
  type QuantScheme,
  quantize,
  SafetensorsWriter,
  synchronize,
  Tensor,
} from '../../lib';
import { type FormatName, getFormat } from '../../lib/formats';
import { DEVICE } from '../device';
import { normals } from './random';

const [OUT, IN] = [40, 96];
const SCHEMES: QuantScheme[] = [
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 },
  { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 32, scaleDtype: 'float16' },
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32, scaleDtype: 'bfloat16' },
  { kind: 'int', bits: 8, symmetric: true, granularity: 'row' },
  { kind: 'int', bits: 3, symmetric: true, granularity: 'tensor' },
  { kind: 'int', bits: 16, symmetric: true, granularity: 'row' },
  { kind: 'int', bits: 4, symmetric: false, granularity: 'column' },
  { kind: 'nf4', blockSize: 32 },
  { kind: 'fp4', blockSize: 32, doubleQuant: true },
  { kind: 'dynamic8', blockSize: 32 },
  { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  { kind: 'mx', element: 'e2m1' },
  { kind: 'mx', element: 'e4m3', preScale: true },
  { kind: 'llm.int8' },
];

const make = (scheme: QuantScheme, [out, depth]: [number, number] = [OUT, IN]): QuantizedTensor =>
  quantize(Tensor.from(normals(out * depth, 1), [out, depth]), scheme);
const rows = (count: number): Tensor => Tensor.from(normals(count * IN, 2), [count, IN]);

async function bytesOf(tensor: Tensor): Promise<string> {
  const data = await tensor.read();
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('hex');
}

/** Parts and values, as bytes. */
async function contents(q: QuantizedTensor): Promise<Record<string, string>> {
  const found: Record<string, string> = { values: await bytesOf(dequantize(q)) };
  for (const [name, part] of Object.entries(q.parts)) found[name] = await bytesOf(part);
  return found;
}

describe.each(SCHEMES.map((scheme) => [JSON.stringify(scheme), scheme] as const))('%s', (_, scheme) => {
  test('parts and values stay what they are through products and pack, and products what they are', async () => {
    using q = make(scheme);
    const before = await contents(q);
    const bytes = q.byteLength;
    const y = [await bytesOf(linear(rows(1), q)), await bytesOf(linear(rows(9), q))];
    expect(await contents(q)).toEqual(before);
    await q.pack();
    await q.pack();
    expect(await bytesOf(linear(rows(1), q))).toBe(y[0]);
    expect(await contents(q)).toEqual(before);
    const values = dequantize(q); // queued between two products
    expect(await bytesOf(linear(rows(9), q))).toBe(y[1]);
    expect(await bytesOf(values)).toBe(before.values);
    expect(q.byteLength).toBe(bytes);
    expect(await contents(q)).toEqual(before);
  });

  test('parts that were taken before a product stay good after it, and make the same weight', async () => {
    using q = make(scheme);
    const before = await contents(q);
    const taken = q.parts;
    const y = await bytesOf(linear(rows(5), q));
    for (const [name, part] of Object.entries(taken))
      expect([name, await bytesOf(part)]).toEqual([name, before[name]]);
    // The tensors stay the caller's own: products of what is made of them leave them alone.
    const { absmax, ...needed } = taken;
    const parts = 'absmaxCodes' in taken ? needed : taken;
    const again = QuantizedTensor.fromParts(scheme, [OUT, IN], parts);
    expect(await bytesOf(linear(rows(5), again))).toBe(y);
    await again.pack();
    for (const [name, part] of Object.entries(taken))
      expect([name, await bytesOf(part)]).toEqual([name, before[name]]);
    expect(await contents(again)).toEqual(before);
  });

  test('handles of one weight do not disturb each other, whichever is multiplied, packed or disposed of', async () => {
    const q = make(scheme);
    const before = await contents(q);
    const y = await bytesOf(linear(rows(3), q));
    const other = q.to(DEVICE);
    const packing = q.pack();
    expect(await contents(other)).toEqual(before);
    expect(await bytesOf(linear(rows(3), other))).toBe(y);
    await packing;
    expect(await contents(q)).toEqual(before);
    const third = other.to(DEVICE);
    await other.pack();
    other.dispose();
    expect(await bytesOf(linear(rows(3), q))).toBe(y);
    expect(await contents(third)).toEqual(before);
    q.dispose();
    expect(await bytesOf(linear(rows(3), third))).toBe(y);
    expect(await contents(third)).toEqual(before);
  });

  test('a product takes what it needs with it: operands may be disposed of while it is queued', async () => {
    const [x, bias] = [rows(7), Tensor.from(normals(OUT, 3), [OUT])];
    const expected = await bytesOf(linear(x, make(scheme), { bias }));
    const q = make(scheme);
    const packing = q.pack();
    const y = linear(x, q, { bias });
    for (const operand of [x, bias, q]) operand.dispose();
    await packing;
    expect(await bytesOf(y)).toBe(expected);
  });
});

/** Formats, and schemes that each of them can hold. */
const FORMATS: [Exclude<FormatName, 'mxfp4'>, QuantScheme][] = [
  ['gptq', { kind: 'int', bits: 4, symmetric: true, range: 'full', granularity: 'group', groupSize: 32 }],
  ['gptq', { kind: 'int', bits: 3, symmetric: false, granularity: 'row' }],
  ['awq', { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 }],
  ['compressed-tensors', { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 }],
  ['compressed-tensors', { kind: 'int', bits: 8, symmetric: true, granularity: 'row' }],
  ['compressed-tensors', { kind: 'fp8', format: 'e4m3', granularity: 'row' }],
  ['compressed-tensors', { kind: 'mx', element: 'e2m1' }],
  ['compressed-tensors', { kind: 'mx', element: 'e4m3' }],
  ['bitsandbytes', { kind: 'nf4', blockSize: 32 }],
  ['bitsandbytes', { kind: 'fp4', blockSize: 64, doubleQuant: true }],
  ['bitsandbytes', { kind: 'llm.int8', threshold: 6 }],
  ['quanto', { kind: 'int', bits: 4, symmetric: false, granularity: 'row' }],
  ['quanto', { kind: 'fp8', format: 'e5m2', granularity: 'row' }],
];
/** Of whole words both ways. */
const SHAPE: [number, number] = [64, IN];
const MODULE = 'model.layers.0.self_attn.q_proj';

describe.each(FORMATS)('%s %o', (name, asked) => {
  const format = getFormat(name);
  const scheme = format.fit(asked, SHAPE, 'bfloat16').scheme as QuantScheme;
  const linearOf = { name: MODULE, role: 'attention', shape: SHAPE, layer: 0 } as never;
  const plan = [{ module: MODULE, linear: linearOf, scheme }];
  const encode = (q: QuantizedTensor) => format.settle(plan).encode(MODULE, q, 'bfloat16');
  const quantizationConfig = () =>
    format.settle(plan).config({
      model: { architecture: 'llama', wrapped: false } as never,
      modelDtype: 'bfloat16',
      quantized: plan,
      kept: [],
      config: null,
      method: 'rtn',
    });

  test('what is encoded is the same before and after a product, also if a product comes before it is read', async () => {
    using q = make(scheme, SHAPE);
    const first = await encode(q);
    const expected: Record<string, string> = {};
    for (const [tensor, value] of first) expected[tensor] = await bytesOf(value);
    await linear(rows(2), q).read();
    for (const [tensor, value] of first)
      expect([tensor, await bytesOf(value)]).toEqual([tensor, expected[tensor]]);
    const encoding = encode(q);
    linear(rows(2), q).dispose(); // before encoding has run to its end
    const second = await encoding;
    for (const [tensor, value] of second)
      expect([tensor, await bytesOf(value)]).toEqual([tensor, expected[tensor]]);
  });

  test('a weight that is decoded from a mapped file multiplies as the one that was written', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'quantaria-linear-'));
    try {
      using q = make(scheme, SHAPE);
      const { quantizationConfig: config, files } = quantizationConfig();
      const entries = format.entries(MODULE, scheme, SHAPE, 'bfloat16');
      const writer = new SafetensorsWriter(join(folder, 'model.safetensors'), entries);
      for (const [tensor, value] of await encode(q)) {
        using here = value.to('cpu'); // where files are written from
        const written = writer.write(tensor, here);
        value.dispose(); // the bytes are still to be written
        linear(rows(1), q).dispose();
        await written;
      }
      await writer.finish();
      const checkpoint = await openCheckpoint(folder);
      const source = {
        config: { quantization_config: config } as never,
        files,
        entries: new Map(entries.map((entry) => [entry.name, entry])),
        read: async (tensor: string, range?: readonly [number, number]) => {
          const whole = await checkpoint.read(tensor);
          return (range ? whole.slice(0, range[0], range[1]) : whole).to(DEVICE);
        },
      };
      const [module] = await format.modules(source);
      using decoded = await format.decode(module!, source.read);
      using twin = await format.decode(module!, source.read);
      const before = await contents(decoded);
      const y = await bytesOf(linear(rows(5), decoded));
      // float8 scales are rounded to the model's dtype in the file.
      if (scheme.kind !== 'fp8') {
        expect(before).toEqual(await contents(q));
        expect(y).toBe(await bytesOf(linear(rows(5), q)));
      }
      await decoded.pack();
      expect(await contents(decoded)).toEqual(before);
      expect(await contents(twin)).toEqual(before);
      expect(await bytesOf(linear(rows(5), twin))).toBe(y);
      const copy = decoded.to(DEVICE);
      decoded.dispose();
      expect(await bytesOf(linear(rows(5), copy))).toBe(y);
      checkpoint.close();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

test('a weight that one handle shows is put into order in place, without a second copy', async () => {
  const [out, depth] = [1024, 1024];
  const q = quantize(Tensor.zeros([out, depth]), {
    kind: 'int',
    bits: 8,
    symmetric: true,
    granularity: 'row',
  });
  await dequantize(q).read();
  const settle = async () => {
    for (let i = 0; i < 4; i++) {
      (globalThis as { gc?: () => void }).gc?.();
      await synchronize();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return memory(DEVICE).liveBytes;
  };
  const before = await settle();
  await q.pack();
  expect(await settle()).toBe(before);
  for (const part of Object.values(q.parts)) part.dispose();
  dequantize(q).dispose();
  using y = linear(Tensor.zeros([1, depth]), q);
  await y.read();
  expect((await settle()) - before).toBeLessThan((out * depth) / 2);
});
