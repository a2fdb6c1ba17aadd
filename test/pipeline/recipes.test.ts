import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report, ReportTensor } from '../../lib/pipeline/report';
import { verifyModel } from '../../lib/pipeline/verify';
import { FORMAT_NAMES } from '../../lib/recipe';
import { rejectsCode } from '../core/errors';
import { llama } from '../models/checkpoints';
import { DECODER, quantizeAndCheck } from './check_output';
import { groupedAria, toSequential } from './expert_stacks';
import { EXAMPLE, readJson, readTensors, temporaryDirectory, writeModel } from './helpers';

const work = temporaryDirectory();
const stacked = readTensors(EXAMPLE);
const original = toSequential(stacked, groupedAria);

let outputs = 0;
const newOut = () => path.join(work, `out-${++outputs}`);
const checked = (
  options: Partial<QuantizeOptions>,
  given: { model?: string; expected?: typeof original } = {},
) =>
  quantizeAndCheck({ model: EXAMPLE, expected: original, ...given, options: { ...options, out: newOut() } });

function recipeFile(rules: unknown, more: object = {}): string {
  const file = path.join(work, `recipe-${++outputs}.json`);
  fs.writeFileSync(file, JSON.stringify({ rules, ...more }));
  return file;
}

const labels = (tensors: readonly ReportTensor[], choose: (tensor: ReportTensor) => boolean) =>
  new Set(
    tensors
      .filter(choose)
      .map(({ scheme }) =>
        JSON.stringify(scheme && { kind: scheme.kind, ...('bits' in scheme ? { bits: scheme.bits } : {}) }),
      ),
  );
const int = (bits: number) => JSON.stringify({ kind: 'int', bits });
const byName = ({ tensors }: Report, part: string) => tensors.filter(({ name }) => name.includes(part));

describe('--bits and --group-size: one scheme for the decoder, all else kept', () => {
  test.each([2, 3, 4, 5, 6, 8])('%s bits', async (bits) => {
    const { tensors } = await checked({ bits });
    for (const { name, role, scheme, ruled } of tensors) {
      expect({ name, ruled }).toEqual({ name, ruled: true });
      if (DECODER.includes(role))
        expect({ name, scheme }).toMatchObject({ name, scheme: { kind: 'int', bits } });
      else expect({ name, scheme }).toEqual({ name, scheme: null });
    }
  });

  test('16 bits, which no format can hold, are refused', async () => {
    const out = newOut();
    for (const format of FORMAT_NAMES) {
      await rejectsCode(
        quantizeCheckpoint(EXAMPLE, { out, bits: 16, format }),
        'ERR_ARGUMENT',
        /cannot hold/,
      );
    }
    expect(fs.existsSync(out)).toBe(false);
  });

  test.each([-1, 16, 32, 64, 128, 1000])('groups of %s', async (groupSize) => {
    const { tensors } = await checked({ groupSize });
    for (const { name, role, scheme } of tensors) {
      if (!DECODER.includes(role)) continue;
      const width = original.get(name)?.shape[1] as number;
      const whole = groupSize === -1 || groupSize >= width;
      const granularity = whole ? { granularity: 'row' } : { granularity: 'group', groupSize };
      expect({ name, scheme }).toMatchObject({ name, scheme: { bits: 4, ...granularity } });
    }
  });

  // The example's widths are 64 and 128.
  test.each([
    ['gptq', 48, { 64: 32, 128: 32 }],
    ['gptq', 100, { 64: null, 128: 64 }],
    ['gptq', 24, { 64: 16, 128: 16 }],
    ['awq', 48, { 64: 32, 128: 32 }],
  ] as const)(
    '%s has no short groups: groups of %s become the largest divisor, and the report says so',
    async (format, groupSize, fitted) => {
      const { tensors } = await checked({ bits: 4, groupSize, format });
      for (const { name, role, scheme, reason, ruled } of tensors) {
        if (!DECODER.includes(role)) continue;
        const width = original.get(name)?.shape[1] as 64 | 128;
        const size = fitted[width];
        const granularity =
          size === null ? { granularity: 'row' } : { granularity: 'group', groupSize: size };
        expect({ name, scheme, ruled }).toMatchObject({ name, scheme: granularity, ruled: true });
        expect(reason).toMatch(size === null ? /one per row/ : /does not divide/);
      }
    },
  );

  test('what no group size fits is per row, what the format cannot hold at all is kept, and both are ruled', async () => {
    const { config, tensors } = llama();
    const widths = tensors.map((tensor) =>
      tensor.name.includes('mlp.')
        ? { ...tensor, shape: tensor.shape.map((n) => (n === 56 ? 47 : n)) }
        : tensor,
    );
    const model = writeModel(path.join(work, 'odd'), {
      config: { ...config, intermediate_size: 47 },
      tensors: widths,
    });
    const expected = readTensors(model);
    for (const [format, groupSize] of [
      ['gptq', 16],
      ['awq', 16],
      ['compressed-tensors', 16],
      ['quanto', 32],
    ] as const) {
      const report = await checked({ bits: 4, groupSize, format }, { model, expected });
      const changed = byName(report, 'down_proj');
      expect(changed.length).toBe(12);
      for (const { scheme, reason, ruled } of changed) {
        expect(ruled).toBe(true);
        expect(reason).toMatch(/47/);
        if (scheme !== null) expect(scheme).not.toMatchObject({ groupSize });
      }
    }
  });

  test('beside a preset of one integer scheme they change it; beside another they are refused', async () => {
    const { tensors, recipe } = await checked({ recipe: 'int4', groupSize: 32 });
    expect(recipe).toMatchObject({ preset: 'int4' });
    expect(tensors.find(({ role }) => role === 'attention')?.scheme).toMatchObject({
      bits: 4,
      groupSize: 32,
    });
    const out = newOut();
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { out, recipe: 'nf4', bits: 4 }), 'ERR_ARGUMENT', /nf4/);
    expect(fs.existsSync(out)).toBe(false);
  });
});

describe('recipe files', () => {
  const scheme = (bits: number) => ({
    kind: 'int',
    bits,
    symmetric: true,
    granularity: 'group',
    groupSize: 64,
  });

  test('the first rule that matches decides: roles, layers, globs, null', async () => {
    const report = await checked({
      recipe: recipeFile([
        { match: { name: '*layers.1.self_attn.q_proj' }, scheme: null },
        { match: { role: 'attention', layers: '0-1' }, scheme: scheme(8) },
        { match: { role: 'attention' }, scheme: scheme(6) },
        { match: { role: 'expert', layers: '0,2', name: '*.experts.?.down_proj' }, scheme: scheme(3) },
        { match: { role: 'expert' }, scheme: scheme(4) },
        { match: { role: 'shared-expert' }, scheme: { kind: 'mx', element: 'e4m3' } },
        { match: {}, scheme: null },
      ]),
    });
    const tensors = report.tensors.filter(({ name }) => name.startsWith('language_model.'));
    expect(labels(tensors, ({ name }) => /layers\.1\.self_attn\.q_proj/.test(name))).toEqual(
      new Set(['null']),
    );
    expect(labels(tensors, ({ name }) => /layers\.0\.self_attn/.test(name))).toEqual(new Set([int(8)]));
    expect(labels(tensors, ({ name }) => /layers\.1\.self_attn\.[kvo]/.test(name))).toEqual(
      new Set([int(8)]),
    );
    expect(labels(tensors, ({ name }) => /layers\.2\.self_attn/.test(name))).toEqual(new Set([int(6)]));
    expect(labels(tensors, ({ name }) => /layers\.[02]\..*experts\.\d\.down_proj/.test(name))).toEqual(
      new Set([int(3)]),
    );
    expect(labels(tensors, ({ name }) => /layers\.[02]\..*experts\.\d\d\.down_proj/.test(name))).toEqual(
      new Set([int(4)]),
    );
    expect(labels(tensors, ({ name }) => /layers\.1\..*experts\.\d+\./.test(name))).toEqual(
      new Set([int(4)]),
    );
    expect(labels(tensors, ({ role }) => role === 'shared-expert')).toEqual(
      new Set([JSON.stringify({ kind: 'mx' })]),
    );
    expect(tensors.every(({ ruled }) => ruled)).toBe(true);
  });

  test('single experts kept among quantized ones come out of the stack byte for byte', async () => {
    const report = await checked({
      recipe: recipeFile([
        { match: { role: 'expert', name: '*.experts.3.*' }, scheme: null },
        { match: { role: 'expert', name: '*.experts.4.up_proj' }, scheme: null },
        { match: { role: 'expert' }, scheme: scheme(4) },
        { match: {}, scheme: null },
      ]),
    });
    const kept = report.tensors.filter(({ role, scheme: own }) => role === 'expert' && own === null);
    expect(kept.length).toBe(3 * (3 + 1));
  });

  test('experts that are all kept stay in their stacks', async () => {
    const recipe = recipeFile([
      { match: { role: 'attention' }, scheme: scheme(4) },
      { match: {}, scheme: null },
    ]);
    const { quantized, kept } = await checked({ recipe }, { expected: stacked });
    expect({ quantized, kept }).toEqual({ quantized: 12, kept: stacked.size - 12 });
  });

  test('weights that no rule matches are kept and reported, stacks too', async () => {
    const recipe = recipeFile([{ match: { role: 'attention', layers: '0' }, scheme: scheme(4) }]);
    const { tensors } = await checked({ recipe }, { expected: stacked });
    const unruled = tensors.filter(({ ruled }) => !ruled).map(({ name }) => name);
    expect(unruled).toEqual(
      expect.arrayContaining(
        [...stacked.keys()].filter(
          (name) => /(experts|layers\.[12]\.self_attn).*weight$/.test(name) && /language/.test(name),
        ),
      ),
    );
    expect(unruled.filter((name) => /norm|bias/.test(name))).toEqual([]);
  });

  test('everything kept: the same tensors, nothing quantized, which verify takes', async () => {
    const { out } = await checked(
      { recipe: recipeFile([{ match: {}, scheme: null }]) },
      { expected: stacked },
    );
    expect(readJson(out, 'config.json').quantization_config).toBeUndefined();
    expect((await verifyModel(out, EXAMPLE)).ok).toBe(true);
  });

  test('everything kept without any rule: verify says so', async () => {
    const { tensors } = await checked({ recipe: recipeFile([]) }, { expected: stacked });
    const decoder = tensors.filter(({ role, ruled }) => DECODER.includes(role) && !ruled);
    expect(decoder.length).toBe(3 * (2 + 3 + 4));
  });

  test('method and format of the file hold unless flags say otherwise', async () => {
    const rules = [
      { match: { role: 'attention' }, scheme: scheme(4) },
      { match: {}, scheme: null },
    ];
    const recipe = recipeFile(rules, { method: 'rtn', format: 'gptq' });
    expect((await checked({ recipe }, { expected: stacked })).format).toBe('gptq');
    expect((await checked({ recipe, format: 'quanto' }, { expected: stacked })).format).toBe('quanto');
    const other = recipeFile(rules, { method: 'nosuch' });
    await rejectsCode(
      quantizeCheckpoint(EXAMPLE, { out: newOut(), recipe: other }),
      'ERR_UNSUPPORTED',
      /nosuch/,
    );
  });

  test('without a format, one that holds all schemes is taken', async () => {
    const only = (own: object) =>
      recipeFile([
        { match: { role: 'attention' }, scheme: own },
        { match: {}, scheme: null },
      ]);
    const formats = [];
    for (const own of [
      { kind: 'nf4', blockSize: 64 },
      { kind: 'llm.int8' },
      { kind: 'mx', element: 'e2m1' },
      scheme(4),
    ]) {
      formats.push((await checked({ recipe: only(own) }, { expected: stacked })).format);
    }
    expect(formats).toEqual(['bitsandbytes', 'bitsandbytes', 'mxfp4', 'compressed-tensors']);
  });

  test.each<readonly [string, string]>([
    ['not JSON', '{"rules": ['],
    ['no rules', '{}'],
    ['an unknown field', '{"rules": [], "extra": 1}'],
    ['an unknown role', '{"rules": [{"match": {"role": "experts"}, "scheme": null}]}'],
    ['no scheme', '{"rules": [{"match": {}}]}'],
    [
      'a scheme that does not exist',
      '{"rules": [{"match": {}, "scheme": {"kind": "int", "bits": 7, "symmetric": true, "granularity": "row"}}]}',
    ],
    ['layers that fall', '{"rules": [{"match": {"layers": "3-1"}, "scheme": null}]}'],
    ['usage that is no count', '{"rules": [{"match": {"usage": "top:0"}, "scheme": null}]}'],
  ])('%s is refused, naming the file, and nothing is written', async (_, text) => {
    const recipe = path.join(work, `malformed-${++outputs}.json`);
    fs.writeFileSync(recipe, text);
    const out = newOut();
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { out, recipe }), 'ERR_FORMAT', /malformed-\d+\.json/);
    expect(fs.existsSync(out)).toBe(false);
  });
});

describe('usage', () => {
  const counts = readJson<{ sets: { calib: { usage: number[][] } } }>(EXAMPLE, 'expert_usage.json').sets.calib
    .usage;
  const usage = path.join(work, 'usage.json');
  fs.writeFileSync(
    usage,
    JSON.stringify({ tokens: 80128, layers: counts.map((own, layer) => ({ layer, counts: own })) }),
  );
  const ranked = counts.map((own) =>
    own.map((_, i) => i).sort((a, b) => (own[b] as number) - (own[a] as number) || a - b),
  );
  const place = (name: string) => {
    const [, layer, expert] = /layers\.(\d+)\..*experts\.(\d+)\./.exec(name) as RegExpExecArray;
    return { layer: Number(layer), rank: (ranked[Number(layer)] as number[]).indexOf(Number(expert)) };
  };

  test('top:N is the N experts of each layer that are used most, ties to the lower index', async () => {
    const scheme = (bits: number) => ({ kind: 'int', bits, symmetric: true, granularity: 'row' });
    const rules = [
      { match: { role: 'expert', usage: 'top:3' }, scheme: scheme(8) },
      { match: { role: 'expert' }, scheme: scheme(2) },
      { match: {}, scheme: null },
    ];
    const report = await checked({ recipe: recipeFile(rules), usage });
    for (const { name, role, scheme: own } of report.tensors) {
      if (role === 'expert')
        expect({ name, own }).toMatchObject({ name, own: { bits: place(name).rank < 3 ? 8 : 2 } });
    }
    const out = newOut();
    await rejectsCode(
      quantizeCheckpoint(EXAMPLE, { out, recipe: recipeFile(rules) }),
      'ERR_ARGUMENT',
      /usage/,
    );
    expect(fs.existsSync(out)).toBe(false);
  });

  test('moe-mixed, the default: first layer 8 bits, of the others the most used quarter 4 bits, the rest 3', async () => {
    const { tensors, recipe } = await checked({ usage });
    expect(recipe).toMatchObject({ preset: 'moe-mixed' });
    for (const { name, role, scheme } of tensors) {
      if (role !== 'expert') continue;
      const { layer, rank } = place(name);
      expect({ name, scheme }).toMatchObject({ name, scheme: { bits: layer === 0 ? 8 : rank < 4 ? 4 : 3 } });
    }
  });

  test('without usage those experts get 4 bits, and a note says so', async () => {
    const { tensors, notes } = await checked({});
    expect(labels(tensors, ({ role, name }) => role === 'expert' && !/layers\.0\./.test(name))).toEqual(
      new Set([int(4)]),
    );
    expect(notes).toContainEqual(expect.stringMatching(/without usage/));
  });

  test.each([
    ['of another model', { tokens: 1, layers: [{ layer: 0, counts: [1, 2] }] }],
    ['without layers', { tokens: 1 }],
  ])('usage %s is refused', async (_, content) => {
    const file = path.join(work, 'wrong-usage.json');
    fs.writeFileSync(file, JSON.stringify(content));
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { out: newOut(), usage: file }), 'ERR_FORMAT', /usage/);
  });
});
