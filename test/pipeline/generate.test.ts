import * as path from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { DecoderWeights } from '../../lib/pipeline/decoder_weights';
import { generateText } from '../../lib/pipeline/generate';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { Sampler } from '../../lib/pipeline/sampler';
import { Tokenizer } from '../../lib/pipeline/tokenizer';
import { EMULATED, SUBSET } from '../device';
import { EXAMPLE, temporaryDirectory } from './helpers';

const temporary = temporaryDirectory();
const PROMPT = 'One morning Old Tamolu went to';
/** As the example's README has it. */
const GREEDY =
  ' the old windmill to look for a broken compass. There he found a sleepy badger, who was crying. "I know where the broken compass is," said the sleepy badger. The sleepy badger counted the hollow turnip without a word.';

describe('generate', () => {
  test('greedy text is that of the example’s README, and streams in pieces', async () => {
    const text = GREEDY.slice(0, EMULATED ? 24 : undefined);
    const pieces: string[] = [];
    const found = await generateText(EXAMPLE, {
      prompt: PROMPT,
      maxTokens: text.length,
      onText: (piece) => pieces.push(piece),
    });
    expect(found.completion).toBe(text);
    expect(found.text).toBe(PROMPT + text);
    expect(found.tokens).toBe(text.length);
    expect(pieces.join('')).toBe(text);
    expect(pieces.length).toBe(text.length);
  });

  test.skipIf(SUBSET)('the end mark ends the text and is not part of it', async () => {
    const found = await generateText(EXAMPLE, { prompt: PROMPT, maxTokens: 600 });
    expect(found.ended).toBe(true);
    expect(found.completion.length).toBe(found.tokens - 1);
    expect(found.completion.startsWith(GREEDY)).toBe(true);
  });

  test('a seed repeats, another differs', async () => {
    const run = (seed: number) =>
      generateText(EXAMPLE, {
        prompt: PROMPT,
        maxTokens: EMULATED ? 12 : 60,
        temperature: 1.5,
        topK: 40,
        topP: 0.95,
        seed,
      });
    const [first, again, other] = [await run(5), await run(5), await run(6)];
    expect(again.completion).toBe(first.completion);
    expect(other.completion).not.toBe(first.completion);
  });

  test('with memory for no, one or all layers the text is the same, and only layers without room are read again', async () => {
    const model = path.join(temporary, 'int4');
    await quantizeCheckpoint(EXAMPLE, { out: model, recipe: 'int4' });
    const weights = await DecoderWeights.open(model);
    const bytes = weights.layerBytes(0);
    weights[Symbol.dispose]();
    const layers = vi.spyOn(DecoderWeights.prototype, 'layer');
    const texts: string[] = [];
    for (const [maxMemoryBytes, read] of [
      [undefined, 3],
      [1, 3 * 8],
      [2.5 * bytes, 1 + 2 * 8],
    ] as const) {
      layers.mockClear();
      const { text } = await generateText(model, { prompt: PROMPT, maxTokens: 8, maxMemoryBytes });
      texts.push(text);
      expect(layers).toHaveBeenCalledTimes(read);
    }
    layers.mockRestore();
    expect(new Set(texts).size).toBe(1);
  });

  test('a model without a tokenizer', async () => {
    const bare = path.join(__dirname, '..', 'models', 'reference', 'fixtures', 'qwen3');
    await expect(generateText(bare, { prompt: 'x' })).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringMatching(/tokenizer\.json/),
    });
  });
});

describe('sampling', () => {
  const logits = Float32Array.from([0, 3, 1, 3, -2]);
  const shares = (options: ConstructorParameters<typeof Sampler>[0], draws = 4000) => {
    const sampler = new Sampler({ temperature: 1, ...options });
    const counts = new Array<number>(logits.length).fill(0);
    for (let i = 0; i < draws; ++i) {
      const id = sampler.choose(logits);
      counts[id] = (counts[id] as number) + 1;
    }
    return counts.map((count) => count / draws);
  };

  test('temperature 0 and top-k 1 take the first of the largest', () => {
    expect(new Sampler({}).choose(logits)).toBe(1);
    expect(shares({ topK: 1 })).toEqual([0, 1, 0, 0, 0]);
  });

  test.each([0.5, 1, 2])('at temperature %d the shares are those of the softmax', (temperature) => {
    const weights = Array.from(logits, (logit) => Math.exp(logit / temperature));
    const sum = weights.reduce((a, b) => a + b);
    const draws = 4000;
    shares({ temperature }, draws).forEach((share, id) => {
      const p = (weights[id] as number) / sum;
      // Five standard deviations of a share.
      expect(Math.abs(share - p)).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / draws) + 1e-9);
    });
  });

  test('top-k and top-p leave only the likeliest', () => {
    expect(shares({ topK: 3 }).map((share) => share > 0)).toEqual([false, true, true, true, false]);
    // The two largest have 0.467 each.
    expect(shares({ topP: 0.9 }).map((share) => share > 0)).toEqual([false, true, false, true, false]);
    expect(shares({ topP: 0.4 })).toEqual([0, 1, 0, 0, 0]);
  });

  test('NaN and values out of range are refused', () => {
    expect(() => new Sampler({}).choose(Float32Array.of(1, Number.NaN))).toThrow(/NaN/);
    for (const options of [
      { temperature: -1 },
      { temperature: Number.NaN },
      { topK: 0 },
      { topP: 0 },
      { topP: 1.1 },
    ]) {
      expect(() => new Sampler(options)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
    }
  });
});

test('the tokenizer puts its start token before a text, and takes whole characters back', async () => {
  const tokenizer = await Tokenizer.open(EXAMPLE);
  expect(tokenizer.startId).toBe(256);
  const text = 'Zwölf Boxkämpfer — 東京 🙂\n';
  expect(tokenizer.encode(text)).toEqual([256, ...Buffer.from(text)]);
  expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
});
