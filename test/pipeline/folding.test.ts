import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import type { Tensor } from '../../lib';
import { describeModel } from '../../lib/models';
import {
  decoderBlock,
  foldsOf,
  keyOf,
  type LayerWeights,
  type LinearKey,
  type Span,
} from '../../lib/models/decoder';
import { LayerFactors } from '../../lib/pipeline/calibration/factors';
import { BATCH_IDS, Decoder } from '../../lib/pipeline/decoder';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { openModel } from '../../lib/pipeline/stored_model';
import { verifyModel } from '../../lib/pipeline/verify';
import { rejectsCode } from '../core/errors';
import { JOB_TIMEOUT, rowsOf, SUBSET, some } from '../device';
import { EXAMPLE, random, readJson, readSafetensors, temporaryDirectory, tree } from './helpers';

/** Whole models are quantized and run. */
vi.setConfig({ testTimeout: JOB_TIMEOUT, hookTimeout: JOB_TIMEOUT });

const work = temporaryDirectory();
const at = (...names: string[]) => path.join(work, ...names);
const CALIB = path.join(EXAMPLE, 'calib.txt');
const EVAL = path.join(EXAMPLE, 'eval.txt');
const REFERENCE = path.join(__dirname, '..', 'models', 'reference', 'fixtures');
/** Small models of every architecture. */
const MODELS = some(fs.readdirSync(REFERENCE).sort(), 7);
const METHODS = ['awq', 'smoothquant'] as const;

describe('factors moved between what makes an input and what takes it', () => {
  /** The layer with its factors in place, nothing quantized. */
  function foldedLayer(
    weights: LayerWeights,
    factors: LayerFactors,
    own: <T extends Tensor>(x: T) => T,
  ): LayerWeights {
    const matrix = (key: LinearKey, weight: unknown) => own(factors.weight(key, weight as Tensor));
    return {
      ...weights,
      experts: weights.experts.map((expert, e) => ({
        gate: matrix({ role: 'expert', projection: 'gate', expert: e }, expert.gate),
        up: matrix({ role: 'expert', projection: 'up', expert: e }, expert.up),
        down: matrix({ role: 'expert', projection: 'down', expert: e }, expert.down),
      })),
      linear(role, projection) {
        const { weight, bias } = weights.linear(role, projection);
        const key = { role, projection, expert: null };
        return { weight: matrix(key, weight), bias: bias && own(factors.bias(key, bias)) };
      },
      norm: (name) => factors.gains.get(name) ?? weights.norm(name),
    };
  }

  test.each(MODELS)('%s: every layer gives the same states', async (model) => {
    const directory = path.join(REFERENCE, model);
    using decoder = await Decoder.open(directory, 'float32');
    const { model: map, checkpoint } = await openModel(directory);
    const linears = describeModel(checkpoint.config, checkpoint.entries()).linears;
    checkpoint.close();
    expect(map.layers).toBe(decoder.shape.layers);
    const length = 40;
    expect(length).toBeLessThan(BATCH_IDS);
    using table = decoder.rotaryTable(length);
    const span: Span = { sequences: 1, length, first: 0, table };
    const next = random(3);
    let x = decoder.embed(Int32Array.from({ length }, (_, i) => (7 * i) % 48));
    for (let layer = 0; layer < decoder.shape.layers; ++layer) {
      const weights = await decoder.weights.layer(layer);
      const owned: Tensor[] = [];
      const own = <T extends Tensor>(tensor: T): T => {
        owned.push(tensor);
        return tensor;
      };
      const factors = new LayerFactors();
      const folds = foldsOf(
        linears.filter((linear) => linear.layer === layer),
        decoder.shape,
      );
      for (const fold of folds) {
        const [first] = fold.to as [LinearKey];
        const weightOf = ({ role, projection, expert }: LinearKey) =>
          (expert === null
            ? weights.linear(role, projection).weight
            : weights.experts[expert]?.[projection as 'gate' | 'up' | 'down']) as Tensor;
        const width = weightOf(first).shape[1] as number;
        const found = LayerFactors.settle(fold)(
          Float32Array.from({ length: width }, () => 2 ** (6 * next() - 3)),
        );
        if ('norm' in fold.from) {
          await factors.foldNorm(fold.from.norm, weights.norm(fold.from.norm), fold.to, found);
          expect(factors.gains.has(fold.from.norm)).toBe(true);
        } else {
          factors.foldLinear(fold.from.linear, weightOf(fold.from.linear).shape[0] as number, fold, found);
        }
      }
      // Every linear layer takes factors.
      const taking = new Set(folds.flatMap(({ to }) => to.map(keyOf)));
      for (const linear of linears)
        if (linear.layer === layer) expect(taking, keyOf(linear)).toContain(keyOf(linear));

      const y = decoderBlock(x, weights, decoder.shape, span);
      const folded = decoderBlock(x, foldedLayer(weights, factors, own), decoder.shape, span);
      const [expected, found] = [await y.toFloat32(), await folded.toFloat32()];
      const norm = Math.hypot(...expected);
      const error = Math.hypot(...expected.map((value, i) => value - (found[i] as number)));
      // Sums of some hundred products whose factors are rounded once or twice more.
      expect(error / norm, `layer ${layer}`).toBeLessThan(2e-6);
      for (const tensor of [x, folded, ...owned]) tensor.dispose();
      factors.dispose();
      weights.dispose();
      x = y;
    }
    x.dispose();
  });
});

describe.skipIf(SUBSET).each(METHODS)('%s of a whole model', (method) => {
  const options: Partial<QuantizeOptions> = { method, bits: 3, groupSize: 32, text: CALIB, ...rowsOf(6) };
  let report: Report;
  beforeAll(async () => {
    await quantizeCheckpoint(EXAMPLE, { ...options, out: at(method), maxShardBytes: 200_000 });
    report = readJson<Report>(at(method), 'report.json');
  });

  test('every quantized weight says its method, tokens and error', () => {
    const weights = report.tensors.filter(({ scheme }) => scheme !== null);
    expect(weights.length).toBeGreaterThan(150);
    for (const { name, calibration } of weights) {
      expect(calibration, name).toMatchObject({ method, outputError: expect.any(Number) });
    }
  });

  test('it verifies against the original, and damage of a norm shows', async () => {
    expect((await verifyModel(at(method), EXAMPLE)).problems).toEqual([]);
    fs.cpSync(at(method), at(`${method}-damaged`), { recursive: true });
    const name = 'language_model.model.layers.1.input_layernorm.weight';
    const index = readJson<{ weight_map: Record<string, string> }>(
      at(method),
      'model.safetensors.index.json',
    );
    const file = at(`${method}-damaged`, index.weight_map[name] as string);
    const { bytes } = readSafetensors(file).get(name) as { bytes: Buffer };
    const content = fs.readFileSync(file);
    const begin = content.indexOf(bytes);
    content[begin + 1] = (content[begin + 1] as number) ^ 1;
    fs.writeFileSync(file, content);
    const { problems } = await verifyModel(at(`${method}-damaged`), EXAMPLE);
    expect(problems).toEqual([
      expect.stringMatching(/layers\.1\.input_layernorm\.weight: kept, but differs/),
    ]);
  });

  test('interrupted and resumed it has the same bytes', async () => {
    const controller = new AbortController();
    const out = at(`${method}-resumed`);
    const running = quantizeCheckpoint(EXAMPLE, {
      ...options,
      out,
      maxShardBytes: 200_000,
      signal: controller.signal,
      onProgress: ({ doneBytes, totalBytes }) => {
        if (doneBytes >= 0.4 * totalBytes) controller.abort();
      },
    });
    await rejectsCode(running, 'ERR_ABORTED', /interrupted/);
    await quantizeCheckpoint(EXAMPLE, { ...options, out, maxShardBytes: 200_000, resume: true });
    expect(tree(out)).toEqual(tree(at(method)));
  });
});

describe.each(METHODS)('%s of small models', (method) => {
  test.each(MODELS)('8 bits of %s lose what 8 bits lose', async (model) => {
    const directory = path.join(REFERENCE, model);
    const ids = Array.from({ length: 40 * 8 }, (_, i) => (7 * i + (i >> 3) * 5) % 48);
    fs.writeFileSync(at(`${model}.u16`), Buffer.from(Uint16Array.from(ids).buffer));
    const data = { tokens: at(`${model}.u16`), seqLen: 40 };
    const errors: number[] = [];
    for (const own of [method, 'rtn']) {
      const out = at(`${method}-${own}-${model}`);
      await quantizeCheckpoint(directory, { method: own, bits: 8, ...data, out });
      expect((await verifyModel(out, directory)).problems).toEqual([]);
      const { baseline } = await evaluateModel(out, { ...data, baseline: directory });
      errors.push(baseline?.logitError as number);
    }
    // Factors that did not cancel would be seen as errors of the order of 1; experts that change are of some per cent.
    expect(errors[0]).toBeLessThan(2 * (errors[1] as number) + 0.02);
  });
});

test.skipIf(SUBSET)(
  'awq: weights lose less of their outputs than by rounding to nearest, and the model is nearer to the original',
  async () => {
    const report = readJson<Report>(at('awq'), 'report.json');
    const weights = report.tensors.filter(({ scheme }) => scheme !== null);
    const better = weights.filter(
      ({ calibration }) => (calibration?.outputError as number) < (calibration?.outputErrorRtn as number),
    );
    expect(better.length).toBeGreaterThan(0.9 * weights.length);
    await quantizeCheckpoint(EXAMPLE, { bits: 3, groupSize: 32, out: at('nearest') });
    const evaluation = { text: EVAL, ...rowsOf(12), baseline: EXAMPLE };
    const [own, nearest] = await Promise.all(
      [at('awq'), at('nearest')].map((model) => evaluateModel(model, evaluation)),
    );
    expect(own?.baseline?.klDivergence).toBeLessThan(nearest?.baseline?.klDivergence as number);
  },
);

test.skipIf(SUBSET)(
  'smoothquant with activations of 8 bits is as near to the original as 8 bits are, and needs them',
  async () => {
    await quantizeCheckpoint(EXAMPLE, {
      method: 'smoothquant',
      bits: 8,
      text: CALIB,
      ...rowsOf(6),
      out: at('w8a8'),
    });
    const evaluation = { text: EVAL, ...rowsOf(12), baseline: EXAMPLE };
    const weights = await evaluateModel(at('w8a8'), evaluation);
    const both = await evaluateModel(at('w8a8'), { ...evaluation, compute: 'int8' });
    expect(both.perplexity).not.toBe(weights.perplexity);
    expect(both.perplexity / (both.baseline?.perplexity as number) - 1).toBeLessThan(0.005);
    expect(both.baseline?.logitError).toBeLessThan(0.05);
  },
);
