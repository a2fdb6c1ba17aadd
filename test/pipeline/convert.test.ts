import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib';
import type { Layout } from '../../lib/models';
import { convertCheckpoint } from '../../lib/pipeline/convert';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { verifyModel } from '../../lib/pipeline/verify';
import { rejectsCode } from '../core/errors';
import { llama, mixtral, qwen2Moe } from '../models/checkpoints';
import { fused, groupedAria, mixtralNames, type StackNames, toSequential } from './expert_stacks';
import { EXAMPLE, negated, readTensors, type Stored, temporaryDirectory, tree, writeModel } from './helpers';

const work = temporaryDirectory();
const LAYOUTS: readonly Layout[] = ['sequential', 'grouped', 'fused'];

interface Model {
  name: string;
  source: string;
  own: Layout;
  /** How the stacks of a layout are named and lie. */
  stacks: Readonly<Record<'grouped' | 'fused', StackNames>>;
  /** A name in a layout, as the sequential one has it. */
  sequentialName: (name: string, layout: Layout) => string;
}

const same = (name: string) => name;

/** transformers' in-memory names of Aria are other ones outside of the experts, too. */
const ariaName = (name: string, layout: Layout) =>
  layout !== 'fused'
    ? name
    : name
        .replace(/^model\.language_model\./, 'language_model.model.')
        .replace(/^lm_head\./, 'language_model.lm_head.')
        .replace(/^model\.(vision_tower|multi_modal_projector)\./, '$1.');

const models: Model[] = [
  {
    name: 'the example',
    source: EXAMPLE,
    own: 'grouped',
    stacks: { grouped: groupedAria, fused: { ...fused('mlp.experts.experts'), transposed: true } },
    sequentialName: ariaName,
  },
  {
    name: 'a Mixtral',
    source: writeModel(path.join(work, 'mixtral'), mixtral()),
    own: 'sequential',
    stacks: { grouped: { ...groupedAria, expert: mixtralNames }, fused: fused('', mixtralNames) },
    sequentialName: (name) => name.replace('.mlp.gate.', '.block_sparse_moe.gate.'),
  },
  {
    name: 'a fused Qwen2-MoE with a dense layer, in float16',
    source: writeModel(path.join(work, 'qwen'), qwen2Moe('fused'), { dtype: 'F16' }),
    own: 'fused',
    stacks: { grouped: { ...groupedAria, expert: fused('mlp.experts').expert }, fused: fused('mlp.experts') },
    sequentialName: same,
  },
];

/** A model's tensors by their sequential names, experts cut out where they are stacked. */
function sequentialOf(
  directory: string,
  layout: Layout,
  { stacks, sequentialName }: Model,
): Map<string, Stored> {
  const stored = readTensors(directory);
  const cut = layout === 'sequential' ? stored : toSequential(stored, stacks[layout]);
  return new Map([...cut].map(([name, tensor]) => [sequentialName(name, layout), tensor]));
}

function expectSame(found: ReadonlyMap<string, Stored>, expected: ReadonlyMap<string, Stored>): void {
  expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, { dtype, shape, bytes }] of expected) {
    const own = found.get(name) as Stored;
    expect({ name, dtype: own.dtype, shape: own.shape }).toEqual({ name, dtype, shape });
    expect(own.bytes.equals(bytes), `${name} has the same bytes`).toBe(true);
  }
}

describe.each(models)('$name', (model) => {
  const slug = path.basename(model.source);
  const directory = (from: Layout, to: Layout) => path.join(work, `${slug}-${from}-${to}`);

  test.each(LAYOUTS)('%s holds the same matrices as the original, cut out independently', async (to) => {
    const out = directory(model.own, to);
    const summary = await convertCheckpoint(model.source, { to, out });
    const original = sequentialOf(model.source, model.own, model);
    expectSame(sequentialOf(out, to, model), original);

    const before = readTensors(model.source);
    const bytes = [...before.values()].reduce((sum, tensor) => sum + tensor.bytes.length, 0);
    expect(summary).toMatchObject({ tensorsIn: before.size, tensorsOut: readTensors(out).size, bytes });
    expect(summary.seconds).toBeGreaterThan(0);
    expect(summary.peakRssBytes).toBeGreaterThan(0);
  });

  test.each(LAYOUTS)('from %s to every layout and back is the same, tensor by tensor', async (from) => {
    const start = directory(model.own, from);
    const expected = readTensors(start);
    for (const to of LAYOUTS) {
      const there = path.join(work, `${slug}-there-${from}-${to}`);
      const back = path.join(work, `${slug}-back-${from}-${to}`);
      await convertCheckpoint(start, { to, out: there });
      await convertCheckpoint(there, { to: from, out: back });
      expectSame(readTensors(back), expected);
    }
  });

  test('to the layout that it has keeps every tensor', () => {
    expectSame(readTensors(directory(model.own, model.own)), readTensors(model.source));
  });

  test.each(LAYOUTS)('verify finds %s equal to the original', async (to) => {
    const { ok, problems, tensors } = await verifyModel(directory(model.own, to), model.source);
    expect(problems).toEqual([]);
    expect(ok).toBe(true);
    expect(tensors.every(({ scheme, relativeError }) => scheme === null && relativeError === 0)).toBe(true);
  });

  test.each(LAYOUTS)('config and other files of %s are the original, byte for byte', (to) => {
    const out = directory(model.own, to);
    const beside = (folder: string) =>
      Object.fromEntries(Object.entries(tree(folder)).filter(([name]) => !/safetensors/.test(name)));
    expect(beside(out)).toEqual(beside(model.source));
  });

  test('small shards hold the same tensors, with an index that names each', async () => {
    const out = path.join(work, `${slug}-shards`);
    const maxShardBytes = 20_000;
    await convertCheckpoint(model.source, { to: 'sequential', out, maxShardBytes });
    expectSame(readTensors(out), readTensors(directory(model.own, 'sequential')));
    const sizes = new Map<string, number[]>();
    for (const { file, bytes } of readTensors(out).values())
      sizes.set(file, [...(sizes.get(file) ?? []), bytes.length]);
    expect(sizes.size).toBeGreaterThan(1);
    for (const own of sizes.values()) {
      // A file is larger only where one tensor alone is.
      if (own.length > 1) expect(own.reduce((a, b) => a + b, 0)).toBeLessThanOrEqual(maxShardBytes);
    }
    using opened = await openCheckpoint(out);
    expect(opened.names().length).toBe(readTensors(out).size);
  });
});

test('an expert template names the sequential experts', async () => {
  const out = path.join(work, 'template');
  const expertTemplate = 'mlp.experts.{expert}.{projection}';
  await convertCheckpoint(EXAMPLE, { to: 'sequential', out, expertTemplate });
  const original = toSequential(readTensors(EXAMPLE), groupedAria);
  const renamed = new Map(
    [...original].map(([name, tensor]) => [name.replace('experts.experts.', 'experts.'), tensor]),
  );
  expectSame(readTensors(out), renamed);
});

test('little memory gives the same bytes', async () => {
  const out = path.join(work, 'little-memory');
  await convertCheckpoint(EXAMPLE, { to: 'sequential', out, maxMemoryBytes: 1 });
  expect(tree(out)).toEqual(tree(path.join(work, 'aria-bytes-grouped-sequential')));
});

test('a model without experts is refused, and nothing is written', async () => {
  const model = writeModel(path.join(work, 'llama'), llama());
  const out = path.join(work, 'refused');
  await rejectsCode(convertCheckpoint(model, { to: 'fused', out }), 'ERR_ARGUMENT', /no routed experts/);
  expect(fs.existsSync(out)).toBe(false);
});

test('quantized experts are refused, and nothing is written', async () => {
  const model = path.join(work, 'quantized');
  const out = path.join(work, 'refused');
  await quantizeCheckpoint(EXAMPLE, { out: model, recipe: 'int4' });
  const failure = await convertCheckpoint(model, { to: 'grouped', out }).catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(Error);
  expect(fs.existsSync(out)).toBe(false);
});

describe('--resume', () => {
  const out = path.join(work, 'resumed');

  test('with nothing there starts afresh; on a complete output it changes nothing', async () => {
    const first = await convertCheckpoint(EXAMPLE, { to: 'sequential', out, resume: true });
    const files = tree(out);
    const times = fs.readdirSync(out).map((name) => fs.statSync(path.join(out, name)).mtimeMs);
    const { seconds, peakRssBytes, ...again } = await convertCheckpoint(EXAMPLE, {
      to: 'sequential',
      out,
      resume: true,
    });
    expect(first).toMatchObject(again);
    expect(tree(out)).toEqual(files);
    expect(fs.readdirSync(out).map((name) => fs.statSync(path.join(out, name)).mtimeMs)).toEqual(times);
  });

  test('of another layout or model fails and changes nothing', async () => {
    const files = tree(out);
    const other = path.join(work, 'mixtral');
    await rejectsCode(convertCheckpoint(EXAMPLE, { to: 'fused', out, resume: true }), 'ERR_ARGUMENT');
    await rejectsCode(convertCheckpoint(other, { to: 'sequential', out, resume: true }), 'ERR_ARGUMENT');
    await rejectsCode(
      convertCheckpoint(negated(EXAMPLE, path.join(work, 'negated')), {
        to: 'sequential',
        out,
        resume: true,
      }),
      'ERR_ARGUMENT',
      /another model/,
    );
    await rejectsCode(convertCheckpoint(EXAMPLE, { to: 'sequential', out }), 'ERR_ARGUMENT', /not empty/);
    expect(tree(out)).toEqual(files);
  });
});
