import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { staticScale } from '../../lib/methods/static_scale';
import { rmsNorm } from '../../lib/ops/decoder';
import { Decoder } from '../../lib/pipeline/decoder';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { readRows } from '../../lib/pipeline/rows';
import { verifyModel } from '../../lib/pipeline/verify';
import { rejectsCode } from '../core/errors';
import { JOB_TIMEOUT, rowsOf, SUBSET } from '../device';
import { EXAMPLE, floatsOf, readJson, readTensors, temporaryDirectory, writeSafetensors } from './helpers';

/** Whole models are quantized and run. */
vi.setConfig({ testTimeout: JOB_TIMEOUT, hookTimeout: JOB_TIMEOUT });

const work = temporaryDirectory();
const at = (...names: string[]) => path.join(work, ...names);
const CALIB = path.join(EXAMPLE, 'calib.txt');
const EVAL = { text: path.join(EXAMPLE, 'eval.txt'), ...rowsOf(12), baseline: EXAMPLE };
const Q = 'language_model.model.layers.0.self_attn.q_proj';

async function quantized(name: string, options: Partial<QuantizeOptions>): Promise<Report> {
  await quantizeCheckpoint(EXAMPLE, { bits: 8, text: CALIB, ...rowsOf(10), ...options, out: at(name) });
  return readJson<Report>(at(name), 'report.json');
}

/** The checkpoint with another scale of one layer's input, as bfloat16 bits. */
function withInputScale(name: string, bits: number): string {
  fs.cpSync(at('static'), at(name), { recursive: true });
  const tensors = [...readTensors(at('static'))].map(([key, { dtype, shape, bytes }]) => ({
    name: key,
    dtype,
    shape,
    bytes: key === `${Q}.input_scale` ? Buffer.from(Uint16Array.of(bits).buffer) : bytes,
  }));
  writeSafetensors(at(name, 'model.safetensors'), tensors);
  return at(name);
}

describe.skipIf(SUBSET)('activations of 8 bits with one scale for all', () => {
  let report: Report;
  beforeAll(async () => {
    report = await quantized('static', { activations: 'static', method: 'rtn' });
  });

  test('the scale of a layer is one of those that hold the largest value or clip it, and changes its input least', async () => {
    using decoder = await Decoder.open(EXAMPLE, 'bfloat16');
    const rows = await readRows(EXAMPLE, { text: CALIB, ...rowsOf(10) });
    using embedded = decoder.embed(rows.ids);
    const layer = await decoder.weights.layer(0);
    using entering = rmsNorm(embedded, layer.norm('input_layernorm.weight'), decoder.shape.eps);
    const largest = (await entering.toFloat32()).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    layer.dispose();
    const stored = readTensors(at('static')).get(`${Q}.input_scale`);
    expect(stored).toMatchObject({ dtype: 'BF16', shape: [1] });
    const [scale] = floatsOf(stored as NonNullable<typeof stored>);
    const said = report.tensors.find(({ name }) => name === `${Q}.weight`)?.calibration?.inputScale as number;
    // Half a unit in the last place of bfloat16.
    expect(Math.abs((scale as number) / said - 1)).toBeLessThan(2 ** -8);
    const steps = (said * 127 * 50) / largest;
    expect(Math.abs(steps - Math.round(steps))).toBeLessThan(1e-4);
    const values = await entering.toFloat32();
    const lost = (by: number) =>
      values.reduce(
        (sum, value) => sum + (value - by * Math.min(127, Math.max(-127, Math.round(value / by)))) ** 2,
        0,
      );
    // It was found on some of these rows.
    for (const other of [0.8, 1.25]) expect(lost(said)).toBeLessThan(1.02 * lost(other * said));
  });

  test('weights and scales lie as int-quantized has them; routed experts have no scale', () => {
    const tensors = readTensors(at('static'));
    expect(tensors.get(`${Q}.weight`)?.dtype).toBe('I8');
    const modules = [...tensors.keys()].filter((name) => name.endsWith('.weight_scale'));
    for (const name of modules) {
      const scale = name.replace('weight_scale', 'input_scale');
      expect(tensors.has(scale), name).toBe(!/experts\.\d+\./.test(name));
    }
    const { quantization_config: config } = readJson<{
      quantization_config: { format: string; config_groups: Record<string, { input_activations: object }> };
    }>(at('static'), 'config.json');
    expect(config.format).toBe('int-quantized');
    const kinds = Object.values(config.config_groups).map(({ input_activations: own }) => own);
    expect(kinds).toEqual([
      expect.objectContaining({ strategy: 'token', dynamic: true, num_bits: 8 }),
      expect.objectContaining({ strategy: 'tensor', dynamic: false, num_bits: 8 }),
    ]);
  });

  test('it verifies, and a scale that is none is found', async () => {
    expect((await verifyModel(at('static'), EXAMPLE)).problems).toEqual([]);
    for (const [name, bits] of [
      ['zero', 0],
      ['nan', 0x7fc0],
      ['negative', 0xbf80],
    ] as const) {
      const directory = withInputScale(name, bits);
      const message = /q_proj\.input_scale: .*finite scale above 0/;
      expect((await verifyModel(directory, EXAMPLE)).problems.join()).toMatch(message);
      await rejectsCode(evaluateModel(directory, EVAL), 'ERR_FORMAT', message);
    }
  });

  test('evaluate uses the stored scales', async () => {
    const own = await evaluateModel(at('static'), EVAL);
    expect(own.perplexity / (own.baseline?.perplexity as number) - 1).toBeLessThan(0.005);
    // 2^20: all of the layer's input is rounded to 0.
    const coarse = await evaluateModel(withInputScale('coarse', 0x4980), EVAL);
    expect(coarse.baseline?.klDivergence).toBeGreaterThan(100 * (own.baseline?.klDivergence as number));
  });

  test('smoothquant makes them lose less: factors take the spread of the input before its scale is taken', async () => {
    const smooth = await quantized('smooth', { activations: 'static', method: 'smoothquant' });
    const scaleOf = ({ tensors }: Report) =>
      tensors.find(({ name }) => name === `${Q}.weight`)?.calibration?.inputScale as number;
    expect(scaleOf(smooth)).not.toBe(scaleOf(report));
    expect((await verifyModel(at('smooth'), EXAMPLE)).problems).toEqual([]);
    const [own, plain] = [await evaluateModel(at('smooth'), EVAL), await evaluateModel(at('static'), EVAL)];
    expect(own.baseline?.klDivergence).toBeLessThan(plain.baseline?.klDivergence as number);
  });

  test('interrupted and resumed it has the same scales', async () => {
    const controller = new AbortController();
    const options = { activations: 'static', method: 'smoothquant' } as const;
    const stopped = quantized('resumed', {
      ...options,
      signal: controller.signal,
      onProgress: ({ doneBytes, totalBytes }) => {
        if (doneBytes >= 0.4 * totalBytes) controller.abort();
      },
    });
    await rejectsCode(stopped, 'ERR_ABORTED', /interrupted/);
    await quantized('resumed', { ...options, resume: true });
    const whole = readTensors(at('smooth'));
    for (const [name, { bytes }] of readTensors(at('resumed'))) {
      expect(Buffer.compare(bytes, whole.get(name)?.bytes as Buffer), name).toBe(0);
    }
  });
});

test('one scale: clipping pays where few values are large, and only there; nothing at all has scale 1', () => {
  const even = Float32Array.from({ length: 10_000 }, (_, i) => (i - 5000) / 5000);
  expect(staticScale(even, 1)).toBe(1 / 127);
  const few = Float32Array.from({ length: 10_000 }, (_, i) => (i === 0 ? 20 : Math.sin(i)));
  const scale = staticScale(few, 20);
  expect(scale).toBeLessThan(20 / 127);
  expect(scale).toBeGreaterThan(20 / 127 / 5);
  expect(staticScale([], 0)).toBe(1);
});

test('activations scaled row by row are what `compute: int8` makes of the same weights', async () => {
  await quantized('dynamic', { activations: 'dynamic' });
  await quantized('weights', {});
  const evaluation = { ...EVAL, ...rowsOf(2) };
  const [stored, asked] = [
    await evaluateModel(at('dynamic'), evaluation),
    await evaluateModel(at('weights'), { ...evaluation, compute: 'int8' }),
  ];
  expect(stored.loss).toBe(asked.loss);
  expect(stored.loss).not.toBe((await evaluateModel(at('weights'), evaluation)).loss);
});

test.each([
  ['4 bits', { bits: 4, activations: 'dynamic' }, /--activations dynamic: compressed-tensors stores none/],
  [
    'groups',
    { groupSize: 32, activations: 'static' },
    /--activations static: compressed-tensors stores none/,
  ],
  ['gptq', { format: 'gptq', activations: 'dynamic' }, /--activations dynamic: gptq stores none/],
  ['no text', { text: undefined, activations: 'static' }, /--activations static needs calibration data/],
] as const)('activations of 8 bits and %s are refused', async (_, options, message) => {
  await rejectsCode(quantized('refused', options), 'ERR_ARGUMENT', message);
  expect(fs.existsSync(at('refused'))).toBe(false);
});
