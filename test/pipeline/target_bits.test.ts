import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/reader';
import { describeModel } from '../../lib/models';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { measureVariants, partOf } from '../../lib/pipeline/measured_sensitivity';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { planQuantization } from '../../lib/pipeline/quantize_plan';
import { readRows } from '../../lib/pipeline/rows';
import { measureWeights } from '../../lib/pipeline/sensitivity';
import { rejectsCode } from '../core/errors';
import { EMULATED, JOB_TIMEOUT, rowsOf } from '../device';
import { llama, qwen3Moe } from '../models/checkpoints';
import { quantizeAndCheck } from './check_output';
import { groupedAria, toSequential } from './expert_stacks';
import { EXAMPLE, floatsOf, readJson, readTensors, temporaryDirectory, writeModel } from './helpers';

const work = temporaryDirectory();
const original = toSequential(readTensors(EXAMPLE), groupedAria);
const counts = readJson<{ sets: { calib: { usage: number[][] } } }>(EXAMPLE, 'expert_usage.json').sets.calib
  .usage;
const usage = path.join(work, 'usage.json');
fs.writeFileSync(
  usage,
  JSON.stringify({ tokens: 80128, layers: counts.map((own, layer) => ({ layer, counts: own })) }),
);
const text = path.join(EXAMPLE, 'calib.txt');

let outputs = 0;
const newOut = () => path.join(work, `out-${++outputs}`);

async function planned(options: Partial<QuantizeOptions>, model = EXAMPLE) {
  using source = await openCheckpoint(model);
  return await planQuantization(source, options);
}

const bitsOf = (scheme: unknown) => (scheme === null ? 16 : (scheme as { bits: number }).bits);

describe('--target-bits', { timeout: JOB_TIMEOUT }, () => {
  test.each(EMULATED ? [2.5, 4.25, 10] : [2.5, 3, 3.5, 4.25, 6, 10])(
    '%s: planned under it by less than 1 %, and written as planned',
    async (targetBits) => {
      const { averageBits } = await planned({ targetBits, usage });
      expect(averageBits).toBeLessThanOrEqual(targetBits);
      expect(averageBits).toBeGreaterThan(0.99 * targetBits);
      const report = await quantizeAndCheck({
        model: EXAMPLE,
        expected: original,
        options: { targetBits, usage, out: newOut() },
      });
      expect(report.averageBits).toBe(averageBits);
      expect(report.target).toMatchObject({ bits: targetBits, expertGroups: 'expert' });
      expect(report.tensors.every(({ ruled }) => ruled)).toBe(true);
    },
  );

  test('the same plan each time, and again with --resume', async () => {
    const options = { targetBits: 3.3, usage, out: newOut() };
    const first = await quantizeCheckpoint(EXAMPLE, options);
    const again = await quantizeCheckpoint(EXAMPLE, { ...options, resume: true });
    expect(again.fingerprint).toBe(first.fingerprint);
    const other = await quantizeCheckpoint(EXAMPLE, { ...options, out: newOut() });
    expect(other.fingerprint).toBe(first.fingerprint);
  });

  test.each(['gptq', 'awq', 'compressed-tensors', 'bitsandbytes', 'quanto', 'mxfp4'] as const)(
    '%s: only what the format holds',
    async (format) => {
      const { tensors, averageBits } = await planned({ targetBits: 6, format });
      expect(averageBits).toBeLessThanOrEqual(6);
      const widths = new Set(tensors.flatMap(({ scheme }) => (scheme?.kind === 'int' ? [scheme.bits] : [])));
      const held = {
        gptq: [2, 3, 4, 8],
        awq: [4],
        'compressed-tensors': [2, 3, 4, 5, 6, 8],
        bitsandbytes: [],
        quanto: [2, 4, 8],
        mxfp4: [],
      };
      for (const bits of widths) expect(held[format]).toContain(bits);
      expect(tensors.some(({ scheme }) => scheme !== null)).toBe(true);
    },
  );

  test('out of reach: the range that is not', async () => {
    for (const targetBits of [1, 16.5]) {
      await rejectsCode(planned({ targetBits }), 'ERR_ARGUMENT', /out of reach.* 2\.\d+ to 16\.000 bits/);
    }
    const out = newOut();
    await rejectsCode(
      quantizeCheckpoint(EXAMPLE, { targetBits: 3, format: 'awq', out }),
      'ERR_ARGUMENT',
      /allow 4\.\d+ to 16/,
    );
    expect(fs.existsSync(out)).toBe(false);
    const range = /allow (\S+) to (\S+) bits/.exec(
      await planned({ targetBits: 1 }).then(
        () => '',
        ({ message }: Error) => message,
      ),
    ) as RegExpExecArray;
    for (const end of range.slice(1)) {
      const { averageBits } = await planned({ targetBits: Number(end) });
      expect(Math.abs(averageBits - Number(end))).toBeLessThan(0.002);
    }
  });

  test('--bits beside it is refused', () =>
    rejectsCode(planned({ targetBits: 3, bits: 4 }), 'ERR_ARGUMENT', /--bits and --target-bits/));

  test('NaN in a weight is said before anything is written', async () => {
    const { config, tensors } = llama();
    const model = path.join(work, 'nan');
    const bytes = Buffer.alloc(2 * 32 * 32);
    bytes.writeUInt16LE(0x7fc0, 18);
    const broken = tensors.map((tensor) =>
      tensor.name === 'model.layers.1.self_attn.q_proj.weight' ? { ...tensor, bytes } : tensor,
    );
    writeModel(model, { config, tensors: broken });
    const out = newOut();
    await rejectsCode(
      quantizeCheckpoint(model, { targetBits: 4, out }),
      'ERR_ARGUMENT',
      /layers\.1\.self_attn\.q_proj.*nan/,
    );
    expect(fs.existsSync(out)).toBe(false);
  });

  test('an abort while weights are measured ends it', async () => {
    const abort = new AbortController();
    const running = planned({ targetBits: 4, signal: abort.signal, onPlanning: () => abort.abort() });
    await rejectsCode(running, 'ERR_ABORTED', /interrupted/);
  });

  test('a recipe says what is kept, and on which grids', async () => {
    const file = path.join(work, 'recipe.json');
    const scheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 };
    fs.writeFileSync(
      file,
      JSON.stringify({
        rules: [
          { match: { role: 'attention' }, scheme: null },
          { match: { role: 'shared-expert' }, scheme: { kind: 'mx', element: 'e4m3' } },
          { match: { role: 'expert' }, scheme },
          { match: {}, scheme: null },
        ],
      }),
    );
    const { tensors, averageBits } = await planned({ targetBits: 5.5, recipe: file });
    expect(averageBits).toBeLessThanOrEqual(5.5);
    for (const { role, scheme: own } of tensors) {
      if (role === 'attention') expect(own).toBeNull();
      if (role === 'shared-expert' && own !== null) expect(own).toMatchObject({ kind: 'mx' });
      if (role === 'expert') expect(own).toMatchObject({ symmetric: false, groupSize: 32 });
    }
  });

  test('q, k and v share bits, and so do gate and up', async () => {
    const { tensors } = await planned({ targetBits: 3.6, usage });
    const merged = new Map<string, Set<number>>();
    for (const { linear, scheme } of tensors) {
      if (linear === null || linear.layer === null) continue;
      const part = { q: 'qkv', k: 'qkv', v: 'qkv', gate: 'gate-up', up: 'gate-up' }[linear.projection];
      if (part === undefined) continue;
      const key = `${linear.layer} ${linear.role} ${linear.expert} ${part}`;
      merged.set(key, (merged.get(key) ?? new Set()).add(bitsOf(scheme)));
    }
    expect(merged.size).toBe(3 * (1 + 1 + 16));
    for (const [key, own] of merged) expect({ key, widths: own.size }).toEqual({ key, widths: 1 });
  });

  test('the more an expert is used, the more bits it has, and attention never has two', async () => {
    const { tensors } = await planned({ targetBits: 2.8, usage });
    const byUse = { most: [] as number[], least: [] as number[] };
    for (const { linear, scheme, role } of tensors) {
      if (role === 'attention') expect(bitsOf(scheme)).toBeGreaterThanOrEqual(3);
      if (linear?.role !== 'expert' || linear.layer === null || linear.expert === null) continue;
      const own = counts[linear.layer] as number[];
      const rank = own.filter((count) => count > (own[linear.expert as number] as number)).length;
      if (rank < 4) byUse.most.push(bitsOf(scheme));
      if (rank >= 12) byUse.least.push(bitsOf(scheme));
    }
    const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
    expect(mean(byUse.most)).toBeGreaterThan(mean(byUse.least) + 0.5);
  });

  test('experts are counted on a text where one is given', async () => {
    const rows = EMULATED ? { samples: 1, seqLen: 32 } : { samples: 2, seqLen: 256 };
    const ids = rows.samples * rows.seqLen;
    const counted = await planned({ targetBits: 3, text, ...rows });
    expect(counted.usage?.tokens).toBe(ids);
    expect(counted.notes).toEqual(
      expect.arrayContaining([`usage of experts counted over ${ids} calibration ids`]),
    );
    expect(counted.notes.join()).not.toMatch(/without usage/);
    expect((await planned({ targetBits: 3 })).notes.join()).toMatch(/without usage or a text/);
  });

  test('at the size of uniform 3 bits, perplexity is nearer to the original', async () => {
    const evaluate = async (options: Partial<QuantizeOptions>) => {
      const out = newOut();
      const { averageBits } = await quantizeCheckpoint(EXAMPLE, { ...options, out });
      const found = await evaluateModel(out, {
        text: path.join(EXAMPLE, 'eval.txt'),
        ...rowsOf(16),
        baseline: EXAMPLE,
      });
      return { averageBits, kl: found.baseline?.klDivergence as number };
    };
    const uniform = await evaluate({ bits: 3 });
    const mixed = await evaluate({ targetBits: uniform.averageBits, usage });
    expect(mixed.averageBits).toBeLessThanOrEqual(uniform.averageBits);
    expect(mixed.kl).toBeLessThan(0.75 * uniform.kl);
  });
});

describe('what loaders take', () => {
  // Widths that every format's kernels can take.
  const wider: Readonly<Record<number, number>> = { 20: 64, 16: 32 };
  const { config, tensors } = qwen3Moe();
  const model = writeModel(
    path.join(work, 'qwen'),
    {
      config: { ...config, moe_intermediate_size: 64 },
      tensors: tensors.map((tensor) => ({
        ...tensor,
        shape: tensor.shape.map((size) => wider[size] ?? size),
      })),
    },
    { seed: 3 },
  );

  test.each([
    [
      'compressed-tensors',
      'model',
      /transformers does not take; the nearest plan that it does is `--expert-groups model`: \d\.\d+ bits/,
    ],
    [
      'gptq',
      'layer',
      /vLLM does not take; the nearest plan that it does is `--expert-groups layer`: \d\.\d+ bits/,
    ],
  ] as const)(
    '%s: a mix within the %s is told before the run, and the nearest plan that loads',
    async (format, expertGroups, told) => {
      const mixed = await planned({ targetBits: 5, groupSize: 32, format }, model);
      expect(mixed.warnings.filter((warning) => told.test(warning))).toHaveLength(1);
      const nearest = await planned({ targetBits: 5, groupSize: 32, format, expertGroups }, model);
      expect(nearest.warnings.join()).not.toMatch(/nearest plan/);
      expect(nearest.averageBits).toBeLessThanOrEqual(5);
      const said = /: (\d\.\d+) bits, (\d+\.\d+) times/.exec(
        mixed.warnings.find((warning) => told.test(warning)) ?? '',
      );
      expect(Number(said?.[1])).toBeCloseTo(nearest.averageBits, 3);
      const cost = (nearest.target?.predictedError as number) / (mixed.target?.predictedError as number);
      expect(Number(said?.[2])).toBeCloseTo(cost, 2);
      const widths = new Map<number | null, Set<number>>();
      for (const { role, layer, scheme } of nearest.tensors) {
        if (role !== 'expert') continue;
        const group = expertGroups === 'model' ? null : layer;
        widths.set(group, (widths.get(group) ?? new Set()).add(bitsOf(scheme)));
      }
      for (const own of widths.values()) expect(own.size).toBe(1);
    },
  );
});

test('moe-mixed: experts of several widths, and the flags of the nearest plan that loads', async () => {
  const { config, tensors } = qwen3Moe();
  const model = writeModel(path.join(work, 'mixed'), { config, tensors });
  const counted = path.join(work, 'mixed-usage.json');
  fs.writeFileSync(
    counted,
    JSON.stringify({ tokens: 8, layers: [0, 1].map((layer) => ({ layer, counts: [9, 3, 2, 2] })) }),
  );
  const { warnings, averageBits } = await planned({ recipe: 'moe-mixed', usage: counted }, model);
  expect(warnings.join()).toContain(`--target-bits ${averageBits.toFixed(2)} --expert-groups model`);
  expect((await planned({ recipe: 'int4' }, model)).warnings.join()).not.toMatch(/nearest plan/);
});

test('Aria: the nearest plan that stock loaders take keeps the experts, and is what is said', async () => {
  const { warnings } = await planned({ targetBits: 3.5, usage });
  const said = warnings.flatMap((warning) => /keeps the experts.*: from (\S+) bits/.exec(warning)?.[1] ?? []);
  expect(said).toHaveLength(1);
  const file = path.join(work, 'kept-experts.json');
  const scheme = {
    kind: 'int',
    bits: 4,
    symmetric: true,
    range: 'full',
    granularity: 'group',
    groupSize: 128,
  };
  const rules = [
    { match: { role: 'expert' }, scheme: null },
    ...['attention', 'shared-expert'].map((role) => ({ match: { role }, scheme })),
    { match: {}, scheme: null },
  ];
  fs.writeFileSync(file, JSON.stringify({ rules }));
  const nearest = await planned({ targetBits: Number(said[0]) + 0.001, recipe: file });
  expect(nearest.averageBits).toBeCloseTo(Number(said[0]), 2);
  expect(nearest.warnings.join()).not.toMatch(/experts/);
});

describe('costs measured on a text', { timeout: JOB_TIMEOUT }, () => {
  const data = { text, ...(EMULATED ? { samples: 2, seqLen: 32 } : { samples: 8, seqLen: 256 }) };

  test('of a part of a layer: the divergence of the model in which it alone is rounded', async () => {
    const scheme = {
      kind: 'int',
      bits: 3,
      symmetric: true,
      range: 'full',
      granularity: 'row',
      scaleDtype: 'bfloat16',
    } as const;
    using source = await openCheckpoint(EXAMPLE);
    const { linears } = describeModel(source.config, source.entries());
    const names = ['0 attention qkv', '1 expert gate-up', '2 shared-expert down'];
    const parts = names.map((name) => ({
      name,
      members: linears
        .filter((linear) => linear.layer !== null && linear.role !== 'vision' && partOf(linear) === name)
        .map((linear) => ({ linear, scheme })),
    }));
    expect(parts.map(({ members }) => members.length)).toEqual([3, 32, 1]);
    const variants = new Map(
      parts.map(({ name, members }) => [name, new Map(members.map(({ linear }) => [linear, scheme]))]),
    );
    const rows = await readRows(EXAMPLE, data);
    const { variants: found } = await measureVariants(EXAMPLE, { base: new Map(), variants, rows }, {});
    for (const { name, members } of parts) {
      const file = path.join(work, 'part.json');
      const rules = members.map(({ linear }) => ({ match: { name: linear.name }, scheme }));
      fs.writeFileSync(file, JSON.stringify({ rules: [...rules, { match: {}, scheme: null }] }));
      const out = newOut();
      await quantizeCheckpoint(EXAMPLE, { recipe: file, out });
      const { baseline } = await evaluateModel(out, { ...data, baseline: EXAMPLE });
      // The same weights; sums differ in their order.
      const ratio = (found.get(name) as number) / (baseline?.klDivergence as number);
      expect(Math.abs(ratio - 1), name).toBeLessThan(1e-3);
    }
  });

  test('it is nearer to the original than uniform bits of the same size, on another text', async () => {
    const out = { uniform: newOut(), planned: newOut() };
    const { averageBits } = await quantizeCheckpoint(EXAMPLE, { bits: 3, groupSize: 32, out: out.uniform });
    const mixed = await quantizeCheckpoint(EXAMPLE, {
      targetBits: averageBits,
      groupSize: 32,
      ...data,
      out: out.planned,
    });
    expect(mixed.averageBits).toBeLessThanOrEqual(averageBits);
    const held = { text: path.join(EXAMPLE, 'eval.txt'), ...rowsOf(16), baseline: EXAMPLE };
    const [own, uniform] = [await evaluateModel(out.planned, held), await evaluateModel(out.uniform, held)];
    expect(own.baseline?.klDivergence).toBeLessThan(0.7 * (uniform.baseline?.klDivergence as number));
  });

  test('the plan is the same each time, keeps within its average, and says what it and uniform bits do, on rows that chose nothing', async () => {
    const out = { planned: newOut(), uniform: newOut() };
    const plan = await planned({ targetBits: 3.5, ...data });
    expect(plan.notes.join()).toMatch(/measured on the text, for 18 parts of layers/);
    expect(plan.averageBits).toBeLessThanOrEqual(3.5);
    expect(plan.averageBits).toBeGreaterThan(0.99 * 3.5);
    expect((await planned({ targetBits: 3.5, usage })).notes.join()).not.toMatch(/measured/);
    const report = await quantizeCheckpoint(EXAMPLE, { targetBits: 3.5, ...data, out: out.planned });
    const quantized = (tensors: readonly { name: string; scheme: unknown }[]) =>
      tensors.flatMap(({ name, scheme }) =>
        scheme === null ? [] : [[name.replace(/\.weight$/, ''), scheme]],
      );
    expect(quantized(report.tensors)).toEqual(quantized(plan.tensors));
    const { measured } = report.target as { measured: { chosen: number; uniform: number } };
    expect(measured.chosen).toBeLessThanOrEqual(measured.uniform);
    expect(report.notes.join()).toContain(`${measured.chosen.toFixed(4)} nats an id`);
    const all = await readRows(EXAMPLE, data);
    const [begin, end] = [all.ids.length / 2, all.ids.length];
    const tokens = path.join(work, 'held.i32');
    fs.writeFileSync(tokens, Buffer.from(all.ids.slice(begin, end).buffer));
    await quantizeCheckpoint(EXAMPLE, { bits: 3, groupSize: 128, out: out.uniform });
    for (const [name, expected] of [
      ['planned', measured.chosen],
      ['uniform', measured.uniform],
    ] as const) {
      const { baseline } = await evaluateModel(out[name], { tokens, seqLen: data.seqLen, baseline: EXAMPLE });
      // The same weights; sums differ in their order.
      expect(Math.abs(expected / (baseline?.klDivergence as number) - 1), name).toBeLessThan(1e-3);
    }
  });

  test('a model that cannot be run is planned by its weights, which is said', async () => {
    const { config, tensors } = llama();
    const model = writeModel(path.join(work, 'unknown'), {
      config: { ...config, hidden_act: 'gelu' },
      tensors,
    });
    const tokens = path.join(work, 'unknown.u16');
    fs.writeFileSync(tokens, Buffer.from(new Uint16Array(64).buffer));
    const { notes, tensors: found } = await planned({ targetBits: 4, tokens, seqLen: 16 }, model);
    expect(notes.join()).toMatch(/--target-bits: what errors cost cannot be measured: .*hidden_act gelu/);
    const plain = await planned({ targetBits: 4 }, model);
    expect(found.map(({ scheme }) => scheme)).toEqual(plain.tensors.map(({ scheme }) => scheme));
  });
});

test('weights are measured as a plain loop measures them', async () => {
  using source = await openCheckpoint(EXAMPLE);
  const { linears } = describeModel(source.config, source.entries());
  const some = linears
    .filter(({ role }) => role === 'expert' || role === 'attention')
    .filter((_, i) => i % 17 === 0);
  const measures = await measureWeights(
    source,
    some.map((linear) => ({ linear, schemes: [] })),
  );
  for (const [i, linear] of some.entries()) {
    const values = floatsOf(original.get(`${linear.name}.weight`) as { dtype: string; bytes: Buffer });
    const [rows, width] = linear.shape;
    let energy = 0;
    let score = 0;
    for (let column = 0; column < width; ++column) {
      const own = Array.from({ length: rows }, (_, row) => Math.abs(values[row * width + column] as number));
      const sum = own.reduce((a, b) => a + b, 0);
      energy += own.reduce((a, b) => a + b * b, 0);
      score = Math.max(score, (Math.max(...own) * rows) / sum);
    }
    expect(measures[i]?.energy).toBeCloseTo(energy, 8);
    expect(measures[i]?.outlierScore).toBeCloseTo(score, 10);
  }
});

test('rules by outliers take the weights of widest spread among those that the rest of the match covers', async () => {
  const file = path.join(work, 'outliers.json');
  const scheme = (bits: number) => ({ kind: 'int', bits, symmetric: true, granularity: 'row' });
  const rules = [
    { match: { role: 'expert', layers: '1-2', outliers: 'top:5' }, scheme: scheme(8) },
    { match: { role: 'expert' }, scheme: scheme(3) },
    { match: {}, scheme: null },
  ];
  fs.writeFileSync(file, JSON.stringify({ rules }));
  const { tensors } = await planned({ recipe: file });
  using source = await openCheckpoint(EXAMPLE);
  const { linears } = describeModel(source.config, source.entries());
  const covered = linears.filter(({ role, layer }) => role === 'expert' && layer !== 0);
  const measures = await measureWeights(
    source,
    covered.map((linear) => ({ linear, schemes: [] })),
  );
  const scores = new Map(covered.map(({ name }, i) => [name, measures[i]?.outlierScore as number]));
  const widest = [...scores].sort(([, a], [, b]) => b - a).slice(0, 5);
  const chosen = tensors.filter(({ scheme: own }) => own !== null && bitsOf(own) === 8);
  expect(chosen.map(({ name }) => name).sort()).toEqual(widest.map(([name]) => name).sort());
  for (const { reason } of chosen) expect(reason).toMatch(/outliers top:5/);
});
