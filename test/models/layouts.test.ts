import { describe, expect, test } from 'vitest';
import {
  describeModel,
  diskName,
  LAYOUTS,
  type Layout,
  type Linear,
  layoutTensors,
  loaderName,
  type ModelMap,
  type Piece,
  type TargetTensor,
} from '../../lib/models';
import { aria, type Checkpoint, deepseek, gptOss, llama, mixtral, qwen2Moe, qwen3Moe } from './checkpoints';

const asHeaders = (targets: TargetTensor[]) =>
  targets.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
const read = ({ config, tensors }: Checkpoint) => describeModel(config, tensors);
const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
const headers = ({ tensors }: Checkpoint) => tensors.map((tensor) => ({ ...tensor })).sort(byName);

const families: [string, (layout: Layout) => Checkpoint][] = [
  [
    'aria',
    (layout) =>
      aria({
        form: layout === 'fused' ? 'fused-transposed' : layout,
        spelling: layout === 'fused' ? 'loader' : 'disk',
      }),
  ],
  [
    'aria_text',
    (layout) => aria({ form: layout === 'fused' ? 'fused-transposed' : layout, spelling: 'text' }),
  ],
  ['mixtral', mixtral],
  ['qwen2_moe', qwen2Moe],
  ['qwen3_moe', qwen3Moe],
  ['deepseek_v2', deepseek],
  ['deepseek_v3', (layout) => deepseek(layout, { v3: true })],
];
const pairs = LAYOUTS.flatMap((from) => LAYOUTS.map((to) => [from, to] as const));

describe.each(families)('%s', (_, checkpoint) => {
  test.each(pairs)('from %s to %s are the tensors that the family has in that layout', (from, to) => {
    const got = layoutTensors(read(checkpoint(from)), to);
    expect(asHeaders(got).sort(byName)).toEqual(headers(checkpoint(to)));
  });

  test.each(pairs)('via %s and %s back: names, shapes and linear weights are the same', (first, second) => {
    for (const start of LAYOUTS) {
      const original = checkpoint(start);
      const model = read(original);
      const there = describeModel(original.config, asHeaders(layoutTensors(model, first)));
      const further = describeModel(original.config, asHeaders(layoutTensors(there, second)));
      expect(further.linears.map(logical)).toEqual(model.linears.map(logical));
      expect(asHeaders(layoutTensors(further, start)).sort(byName)).toEqual(headers(original));
    }
  });

  test.each(pairs)('from %s to %s every element moves once, to where that layout reads it', (from, to) => {
    const source = checkpoint(from);
    const target = layoutTensors(read(source), to);
    const moved = describeModel(source.config, asHeaders(target));
    expect(readLogically(moved, applied(target, numbered(source)))).toEqual(
      readLogically(read(source), numbered(source)),
    );
  });
});

/** What must survive any conversion of a linear weight. */
const logical = ({ source: _, ...rest }: Linear) => rest;

/** Every element of every tensor gets a number of its own. */
function numbered({ tensors }: Checkpoint): Map<string, { shape: readonly number[]; data: number[] }> {
  let next = 0;
  return new Map(
    tensors.map(({ name, shape }) => [
      name,
      { shape, data: Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => next++) },
    ]),
  );
}

type Stored = ReturnType<typeof numbered>;

/** Offset of element (row, column) of a linear weight in its stored tensor: the definition of a Piece. */
function offset(
  { expert, start, step, transposed }: Piece,
  shape: readonly number[],
  row: number,
  column: number,
): number {
  const [a = 0, b = 0] = shape.slice(-2);
  const out = start + row * step;
  return (expert ?? 0) * a * b + (transposed ? column * b + out : out * b + column);
}

function applied(targets: TargetTensor[], stored: Stored): Stored {
  const result: Stored = new Map();
  for (const { name, shape, from } of targets) {
    if ('copy' in from) {
      const source = stored.get(from.copy);
      result.set(name, { shape, data: source?.data ?? [] });
      expect(source?.shape).toEqual(shape);
      continue;
    }
    const data = new Array<number>(shape.reduce((a, b) => a * b, 1)).fill(-1);
    let writes = 0;
    for (const { linear, piece } of from.pieces) {
      expect(piece.tensor).toBe(name);
      const source = stored.get(linear.source.tensor);
      for (let row = 0; row < linear.shape[0]; ++row) {
        for (let column = 0; column < linear.shape[1]; ++column) {
          const at = offset(piece, shape, row, column);
          data[at] = source?.data[offset(linear.source, source.shape, row, column)] ?? Number.NaN;
          ++writes;
        }
      }
    }
    // As many writes as elements and none left out: each was written once.
    expect([writes, data.length, data.includes(-1)]).toEqual([data.length, writes, false]);
    result.set(name, { shape, data });
  }
  return result;
}

/** The elements of every linear weight, row by row. */
function readLogically(model: ModelMap, stored: Stored): [name: string, elements: string][] {
  return model.linears.map(({ name, shape: [out, width], source }) => {
    const tensor = stored.get(source.tensor);
    const elements: (number | undefined)[] = [];
    for (let row = 0; row < out; ++row) {
      for (let column = 0; column < width; ++column) {
        elements.push(tensor?.data[offset(source, tensor.shape, row, column)]);
      }
    }
    return [name, elements.join()];
  });
}

test('the grouped layout of Aria is read as its specification says', () => {
  const { linears } = read(aria({ form: 'grouped' }));
  const source = (end: string) =>
    linears.find(({ name }) => name.endsWith(`layers.1.mlp.experts.experts.3.${end}`))?.source;
  const fc1 = {
    tensor: 'language_model.model.layers.1.mlp.experts.fc1.weight',
    expert: 3,
    step: 1,
    transposed: true,
  };
  expect(source('gate_proj')).toEqual({ ...fc1, start: 0, end: 24 });
  expect(source('up_proj')).toEqual({ ...fc1, start: 24, end: 48 });
  expect(source('down_proj')).toEqual({
    ...fc1,
    tensor: fc1.tensor.replace('fc1', 'fc2'),
    start: 0,
    end: 32,
  });
});

test('fused stacks have gate rows first, and only Aria keeps them as they are multiplied from the left', () => {
  const source = (checkpoint: Checkpoint, projection: string) =>
    read(checkpoint).linears.find((linear) => linear.expert === 2 && linear.projection === projection)
      ?.source;
  for (const family of [mixtral, qwen2Moe, qwen3Moe]) {
    expect(source(family('fused'), 'gate')).toMatchObject({
      expert: 2,
      start: 0,
      step: 1,
      transposed: false,
    });
    expect(source(family('fused'), 'up')?.start).toBe(source(family('fused'), 'gate')?.end);
    expect(source(family('fused'), 'down')).toMatchObject({
      expert: 2,
      start: 0,
      end: 32,
      transposed: false,
    });
  }
  const inMemory = aria({ form: 'fused-transposed', spelling: 'loader' });
  expect(source(inMemory, 'up')).toMatchObject({ expert: 2, start: 24, end: 48, step: 1, transposed: true });
});

test('gpt-oss has gate rows on even and up rows on odd columns', () => {
  const { linears } = read(gptOss());
  const source = (end: string) =>
    linears.find(({ name }) => name.endsWith(`layers.0.mlp.experts.2.${end}`))?.source;
  expect(source('gate_proj')).toMatchObject({ expert: 2, start: 0, end: 48, step: 2, transposed: true });
  expect(source('up_proj')).toMatchObject({ expert: 2, start: 1, end: 48, step: 2, transposed: true });
});

test('an Aria that stays grouped or becomes fused is copied tensor by tensor', () => {
  for (const to of ['grouped', 'fused'] as const) {
    for (const { from } of layoutTensors(read(aria({ form: 'grouped' })), to))
      expect(from).toHaveProperty('copy');
  }
});

test('a template renames the sequential experts, and the names are read again', () => {
  const original = aria({ form: 'grouped' });
  const targets = layoutTensors(read(original), 'sequential', {
    sequentialTemplate: 'mlp.experts.{expert}.{projection}',
  });
  expect(asHeaders(targets).sort(byName)).toEqual(headers(aria({ form: 'sequential', path: 'mlp.experts' })));
  const again = describeModel(original.config, asHeaders(targets));
  expect(asHeaders(layoutTensors(again, 'grouped')).sort(byName)).toEqual(headers(original));
});

test.each(['mlp.experts.{expert}.gate', '{projection}.{expert}', 'mlp/experts.{expert}.{projection}', ''])(
  'the template %j is refused',
  (sequentialTemplate) => {
    expect(() => layoutTensors(read(mixtral()), 'sequential', { sequentialTemplate })).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }),
    );
  },
);

test('loader names are those of transformers v5, and lead back', () => {
  const model = read(aria({ form: 'grouped' }));
  for (const [disk, loader] of [
    ['language_model.lm_head', 'lm_head'],
    ['language_model.model.layers.3.self_attn.q_proj', 'model.language_model.layers.3.self_attn.q_proj'],
    ['vision_tower.encoder.layers.0.mlp.fc1', 'model.vision_tower.encoder.layers.0.mlp.fc1'],
    ['multi_modal_projector.query', 'model.multi_modal_projector.query'],
  ] as const) {
    expect(loaderName(model, disk)).toBe(loader);
    expect(loaderName(model, loader)).toBe(loader);
    expect(diskName(model, loader)).toBe(disk);
    expect(diskName(model, disk)).toBe(disk);
  }
  const text = read(aria({ form: 'grouped', spelling: 'text' }));
  expect(loaderName(text, 'model.layers.0.mlp.router')).toBe('model.layers.0.mlp.router');
  expect(loaderName(text, 'lm_head')).toBe('lm_head');
  expect(loaderName(read(mixtral()), 'model.layers.1.block_sparse_moe.gate')).toBe('model.layers.1.mlp.gate');
});

test.each(LAYOUTS)('a dense model in the %s layout is itself', (layout) => {
  for (const { name, from } of layoutTensors(read(llama()), layout)) expect(from).toEqual({ copy: name });
});

test('stacks of mixed types are refused, the expert named', () => {
  const { config, tensors } = qwen3Moe();
  const mixed = tensors.map((tensor) =>
    tensor.name === 'model.layers.1.mlp.experts.2.up_proj.weight' ? { ...tensor, dtype: 'F32' } : tensor,
  );
  const model = describeModel(config, mixed);
  for (const layout of ['grouped', 'fused'] as const) {
    expect(() => layoutTensors(model, layout)).toThrow(/layers\.1\.mlp: expert 2's up projection is F32/);
  }
  expect(layoutTensors(model, 'sequential')).toHaveLength(tensors.length);
});

test('experts with biases or quantized weights stay in their layout', () => {
  const oss = read(gptOss());
  expect(layoutTensors(oss, 'fused')).toHaveLength(gptOss().tensors.length);
  expect(() => layoutTensors(oss, 'sequential')).toThrow(
    expect.objectContaining({ code: 'ERR_UNSUPPORTED' }),
  );

  const { config, tensors } = qwen3Moe();
  const quantized = tensors.map((tensor) =>
    tensor.name.endsWith('experts.0.gate_proj.weight')
      ? { name: `${tensor.name}_packed`, dtype: 'I32', shape: [20, 4] }
      : tensor,
  );
  const model = describeModel(config, quantized);
  expect(layoutTensors(model, 'sequential')).toHaveLength(tensors.length);
  expect(() => layoutTensors(model, 'grouped')).toThrow(/gate_proj\.weight_packed/);
});

test('a family that is not known has no fused names', () => {
  const { config, tensors } = qwen3Moe();
  const model = describeModel({ ...config, model_type: 'novel_moe' }, tensors);
  expect(() => layoutTensors(model, 'fused')).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED' }));
  const grouped = layoutTensors(model, 'grouped');
  const back = describeModel({ model_type: 'novel_moe' }, asHeaders(grouped));
  expect(asHeaders(layoutTensors(back, 'sequential')).sort(byName)).toEqual(headers({ config, tensors }));
});

test('files name the stacks of Mixtral under mlp, all else under block_sparse_moe', () => {
  const model = read(mixtral('grouped'));
  expect(diskName(model, 'model.layers.0.mlp.experts.fc1.weight')).toBe(
    'model.layers.0.mlp.experts.fc1.weight',
  );
  expect(diskName(model, 'model.layers.0.mlp.gate.weight')).toBe(
    'model.layers.0.block_sparse_moe.gate.weight',
  );
});

test('layers and experts come in the order of their numbers', () => {
  const model = read(llama());
  const layers = model.linears.map(({ layer }) => layer).filter((layer) => layer !== null);
  expect(layers).toEqual([...layers].sort((a, b) => a - b));
  const targets = layoutTensors(model, 'sequential').map(({ name }) => name);
  expect(targets.indexOf('model.layers.2.mlp.up_proj.weight')).toBeLessThan(
    targets.indexOf('model.layers.10.mlp.up_proj.weight'),
  );
});

test('the order of the given tensors changes nothing', () => {
  const { config, tensors } = deepseek('grouped', { v3: true });
  const shuffled = tensors.map((tensor, index) => ({ tensor, key: (index * 7919) % 1009 }));
  shuffled.sort((a, b) => a.key - b.key);
  const other = describeModel(
    config,
    shuffled.map(({ tensor }) => tensor),
  );
  expect(other).toEqual(describeModel(config, tensors));
  expect(layoutTensors(other, 'sequential')).toEqual(
    layoutTensors(describeModel(config, tensors), 'sequential'),
  );
});
