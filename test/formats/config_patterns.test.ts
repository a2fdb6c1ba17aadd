import { describe, expect, test } from 'vitest';
import { getFormat, type JsonObject } from '../../lib/formats';
import type { IntScheme, QuantScheme } from '../../lib/scheme';
import { families, type Planned, planned, plans, reMatch } from './plans';

/** Every family under every plan; the names are those of files and of transformers v5's memory. */
const cases = Object.entries(families).flatMap(([family, { checkpoint, inMemory }]) =>
  Object.entries(plans).map(([plan, choose]) => ({ family, plan, checkpoint, inMemory, choose })),
);

const namesOf = (module: string, inMemory: (name: string) => string) => [
  ...new Set([module, inMemory(module)]),
];

/** What a loader that merges q, k, v and gate, up asks for, if the parts agree in the plan. */
function mergedNames({ modules }: Planned): { name: string; scheme: QuantScheme | null }[] {
  const byName = new Map(modules.map(({ module, scheme }) => [module, scheme]));
  const merge = (first: string, others: string[], name: string) =>
    [...byName].flatMap(([module, scheme]) => {
      if (!module.endsWith(`.${first}`)) return [];
      const parent = module.slice(0, -first.length);
      const parts = others.map((other) => byName.get(parent + other));
      const agree = parts.every(
        (part) => part !== undefined && JSON.stringify(part) === JSON.stringify(scheme),
      );
      return agree && !/experts\.\d+\.$/.test(parent) ? [{ name: parent + name, scheme }] : [];
    });
  return [
    ...merge('q_proj', ['k_proj', 'v_proj'], 'qkv_proj'),
    ...merge('gate_proj', ['up_proj'], 'gate_up_proj'),
  ];
}

describe.each(cases)('$family, $plan', ({ checkpoint, inMemory, choose }) => {
  test('compressed-tensors: each linear layer is ignored, or matched by the one group of its scheme', () => {
    const plan = planned('compressed-tensors', checkpoint(), choose);
    const config = getFormat('compressed-tensors').config(plan.context).quantizationConfig as JsonObject;
    const groups = Object.values(config.config_groups as JsonObject) as JsonObject[];
    const matches = (item: string, name: string) =>
      item.startsWith('re:') ? reMatch(item.slice(3), name) : item === name || item === 'Linear';
    const groupsOf = (name: string) =>
      (config.ignore as string[]).some((item) => matches(item, name))
        ? []
        : groups.filter(({ targets }) => (targets as string[]).some((target) => matches(target, name)));
    const check = (name: string, scheme: QuantScheme | null) => {
      const found = groupsOf(name);
      expect([name, found.map(({ weights }) => (weights as JsonObject).num_bits)]).toEqual([
        name,
        scheme === null ? [] : [(scheme as IntScheme).bits],
      ]);
    };
    for (const { module, scheme } of plan.modules)
      for (const name of namesOf(module, inMemory)) check(name, scheme);
    for (const { name, scheme } of mergedNames(plan)) check(name, scheme);
    if (!plan.context.quantized.some(({ linear }) => linear.role === 'lm-head')) check('lm_head', null);
  });

  test('gptq: the first pattern that matches gives each module its bits, or skips it', () => {
    const plan = planned('gptq', checkpoint(), choose);
    const format = getFormat('gptq').settle(plan.context.quantized);
    const config = format.config(plan.context).quantizationConfig as JsonObject;
    const rules = Object.entries(config.dynamic as JsonObject) as [string, JsonObject][];
    const bitsOf = (name: string) => {
      const rule = rules.find(([key]) => reMatch(key.replace(/^[+-]:/, ''), name));
      return rule?.[0].startsWith('-:') ? null : (rule?.[1].bits ?? config.bits);
    };
    const check = (name: string, scheme: QuantScheme | null) =>
      expect([name, bitsOf(name)]).toEqual([name, scheme === null ? null : (scheme as IntScheme).bits]);
    for (const { module, scheme } of plan.modules)
      for (const name of namesOf(module, inMemory)) check(name, scheme);
    for (const { name, scheme } of mergedNames(plan)) check(name, scheme);
  });

  test.each(['awq', 'bitsandbytes'])('%s: exactly the modules stored dense are skipped', (name) => {
    const scheme: QuantScheme =
      name === 'awq'
        ? { kind: 'int', bits: 4, symmetric: false, granularity: 'row' }
        : { kind: 'nf4', blockSize: 64 };
    const plan = planned(name, checkpoint(), (linear) => (choose(linear) === null ? null : scheme));
    const config = getFormat(name).config(plan.context).quantizationConfig as JsonObject;
    const list = (config.modules_to_not_convert ?? config.llm_int8_skip_modules) as string[];
    for (const { module, scheme: own } of plan.modules) {
      for (const variant of namesOf(module, inMemory)) {
        const transformers = list.some((entry) => reMatch(entry, variant) || variant.endsWith(entry));
        expect([variant, transformers]).toEqual([variant, own === null]);
        // vLLM reads the same list as substrings (awq), or as components and dotted prefixes (bitsandbytes).
        if (own !== null) {
          const parts = variant.split('.');
          expect(list.filter((entry) => variant.includes(entry) || parts.includes(entry))).toEqual([]);
        }
      }
    }
  });

  test('quanto: the map has every quantized module, under the names of files and of memory', () => {
    const plan = planned('quanto', checkpoint(), choose);
    const { files } = getFormat('quanto').config(plan.context);
    const map = JSON.parse(files['quanto_qmap.json'] as string) as Record<string, { weights: string }>;
    for (const { module, scheme } of plan.modules) {
      for (const name of namesOf(module, inMemory)) {
        expect([name, map[name]?.weights]).toEqual([
          name,
          scheme === null ? undefined : `qint${(scheme as IntScheme).bits}`,
        ]);
      }
    }
  });
});

describe('configurations stay small where a model is uniform', () => {
  test.each(['qwen3-moe', 'aria, sequential', 'mixtral'])(
    '%s: the number of patterns does not grow with its layers',
    (family) => {
      const { context } = planned('compressed-tensors', families[family]!.checkpoint(), plans['by role']!);
      const config = getFormat('compressed-tensors').config(context).quantizationConfig as JsonObject;
      const groups = Object.values(config.config_groups as JsonObject) as JsonObject[];
      const patterns = [
        ...(config.ignore as string[]),
        ...groups.flatMap(({ targets }) => targets as string[]),
      ];
      expect(patterns.length).toBeLessThanOrEqual(8);
      expect(patterns.every((pattern) => !/layers\\\.\(?\d/.test(pattern))).toBe(true);
    },
  );

  test('the group of the routed experts comes first, and its patterns say `experts`', () => {
    const { context } = planned('compressed-tensors', families['qwen2-moe']!.checkpoint(), plans['by role']!);
    const config = getFormat('compressed-tensors').config(context).quantizationConfig as JsonObject;
    const first = Object.values(config.config_groups as JsonObject)[0] as JsonObject;
    expect((first.weights as JsonObject).num_bits).toBe(4);
    expect(
      (first.targets as string[]).every((target) => target.startsWith('re:') && target.includes('experts')),
    ).toBe(true);
  });
});

test('bitsandbytes: the threshold is never a whole number in JSON, which transformers refuses, and means the same', () => {
  const thresholdFor = (threshold: number) => {
    const { context } = planned('bitsandbytes', families.llama!.checkpoint(), () => ({
      kind: 'llm.int8',
      threshold,
    }));
    const config = getFormat('bitsandbytes').config(context).quantizationConfig as JsonObject;
    return config.llm_int8_threshold as number | undefined;
  };
  expect(thresholdFor(6)).toBeUndefined();
  for (const whole of [1, 2, 3, 4, 5, 7, 8, 100]) {
    expect(JSON.stringify(thresholdFor(whole))).toContain('.');
    expect(Math.fround(thresholdFor(whole) as number)).toBe(whole);
  }
  expect(thresholdFor(5.5)).toBe(5.5);
});
