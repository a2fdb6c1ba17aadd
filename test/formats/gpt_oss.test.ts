import { expect, test } from 'vitest';
import { detectFormat, getFormat, type QuantizedModule } from '../../lib/formats';
import { describeModel } from '../../lib/models';
import { dequantize, quantize } from '../../lib/ops/quantize';
import { Tensor } from '../../lib/tensor';
import { gptOss } from '../models/checkpoints';
import { memoryCheckpoint, type Raw, rawOf } from './memory_checkpoint';
import { gptOssExpert } from './reference_decoder';
import { difference, nastyWeight } from './weights';

const scheme = { kind: 'mx', element: 'e2m1' } as const;

/** The small gpt-oss with an expert width of 32, which blocks of 32 divide. */
function model() {
  const { config, tensors } = gptOss();
  const shapes: Record<string, number[]> = { gate_up_proj: [4, 32, 64], down_proj: [4, 32, 32] };
  const resized = tensors.map((tensor) => ({
    ...tensor,
    shape: shapes[tensor.name.split('.').at(-1) as string] ?? tensor.shape,
  }));
  return describeModel(config, resized);
}

function plan(): QuantizedModule[] {
  const experts = model().linears.filter(({ role }) => role === 'expert');
  return experts.map((linear) => ({ linear, module: linear.name, scheme }));
}

/** Writes every module's rows into the shared stacks where their regions say. */
async function assemble() {
  const modules = plan();
  const format = getFormat('mxfp4', model()).settle(modules);
  const stacks = new Map<string, Raw>();
  const written = new Map<string, number>();
  const values = new Map<string, Float32Array>();
  for (const [index, { module, linear }] of modules.entries()) {
    const q = quantize(
      Tensor.from(nastyWeight(linear.shape[0], linear.shape[1], index), [...linear.shape]),
      scheme,
    );
    values.set(module, await dequantize(q).toFloat32());
    const encoded = await format.encode(module, q, 'bfloat16');
    for (const { name, dtype, shape, region } of format.entries(module, scheme, linear.shape, 'bfloat16')) {
      const [experts, rows, ...inner] = shape as [number, number, ...number[]];
      const rowBytes = inner.reduce((product, size) => product * size, 1);
      const raw = stacks.get(name) ?? { dtype, shape, bytes: new Uint8Array(experts * rows * rowBytes) };
      const part = await rawOf(encoded.get(name)!);
      expect(part.shape).toEqual([region!.count, ...inner]);
      for (let row = 0; row < region!.count; ++row) {
        const target = region!.index * rows + region!.start + row * region!.step;
        raw.bytes.set(part.bytes.subarray(row * rowBytes, (row + 1) * rowBytes), target * rowBytes);
      }
      written.set(name, (written.get(name) ?? 0) + region!.count);
      stacks.set(name, raw);
    }
  }
  return { modules, format, stacks, written, values };
}

test('the regions of the experts cover each stack once, gate and up rows in turn', async () => {
  const { stacks, written, values } = await assemble();
  expect([...stacks.keys()].filter((name) => name.includes('layers.0')).sort()).toEqual([
    'model.layers.0.mlp.experts.down_proj_blocks',
    'model.layers.0.mlp.experts.down_proj_scales',
    'model.layers.0.mlp.experts.gate_up_proj_blocks',
    'model.layers.0.mlp.experts.gate_up_proj_scales',
  ]);
  for (const [name, { shape }] of stacks) expect(written.get(name)).toBe(shape[0]! * shape[1]!);
  for (const [module, expected] of values) {
    const [, prefix, expert, projection] = /^(.*\.experts)\.(\d+)\.(gate|up|down)_proj$/.exec(module)!;
    const stack = `${prefix}.${projection === 'down' ? 'down' : 'gate_up'}_proj`;
    const [start, step] = projection === 'down' ? [0, 1] : [projection === 'gate' ? 0 : 1, 2];
    const found = gptOssExpert(
      stacks.get(`${stack}_blocks`)!,
      stacks.get(`${stack}_scales`)!,
      Number(expert),
      start,
      step,
    );
    expect(difference(found, expected)).toBeNull();
  }
});

test('what was written is detected without the model and read back expert by expert', async () => {
  const { modules, format, stacks, values } = await assemble();
  const config = format.config({
    model: model(),
    modelDtype: 'bfloat16',
    quantized: modules,
    kept: [],
    config: null,
    method: 'rtn',
  });
  const json = { quantization_config: config.quantizationConfig };
  const found = detectFormat(json, new Set(stacks.keys()), {});
  expect(found?.name).toBe('mxfp4');
  const source = memoryCheckpoint(stacks, json);
  const read = await found!.modules(source);
  expect(read.map(({ module }) => module).sort()).toEqual(modules.map(({ module }) => module).sort());
  for (const module of read) {
    const back = await dequantize(await found!.decode(module, source.read)).toFloat32();
    expect(difference(back, values.get(module.module)!)).toBeNull();
  }
});

test('a layer of which some experts are left out is refused: a stack has all of them', () => {
  const incomplete = plan().filter(
    ({ linear }) => linear.layer !== 1 || linear.expert !== 2 || linear.projection !== 'up',
  );
  expect(() => getFormat('mxfp4', model()).settle(incomplete)).toThrow(/layers\.1.*gate_up_proj: 7 of its 8/);
});

test('only experts fit; on other architectures the same name is compressed-tensors', () => {
  const attention = model().linears.find(({ role }) => role === 'attention')!;
  expect(getFormat('mxfp4', model()).fit(scheme, [32, 32], 'bfloat16', attention).scheme).toBeNull();
  const other = getFormat('mxfp4');
  expect(other.fit(scheme, [32, 32], 'bfloat16').scheme).not.toBeNull();
  expect(other.entries('m', scheme, [32, 64], 'bfloat16').map(({ name }) => name)).toEqual([
    'm.weight_packed',
    'm.weight_scale',
  ]);
});
