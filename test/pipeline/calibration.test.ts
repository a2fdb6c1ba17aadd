import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { llmInt8 } from '../../lib';
import { devices, setThreads } from '../../lib/device';
import type { StoredModule } from '../../lib/formats';
import { rmsNorm } from '../../lib/ops/decoder';
import { dequantize } from '../../lib/ops/quantize';
import { Decoder } from '../../lib/pipeline/decoder';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report, ReportTensor } from '../../lib/pipeline/report';
import { readRows } from '../../lib/pipeline/rows';
import { openModel } from '../../lib/pipeline/stored_model';
import { expertUsage } from '../../lib/pipeline/usage';
import { verifyModel } from '../../lib/pipeline/verify';
import type { QuantizedTensor } from '../../lib/quantized';
import { rejectsCode } from '../core/errors';
import { EMULATED, idsOf, JOB_TIMEOUT, ON_CPU, rowsOf, SUBSET, some } from '../device';
import { CALIB, calibratedRuns, EVAL, GPTQ } from './calibrated_runs';
import { cli, EXAMPLE, readSafetensors, readTensors, tree, writeSafetensors } from './helpers';

/** Whole models are quantized and run. */
vi.setConfig({ testTimeout: JOB_TIMEOUT, hookTimeout: JOB_TIMEOUT });

const REFERENCE = path.join(__dirname, '..', 'models', 'reference', 'fixtures');

const { at, quantized } = calibratedRuns();

type Layer = { counts: number[] };

const calibratedOf = ({ tensors }: Report) =>
  tensors.filter(({ calibration }) => calibration !== undefined) as Required<ReportTensor>[];

/** Ids as a .u16 file. */
function tokenFile(name: string, ids: readonly number[]): string {
  fs.writeFileSync(at(name), Buffer.from(Uint16Array.from(ids).buffer));
  return at(name);
}

describe.skipIf(SUBSET)('gptq of a whole model', () => {
  /** The fewest tokens of an expert that are enough: the default, or so that some have them. */
  const LEAST = EMULATED ? 48 : 256;
  let report: Report;
  beforeAll(async () => {
    report = await quantized('gptq', { ...GPTQ, ...(EMULATED && { minExpertTokens: LEAST }) });
  });

  test('every weight that a rule quantizes is calibrated, and its layer changes less than by rounding to nearest', () => {
    const weights = report.tensors.filter(({ scheme }) => scheme !== null);
    expect(weights.length).toBeGreaterThan(150);
    for (const { name, calibration } of weights) {
      expect(calibration, name).toMatchObject({ method: 'gptq', damping: 0.01 });
      const { outputError, outputErrorRtn } = calibration as Required<NonNullable<typeof calibration>>;
      expect(outputError, name).toBeLessThan(outputErrorRtn as number);
    }
  });

  test('the tokens of each expert are those that the router sends, and experts without any say what was done', async () => {
    const usage = await expertUsage(EXAMPLE, { text: CALIB, ...rowsOf(12) });
    expect(report.usage?.tokens).toBe(idsOf(12));
    // The first layer is not yet changed by quantization; states of 16 bits may turn a near tie.
    const first = report.usage?.layers[0]?.counts as number[];
    expect(first.reduce((a, b) => a + b)).toBe(2 * idsOf(12));
    for (const [e, count] of (usage.layers[0] as Layer).counts.entries()) {
      expect(Math.abs((first[e] as number) - count), `${e}`).toBeLessThan(9);
    }
    for (const { name, calibration } of calibratedOf(report)) {
      const found = /layers\.(\d+)\..*experts\.(\d+)\./.exec(name);
      const { tokens, hessian } = calibration;
      if (found === null || /shared/.test(name)) {
        expect({ tokens, hessian }, name).toEqual({ tokens: idsOf(12), hessian: undefined });
        continue;
      }
      const count = report.usage?.layers[Number(found[1])]?.counts[Number(found[2])] as number;
      const expected = count === 0 ? 'layer' : count < LEAST ? 'blended' : 'own';
      expect({ tokens, hessian }, name).toEqual({ tokens: count, hessian: expected });
    }
    const sources = new Set(calibratedOf(report).map(({ calibration }) => calibration.hessian));
    expect([...sources].sort()).toEqual(['blended', 'layer', 'own', undefined]);
  });

  test('it verifies against the original', async () => {
    expect((await verifyModel(at('gptq'), EXAMPLE)).problems).toEqual([]);
  });

  test('nothing but the model is left', () => {
    expect(Object.keys(tree(at('gptq'))).filter((name) => /quantaria|states|inputs/.test(name))).toEqual([]);
  });

  test.each([4, 3, 2])('%s bits are nearer to the original than round-to-nearest', async (bits) => {
    await quantized(`gptq-${bits}`, { ...GPTQ, bits });
    await quantized(`rtn-${bits}`, { bits, groupSize: 32 });
    const options = { text: EVAL, ...rowsOf(12), baseline: EXAMPLE };
    const [own, nearest] = await Promise.all(
      ['gptq', 'rtn'].map((method) => evaluateModel(at(`${method}-${bits}`), options)),
    );
    expect(own?.baseline?.klDivergence).toBeLessThan(0.8 * (nearest?.baseline?.klDivergence as number));
    expect(own?.perplexity).toBeLessThan(nearest?.perplexity as number);
  });
});

describe.skipIf(SUBSET)('the same bytes', () => {
  const SHARDS = { ...GPTQ, ...rowsOf(4), maxShardBytes: 100_000 };
  beforeAll(async () => {
    await quantized('undisturbed', SHARDS);
  });
  const threads = devices()[0]?.threads ?? 1;
  afterAll(() => setThreads(threads));

  test.each([1, 3])('for %s threads', async (count) => {
    setThreads(count);
    await quantized(`threads-${count}`, SHARDS);
    expect(tree(at(`threads-${count}`))).toEqual(tree(at('undisturbed')));
  });

  test('for so little memory that experts come one by one', async () => {
    await quantized('waves', { ...SHARDS, maxMemoryBytes: 1 });
    expect(tree(at('waves'))).toEqual(tree(at('undisturbed')));
  });

  /** Stops a run when a share of its input is done. */
  async function interrupt(out: string, share: number, options = SHARDS): Promise<void> {
    const controller = new AbortController();
    const running = quantizeCheckpoint(EXAMPLE, {
      ...options,
      out,
      signal: controller.signal,
      onProgress: ({ doneBytes, totalBytes }) => {
        if (doneBytes >= share * totalBytes) controller.abort();
      },
    });
    await rejectsCode(running, 'ERR_ABORTED', /interrupted/);
  }

  test.each([0.01, 0.3, 0.6, 0.7])(
    'when it is interrupted after %s of the work and resumed',
    async (share) => {
      const name = `interrupted-${share}`;
      await interrupt(at(name), share);
      expect(fs.existsSync(at(name, 'config.json'))).toBe(false);
      await quantized(name, { ...SHARDS, resume: true });
      expect(tree(at(name))).toEqual(tree(at('undisturbed')));
    },
  );

  // Shards of which layers share some, or all; the shards of a layer that is done have their names by then.
  test.each([20_000, 100_000, 1e9])(
    'when states are lost between two runs, shards of %s bytes',
    async (size) => {
      const options = { ...SHARDS, maxShardBytes: size };
      const [whole, lost] = [`whole-${size}`, `lost-${size}`];
      await quantized(whole, options);
      await interrupt(at(lost), 0.6, options);
      const states = fs.readdirSync(at(lost, '.quantaria')).filter((name) => /^states/.test(name));
      expect(states.length).toBeGreaterThan(0);
      for (const name of states) fs.rmSync(at(lost, '.quantaria', name));
      await quantized(lost, { ...options, resume: true });
      expect(tree(at(lost))).toEqual(tree(at(whole)));
    },
  );

  test.each([
    ['other rows', { samples: 5 }],
    ['another damping', { damping: 0.1 }],
    ['another order', { actOrder: false }],
    ['another bound for rare experts', { minExpertTokens: 7 }],
    ['another method', { method: 'rtn' }],
  ])('but %s are another job', async (_, change) => {
    const resumed = quantizeCheckpoint(EXAMPLE, {
      ...SHARDS,
      ...change,
      out: at('undisturbed'),
      resume: true,
    });
    await rejectsCode(resumed, 'ERR_ARGUMENT', /--resume/);
  });
});

test.skipIf(SUBSET).each(['rtn', 'gptq'])(
  'moe-mixed with a text, %s: usage is counted, and the experts used most get more bits',
  async (method) => {
    const name = `moe-mixed-${method}`;
    const report = await quantized(name, { method, recipe: 'moe-mixed', text: CALIB, ...rowsOf(8) });
    expect(report.notes.join('\n')).toContain(`usage of experts counted over ${idsOf(8)} calibration ids`);
    const usage = await expertUsage(EXAMPLE, { text: CALIB, ...rowsOf(8) });
    for (const { layer, counts } of usage.layers.slice(1)) {
      const bits = counts.map((_, e) => {
        const tensor = report.tensors.find(
          (found) => found.name.includes(`layers.${layer}.`) && found.name.includes(`experts.${e}.up`),
        );
        return (tensor as { scheme: { bits: number } }).scheme.bits;
      });
      const order = counts
        .map((_, e) => e)
        .sort((a, b) => (counts[b] as number) - (counts[a] as number) || a - b);
      expect(order.map((e) => bits[e])).toEqual(order.map((_, rank) => (rank < counts.length / 4 ? 4 : 3)));
    }
    expect((await verifyModel(at(name), EXAMPLE)).problems).toEqual([]);
  },
);

test.skipIf(SUBSET)(
  'LLM.int8 with a text: the columns of outliers of each layer are counted, and nothing else changes',
  async () => {
    const report = await quantized('llm.int8', { recipe: 'llm.int8', text: CALIB, ...rowsOf(4) });
    await quantized('llm.int8-plain', { recipe: 'llm.int8' });
    for (const [name, { bytes }] of readTensors(at('llm.int8-plain'))) {
      expect(Buffer.compare(readTensors(at('llm.int8')).get(name)?.bytes as Buffer, bytes), name).toBe(0);
    }
    const weights = report.tensors.filter(({ scheme }) => scheme !== null);
    using decoder = await Decoder.open(EXAMPLE, 'bfloat16');
    const rows = await readRows(EXAMPLE, { text: CALIB, ...rowsOf(4) });
    using embedded = decoder.embed(rows.ids);
    const layer = await decoder.weights.layer(0);
    using entering = rmsNorm(embedded, layer.norm('input_layernorm.weight'), decoder.shape.eps);
    const expected = (await llmInt8.outlierColumns(entering)).length;
    layer.dispose();
    for (const { name, calibration } of weights) {
      expect(calibration, name).toMatchObject({ method: 'rtn', outlierColumns: expect.any(Number) });
      if (/layers\.0\.self_attn\.[qkv]_proj/.test(name))
        expect(calibration?.outlierColumns, name).toBe(expected);
    }
    expect(
      Math.max(...weights.map(({ calibration }) => calibration?.outlierColumns as number)),
    ).toBeGreaterThan(0);
  },
);

describe('every architecture', () => {
  const ids = Array.from({ length: 40 * 12 }, (_, i) => (7 * i + (i >> 3) * 5) % 48);

  test.each(some(fs.readdirSync(REFERENCE).sort(), 5))(
    '%s: each linear layer sees its states',
    async (model) => {
      const tokens = tokenFile(`${model}.u16`, ids);
      const options = {
        method: 'gptq',
        bits: 4,
        groupSize: 16,
        tokens,
        seqLen: 40,
        format: 'compressed-tensors',
      } as const;
      const report = await quantized(`arch-${model}`, options, path.join(REFERENCE, model));
      const weights = report.tensors.filter(({ scheme }) => scheme !== null);
      expect(weights.length).toBeGreaterThan(5);
      for (const { name, calibration } of weights) {
        expect(calibration, name).toMatchObject({ method: 'gptq' });
        expect(calibration?.outputError, name).toBeLessThan(1.05 * (calibration?.outputErrorRtn as number));
      }
      expect((await verifyModel(at(`arch-${model}`), path.join(REFERENCE, model))).problems).toEqual([]);
      await quantizeCheckpoint(path.join(REFERENCE, model), {
        ...options,
        method: 'rtn',
        out: at(`rtn-${model}`),
      });
      const [own, nearest] = await Promise.all(
        ['arch', 'rtn'].map((method) =>
          evaluateModel(at(`${method}-${model}`), {
            tokens,
            seqLen: 40,
            baseline: path.join(REFERENCE, model),
          }),
        ),
      );
      expect(own?.baseline?.logitError).toBeLessThan(nearest?.baseline?.logitError as number);
    },
  );
});

describe('what is wrong', () => {
  const options = { method: 'gptq', bits: 4, groupSize: 16 } as const;
  const MOE = path.join(REFERENCE, 'qwen2_moe');

  test.each([
    ['no calibration data', EXAMPLE, {}, 'ERR_ARGUMENT', /method gptq needs calibration data: --text/],
    ['both a text and tokens', EXAMPLE, { text: CALIB, tokens: 'a.u16' }, 'ERR_ARGUMENT', /--text, --tokens/],
    ['a text shorter than a row', EXAMPLE, { text: 'short.txt' }, 'ERR_ARGUMENT', /less than one row of 256/],
    [
      'a model without a tokenizer',
      MOE,
      { text: CALIB },
      'ERR_IO',
      /tokenizer\.json: no such file.*--tokens/,
    ],
    [
      'an id outside of the vocabulary',
      MOE,
      { tokens: 'large.u16', seqLen: 3 },
      'ERR_ARGUMENT',
      /token id 48 in row 1/,
    ],
  ] as const)('%s: refused before anything is written', async (_, model, data, code, message) => {
    fs.writeFileSync(at('short.txt'), 'short');
    tokenFile('large.u16', [1, 2, 3, 4, 48, 6]);
    const files = Object.fromEntries(
      Object.entries(data).map(([key, value]) => [
        key,
        typeof value === 'string' ? path.resolve(at(), value) : value,
      ]),
    );
    const running = quantizeCheckpoint(model, { ...options, ...files, out: at('refused') });
    await rejectsCode(running, code, message);
    expect(fs.existsSync(at('refused'))).toBe(false);
  });

  test.each([
    ['a norm', 'model.layers.1.input_layernorm.weight', /layer 1: .* NaN or infinite/],
    ['the embedding', 'model.embed_tokens.weight', /calibration, embedding: .* NaN or infinite/],
    ['a weight', 'model.layers.1.self_attn.q_proj.weight', /layer 1: .* NaN or infinite/],
  ])('NaN in %s is told with its layer', async (_, name, message) => {
    const tensors = [...readSafetensors(path.join(MOE, 'model.safetensors'))].map(([key, tensor]) => {
      const bytes = Buffer.from(tensor.bytes);
      if (key === name) bytes.writeUInt16LE(0x7fc0, 2);
      return { name: key, ...tensor, bytes };
    });
    const directory = fs.mkdtempSync(at('nan-'));
    fs.copyFileSync(path.join(MOE, 'config.json'), path.join(directory, 'config.json'));
    writeSafetensors(path.join(directory, 'model.safetensors'), tensors);
    const tokens = tokenFile(
      'nan.u16',
      Array.from({ length: 80 }, (_, i) => i % 48),
    );
    const running = quantizeCheckpoint(directory, {
      ...options,
      tokens,
      seqLen: 40,
      out: `${directory}-out`,
    });
    await rejectsCode(running, 'ERR_FORMAT', message);
  });

  test('experts with no, one and two tokens: each is quantized, says so, and is filled up with those of its layer', async () => {
    const tokens = tokenFile('three.u16', [5, 11, 29]);
    const report = await quantized('three', { ...options, tokens, seqLen: 3 }, MOE);
    const counts = report.usage?.layers.flatMap(({ counts: own }) => own) as number[];
    for (const count of [0, 1, 2]) expect(counts).toContain(count);
    const experts = calibratedOf(report).filter(({ expert }) => expert !== undefined);
    expect(experts.length).toBe(3 * counts.length);
    for (const { name, layer, expert, calibration } of experts) {
      const count = report.usage?.layers.find((own) => own.layer === layer)?.counts[expert as number];
      expect(calibration, name).toMatchObject({
        method: 'gptq',
        tokens: count,
        hessian: count === 0 ? 'layer' : 'blended',
        outputError: expect.any(Number),
      });
    }
    expect((await verifyModel(at('three'), MOE)).problems).toEqual([]);
  });

  test('an input feature that no state ever reaches: its weights become 0, and the report counts it', async () => {
    const dead = 3;
    const tensors = [...readSafetensors(path.join(MOE, 'model.safetensors'))].map(([key, tensor]) => {
      const bytes = Buffer.from(tensor.bytes);
      if (key === 'model.layers.0.input_layernorm.weight') bytes.writeUInt16LE(0, 2 * dead);
      return { name: key, ...tensor, bytes };
    });
    const directory = fs.mkdtempSync(at('dead-'));
    fs.copyFileSync(path.join(MOE, 'config.json'), path.join(directory, 'config.json'));
    writeSafetensors(path.join(directory, 'model.safetensors'), tensors);
    const tokens = tokenFile(
      'dead.u16',
      Array.from({ length: 400 }, (_, i) => (7 * i) % 48),
    );
    const report = await quantized(
      path.basename(`${directory}-out`),
      { ...options, tokens, seqLen: 40 },
      directory,
    );
    const name = 'model.layers.0.self_attn.q_proj.weight';
    expect(report.tensors.find((tensor) => tensor.name === name)?.calibration?.deadColumns).toBe(1);
    const opened = await openModel(`${directory}-out`);
    const module = opened.modules.find((found) => `${found.module}.weight` === name);
    using weight = await opened.format?.decode(module as StoredModule, opened.stored.read);
    using values = dequantize(weight as QuantizedTensor);
    const columns = values.shape[1] as number;
    const zeros = new Map<number, number>();
    for (const [i, value] of (await values.toFloat32()).entries()) {
      if (value === 0) zeros.set(i % columns, (zeros.get(i % columns) ?? 0) + 1);
    }
    expect(zeros.get(dead)).toBe(values.shape[0]);
    expect([...zeros.values()].filter((count) => count === values.shape[0]).length).toBe(1);
    opened.checkpoint.close();
  });
});

test.skipIf(!ON_CPU)('the command line', async () => {
  const args = ['--method', 'gptq', '--bits', '4', '--group-size', '32', '--text', CALIB, '--samples', '2'];
  const { code, stdout } = await cli(
    'quantize',
    EXAMPLE,
    '--out',
    at('cli'),
    ...args,
    '--no-static-groups',
    '--damping',
    '0.05',
    '--json',
  );
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    method: 'gptq',
    calibration: { rows: 2, seqLen: 256, tokens: 512, actOrder: true, staticGroups: false, damping: 0.05 },
  });
});
