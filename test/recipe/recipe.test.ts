import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { describeModel } from '../../lib/models';
import {
  fitGroupSize,
  parseRecipe,
  parseUsage,
  planModel,
  rankExperts,
  resolveRecipe,
} from '../../lib/recipe';
import { formatLayers, matchesGlob, parseLayers } from '../../lib/recipe/match';
import { schemeLabel } from '../../lib/scheme';
import { llama, qwen2Moe, qwen3Moe } from '../models/checkpoints';

const int = (bits: number) => ({ kind: 'int', bits, symmetric: true, granularity: 'row' });
const moe = describeModel(qwen2Moe().config, qwen2Moe().tensors);
const dense = describeModel(llama().config, llama().tensors);

/** Labels of the planned schemes of the linear weights whose names end so. */
function labels(rules: unknown[], end: string, usage?: unknown) {
  const plan = planModel(
    moe,
    parseRecipe({ rules }),
    usage === undefined ? {} : { usage: parseUsage(usage) },
  );
  return plan.linears
    .filter(({ linear }) => linear.name.endsWith(end))
    .map(({ scheme }) => (scheme === null ? null : schemeLabel(scheme)));
}

describe('rules', () => {
  test('the first rule that matches decides, null keeps', () => {
    const attention = { match: { role: 'attention' }, scheme: int(8) };
    const q = { match: { name: '*.q_proj' }, scheme: null };
    const all = { match: {}, scheme: int(4) };
    expect(labels([attention, q, all], 'q_proj')).toEqual(['int8 row sym', 'int8 row sym', 'int8 row sym']);
    expect(labels([q, attention, all], 'q_proj')).toEqual([null, null, null]);
    expect(labels([q, attention, all], 'k_proj')).toEqual(['int8 row sym', 'int8 row sym', 'int8 row sym']);
    expect(labels([q, attention, all], 'lm_head')).toEqual(['int4 row sym']);
  });

  test('layers are ranges with both ends, and only the decoder has them', () => {
    expect(labels([{ match: { layers: '1-2' }, scheme: int(4) }], 'q_proj')).toEqual([
      null,
      'int4 row sym',
      'int4 row sym',
    ]);
    expect(labels([{ match: { layers: '0,2' }, scheme: int(4) }], 'q_proj')).toEqual([
      'int4 row sym',
      null,
      'int4 row sym',
    ]);
    expect(labels([{ match: { layers: '0-9' }, scheme: int(4) }], 'lm_head')).toEqual([null]);
  });

  test('names are of modules, of tensors, or of stored tensors', () => {
    for (const name of [
      'model.layers.0.self_attn.q_proj',
      '*.0.self_attn.q_proj.weight',
      'model.layers.?.self_attn.q*',
    ]) {
      expect(labels([{ match: { name }, scheme: int(4) }], '0.self_attn.q_proj')).toEqual(['int4 row sym']);
    }
    const grouped = describeModel(qwen3Moe('grouped').config, qwen3Moe('grouped').tensors);
    const plan = planModel(
      grouped,
      parseRecipe({ rules: [{ match: { name: '*layers.1.mlp.experts.fc1.weight' }, scheme: int(4) }] }),
    );
    expect(
      plan.linears
        .filter(({ scheme }) => scheme !== null)
        .map(({ linear }) => [linear.layer, linear.projection]),
    ).toEqual(
      [0, 1, 2, 3].flatMap(() => [
        [1, 'gate'],
        [1, 'up'],
      ]),
    );
  });

  test('all fields of a match must hold', () => {
    const rule = { match: { role: 'attention', layers: '1', name: '*o_proj' }, scheme: int(4) };
    expect(labels([rule], 'o_proj')).toEqual([null, 'int4 row sym', null]);
    expect(labels([rule], 'q_proj')).toEqual([null, null, null]);
  });

  test('usage ranks the experts of each layer, ties to the lower index', () => {
    const usage = {
      tokens: 10,
      layers: [
        { layer: 0, counts: [1, 5, 5, 0] },
        { layer: 2, counts: [0, 0, 0, 9] },
      ],
    };
    const rule = { match: { role: 'expert', usage: 'top:2' }, scheme: int(4) };
    const plan = planModel(moe, parseRecipe({ rules: [rule] }), { usage: parseUsage(usage) });
    const chosen = plan.linears
      .filter(({ scheme }) => scheme !== null)
      .map(({ linear }) => `${linear.layer}/${linear.expert}`);
    expect([...new Set(chosen)]).toEqual(['0/1', '0/2', '2/0', '2/3']);
    expect(labels([{ match: { usage: 'top:4' }, scheme: int(4) }], 'q_proj', usage)).toEqual([
      null,
      null,
      null,
    ]);
  });

  test('usage that is missing or of another model is refused', () => {
    const recipe = parseRecipe({ rules: [{ match: { usage: 'top:2' }, scheme: int(4) }] });
    expect(() => planModel(moe, recipe)).toThrow(/rule 1 matches by usage/);
    const counts = [
      [0, [1, 2, 3, 4]],
      [2, [1, 2, 3]],
    ].map(([layer, counts]) => ({ layer, counts }));
    expect(() => planModel(moe, recipe, { usage: parseUsage({ tokens: 1, layers: counts }) })).toThrow(
      /layer 2 has 3 counts, but the model has 4/,
    );
    expect(() =>
      planModel(moe, recipe, { usage: parseUsage({ tokens: 1, layers: counts.slice(0, 1) }) }),
    ).toThrow(/layer 2 has no counts/);
  });

  test('what no rule matches is kept and reported; norms and biases are not worth a word', () => {
    const plan = planModel(moe, parseRecipe({ rules: [{ match: { role: 'expert' }, scheme: int(4) }] }));
    expect(plan.unmatched).toContain('model.layers.0.self_attn.q_proj');
    expect(plan.unmatched).toContain('model.embed_tokens.weight');
    expect(plan.unmatched.filter((name) => /norm|bias|experts/.test(name))).toEqual([]);
    for (const { linear, scheme, rule, reason } of plan.linears) {
      expect([linear.name, scheme === null]).toEqual([linear.name, linear.role !== 'expert']);
      expect(rule).toBe(linear.role === 'expert' ? 0 : null);
      expect(reason).not.toBe('');
    }
  });

  test('a weight that cannot be read but should be quantized is reported', () => {
    const stack = { name: 'model.layers.0.moe.experts.mystery', dtype: 'BF16', shape: [4, 8, 8] };
    const plan = planModel(
      describeModel(null, [stack]),
      parseRecipe({ rules: [{ match: { role: 'expert' }, scheme: int(4) }] }),
    );
    expect(plan.refused).toEqual([stack.name]);
    expect(plan.averageBits).toBe(16);
  });
});

test('the average counts codes, constants and kept weights of the decoder only', () => {
  const plan = planModel(dense, parseRecipe({ rules: [{ match: { role: 'attention' }, scheme: int(4) }] }));
  const attention = 2 * 32 * 32 + 2 * 16 * 32;
  const ffn = 3 * 32 * 56;
  expect(plan.averageBits).toBeCloseTo((attention * (4 + 16 / 32) + ffn * 16) / (attention + ffn), 12);
  const rest = 2 * (2 * 40 * 32 + 25 * 32);
  expect(plan.bytes).toBe((12 * (attention * 4.5)) / 8 + 12 * ffn * 2 + rest);
  const measured = planModel(dense, null, { bits: 4, bytesOf: ({ shape }) => shape[0] * shape[1] });
  expect(measured.averageBits).toBe(8);
});

test.each([
  [7, /recipe: recipe: 7 came/],
  [{}, /rules: nothing came/],
  [{ rules: {} }, /rules: \{\} came/],
  [{ rules: [], seed: 1 }, /recipe\.seed/],
  [{ rules: [], format: 'gguf' }, /format: "gguf" came, expected gptq, awq/],
  [{ rules: [], method: 3 }, /method: 3 came/],
  [{ rules: [null] }, /rules\[0\]: null came/],
  [{ rules: [{ match: {} }] }, /rules\[0\]\.scheme: nothing came/],
  [{ rules: [{ scheme: null }] }, /rules\[0\]\.match: nothing came/],
  [
    { rules: [{ match: { role: 'experts' }, scheme: null }] },
    /rules\[0\]\.match\.role: "experts" came, expected expert, /,
  ],
  [{ rules: [{ match: { layer: 3 }, scheme: null }] }, /rules\[0\]\.match\.layer/],
  [{ rules: [{ match: { layers: '3-1' }, scheme: null }] }, /match\.layers: "3-1" came/],
  [{ rules: [{ match: { layers: 3 }, scheme: null }] }, /match\.layers: 3 came/],
  [{ rules: [{ match: { name: '*.{q,k}_proj' }, scheme: null }] }, /match\.name/],
  [{ rules: [{ match: { usage: 'top:0' }, scheme: null }] }, /match\.usage: "top:0" came/],
  [{ rules: [{ match: { usage: 'most' }, scheme: null }] }, /match\.usage/],
  [
    {
      rules: [
        { match: {}, scheme: null },
        { match: {}, scheme: { ...int(4), bits: 7 } },
      ],
    },
    /rules\[1\]\.scheme\.bits: 7 came/,
  ],
])('the recipe %j is refused', (recipe, message) => {
  expect(() => parseRecipe(recipe)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
  expect(() => parseRecipe(recipe)).toThrow(message);
});

test.each([
  [3],
  [{ tokens: -1, layers: [] }],
  [{ tokens: 1, layers: {} }],
  [{ tokens: 1, layers: [3] }],
  [{ tokens: 1, layers: [{ layer: 0, counts: [] }] }],
  [{ tokens: 1, layers: [{ layer: 0, counts: [1.5] }] }],
  [
    {
      tokens: 1,
      layers: [
        { layer: 0, counts: [1] },
        { layer: 0, counts: [1] },
      ],
    },
  ],
])('the usage %j is refused', (usage) => {
  expect(() => parseUsage(usage)).toThrow(expect.objectContaining({ code: 'ERR_FORMAT' }));
});

test('experts are ranked by falling count, then by index', () => {
  expect(rankExperts([3, 9, 3, 0, 9])).toEqual([1, 4, 0, 2, 3]);
});

test('layers are written and read as ranges', () => {
  expect(parseLayers('0-3,27')).toEqual([
    [0, 3],
    [27, 27],
  ]);
  expect(parseLayers(' 1 , 4-4')).toEqual([
    [1, 1],
    [4, 4],
  ]);
  for (const bad of ['', ',', '1-', '-1', '1--2', '2-1', 'a', '1;2', '1-2-3'])
    expect(parseLayers(bad)).toBeNull();
  expect(formatLayers([0, 1, 2, 5, 7, 8])).toBe('0-2,5,7-8');
});

test('globs agree with the regular expression of the same meaning', () => {
  const letters = ['a', 'b', '.'];
  const words = [''];
  for (let at = 0; words.length < 364; ++at) for (const letter of letters) words.push(words[at] + letter);
  for (const glob of [
    '',
    '*',
    '?',
    'a*',
    '*a',
    '*a*',
    'a?b',
    '*.b',
    '**',
    'a*b*a',
    '?*?',
    '*ab',
    '.',
    'a.b',
  ]) {
    const pattern = new RegExp(
      `^${[...glob].map((c) => ({ '*': '.*', '?': '.', '.': '\\.' })[c] ?? c).join('')}$`,
    );
    for (const word of words)
      expect([glob, word, matchesGlob(glob, word)]).toEqual([glob, word, pattern.test(word)]);
  }
});

test('a glob with many stars takes no exponential time', () => {
  const start = performance.now();
  expect(matchesGlob(`${'*a'.repeat(40)}b`, 'a'.repeat(4000))).toBe(false);
  expect(performance.now() - start).toBeLessThan(1000);
});

test('a fitted group size is the largest divisor between 16 and what was asked', () => {
  for (let width = 1; width <= 400; ++width) {
    for (const asked of [16, 32, 100, 128]) {
      const divisors = Array.from({ length: asked }, (_, i) => i + 1).filter(
        (d) => d >= 16 && width % d === 0,
      );
      expect(fitGroupSize(width, asked)).toBe(divisors.at(-1) ?? null);
    }
  }
  expect([
    fitGroupSize(172, 128),
    fitGroupSize(4304, 128),
    fitGroupSize(2560, 128),
    fitGroupSize(1109, 128),
  ]).toEqual([86, 16, 128, null]);
});

describe('what the command line says', () => {
  const folder = mkdtempSync(join(tmpdir(), 'quantaria-recipe-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  const file = (name: string, text: string) => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const scheme = async (options: Parameters<typeof resolveRecipe>[0]) =>
    (await resolveRecipe(options, dense, false)).rules[0]?.scheme;

  test('without anything, a mixture of experts gets moe-mixed and others int4', async () => {
    expect((await resolveRecipe({}, moe, false)).preset).toBe('moe-mixed');
    expect((await resolveRecipe({}, dense, false)).preset).toBe('int4');
  });

  test('bits and group size alone are one scheme over the decoder', async () => {
    expect(await scheme({ bits: 4 })).toEqual(await scheme({ recipe: 'int4' }));
    expect(await scheme({ bits: 8 })).toEqual(await scheme({ recipe: 'int8' }));
    expect(await scheme({ groupSize: 64 })).toMatchObject({ bits: 4, groupSize: 64, range: 'full' });
    expect(await scheme({ bits: 3, groupSize: -1 })).toMatchObject({
      bits: 3,
      granularity: 'row',
      range: 'full',
    });
    expect(await scheme({ bits: 4, format: 'awq' })).toMatchObject({ symmetric: false });
    const { rules } = await resolveRecipe({ bits: 3 }, dense, false);
    expect(rules.map(({ match }) => match.role)).toEqual([
      'expert',
      'shared-expert',
      'dense-ffn',
      'attention',
      undefined,
    ]);
    await expect(scheme({ bits: 7 })).rejects.toThrow(/bits: 7 came/);
    await expect(scheme({ groupSize: 0 })).rejects.toThrow(/group size: 0 came/);
  });

  test('they change a preset of one integer scheme, and no other recipe', async () => {
    expect(await scheme({ recipe: 'int4', groupSize: 32 })).toMatchObject({ bits: 4, groupSize: 32 });
    expect(await scheme({ recipe: 'int8', groupSize: 64 })).toMatchObject({ bits: 8, groupSize: 64 });
    for (const recipe of ['nf4', 'moe-mixed', file('any.json', '{"rules": []}')]) {
      await expect(resolveRecipe({ recipe, bits: 4 }, moe, false)).rejects.toMatchObject({
        code: 'ERR_ARGUMENT',
      });
    }
  });

  test("a file is a recipe; its faults are the file's", async () => {
    const good = file(
      'good.json',
      JSON.stringify({ method: 'gptq', rules: [{ match: {}, scheme: { kind: 'nf4', blockSize: 64 } }] }),
    );
    expect(await resolveRecipe({ recipe: good }, dense, false)).toMatchObject({
      preset: null,
      method: 'gptq',
      format: 'bitsandbytes',
    });
    expect(await resolveRecipe({ recipe: good, format: 'gptq' }, dense, false)).toMatchObject({
      format: 'gptq',
    });
    const code = (recipe: string) =>
      resolveRecipe({ recipe }, dense, false).catch((error: { code: string }) => error.code);
    expect(await code(file('text.json', 'int4'))).toBe('ERR_FORMAT');
    expect(await code(file('bad.json', '{"rules": 3}'))).toBe('ERR_FORMAT');
    expect(await code(join(folder, 'none.json'))).toBe('ERR_IO');
    expect(await code('int5')).toBe('ERR_ARGUMENT');
  });
});
