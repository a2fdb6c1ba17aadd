import { describe, expect, test } from 'vitest';
import { describeModel, type ModelMap, type Role } from '../../lib/models';
import { PRESET_NAMES, type PresetName, parseUsage, planModel, presetRecipe } from '../../lib/recipe';
import { schemeLabel } from '../../lib/scheme';
import { aria, deepseek, llama, mixtral } from '../models/checkpoints';

const read = ({ config, tensors }: ReturnType<typeof llama>) => describeModel(config, tensors);
const small = read(aria({ form: 'grouped' }));
const dense = read(llama());
const big = read(aria({ form: 'grouped', real: true }));

/** Expert e of every layer is used e times. */
const rising = ({ linears, experts }: ModelMap) =>
  parseUsage({
    tokens: 1,
    layers: [...new Set(linears.filter((l) => l.role === 'expert').map((l) => l.layer))].map((layer) => ({
      layer,
      counts: Array.from({ length: experts }, (_, expert) => expert),
    })),
  });

function plan(name: PresetName, model: ModelMap, withUsage = false) {
  const usage = withUsage ? rising(model) : undefined;
  return planModel(model, presetRecipe(name, { model, hasUsage: withUsage }), { usage });
}

const label = (model: ReturnType<typeof plan>, accepts: (linear: ModelMap['linears'][number]) => boolean) => [
  ...new Set(
    model.linears.filter(({ linear }) => accepts(linear)).map(({ scheme }) => scheme && schemeLabel(scheme)),
  ),
];

test.each(
  PRESET_NAMES.flatMap((name) => [small, dense].map((model) => [name, model.architecture, model] as const)),
)(
  '%s on %s: router, embedding, head, norms, vision and projector are kept by a rule, nothing is left open',
  (name, _, model) => {
    const { linears, others, unmatched, refused } = plan(name, model);
    expect([unmatched, refused]).toEqual([[], []]);
    const quantized: Role[] = ['expert', 'shared-expert', 'dense-ffn', 'attention'];
    for (const { linear, scheme, rule } of linears) {
      expect([linear.name, scheme !== null]).toEqual([linear.name, quantized.includes(linear.role)]);
      expect(rule).not.toBeNull();
    }
    for (const { rule } of others) expect(rule).not.toBeNull();
  },
);

test.each<[PresetName, string, string, number]>([
  ['int4', 'int4 g128 sym', 'compressed-tensors', 4 + 16 / 128],
  ['nf4', 'nf4 b64', 'bitsandbytes', 4.5],
  ['nf4-dq', 'nf4 b64 dq', 'bitsandbytes', 4 + 8 / 64 + 32 / (64 * 256)],
  ['mxfp4', 'mx e2m1', 'mxfp4', 4.25],
  ['mxfp8', 'mx e4m3', 'compressed-tensors', 8.25],
])('%s is %s in %s: its bits on the real Aria', (name, scheme, format, bits) => {
  const made = plan(name, big);
  expect(label(made, ({ role }) => role === 'expert')).toEqual([scheme]);
  expect(made.recipe.format).toBe(format);
  // The offset of each weight's nested constants is a millionth of a bit.
  expect(made.averageBits).toBeCloseTo(bits, 4);
});

test('int8 and llm.int8 have a constant a row', () => {
  expect(label(plan('int8', big), ({ role }) => role === 'expert')).toEqual(['int8 row sym']);
  expect(label(plan('llm.int8', big), ({ role }) => role === 'expert')).toEqual(['llm.int8 t6']);
  const narrow = 1664;
  for (const [name, constant] of [
    ['int8', 16],
    ['llm.int8', 32],
  ] as const) {
    expect(plan(name, big).averageBits).toBeGreaterThan(8 + constant / 3328);
    expect(plan(name, big).averageBits).toBeLessThan(8 + constant / narrow);
  }
});

test('int4 for awq has zero points', () => {
  const { rules } = presetRecipe('int4', { model: dense, hasUsage: false, format: 'awq' });
  expect(rules[0]?.scheme).toMatchObject({ bits: 4, symmetric: false, groupSize: 128 });
  expect(presetRecipe('int4', { model: dense, hasUsage: false }).rules[0]?.scheme).toMatchObject({
    symmetric: true,
    range: 'full',
  });
});

describe('moe-mixed', () => {
  const expertOf = (layer: number, expert: number) => (l: ModelMap['linears'][number]) =>
    l.layer === layer && l.expert === expert;

  test('on Aria: four layers at 8 bits, then the 16 experts used most at 4 and the rest at 3', () => {
    const made = plan('moe-mixed', big, true);
    for (const role of ['attention', 'shared-expert'] as const) {
      expect(label(made, (l) => l.role === role)).toEqual(['int8 g128 sym']);
    }
    expect(label(made, (l) => l.role === 'expert' && (l.layer ?? 0) < 4)).toEqual(['int8 g128 sym']);
    for (const layer of [4, 27]) {
      expect([0, 47, 48, 63].map((expert) => label(made, expertOf(layer, expert))[0])).toEqual([
        'int3 g128 sym',
        'int3 g128 sym',
        'int4 g128 sym',
        'int4 g128 sym',
      ]);
    }
    expect(made.linears.find(({ scheme }) => scheme)?.scheme).toMatchObject({ range: 'full' });
    // 4 of 28 layers at 8, 24 of 28 at 3.25; attention and shared experts pull up a little; 1/8 bit of scales.
    const experts = (4 * 8 + 24 * 3.25) / 28 + 1 / 8;
    expect(made.averageBits).toBeGreaterThan(experts);
    expect(made.averageBits).toBeLessThan(experts + 0.3);
  });

  test('without usage all other experts get 4 bits, and it is said', () => {
    const made = plan('moe-mixed', big);
    expect(label(made, (l) => l.role === 'expert' && (l.layer ?? 0) >= 4)).toEqual(['int4 g128 sym']);
    expect(made.notes.join()).toContain('without usage or a text');
    expect(plan('moe-mixed', big, true).notes).toEqual([]);
  });

  test('the first layers are counted from the first that has experts', () => {
    const made = plan('moe-mixed', read(deepseek('sequential', { real: true })), true);
    // 27 / 8 rounds to 3 layers.
    expect(label(made, (l) => l.role === 'expert' && [1, 2, 3].includes(l.layer ?? 0))).toEqual([
      'int8 g128 sym',
    ]);
    expect(label(made, (l) => l.role === 'expert' && l.layer === 4)).toEqual([
      'int3 g128 sym',
      'int4 g128 sym',
    ]);
    expect(label(made, (l) => l.role === 'dense-ffn')).toEqual(['int8 g128 sym']);
  });

  test('2bit: 4 bits in the first layers and for 16 experts, 2 bits in groups of 32 for the rest', () => {
    const made = plan('moe-mixed-2bit', big, true);
    expect(label(made, (l) => l.role === 'expert' && (l.layer ?? 0) < 4)).toEqual(['int4 g128 sym']);
    expect([0, 47, 48, 63].map((expert) => label(made, expertOf(9, expert))[0])).toEqual([
      'int2 g32 sym',
      'int2 g32 sym',
      'int4 g128 sym',
      'int4 g128 sym',
    ]);
    expect(label(made, (l) => l.role === 'attention')).toEqual(['int8 g128 sym']);
  });

  test('with 16 experts or fewer nothing is left for 2 bits, and it is said', () => {
    expect(plan('moe-mixed-2bit', read(mixtral()), true).notes).toEqual([
      expect.stringContaining('all 4 experts'),
    ]);
  });

  test('a plan is the same every time', () => {
    expect(plan('moe-mixed', small, true)).toEqual(plan('moe-mixed', read(aria({ form: 'grouped' })), true));
  });
});
