import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { describeModel, type ModelMap, ROLES, type Role, type StoredTensor } from '../../lib/models';
import {
  aria,
  type Checkpoint,
  deepseek,
  type ExpertForm,
  gptOss,
  llama,
  mixtral,
  qwen2Moe,
  qwen3Moe,
  readHeaders,
  sharedModels,
} from './checkpoints';

const read = ({ config, tensors }: Checkpoint) => describeModel(config, tensors);
const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

function parameters(model: ModelMap, role?: Role): number {
  return [...model.linears, ...model.others]
    .filter((tensor) => role === undefined || tensor.role === role)
    .reduce((sum, { shape }) => sum + size(shape), 0);
}

/** The role of the tensor or module whose name ends so; every such name must have the same. */
function roleOf(model: ModelMap, end: string): Role | undefined {
  const roles = new Set(
    [...model.linears, ...model.others].filter(({ name }) => name.endsWith(end)).map(({ role }) => role),
  );
  expect([end, roles.size]).toEqual([end, 1]);
  return [...roles][0];
}

const forms: ExpertForm[] = ['sequential', 'grouped', 'fused', 'fused-transposed'];
const families: [string, Checkpoint][] = [
  ...forms.map((form): [string, Checkpoint] => [`aria ${form}`, aria({ form })]),
  ['aria sequential, short names', aria({ form: 'sequential', path: 'mlp.experts' })],
  ['aria in memory', aria({ form: 'fused-transposed', spelling: 'loader' })],
  ['aria text', aria({ form: 'grouped', spelling: 'text' })],
  ...forms.map((form): [string, Checkpoint] => [`mixtral ${form}`, mixtral(form)]),
  ...forms.map((form): [string, Checkpoint] => [`qwen2_moe ${form}`, qwen2Moe(form)]),
  ...forms.map((form): [string, Checkpoint] => [`qwen3_moe ${form}`, qwen3Moe(form)]),
  ...forms.map((form): [string, Checkpoint] => [`deepseek_v2 ${form}`, deepseek(form)]),
  ['deepseek_v3', deepseek('sequential', { v3: true })],
  ['gpt_oss', gptOss()],
  ['llama', llama()],
  ['mistral', llama('mistral')],
  ['qwen2', llama('qwen2')],
  ['unknown', { ...llama(), config: { model_type: 'novel' } }],
];

describe.each(families)('%s', (name, checkpoint) => {
  const model = read(checkpoint);

  test('every parameter is in exactly one linear weight or other tensor, with a role', () => {
    expect(parameters(model)).toBe(checkpoint.tensors.reduce((sum, { shape }) => sum + size(shape), 0));
    const sources = new Set([
      ...model.linears.map(({ source }) => source.tensor),
      ...model.others.map((t) => t.name),
    ]);
    expect([...sources].sort()).toEqual(checkpoint.tensors.map((tensor) => tensor.name).sort());
    for (const { role } of [...model.linears, ...model.others]) expect(ROLES).toContain(role);
    if (name !== 'deepseek_v3') expect(parameters(model, 'other')).toBe(0);
  });

  test('norms, biases, embeddings and convolutions are no linear weights', () => {
    for (const { name: linear, role, source, shape } of model.linears) {
      expect(role).not.toBe('norm');
      expect(role).not.toBe('embedding');
      expect(source.tensor).not.toMatch(/bias|multihead_attn|embed|query|norm/);
      expect([linear, shape.every((extent) => extent > 0)]).toEqual([linear, true]);
    }
  });

  test('it is recognised, with its layers and experts', () => {
    expect(model.known).toBe(name !== 'unknown');
    expect(model.layers).toBe(
      checkpoint.config.text_config ? 2 : (checkpoint.config.num_hidden_layers ?? 12),
    );
    const moe = /aria|mixtral|moe|deepseek|gpt/.test(name);
    expect(model.experts).toBe(moe ? 4 : 0);
    expect(model.linears.filter(({ role }) => role === 'expert').length > 0).toBe(moe);
    if (name !== 'unknown')
      expect(model.notes.filter((note) => !note.includes('unlike') && !note.includes('beyond'))).toEqual([]);
  });
});

test('roles in Aria', () => {
  const model = read(aria({ form: 'grouped' }));
  for (const [end, role] of [
    ['self_attn.o_proj', 'attention'],
    ['mlp.router', 'router'],
    ['experts.3.down_proj', 'expert'],
    ['shared_experts.up_proj', 'shared-expert'],
    ['embed_tokens.weight', 'embedding'],
    ['model.norm.weight', 'norm'],
    ['input_layernorm.weight', 'norm'],
    ['lm_head', 'lm-head'],
    ['patch_embedding.weight', 'vision'],
    ['layer_norm1.bias', 'vision'],
    ['mlp.fc2', 'vision'],
    ['projector.query', 'projector'],
    ['in_proj_weight', 'projector'],
    ['linear_in', 'projector'],
  ] as const) {
    expect([end, roleOf(model, end)]).toEqual([end, role]);
  }
  expect(model).toMatchObject({
    architecture: 'aria',
    layers: 2,
    experts: 4,
    topK: 2,
    expertLayout: 'grouped',
    wrapped: true,
  });
});

test('roles in Qwen2-MoE and DeepSeek-V3', () => {
  const qwen = read(qwen2Moe());
  expect(roleOf(qwen, 'q_proj.bias')).toBe('attention');
  expect(roleOf(qwen, 'mlp.gate')).toBe('router');
  expect(roleOf(qwen, 'shared_expert_gate')).toBe('router');
  expect(roleOf(qwen, 'shared_expert.up_proj')).toBe('shared-expert');
  expect(roleOf(qwen, 'layers.1.mlp.up_proj')).toBe('dense-ffn');
  const deep = read(deepseek('sequential', { v3: true }));
  expect(roleOf(deep, 'e_score_correction_bias')).toBe('router');
  expect(roleOf(deep, 'kv_a_proj_with_mqa')).toBe('attention');
  expect(roleOf(deep, 'q_a_layernorm.weight')).toBe('norm');
  expect(roleOf(deep, 'shared_head.head')).toBe('lm-head');
  expect(roleOf(deep, 'eh_proj')).toBe('other');
  expect(deep.layers).toBe(3);
  expect(deep.notes.join()).toContain('layers from 3 on');
});

test.each([
  // Published sizes of the models.
  ['Aria', aria({ form: 'grouped', real: true }), 25.3e9, 0.05e9],
  ['Mixtral-8x7B', mixtral('sequential', true), 46_702_792_704, 0],
  ['Qwen1.5-MoE-A2.7B', qwen2Moe('sequential', true), 14_315_784_192, 0],
  ['Qwen3-30B-A3B', qwen3Moe('sequential', true), 30_532_122_624, 0],
  ['DeepSeek-V2-Lite', deepseek('sequential', { real: true }), 15_706_484_224, 0],
])('%s has as many parameters as its authors say', (_, checkpoint, published, margin) => {
  expect(Math.abs(parameters(read(checkpoint)) - published)).toBeLessThanOrEqual(margin);
});

test("over nine tenths of Aria's weights are routed experts, whatever the layout", () => {
  for (const form of ['sequential', 'grouped', 'fused-transposed'] as const) {
    const model = read(aria({ form, real: true }));
    expect(parameters(model, 'expert')).toBe(28 * 64 * 3 * 2560 * 1664);
    expect(parameters(model, 'expert') / parameters(model)).toBeGreaterThan(0.9);
  }
});

test('prefixes make no difference to roles', () => {
  const { config, tensors } = qwen3Moe();
  const base = read({ config, tensors });
  for (const prefix of ['language_model.model.', 'model.language_model.', 'thing.model.']) {
    const renamed = tensors.map((tensor) => ({ ...tensor, name: tensor.name.replace(/^model\./, prefix) }));
    const model = describeModel(config, renamed);
    for (const role of ROLES) expect(parameters(model, role)).toBe(parameters(base, role));
    expect(model.expertLayout).toBe('sequential');
  }
});

test('the width of early Aria configurations is taken from moe_intermediate_size and checked against the tensors', () => {
  const { config, tensors } = aria({ form: 'grouped' });
  const text = config.text_config as Record<string, unknown>;
  const early = {
    ...config,
    text_config: { ...text, model_type: 'aria_moe_lm', intermediate_size: 200, moe_intermediate_size: 24 },
  };
  expect(describeModel(early, tensors).notes).toEqual([
    expect.stringContaining('intermediate_size is 200 but experts are 24 wide'),
  ]);
  const wrong = { ...config, text_config: { ...text, intermediate_size: 200 } };
  expect(describeModel(wrong, tensors).notes[0]).toContain('experts of width 200, the tensors 24');
  expect(
    describeModel(wrong, tensors).linears.find(({ projection }) => projection === 'gate')?.shape,
  ).toEqual([24, 32]);
});

describe('experts that are not whole', () => {
  const { config, tensors } = qwen3Moe();
  const broken = (change: (tensor: StoredTensor) => StoredTensor | null) =>
    tensors.map(change).filter((tensor) => tensor !== null);
  const without = (name: RegExp) => broken((tensor) => (name.test(tensor.name) ? null : tensor));
  const expectError = (list: StoredTensor[], message: RegExp, model = config) => {
    expect(() => describeModel(model, list)).toThrow(expect.objectContaining({ code: 'ERR_FORMAT' }));
    expect(() => describeModel(model, list)).toThrow(message);
  };

  test.each([0, 2, 3])('expert %i missing', (expert) => {
    expectError(
      without(new RegExp(`layers\\.1\\.mlp\\.experts\\.${expert}\\.`)),
      new RegExp(`layers\\.1\\.mlp\\.experts: expert ${expert}`),
    );
  });

  test('a projection missing', () => {
    expectError(
      without(/layers\.0\.mlp\.experts\.2\.up_proj/),
      /layers\.0\.mlp\.experts: expert 2 has no up projection/,
    );
    expectError(
      without(/layers\.0\.mlp\.experts\.\d+\.up_proj/),
      /layers\.0\.mlp\.experts: expert 0 has no up projection/,
    );
  });

  test('an expert of another shape, or projections that do not fit', () => {
    const other = (name: RegExp, shape: number[]) =>
      broken((tensor) => (name.test(tensor.name) ? { ...tensor, shape } : tensor));
    expectError(other(/layers\.1\.mlp\.experts\.3\.up/, [21, 32]), /expert 3: .*up_proj.* is \[21, 32\]/);
    expectError(other(/layers\.1\.mlp\.experts\.\d\.up/, [21, 32]), /gate is \[20, 32\] but up \[21, 32\]/);
    expectError(other(/layers\.1\.mlp\.experts\.\d\.down/, [20, 32]), /but down \[20, 32\]/);
  });

  test('more experts than the router knows', () => {
    expectError(
      [...tensors, { name: 'model.layers.0.mlp.experts.4.up_proj.weight', dtype: 'BF16', shape: [20, 32] }],
      /expert 4/,
    );
  });

  test('stacks without their counterpart, or of shapes that do not fit', () => {
    const grouped = aria({ form: 'grouped' });
    const list = (name: RegExp, shape: number[] | null) =>
      grouped.tensors
        .map((tensor) => (name.test(tensor.name) ? shape && { ...tensor, shape } : tensor))
        .filter((tensor) => tensor !== null);
    expectError(
      list(/layers\.1\..*fc2\.weight$/, null),
      /layers\.1\.mlp\.experts: fc2 is missing/,
      grouped.config,
    );
    expectError(
      list(/layers\.1\.mlp\.experts\.fc2\.weight$/, [4, 25, 32]),
      /\[4, 32, 48\] and \[4, 25, 32\]/,
      grouped.config,
    );
    expectError(list(/layers\.1\.mlp\.experts\.fc\d\.weight$/, [0, 0, 0]), /\[0, 0, 0\]/, grouped.config);
    expectError(
      list(/layers\.1\.mlp\.router/, [5, 32]),
      /4 experts, but the router has 5 rows/,
      grouped.config,
    );
  });

  test('layouts that are mixed', () => {
    const grouped = qwen3Moe('grouped').tensors.filter(({ name }) => name.includes('layers.1.'));
    const rest = tensors.filter(({ name }) => !name.includes('layers.1.'));
    expectError(
      [...rest, ...grouped],
      /layers\.1\.mlp\.experts: experts are stored grouped, but those of layer 0 sequential/,
    );
    expectError([...tensors, ...grouped.filter(({ name }) => name.includes('fc'))], /more than one layout/);
  });

  test('a tensor under two spellings', () => {
    const both = aria({ form: 'grouped' });
    expectError(
      [...both.tensors, { name: 'lm_head.weight', dtype: 'BF16', shape: [48, 32] }],
      /the same tensor/,
      both.config,
    );
  });
});

test('experts that are quantized already count as present, and are not linear weights', () => {
  const { config, tensors } = qwen3Moe();
  const packed = tensors.flatMap((tensor) =>
    /experts\.[012]\./.test(tensor.name)
      ? ['weight_packed', 'weight_scale', 'weight_shape'].map((part) => ({
          name: tensor.name.replace(/weight$/, part),
          dtype: 'I32',
          shape: [4, 4],
        }))
      : [tensor],
  );
  const model = describeModel(config, packed);
  expect(model).toMatchObject({ experts: 4, expertLayout: 'sequential' });
  expect(model.linears.filter(({ role }) => role === 'expert').map(({ expert }) => expert)).toEqual([
    3, 3, 3, 3, 3, 3,
  ]);
  expect(roleOf(model, 'experts.0.up_proj.weight_scale')).toBe('expert');
  expect(model.notes).toEqual(['18 weights are stored quantized already']);
});

test('stacks that are quantized already keep their role, and the configuration counts the experts', () => {
  const { config, tensors } = gptOss();
  const packed = tensors.flatMap((tensor) =>
    tensor.shape.length === 3
      ? ['blocks', 'scales'].map((part) => ({
          name: `${tensor.name}_${part}`,
          dtype: 'U8',
          shape: [4, 8, 1],
        }))
      : [tensor],
  );
  const model = describeModel(config, packed);
  expect(model).toMatchObject({ experts: 4, expertLayout: null });
  expect(roleOf(model, 'gate_up_proj_blocks')).toBe('expert');
});

test('float8 weights are linear weights only without scales beside them', () => {
  const weight = { name: 'model.layers.0.self_attn.q_proj.weight', dtype: 'F8_E4M3', shape: [32, 32] };
  expect(describeModel({ model_type: 'llama' }, [weight]).linears).toHaveLength(1);
  const scale = { name: 'model.layers.0.self_attn.q_proj.weight_scale_inv', dtype: 'F32', shape: [1, 1] };
  expect(describeModel({ model_type: 'llama' }, [weight, scale]).linears).toHaveLength(0);
});

describe('a family that is not known', () => {
  const stack = (name: string, ...shape: number[]) => ({
    name: `model.layers.0.moe.experts.${name}`,
    dtype: 'F32',
    shape,
  });

  test('stacks of experts are read where name and hidden size leave no doubt', () => {
    const config = { model_type: 'novel', hidden_size: 32 };
    const pieces = (tensor: StoredTensor) =>
      describeModel(config, [tensor]).linears.map(({ shape, source }) => [shape, source.transposed]);
    expect(pieces(stack('w1.weight', 3, 20, 32))).toEqual(new Array(3).fill([[20, 32], false]));
    expect(pieces(stack('w1.weight', 3, 32, 20))).toEqual(new Array(3).fill([[20, 32], true]));
    expect(pieces(stack('w2', 3, 32, 20))).toEqual(new Array(3).fill([[32, 20], false]));
    expect(pieces(stack('w2', 3, 20, 32))).toEqual(new Array(3).fill([[32, 20], true]));
  });

  test('other stacks are kept, with a note', () => {
    for (const [config, tensor] of [
      [{ hidden_size: 32 }, stack('w1', 3, 32, 32)],
      [{ hidden_size: 32 }, stack('w1', 3, 20, 24)],
      [{ hidden_size: 32 }, stack('mystery', 3, 20, 32)],
      [{}, stack('w1', 3, 20, 32)],
    ] as const) {
      const model = describeModel(config, [tensor]);
      expect(model.linears).toEqual([]);
      expect(model.others).toMatchObject([{ name: tensor.name, role: 'expert' }]);
      expect(model.notes.join()).toContain('orientation cannot be told');
    }
  });

  test('fused stacks are oriented by their two shapes, without a configuration', () => {
    for (const form of ['fused', 'fused-transposed'] as const) {
      const model = describeModel(null, qwen3Moe(form).tensors);
      expect(model).toMatchObject({
        architecture: 'unknown',
        known: false,
        expertLayout: 'fused',
        experts: 4,
      });
      for (const { projection, shape, source } of model.linears.filter(({ role }) => role === 'expert')) {
        expect(shape).toEqual(projection === 'down' ? [32, 20] : [20, 32]);
        expect(source.transposed).toBe(form === 'fused-transposed');
      }
    }
  });

  test('experts without a gate are whole with two projections', () => {
    const tensors = [0, 1].flatMap((e) => [
      stack(`${e}.up_proj.weight`, 20, 32),
      stack(`${e}.down_proj.weight`, 32, 20),
    ]);
    expect(describeModel(null, tensors).linears).toHaveLength(4);
    expect(() => describeModel(null, tensors.slice(0, 3))).toThrow(/expert 1 has no down projection/);
  });
});

test('configurations of any content are survived', () => {
  const { tensors } = mixtral();
  for (const config of [
    null,
    [],
    { model_type: 7 },
    { text_config: 3 },
    { model_type: 'mixtral', num_local_experts: 'many', num_hidden_layers: -1, hidden_size: 1e99 },
  ]) {
    expect(describeModel(config as object | null, tensors).experts).toBe(4);
  }
});

test('100 000 tensors are read in seconds', () => {
  const prefix = 'model.layers.';
  const tensors = Array.from({ length: 100_000 }, (_, i) => {
    const [layer, expert, projection] = [
      Math.floor(i / 3000),
      Math.floor(i / 3) % 1000,
      ['gate', 'up', 'down'][i % 3],
    ];
    return {
      name: `${prefix}${layer}.mlp.experts.${expert}.${projection}_proj.weight`,
      dtype: 'BF16',
      shape: i % 3 === 2 ? [64, 32] : [32, 64],
    };
  }).slice(0, 99_000);
  const start = performance.now();
  expect(describeModel({ model_type: 'qwen3_moe' }, tensors).linears).toHaveLength(99_000);
  // A quadratic scan would take minutes.
  expect(performance.now() - start).toBeLessThan(10_000);
});

const shared = sharedModels();
describe.skipIf(shared === null)('real checkpoints', () => {
  test.each(shared === null ? [] : readdirSync(shared))('%s: every tensor has its role', (name) => {
    const checkpoint = readHeaders(join(shared ?? '', name));
    const model = read(checkpoint);
    expect(model.known).toBe(true);
    expect(parameters(model)).toBe(checkpoint.tensors.reduce((sum, { shape }) => sum + size(shape), 0));
    expect(parameters(model, 'other')).toBe(0);
    expect(model.notes).toEqual([]);
    expect(model.layers).toBe(5);
    if (name === 'stories-moe-aria') {
      expect(model).toMatchObject({ architecture: 'aria', experts: 16, topK: 2, expertLayout: 'grouped' });
      expect(parameters(model, 'expert')).toBe(5 * 16 * 3 * 128 * 128);
      expect(parameters(model, 'vision') + parameters(model, 'projector')).toBe(65_280);
    }
  });
});
