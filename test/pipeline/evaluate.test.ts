import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { Tensor } from '../../lib';
import { devices, setDefaultDevice, setThreads } from '../../lib/device';
import { dequantize } from '../../lib/ops/quantize';
import { Decoder } from '../../lib/pipeline/decoder';
import { DecoderWeights } from '../../lib/pipeline/decoder_weights';
import { evaluateModel, waves } from '../../lib/pipeline/evaluate';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { readRows } from '../../lib/pipeline/rows';
import { openModel } from '../../lib/pipeline/stored_model';
import { expertUsage } from '../../lib/pipeline/usage';
import { DEVICE, EMULATED, idsOf, ON_CPU, rowsOf, SUBSET, some } from '../device';
import {
  EXAMPLE,
  readJson,
  readSafetensors,
  readTensors,
  SHARED_MODELS,
  temporaryDirectory,
  writeSafetensors,
} from './helpers';

const work = temporaryDirectory();
const at = (...names: string[]) => path.join(work, ...names);
const EVAL = path.join(EXAMPLE, 'eval.txt');
const CALIB = path.join(EXAMPLE, 'calib.txt');
const MOE = path.join(__dirname, '..', 'models', 'reference', 'fixtures', 'qwen2_moe');
const DATA = path.join(SHARED_MODELS, '..', 'data');

/** Ids as a .u16 file. */
function tokenFile(name: string, ids: readonly number[]): string {
  fs.writeFileSync(at(name), Buffer.from(Uint16Array.from(ids).buffer));
  return at(name);
}

describe.skipIf(SUBSET)('the figures of others', () => {
  /** All rows; on the emulator the first two, held against the CPU, which is held against the figures. */
  const PART = EMULATED ? { samples: 2 } : {};
  async function expectedOf<T>(figure: T, onCpu: () => Promise<T>): Promise<T> {
    if (!EMULATED) return figure;
    setDefaultDevice('cpu');
    return await onCpu().finally(() => setDefaultDevice(DEVICE));
  }

  test('perplexity of the example is the one of its README', async () => {
    const evaluate = () => evaluateModel(EXAMPLE, { text: EVAL, ...PART });
    const { perplexity, tokens, rows } = await evaluate();
    const expected = await expectedOf(1.3229, async () => (await evaluate()).perplexity);
    expect(Math.abs(perplexity / expected - 1)).toBeLessThan(1e-4);
    const all = PART.samples ?? 313;
    expect({ tokens, rows }).toEqual({ tokens: all * 255, rows: all });
  });

  test('usage of the example is that of expert_usage.json, dead experts too', async () => {
    const { rows, usage } = readJson<{ sets: { calib: { rows: number; usage: number[][] } } }>(
      EXAMPLE,
      'expert_usage.json',
    ).sets.calib;
    const count = () => expertUsage(EXAMPLE, { text: CALIB, ...PART });
    const { tokens, layers } = await count();
    const expected = await expectedOf(usage, async () => (await count()).layers.map(({ counts }) => counts));
    expect(tokens).toBe(256 * (PART.samples ?? rows));
    expect(layers.map(({ layer }) => layer)).toEqual([0, 1, 2]);
    for (const { layer, counts } of layers) {
      // "A count may differ by one or two where two router logits are nearly equal."
      const off = counts.map((count, e) => Math.abs(count - (expected[layer]?.[e] as number)));
      expect(Math.max(...off), `layer ${layer}: ${counts}`).toBeLessThanOrEqual(2);
      expect(counts.reduce((a, b) => a + b)).toBe(2 * tokens);
    }
    for (const dead of [3, 7, 9, 12, 14]) expect(layers[0]?.counts[dead]).toBe(0);
  });

  const figures = [
    ['stories260K-llama', 'eval_a', 4.9174],
    ['stories260K-llama', 'eval_wiki_a', 74.1313],
    ['stories-moe-aria', 'eval_a', 4.5809],
    ['stories-moe-aria', 'eval_wiki_a', 13.9867],
  ] as const;
  test.skipIf(!fs.existsSync(SHARED_MODELS)).each(figures)(
    '%s on %s',
    { timeout: 120_000 },
    async (model, set, figure) => {
      const directory = path.join(SHARED_MODELS, model);
      const evaluate = () => evaluateModel(directory, { tokens: path.join(DATA, `${set}.u16`), ...PART });
      const { perplexity } = await evaluate();
      const expected = await expectedOf(figure, async () => (await evaluate()).perplexity);
      expect(Math.abs(perplexity / expected - 1)).toBeLessThan(1e-4);
      const rows = await readRows(directory, { text: path.join(DATA, `${set}.txt`) });
      const stored = fs.readFileSync(path.join(DATA, `${set}.u16`));
      expect(Buffer.compare(Buffer.from(Uint16Array.from(rows.ids).buffer), stored)).toBe(0);
    },
  );
});

describe('against a baseline', () => {
  test('itself: no divergence, no error, the same first choices', async () => {
    const { perplexity, baseline } = await evaluateModel(EXAMPLE, {
      text: EVAL,
      ...rowsOf(5),
      baseline: EXAMPLE,
    });
    expect(baseline).toEqual({ perplexity, klDivergence: 0, top1Agreement: 1, logitError: 0 });
  });

  test.skipIf(SUBSET)('fewer bits are further away', async () => {
    const distances: { kl: number; error: number; agreement: number }[] = [];
    for (const bits of [8, 4, 3] as const) {
      await quantizeCheckpoint(EXAMPLE, { out: at(`int${bits}`), bits, groupSize: 32 });
      const { baseline } = await evaluateModel(at(`int${bits}`), {
        text: EVAL,
        ...rowsOf(12),
        baseline: EXAMPLE,
      });
      const { klDivergence, logitError, top1Agreement } = baseline as NonNullable<typeof baseline>;
      distances.push({ kl: klDivergence, error: logitError, agreement: top1Agreement });
    }
    for (const [i, { kl, error, agreement }] of distances.entries()) {
      expect(kl).toBeGreaterThan(0);
      const nearer = distances[i - 1];
      if (!nearer) continue;
      // 16 and 2 times the rounding error from step to step, squared in the divergence.
      expect(kl).toBeGreaterThan(2 * nearer.kl);
      expect(error).toBeGreaterThan(1.4 * nearer.error);
      expect(agreement).toBeLessThan(nearer.agreement);
    }
  });

  test('another vocabulary is refused', async () => {
    const promise = evaluateModel(EXAMPLE, { text: EVAL, samples: 1, baseline: MOE });
    await expect(promise).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringMatching(/vocabulary of 48/),
    });
  });
});

describe('quantized checkpoints', () => {
  const cases = [
    ['int8', undefined],
    ['int4', undefined],
    ['int4', 'gptq'],
    ['int4', 'awq'],
    ['int4', 'quanto'],
    ['int8', 'quanto'],
    ['nf4', undefined],
    ['nf4-dq', undefined],
    ['mxfp4', undefined],
    ['mxfp8', undefined],
    ['moe-mixed', undefined],
  ] as const;

  /** The checkpoint with its quantized weights decoded, as any library would read it. */
  async function decoded(directory: string, to: string): Promise<string> {
    const opened = await openModel(directory);
    const parts = new Set(opened.modules.flatMap(({ tensors }) => tensors));
    const tensors: { name: string; dtype: string; shape: number[]; bytes: Buffer }[] = [];
    for (const [name, tensor] of readTensors(directory))
      if (!parts.has(name)) tensors.push({ name, ...tensor });
    for (const module of opened.modules) {
      using weight = await opened.format?.decode(module, opened.stored.read);
      if (!weight) throw new Error('no format');
      using values = dequantize(weight);
      const bytes = Buffer.from((await values.toFloat32()).buffer);
      tensors.push({ name: `${module.module}.weight`, dtype: 'F32', shape: module.shape, bytes });
    }
    opened.checkpoint.close();
    fs.mkdirSync(to);
    writeSafetensors(path.join(to, 'model.safetensors'), tensors);
    const { quantization_config: _, ...config } = readJson(directory, 'config.json');
    fs.writeFileSync(path.join(to, 'config.json'), JSON.stringify(config));
    return to;
  }

  test.each(some(cases, 4))('%s, format %s: the logits of the decoded weights', async (recipe, format) => {
    const name = `${recipe}-${format}`;
    await quantizeCheckpoint(EXAMPLE, { out: at(name), recipe, format });
    await decoded(at(name), at(`${name}-decoded`));
    const options = { text: EVAL, ...rowsOf(4), baseline: at(`${name}-decoded`) };
    const { perplexity, baseline } = await evaluateModel(at(name), options);
    // The products decode to the same float32 values; only the order of sums may differ.
    expect(baseline?.logitError).toBeLessThan(2e-5);
    expect(Math.abs(perplexity / (baseline?.perplexity as number) - 1)).toBeLessThan(1e-6);
  });

  test('llm.int8 is near the original', async () => {
    await quantizeCheckpoint(EXAMPLE, { out: at('llm.int8'), recipe: 'llm.int8' });
    const options = { text: EVAL, ...rowsOf(8), baseline: EXAMPLE };
    const { baseline } = await evaluateModel(at('llm.int8'), options);
    // Weights and activations of 8 bits: a relative error of some 1/250 each.
    expect(baseline?.logitError).toBeLessThan(0.03);
    expect(baseline?.logitError).toBeGreaterThan(1e-3);
  });
});

describe('rows', () => {
  const BOS = 256;

  test('documents are encoded with the start token, joined, and cut into rows that start with it', async () => {
    fs.writeFileSync(at('a.txt'), '\nab\ncd\n\n\n\nefg\n\nh\n');
    const stream = [BOS, ...Buffer.from('ab\ncd'), BOS, ...Buffer.from('efg'), BOS, ...Buffer.from('h')];
    expect(stream.length).toBe(12);
    const { ids } = await readRows(EXAMPLE, { text: at('a.txt'), seqLen: 6 });
    expect([...ids]).toEqual([BOS, ...stream.slice(0, 5), BOS, ...stream.slice(5, 10)]);
    const first = await readRows(EXAMPLE, { text: at('a.txt'), seqLen: 6, samples: 1 });
    expect([...first.ids]).toEqual([BOS, ...stream.slice(0, 5)]);
  });

  test('JSON lines: a document each', async () => {
    fs.writeFileSync(at('b.jsonl'), '{"text": "ab\\n\\ncd"}\n"ef"\n\n');
    const { ids } = await readRows(EXAMPLE, { text: at('b.jsonl'), seqLen: 11 });
    expect([...ids]).toEqual([BOS, BOS, ...Buffer.from('ab\n\ncd'), BOS, ...Buffer.from('ef')]);
    fs.writeFileSync(at('c.jsonl'), '"ab"\n{"body": 1}\n');
    await expect(readRows(EXAMPLE, { text: at('c.jsonl') })).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringMatching(/line 2/),
    });
  });

  test('token files of both widths; the partial last row is dropped', async () => {
    const ids = [1, 2, 3, 4, 5, 6, 7];
    fs.writeFileSync(at('d.i32'), Buffer.from(Int32Array.from(ids).buffer));
    for (const tokens of [tokenFile('d.u16', ids), at('d.i32')]) {
      expect([...(await readRows(EXAMPLE, { tokens, seqLen: 3 })).ids]).toEqual([1, 2, 3, 4, 5, 6]);
    }
  });

  test.each([
    ['less than a row of text', { text: 'short.txt' }, 'ERR_ARGUMENT', /less than one row of 256/],
    ['less than a row of ids', { tokens: 'short.u16' }, 'ERR_ARGUMENT', /3 ids are less than one row of 256/],
    ['half an id', { tokens: 'odd.u16' }, 'ERR_FORMAT', /odd\.u16: 5 bytes/],
    ['another ending', { tokens: 'short.txt' }, 'ERR_ARGUMENT', /\.u16 or \.i32/],
    ['a missing file', { text: 'missing.txt' }, 'ERR_IO', /missing\.txt/],
    ['neither', {}, 'ERR_ARGUMENT', /--text, --tokens/],
    ['both', { text: 'short.txt', tokens: 'short.u16' }, 'ERR_ARGUMENT', /--text, --tokens/],
  ] as const)('%s is refused', async (_, options, code, message) => {
    fs.writeFileSync(at('short.txt'), 'short');
    fs.writeFileSync(at('odd.u16'), Buffer.alloc(5));
    tokenFile('short.u16', [1, 2, 3]);
    const files = Object.fromEntries(Object.entries(options).map(([key, name]) => [key, at(name)]));
    await expect(readRows(EXAMPLE, files)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });

  test('waves are the rows, in order', () => {
    const rows = { ids: Int32Array.from({ length: 60 }, (_, i) => i), length: 4 };
    // Rows of 4 ids at a hidden size of which three rows fill the memory.
    const parts = [...waves(rows, Math.floor(512e6 / 4 / 4 / 3), 512e6)];
    expect(parts.map(({ ids }) => ids.length)).toEqual([12, 12, 12, 12, 12]);
    expect(parts.flatMap(({ ids }) => [...ids])).toEqual([...rows.ids]);
  });
});

describe('windows that overlap', () => {
  const ids = Array.from({ length: 100 }, (_, i) => (7 * i + (i >> 3) * 5) % 48);
  const tokens = () => tokenFile('windows.u16', ids);

  test('every id but the first is scored once, given as many before it as a window has', async () => {
    const [length, stride] = [40, 16];
    const found = await evaluateModel(MOE, { tokens: tokens(), seqLen: length, stride });
    using decoder = await Decoder.open(MOE);
    let [loss, begin, from] = [0, 0, 1];
    for (let end = length; from < ids.length; ) {
      const window = Int32Array.from(ids.slice(begin, end));
      const [states] = await decoder.states({ ids: window, length });
      using logits = decoder.logits(states as Tensor);
      const values = await logits.toFloat32();
      for (; from < end; ++from) {
        const row = Array.from(values.subarray(48 * (from - begin - 1), 48 * (from - begin)));
        loss += Math.log(row.reduce((sum, z) => sum + Math.exp(z), 0)) - (row[ids[from] as number] as number);
      }
      end = Math.min(ids.length, end + stride);
      begin = end - length;
    }
    expect({ tokens: found.tokens, rows: found.rows }).toEqual({ tokens: 99, rows: 5 });
    // Sums of 99 losses in float32.
    expect(Math.abs(found.loss / (loss / 99) - 1)).toBeLessThan(1e-6);
  });

  test('windows that only touch are rows that follow each other', async () => {
    const rows = { tokens: tokens(), seqLen: 25 };
    expect(await readRows(MOE, { ...rows, stride: 25 })).toEqual({
      ...(await readRows(MOE, rows)),
      scoredFrom: Int32Array.of(1, 1, 1, 1),
    });
    const [touching, plain] = [
      await evaluateModel(MOE, { ...rows, stride: 25 }),
      await evaluateModel(MOE, rows),
    ];
    expect(touching.loss).toBe(plain.loss);
  });

  test('of a text each begins with the start token, which takes the place of an id', async () => {
    fs.writeFileSync(at('windows.txt'), 'abcdefghij');
    const { ids: found, scoredFrom } = await readRows(EXAMPLE, {
      text: at('windows.txt'),
      seqLen: 6,
      stride: 2,
    });
    const text = [256, ...Buffer.from('abcdefghij')];
    const windows = [0, 2, 4, 6].map((begin) => [256, ...text.slice(begin, begin + 5)]);
    expect([...found]).toEqual(windows.flat());
    expect([...(scoredFrom as Int32Array)]).toEqual([1, 4, 4, 4]);
    const { tokens: scored } = await evaluateModel(EXAMPLE, {
      text: at('windows.txt'),
      seqLen: 6,
      stride: 2,
    });
    expect(scored).toBe(text.length);
  });

  test.skipIf(SUBSET)('a longer memory predicts better', async () => {
    const samples = EMULATED ? 6 : 60;
    const text = { text: EVAL, seqLen: 64, samples };
    const near = await evaluateModel(EXAMPLE, text);
    const wide = await evaluateModel(EXAMPLE, { ...text, stride: 16, samples: 4 * samples });
    expect(wide.perplexity).toBeLessThan(near.perplexity);
  });

  test('a stride that would leave ids out is refused', async () => {
    const promise = evaluateModel(EXAMPLE, { text: EVAL, seqLen: 64, stride: 64 });
    await expect(promise).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringMatching(/--stride 64: rows of 64, .* leave ids out/),
    });
  });
});

describe('what is wrong', () => {
  const ids = Array.from({ length: 80 }, (_, i) => (7 * i) % 48);

  test('a text without a tokenizer says so, and that ids would do', async () => {
    await expect(evaluateModel(MOE, { text: EVAL })).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringMatching(/tokenizer\.json: no such file.*--tokens/),
    });
    const { tokens } = await evaluateModel(MOE, { tokens: tokenFile('e.u16', ids), seqLen: 40 });
    expect(tokens).toBe(78);
  });

  test('an id outside of the vocabulary is named with its place', async () => {
    const tokens = tokenFile('f.u16', [...ids.slice(0, 50), 48, ...ids.slice(51)]);
    await expect(evaluateModel(MOE, { tokens, seqLen: 40 })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringMatching(/token id 48 in row 1, place 10, is not in the vocabulary of 48/),
    });
  });

  test.each([
    ['self_attn.v_proj.weight', /layer 1: .* hidden states of batch 0 are NaN or infinite/],
    ['input_layernorm.weight', /layer 1: /],
    ['mlp.down_proj.weight', /layer 1: /],
  ])('NaN in %s is found in its layer', async (name, message) => {
    const tensors = [...readSafetensors(path.join(MOE, 'model.safetensors'))].map(([key, tensor]) => {
      const bytes = Buffer.from(tensor.bytes);
      if (key === `model.layers.1.${name}`) bytes.writeUInt16LE(0x7fc0, 2);
      return { name: key, ...tensor, bytes };
    });
    const directory = at(`nan-${name}`);
    fs.mkdirSync(directory);
    fs.copyFileSync(path.join(MOE, 'config.json'), path.join(directory, 'config.json'));
    writeSafetensors(path.join(directory, 'model.safetensors'), tensors);
    const promise = evaluateModel(directory, { tokens: tokenFile(`${name}.u16`, ids), seqLen: 40 });
    await expect(promise).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringMatching(message),
    });
  });

  test.each([
    [{ model_type: 'gpt_oss' }, /no forward pass for gpt_oss/],
    [{ model_type: 'nosuch' }, /no forward pass for nosuch/],
    [{ model_type: 'deepseek_v3' }, /no forward pass for deepseek_v3/],
    [{ hidden_act: 'gelu' }, /hidden_act gelu/],
    [{ rope_parameters: { rope_type: 'nosuch' } }, /rotary scaling nosuch/],
  ])('%j has no forward pass, and says so', async (change, message) => {
    const directory = fs.mkdtempSync(at('other-'));
    fs.copyFileSync(path.join(MOE, 'model.safetensors'), path.join(directory, 'model.safetensors'));
    const config = { ...readJson(MOE, 'config.json'), ...change };
    fs.writeFileSync(path.join(directory, 'config.json'), JSON.stringify(config));
    await expect(Decoder.open(directory)).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED',
      message: expect.stringMatching(message),
    });
  });

  test('usage of a model without experts', async () => {
    const llama = path.join(MOE, '..', 'llama-linear');
    await expect(expertUsage(llama, { tokens: tokenFile('g.u16', ids), seqLen: 40 })).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED',
      message: expect.stringMatching(/no experts/),
    });
  });
});

test.skipIf(SUBSET)(
  'little memory: rows go through in several waves of small batches, and lose the same',
  async () => {
    const options = { text: EVAL, ...rowsOf(32), baseline: EXAMPLE };
    await quantizeCheckpoint(EXAMPLE, { out: at('small'), recipe: 'int4' });
    const layers = vi.spyOn(DecoderWeights.prototype, 'layer');
    const whole = await evaluateModel(at('small'), options);
    expect(layers).toHaveBeenCalledTimes(2 * 3);
    layers.mockClear();
    // An eighth for each model's states: 128 features of 4 bytes for the ids of a quarter of the rows.
    const waved = await evaluateModel(at('small'), {
      ...options,
      maxMemoryBytes: 8 * 4 * 128 * (idsOf(32) / 4),
    });
    expect(layers).toHaveBeenCalledTimes(4 * 2 * 3);
    layers.mockRestore();
    expect(Math.abs(waved.loss / whole.loss - 1)).toBeLessThan(1e-6);
    expect(waved.tokens).toBe(whole.tokens);
  },
);

describe.skipIf(!ON_CPU)('threads', () => {
  const threads = devices()[0]?.threads ?? 1;
  beforeAll(() => setThreads(1));
  afterAll(() => setThreads(threads));

  test('the perplexity has the same bits for any number of them', async () => {
    const one = await evaluateModel(EXAMPLE, { text: EVAL, samples: 20 });
    setThreads(3);
    const three = await evaluateModel(EXAMPLE, { text: EVAL, samples: 20 });
    expect(three.loss).toBe(one.loss);
  });
});
