import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib';
import type { QuantizeOptions } from '../../lib/pipeline/quantize';
import { quantizeAndCheck } from './check_output';
import { groupedAria, toSequential } from './expert_stacks';
import { EXAMPLE, readJson, readTensors, temporaryDirectory, tree } from './helpers';

const work = temporaryDirectory();
const original = toSequential(readTensors(EXAMPLE), groupedAria);

let outputs = 0;
const checked = (options: Partial<QuantizeOptions>, expected = original) =>
  quantizeAndCheck({
    model: EXAMPLE,
    expected,
    options: { ...options, out: path.join(work, `out-${++outputs}`) },
  });

describe('names and shards', () => {
  test('an expert template names the experts', async () => {
    const expected = new Map(
      [...original].map(([name, tensor]) => [name.replace('experts.experts.', 'experts.'), tensor]),
    );
    await checked({ recipe: 'int4', expertTemplate: 'mlp.experts.{expert}.{projection}' }, expected);
  });

  test.each(['int4', 'nf4', 'mxfp8'])(
    '%s in small shards: each within the limit, the index names every tensor, a module is in one file',
    async (recipe) => {
      const maxShardBytes = 50_000;
      const { out, tensors: told } = await checked({ recipe, maxShardBytes });
      const tensors = readTensors(out);
      const sizes = new Map<string, number[]>();
      for (const { file, bytes } of tensors.values())
        sizes.set(file, [...(sizes.get(file) ?? []), bytes.length]);
      const total = String(sizes.size).padStart(5, '0');
      expect([...sizes.keys()].sort()).toEqual(
        [...sizes].map((_, i) => `model-${String(i + 1).padStart(5, '0')}-of-${total}.safetensors`),
      );
      for (const own of sizes.values())
        if (own.length > 1) expect(own.reduce((a, b) => a + b, 0)).toBeLessThanOrEqual(maxShardBytes);
      const index = readJson<{ metadata: { total_size: number }; weight_map: Record<string, string> }>(
        out,
        'model.safetensors.index.json',
      );
      expect(index.weight_map).toEqual(
        Object.fromEntries([...tensors].map(([name, { file }]) => [name, file])),
      );
      expect(index.metadata.total_size).toBe(
        [...tensors.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
      );
      using opened = await openCheckpoint(out);
      expect(opened.names().length).toBe(tensors.size);
      for (const { name, scheme } of told) {
        if (scheme === null) continue;
        const module = name.replace(/\.weight$/, '');
        const files = [...tensors]
          .filter(([own]) => own.startsWith(`${module}.`))
          .map(([, { file }]) => file);
        expect(new Set(files).size).toBe(1);
      }
    },
  );

  test('one shard that holds all has no index', async () => {
    const { out } = await checked({ recipe: 'int4' });
    expect(Object.keys(tree(out)).filter((name) => /safetensors/.test(name))).toEqual(['model.safetensors']);
  });
});
