import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { KeyValueCache } from '../../lib/models/decoder';
import { Decoder } from '../../lib/pipeline/decoder';
import { EXAMPLE, floatsOf, readSafetensors, SHARED_MODELS } from '../pipeline/helpers';

/** Made by scripts/reference/decoders.py. */
const REFERENCE = path.join(__dirname, 'reference', 'fixtures');
const models = fs.readdirSync(REFERENCE).sort();

function reference(directory: string) {
  const tensors = readSafetensors(path.join(directory, 'reference.safetensors'));
  const find = (name: string) => {
    const found = tensors.get(name);
    if (!found) throw new Error(`${directory}: no ${name}`);
    return found;
  };
  const { shape, bytes, dtype } = find('input_ids');
  const own = new Uint8Array(bytes).buffer;
  const ids = dtype === 'I64' ? Int32Array.from(new BigInt64Array(own), Number) : new Int32Array(own);
  return { ids, length: shape[1] as number, floats: (name: string) => floatsOf(find(name)), find };
}

/** float32 `[T, V]`, all rows. */
async function logitsOf(decoder: Decoder, ids: Int32Array, length: number): Promise<Float32Array> {
  const states = await decoder.states({ ids, length });
  const parts: number[] = [];
  for (const x of states) {
    using own = x;
    using logits = decoder.logits(own);
    for (const value of await logits.toFloat32()) parts.push(value);
  }
  return Float32Array.from(parts);
}

/** The largest difference, over the largest value expected. */
function worst(came: ArrayLike<number>, expected: ArrayLike<number>) {
  expect(came.length).toBe(expected.length);
  let difference = 0;
  let largest = 0;
  let at = 0;
  for (let i = 0; i < expected.length; ++i) {
    const here = Math.abs((came[i] as number) - (expected[i] as number));
    if (!(here <= difference)) [difference, at] = [here, i];
    largest = Math.max(largest, Math.abs(expected[i] as number));
  }
  return { error: difference / largest, at };
}

// transformers itself is some 1e-6 from float64 on these models.
const TOLERANCE = 1e-5;

describe.each(models)('%s', (name) => {
  const directory = path.join(REFERENCE, name);

  test('logits are those of transformers in float32', async () => {
    const { ids, length, floats } = reference(directory);
    using decoder = await Decoder.open(directory);
    const { error, at } = worst(await logitsOf(decoder, ids, length), floats('logits'));
    expect(error, `worst at ${at}`).toBeLessThan(TOLERANCE);
  });

  test('id by id with a cache: the logits of the whole row', async () => {
    const { ids, length, floats } = reference(directory);
    using decoder = await Decoder.open(directory);
    using resident = await decoder.resident();
    using table = decoder.rotaryTable(length);
    using cache = new KeyValueCache(length);
    const expected = floats('logits');
    const vocabulary = decoder.vocabulary;
    for (let first = 0; first < length; first += first === 0 ? 25 : 1) {
      const count = first === 0 ? 25 : 1;
      using logits = await resident.next(ids.subarray(first, first + count), first, table, cache);
      const last = first + count - 1;
      const { error } = worst(
        await logits.toFloat32(),
        expected.subarray(last * vocabulary, (last + 1) * vocabulary),
      );
      expect(error, `id ${last}`).toBeLessThan(TOLERANCE);
    }
  });

  test('bfloat16 activations stay near', async () => {
    const { ids, length, floats } = reference(directory);
    using decoder = await Decoder.open(directory, 'stored');
    expect(decoder.dtype).toBe('bfloat16');
    const came = await logitsOf(decoder, ids, length);
    const expected = floats('logits');
    const squares = (of: (i: number) => number) => expected.reduce((sum, _, i) => sum + of(i) ** 2, 0);
    const error = Math.sqrt(
      squares((i) => (came[i] as number) - (expected[i] as number)) / squares((i) => expected[i] as number),
    );
    // 8 bits of each activation; near ties of a router may fall the other way.
    expect(error).toBeLessThan(0.2);
    expect(error).toBeGreaterThan(1e-4);
  });
});

const trained = [
  EXAMPLE,
  ...['stories260K-llama', 'stories-moe-aria'].map((name) => path.join(SHARED_MODELS, name)),
];

describe.each(trained)('%s', (directory) => {
  test.skipIf(!fs.existsSync(directory))('logits are those of transformers in float32', async () => {
    const { ids, length, floats, find } = reference(directory);
    using decoder = await Decoder.open(directory);
    const logits = await logitsOf(decoder, ids, length);
    const columns = Array.from(new BigInt64Array(new Uint8Array(find('logits_cols').bytes).buffer), Number);
    const came = Float32Array.from(
      { length: ids.length * columns.length },
      (_, i) =>
        logits[
          Math.floor(i / columns.length) * decoder.vocabulary + (columns[i % columns.length] as number)
        ] as number,
    );
    const { error, at } = worst(came, floats('logits_at_cols'));
    expect(error, `worst at ${at}`).toBeLessThan(1e-4);
  });
});
