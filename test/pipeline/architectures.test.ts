import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { inspectModel } from '../../lib/pipeline/inspect';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { verifyModel } from '../../lib/pipeline/verify';
import type { FormatName } from '../../lib/recipe';
import { rejectsCode } from '../core/errors';
import { SUBSET, some } from '../device';
import {
  aria,
  type Checkpoint,
  deepseek,
  gptOss,
  llama,
  mixtral,
  qwen2Moe,
  qwen3Moe,
} from '../models/checkpoints';
import { checkOutput } from './check_output';
import { fused, groupedAria, mixtralNames, type StackNames, toSequential } from './expert_stacks';
import { readTensors, SHARED_MODELS, type Stored, temporaryDirectory, writeModel } from './helpers';

const work = temporaryDirectory();

interface Family {
  name: string;
  checkpoint: Checkpoint;
  architecture: string;
  /** How its stacks are cut into experts; without it, all is sequential already. */
  stacks?: StackNames;
}

/** A checkpoint that no family knows: linear layers and experts by general rules. */
const unknown: Checkpoint = {
  config: { model_type: 'nosuch', hidden_size: 32, num_hidden_layers: 2 },
  tensors: [0, 1].flatMap((layer) =>
    [
      ['self_attn.q_proj.weight', 32, 32],
      ['self_attn.o_proj.weight', 32, 32],
      ['mlp.gate_proj.weight', 48, 32],
      ['mlp.up_proj.weight', 48, 32],
      ['mlp.down_proj.weight', 32, 48],
      ['input_layernorm.weight', 32],
    ].map(([name, ...shape]) => ({
      name: `model.layers.${layer}.${name}`,
      dtype: 'BF16',
      shape: shape as number[],
    })),
  ),
};

const families: Family[] = [
  { name: 'Aria, sequential', checkpoint: aria({ form: 'sequential' }), architecture: 'aria' },
  { name: 'Aria, grouped', checkpoint: aria({ form: 'grouped' }), architecture: 'aria', stacks: groupedAria },
  { name: 'Mixtral', checkpoint: mixtral(), architecture: 'mixtral' },
  {
    name: 'Mixtral, fused',
    checkpoint: mixtral('fused'),
    architecture: 'mixtral',
    stacks: fused('', mixtralNames),
  },
  { name: 'Qwen2-MoE', checkpoint: qwen2Moe(), architecture: 'qwen2_moe' },
  {
    name: 'Qwen2-MoE, fused',
    checkpoint: qwen2Moe('fused'),
    architecture: 'qwen2_moe',
    stacks: fused('mlp.experts'),
  },
  { name: 'Qwen3-MoE', checkpoint: qwen3Moe(), architecture: 'qwen3_moe' },
  {
    name: 'Qwen3-MoE, fused',
    checkpoint: qwen3Moe('fused'),
    architecture: 'qwen3_moe',
    stacks: fused('mlp.experts'),
  },
  { name: 'DeepSeek-V2', checkpoint: deepseek(), architecture: 'deepseek_v2' },
  {
    name: 'DeepSeek-V2, fused',
    checkpoint: deepseek('fused'),
    architecture: 'deepseek_v2',
    stacks: fused('mlp.experts'),
  },
  { name: 'DeepSeek-V3', checkpoint: deepseek('sequential', { v3: true }), architecture: 'deepseek_v3' },
  { name: 'Llama', checkpoint: llama(), architecture: 'llama' },
  { name: 'an unknown model', checkpoint: unknown, architecture: 'nosuch' },
];

/** A fused Mixtral has its router in another block than a sequential one. */
const inSequentialBlock = ({ architecture, stacks }: Family, tensors: Map<string, Stored>) =>
  architecture === 'mixtral' && stacks
    ? new Map(
        [...tensors].map(([name, tensor]) => [name.replace('.mlp.gate.', '.block_sparse_moe.gate.'), tensor]),
      )
    : tensors;

const jobs: readonly { recipe?: string; bits?: number; groupSize?: number; format?: FormatName }[] = [
  {},
  { recipe: 'int4', format: 'gptq' },
  { recipe: 'int8', format: 'quanto' },
  { recipe: 'nf4-dq' },
  { recipe: 'mxfp4' },
  { bits: 3, groupSize: 16 },
];

describe.each(some(families, 5))('$name', (family) => {
  const { checkpoint, architecture, stacks, name } = family;
  const model = writeModel(path.join(work, name), checkpoint);
  const stored = readTensors(model);
  const sequential = inSequentialBlock(family, stacks ? toSequential(stored, stacks) : stored);

  test.each(some(jobs, 4))(
    '%o: every decoder weight is round-to-nearest or kept by a rule, and verify passes',
    async (job) => {
      const out = path.join(work, `${name} ${JSON.stringify(job)}`);
      if (job.format === 'gptq' && name.startsWith('DeepSeek')) {
        // None of its small widths is a multiple of 32, and nothing at all in the asked format is not what was meant.
        await rejectsCode(quantizeCheckpoint(model, { ...job, out }), 'ERR_ARGUMENT', /32/);
        expect(fs.existsSync(out)).toBe(false);
        return;
      }
      await quantizeCheckpoint(model, { ...job, out });
      const isStacked = !JSON.stringify(fs.readFileSync(path.join(out, 'report.json'), 'utf8')).includes(
        '.experts.0.',
      );
      const report = await checkOutput(out, isStacked ? stored : sequential);
      expect(report.architecture).toBe(architecture);
      for (const { name: own, role, scheme, ruled, reason } of report.tensors) {
        const isWeight = /proj(_with_mqa)?\.weight$|\.w[123]\.weight$/.test(own);
        if (!isWeight || !['expert', 'shared-expert', 'dense-ffn', 'attention'].includes(role)) continue;
        expect({ own, ruled }).toEqual({ own, ruled: true });
        // What the format could not hold says why.
        if (scheme === null) expect(reason).toMatch(/kept: /);
      }
      expect(report.quantized).toBeGreaterThan(0);
      const { ok, problems } = await verifyModel(out, model);
      expect({ ok, problems }).toEqual({ ok: true, problems: [] });
    },
  );

  test('inspect counts every parameter and byte once', async () => {
    const { parameters, bytes, parts, known } = await inspectModel(model);
    const values = [...stored.values()];
    expect(parameters).toBe(values.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0));
    expect(bytes).toBe(values.reduce((sum, tensor) => sum + tensor.bytes.length, 0));
    const tensors = Object.values(parts).reduce((sum, part) => sum + part.tensors, 0);
    expect({ tensors, known }).toEqual({ tensors: stored.size, known: architecture !== 'nosuch' });
  });
});

describe('gpt-oss, whose experts stay in their stacks', () => {
  // In blocks of 32, as its own layout has them.
  const { config, tensors } = gptOss();
  const widened = tensors.map((tensor) => ({
    ...tensor,
    shape: tensor.shape.map((n) => ({ 24: 32, 48: 64 })[n] ?? n),
  }));
  const model = writeModel(path.join(work, 'gpt-oss'), { config, tensors: widened });

  test('whatever quantizes the experts, biases stay as they are and verify passes', async () => {
    for (const recipe of ['int4', 'nf4', 'mxfp8']) {
      const out = path.join(work, `gpt-oss-${recipe}`);
      await quantizeCheckpoint(model, { out, recipe });
      const [before, after] = [readTensors(model), readTensors(out)];
      for (const [name, { bytes }] of before) {
        if (/bias|sinks|norm/.test(name)) expect(after.get(name)?.bytes.equals(bytes), name).toBe(true);
      }
      expect((await verifyModel(out, model)).problems).toEqual([]);
    }
  });

  test('mxfp4 writes its own layout, which verify takes', async () => {
    const out = path.join(work, 'gpt-oss-mxfp4');
    const { format, quantized } = await quantizeCheckpoint(model, { out, recipe: 'mxfp4' });
    expect({ format, quantized }).toMatchObject({ format: 'mxfp4' });
    expect(quantized).toBeGreaterThan(0);
    const { ok, problems } = await verifyModel(out, model);
    expect({ ok, problems }).toEqual({ ok: true, problems: [] });
    const names = [...readTensors(out).keys()];
    expect(names).toContain('model.layers.0.mlp.experts.gate_up_proj_blocks');
    expect(names).toContain('model.layers.1.mlp.experts.down_proj_scales');
  });
});

describe('other dtypes', () => {
  test.each(['F16', 'F32'])(
    '%s models, in formats that store scales in the model dtype and in float32',
    async (dtype) => {
      const model = writeModel(path.join(work, dtype), mixtral(), { dtype });
      for (const job of jobs) {
        const out = path.join(work, `${dtype} ${JSON.stringify(job)}`);
        await quantizeCheckpoint(model, { ...job, out });
        await checkOutput(out, readTensors(model));
        expect((await verifyModel(out, model)).problems).toEqual([]);
      }
    },
  );

  test('a model of several dtypes keeps each kept tensor in its own', async () => {
    const { config, tensors } = llama();
    const mixed = tensors.map((tensor, i) => ({ ...tensor, dtype: ['BF16', 'F16', 'F32'][i % 3] as string }));
    const more = [
      { name: 'model.position_ids', dtype: 'I64', shape: [7] },
      { name: 'model.flags', dtype: 'U8', shape: [0, 3] },
      { name: 'model.scalar', dtype: 'F32', shape: [] },
      { name: 'model.wide', dtype: 'F64', shape: [3, 2] },
    ];
    const model = writeModel(path.join(work, 'dtypes'), { config, tensors: [...mixed, ...more] });
    const out = path.join(work, 'dtypes-out');
    await quantizeCheckpoint(model, { out, recipe: 'int4' });
    const [before, after] = [readTensors(model), readTensors(out)];
    for (const [name, { dtype, shape, bytes }] of before) {
      const own = after.get(name);
      if (own)
        expect({ name, dtype: own.dtype, shape: own.shape, same: own.bytes.equals(bytes) }).toEqual({
          name,
          dtype,
          shape,
          same: true,
        });
      else expect(name).toMatch(/_proj\.weight$/);
    }
    expect((await verifyModel(out, model)).problems).toEqual([]);
  });
});

describe('models beside the repository', () => {
  const folders = fs.existsSync(SHARED_MODELS) ? fs.readdirSync(SHARED_MODELS) : [];
  test.skipIf(SUBSET || folders.length === 0).each(folders.length === 0 ? ['none'] : folders)(
    '%s: quantized by default and as NF4, verify passes',
    async (folder) => {
      const model = path.join(SHARED_MODELS, folder);
      for (const recipe of [undefined, 'nf4']) {
        const out = path.join(work, `${folder} ${recipe}`);
        const { quantized } = await quantizeCheckpoint(model, { out, recipe });
        expect(quantized).toBeGreaterThan(0);
        expect((await verifyModel(out, model)).problems).toEqual([]);
        fs.rmSync(out, { recursive: true });
      }
    },
    120_000,
  );
});
