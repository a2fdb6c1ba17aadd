import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib';
import { inspectModel } from '../../lib/pipeline/inspect';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { planQuantization } from '../../lib/pipeline/quantize_plan';
import { verifyModel } from '../../lib/pipeline/verify';
import type { FormatName } from '../../lib/recipe';
import { rejectsCode } from '../core/errors';
import { SUBSET, some } from '../device';
import { checkOutput } from './check_output';
import { groupedAria, toSequential } from './expert_stacks';
import { EXAMPLE, readJson, readTensors, temporaryDirectory } from './helpers';

const work = temporaryDirectory();
const original = toSequential(readTensors(EXAMPLE), groupedAria);

/** Which formats can hold a preset's schemes at least where they are meant for most of the model. */
const HOLDS: Readonly<Record<string, readonly FormatName[]>> = {
  int4: ['compressed-tensors', 'gptq', 'awq', 'quanto'],
  int8: ['compressed-tensors', 'gptq', 'bitsandbytes', 'quanto'],
  nf4: ['bitsandbytes'],
  'nf4-dq': ['bitsandbytes'],
  mxfp4: ['mxfp4', 'compressed-tensors'],
  mxfp8: ['compressed-tensors'],
  'llm.int8': ['bitsandbytes'],
  'moe-mixed': ['compressed-tensors', 'gptq', 'quanto'],
  'moe-mixed-2bit': ['compressed-tensors', 'gptq', 'quanto'],
};
const FORMATS: readonly FormatName[] = [
  'compressed-tensors',
  'gptq',
  'awq',
  'bitsandbytes',
  'quanto',
  'mxfp4',
];
const pairs = Object.keys(HOLDS).flatMap((preset) => FORMATS.map((format) => ({ preset, format })));
const holds = ({ preset, format }: { preset: string; format: FormatName }) => HOLDS[preset]?.includes(format);
const fitting = some(pairs.filter(holds), 7);

describe('the example, every preset in every format that carries it', () => {
  test.each(fitting)(
    '$preset as $format: values are round-to-nearest, errors, bytes and bits as reported',
    async ({ preset, format }) => {
      const out = path.join(work, `${preset}-${format}`);
      const { seconds, peakRssBytes, ...summary } = await quantizeCheckpoint(EXAMPLE, {
        out,
        recipe: preset,
        format,
      });
      expect(seconds).toBeGreaterThan(0);
      expect(peakRssBytes).toBeGreaterThan(0);
      expect(summary).toEqual(readJson(out, 'report.json'));

      const report = await checkOutput(out, original);
      expect(report).toMatchObject({ method: 'rtn', format, architecture: 'aria' });
      expect(report.bytesIn).toBe([...original.values()].reduce((sum, { bytes }) => sum + bytes.length, 0));
      // Presets quantize the decoder's linear weights, here all of them, and nothing else.
      for (const { name, role, scheme, ruled } of report.tensors) {
        const meant = ['expert', 'shared-expert', 'dense-ffn', 'attention'].includes(role);
        expect({ name, quantized: scheme !== null, ruled }).toEqual({ name, quantized: meant, ruled: true });
      }
      expect(report.quantized).toBe(3 * (16 * 3 + 3 + 4));

      const verified = await verifyModel(out, EXAMPLE);
      expect(verified.problems).toEqual([]);
      expect(verified.ok).toBe(true);
      expect(verified.tensors.map(({ name }) => name).sort()).toEqual([...original.keys()].sort());
    },
  );

  test.each(pairs.filter((pair) => !holds(pair)))(
    '$preset as $format is refused before anything is written',
    async ({ preset, format }) => {
      const out = path.join(work, 'refused');
      await rejectsCode(
        quantizeCheckpoint(EXAMPLE, { out, recipe: preset, format }),
        'ERR_ARGUMENT',
        /cannot hold/,
      );
      expect(fs.existsSync(out)).toBe(false);
    },
  );

  test.each(fitting)(
    '$preset as $format: the plan predicts bits and bytes exactly',
    async ({ preset, format }) => {
      using source = await openCheckpoint(EXAMPLE);
      const plan = await planQuantization(source, { recipe: preset, format });
      const report = readJson(work, `${preset}-${format}`, 'report.json');
      expect({ averageBits: plan.averageBits, bytes: plan.bytes }).toEqual({
        averageBits: report.averageBits,
        bytes: report.bytesOut,
      });
    },
  );

  test.each(fitting)('$preset as $format: quantizing it once more is refused', async ({ preset, format }) => {
    const model = path.join(work, `${preset}-${format}`);
    const out = path.join(work, 'twice');
    await rejectsCode(quantizeCheckpoint(model, { out }), 'ERR_ARGUMENT', /already quantized/);
    expect(fs.existsSync(out)).toBe(false);
  });

  test.each(fitting)(
    '$preset as $format: it has as many parameters as the original',
    async ({ preset, format }) => {
      const before = await inspectModel(EXAMPLE);
      const after = await inspectModel(path.join(work, `${preset}-${format}`));
      const parameters = ({ parts }: typeof before) =>
        Object.fromEntries(Object.entries(parts).map(([role, part]) => [role, part.parameters]));
      expect(parameters(after)).toEqual(parameters(before));
      // Only gpt-oss has an mxfp4 layout of its own.
      const found = format === 'mxfp4' ? 'compressed-tensors' : format;
      expect({ format: after.format, layers: after.layers, experts: after.experts }).toEqual({
        format: found,
        layers: 3,
        experts: 16,
      });
    },
  );
});

describe.skipIf(SUBSET)('what lies beside the weights', () => {
  test('other files are carried over byte for byte, other weights are not', async () => {
    const out = path.join(work, 'int4-gptq');
    const own = new Set([
      'config.json',
      'report.json',
      'report.html',
      'quantize_config.json',
      'model.safetensors',
    ]);
    const carried = fs.readdirSync(out).filter((name) => !own.has(name));
    const beside = fs.readdirSync(EXAMPLE).filter((name) => !/safetensors|^config\.json$/.test(name));
    expect(carried.sort()).toEqual(beside.sort());
    for (const name of beside) {
      expect(fs.readFileSync(path.join(out, name)).equals(fs.readFileSync(path.join(EXAMPLE, name)))).toBe(
        true,
      );
    }
  });

  test('config.json keeps its text and gains quantization_config', () => {
    const before = fs.readFileSync(path.join(EXAMPLE, 'config.json'), 'utf8').trimEnd();
    const after = fs.readFileSync(path.join(work, 'int4-compressed-tensors', 'config.json'), 'utf8');
    // Numbers such as 10000.0 would not survive being parsed and written again.
    expect(after.startsWith(before.slice(0, -2))).toBe(true);
    const { quantization_config: added, ...rest } = JSON.parse(after);
    expect(rest).toEqual(JSON.parse(before));
    expect(added.quant_method).toBe('compressed-tensors');
  });
});
