import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { verifyModel } from '../../lib/pipeline/verify';
import { rejectsCode } from '../core/errors';
import { SUBSET } from '../device';
import { llama, mixtral } from '../models/checkpoints';
import {
  EXAMPLE,
  readJson,
  readTensors,
  type Stored,
  temporaryDirectory,
  writeModel,
  writeSafetensors,
} from './helpers';

const work = temporaryDirectory();
const intact = path.join(work, 'intact');
const nf4 = path.join(work, 'nf4');
const layer = 'language_model.model.layers.1.';
const expert = (index: number, projection = 'up') =>
  `${layer}mlp.experts.experts.${index}.${projection}_proj.weight`;

beforeAll(async () => {
  await quantizeCheckpoint(EXAMPLE, { out: intact, recipe: 'int4' });
  await quantizeCheckpoint(EXAMPLE, { out: nf4, recipe: 'nf4' });
});

/** A copy of a quantized directory whose tensors were changed. */
function damaged(name: string, change: (tensors: Map<string, Stored>) => void, from = intact): string {
  const out = path.join(work, name);
  fs.cpSync(from, out, { recursive: true });
  const tensors = new Map(
    [...readTensors(from)].map(([key, tensor]) => [key, { ...tensor, bytes: Buffer.from(tensor.bytes) }]),
  );
  change(tensors);
  const list = [...tensors].map(([key, tensor]) => ({ name: key, ...tensor }));
  writeSafetensors(path.join(out, 'model.safetensors'), list);
  return out;
}

const get = (tensors: Map<string, Stored>, name: string): Stored => {
  const found = tensors.get(name);
  if (found === undefined) throw new Error(`${name} is not there`);
  return found;
};

/** Verify fails, and every problem is about one of `names`. */
async function expectProblems(
  out: string,
  names: readonly string[],
  what: RegExp,
  against: string | null = EXAMPLE,
) {
  const { ok, problems } = await verifyModel(out, against);
  expect(ok).toBe(false);
  expect(problems.length).toBeGreaterThan(0);
  for (const name of names)
    expect(problems).toContainEqual(expect.stringContaining(name.replace(/\.weight$/, '')));
  for (const problem of problems) {
    expect(problem).toMatch(what);
    expect(names.some((name) => problem.includes(name.replace(/\.weight$/, '')))).toBe(true);
  }
}

describe("float8, whose scales are stored in the model's 16 bits, is measured as it is stored", () => {
  const rule = (granularity: 'row' | 'tensor') => ({
    rules: [
      { match: { role: 'expert', layers: '0' }, scheme: { kind: 'fp8', format: 'e4m3', granularity } },
      { match: { role: 'attention' }, scheme: { kind: 'fp8', format: 'e4m3', granularity } },
      { match: {}, scheme: null },
    ],
  });
  const cases = [
    ['compressed-tensors', 'row', 'rtn'],
    ['compressed-tensors', 'tensor', 'rtn'],
    ['quanto', 'row', 'rtn'],
    ['compressed-tensors', 'row', 'gptq'],
    ['compressed-tensors', 'row', 'awq'],
  ] as const;
  test.each(SUBSET ? cases.slice(0, 3) : cases)(
    '%s, a scale by %s, %s',
    async (format, granularity, method) => {
      const name = `float8-${format}-${granularity}-${method}`;
      const recipe = path.join(work, `${name}.json`);
      fs.writeFileSync(recipe, JSON.stringify(rule(granularity)));
      const out = path.join(work, name);
      const text = path.join(EXAMPLE, 'calib.txt');
      await quantizeCheckpoint(EXAMPLE, { out, recipe, format, method, text, samples: 4 });
      const { ok, problems } = await verifyModel(out, EXAMPLE);
      expect({ ok, problems }).toEqual({ ok: true, problems: [] });
    },
  );
});

describe('what is as it was written passes', () => {
  test.each([
    ['with the original', EXAMPLE],
    ['alone', null],
  ])('%s', async (_, against) => {
    const { ok, problems, tensors } = await verifyModel(intact, against);
    expect({ ok, problems }).toEqual({ ok: true, problems: [] });
    for (const { scheme, relativeError } of tensors) {
      if (against === null) expect(relativeError).toBeNull();
      else if (scheme === null) expect(relativeError).toBe(0);
      // Four bits over a row: never exact, never worse than half a step of 2 absmax / 15 everywhere.
      else expect(relativeError).toBeGreaterThan(0.01);
    }
  });

  test.skipIf(SUBSET)('a copy that a plain writer wrote passes too', async () => {
    expect(
      await verifyModel(
        damaged('rewritten', () => {}),
        EXAMPLE,
      ),
    ).toMatchObject({ ok: true, problems: [] });
  });
});

describe('damage is found, and named', () => {
  test('codes of one matrix that were inverted', async () => {
    const name = expert(3);
    const out = damaged('codes', (tensors) => {
      const { bytes } = get(tensors, name.replace(/weight$/, 'weight_packed'));
      bytes.forEach((byte, i) => {
        bytes[i] = byte ^ 0xff;
      });
    });
    await expectProblems(out, [name], /relative error/);
  });

  test.each([
    ['huge', 0x40, /relative error \S+, at most|not finite/],
    // One row of 128 is lost, which the whole matrix hardly shows: but it is not what was reported.
    ['tiny', 0x20, /relative error \S+, \S+ when it was written/],
  ])('one flipped bit of a scale that makes it %s', async (kind, bit, what) => {
    const name = `${layer}self_attn.q_proj.weight`;
    const out = damaged(`scale-${kind}`, (tensors) => {
      const { bytes } = get(tensors, name.replace(/weight$/, 'weight_scale'));
      bytes[11] = (bytes[11] as number) ^ bit;
    });
    await expectProblems(out, [name], what);
  });

  test.skipIf(SUBSET)('one flipped bit of a code', async () => {
    const name = expert(9);
    const out = damaged('code-bit', (tensors) => {
      const { bytes } = get(tensors, name.replace(/weight$/, 'weight_packed'));
      bytes[1000] = (bytes[1000] as number) ^ 0x08;
    });
    await expectProblems(out, [name], /relative error/);
  });

  test.each([
    ['NaN', 0x7fc0],
    ['infinity', 0x7f80],
  ])('a scale that is %s, even without the original', async (_, bits) => {
    const name = expert(5, 'down');
    const out = damaged(`scale-${bits}`, (tensors) => {
      get(tensors, name.replace(/weight$/, 'weight_scale')).bytes.writeUInt16LE(bits, 4);
    });
    await expectProblems(out, [name], /finite|scale/, null);
    await expectProblems(out, [name], /finite|scale|relative error/);
  });

  test('an absmax of NF4 that is NaN', async () => {
    const name = expert(2, 'gate');
    const out = damaged(
      'absmax',
      (tensors) => get(tensors, `${name}.absmax`).bytes.writeFloatLE(Number.NaN, 0),
      nf4,
    );
    await expectProblems(out, [name], /finite|absmax/, null);
  });

  test.skipIf(SUBSET)('a missing quantized matrix', async () => {
    const name = expert(7);
    const out = damaged('missing', (tensors) => {
      for (const key of [...tensors.keys()]) if (key.startsWith(name)) tensors.delete(key);
    });
    // A layer whose experts are not all there cannot be read as one.
    await expectProblems(out, ['expert 7'], /missing|has no up projection/);
  });

  test.skipIf(SUBSET)('a missing matrix of attention', async () => {
    const name = `${layer}self_attn.k_proj.weight`;
    const out = damaged('missing-attention', (tensors) => {
      for (const key of [...tensors.keys()]) if (key.startsWith(name)) tensors.delete(key);
    });
    await expectProblems(out, [name], /missing/);
  });

  test.skipIf(SUBSET).each(['weight_packed', 'weight_scale'])('a matrix without its %s', async (part) => {
    const name = expert(8);
    const out = damaged(`without-${part}`, (tensors) => tensors.delete(name.replace(/weight$/, part)));
    const result = await verifyModel(out, EXAMPLE).catch((error: Error) => ({
      ok: false,
      problems: [error.message],
    }));
    expect(result.ok).toBe(false);
    expect(result.problems).toContainEqual(expect.stringContaining(name.replace(/\.weight$/, '')));
  });

  test.skipIf(SUBSET)('a missing norm', async () => {
    const name = 'language_model.model.norm.weight';
    await expectProblems(
      damaged('no-norm', (tensors) => tensors.delete(name)),
      [name],
      /missing/,
    );
  });

  test.skipIf(SUBSET)('a tensor too many', async () => {
    const out = damaged('extra', (tensors) =>
      tensors.set('language_model.model.extra', {
        dtype: 'F32',
        shape: [1],
        bytes: Buffer.alloc(4),
        file: '',
      }),
    );
    await expectProblems(out, ['language_model.model.extra'], /not in the original/);
  });

  test.skipIf(SUBSET)('two experts that changed places', async () => {
    const out = damaged('swapped', (tensors) => {
      for (const part of ['weight_packed', 'weight_scale']) {
        const [a, b] = [1, 2].map((index) => expert(index).replace(/weight$/, part)) as [string, string];
        const first = get(tensors, a);
        tensors.set(a, get(tensors, b)).set(b, first);
      }
    });
    await expectProblems(out, [expert(1), expert(2)], /relative error/);
  });

  test.skipIf(SUBSET)('gate and up of an expert that changed places', async () => {
    const names = [expert(4, 'gate'), expert(4, 'up')];
    const out = damaged('gate-up', (tensors) => {
      for (const part of ['weight_packed', 'weight_scale']) {
        const [a, b] = names.map((name) => name.replace(/weight$/, part)) as [string, string];
        const first = get(tensors, a);
        tensors.set(a, get(tensors, b)).set(b, first);
      }
    });
    await expectProblems(out, names, /relative error/);
  });

  test('the last bit of one value of a kept tensor', async () => {
    const name = `${layer}mlp.router.weight`;
    const out = damaged('kept', (tensors) => {
      const { bytes } = get(tensors, name);
      bytes[100] = (bytes[100] as number) ^ 1;
    });
    await expectProblems(out, [name], /differs from the original/);
  });

  test('a kept tensor of integers that changed', async () => {
    const shape = [3];
    const ids = { name: 'model.position_ids', dtype: 'I64', shape, bytes: Buffer.alloc(24, 1) };
    const { config, tensors } = llama();
    const source = writeModel(path.join(work, 'ids'), { config, tensors: [...tensors, ids] });
    const good = path.join(work, 'ids-int4');
    await quantizeCheckpoint(source, { out: good, recipe: 'int4' });
    expect((await verifyModel(good, source)).problems).toEqual([]);
    const out = damaged('ids-damaged', (stored) => get(stored, ids.name).bytes.writeUInt8(2, 8), good);
    await expectProblems(out, [ids.name], /differs from the original/, source);
  });

  test('NaN in a kept tensor, without the original', async () => {
    const name = 'language_model.lm_head.weight';
    const out = damaged('kept-nan', (tensors) => get(tensors, name).bytes.writeUInt16LE(0x7fc0, 8));
    await expectProblems(out, [name], /not finite/, null);
  });

  test.skipIf(SUBSET)('a tensor of another shape', async () => {
    const name = 'language_model.model.embed_tokens.weight';
    const out = damaged('shape', (tensors) => {
      const tensor = get(tensors, name);
      tensors.set(name, { ...tensor, shape: [...tensor.shape].reverse() });
    });
    await expectProblems(out, [name], /shape/);
  });

  test('a file cut short, whatever is missing of it', async () => {
    for (const cut of [1, 1000, 1_000_000, fs.statSync(path.join(intact, 'model.safetensors')).size - 4]) {
      const out = path.join(work, `cut-${cut}`);
      fs.cpSync(intact, out, { recursive: true });
      const file = path.join(out, 'model.safetensors');
      fs.truncateSync(file, fs.statSync(file).size - cut);
      await expectProblems(out, ['model.safetensors'], /model\.safetensors/);
    }
  });
});

describe.skipIf(SUBSET)('a decoder weight that stayed as it is', () => {
  const recipe = path.join(work, 'attention.json');
  const out = path.join(work, 'attention');
  const scheme = { kind: 'int', bits: 8, symmetric: true, granularity: 'row' };

  test('fails where no rule says so, and the report tells the same', async () => {
    fs.writeFileSync(recipe, JSON.stringify({ rules: [{ match: { role: 'attention' }, scheme }] }));
    await quantizeCheckpoint(EXAMPLE, { out, recipe });
    const { tensors } = readJson<Report>(out, 'report.json');
    const unruled = tensors
      .filter(({ role }) => role === 'expert' || role === 'shared-expert')
      .map(({ name }) => name);
    expect(unruled.length).toBe(3 * (2 + 3));
    for (const { name, role, ruled } of tensors) {
      if (role === 'attention') expect({ name, ruled }).toEqual({ name, ruled: true });
      if (unruled.includes(name)) expect({ name, ruled }).toEqual({ name, ruled: false });
    }
    await expectProblems(out, unruled, /no rule/);
  });

  test('passes where a rule keeps it', async () => {
    const rules = [
      { match: { role: 'attention' }, scheme },
      { match: {}, scheme: null },
    ];
    fs.writeFileSync(recipe, JSON.stringify({ rules }));
    const ruled = path.join(work, 'attention-ruled');
    await quantizeCheckpoint(EXAMPLE, { out: ruled, recipe });
    expect((await verifyModel(ruled, EXAMPLE)).problems).toEqual([]);
  });

  test('fails where the report no longer has the rule', async () => {
    const edited = path.join(work, 'edited');
    fs.cpSync(path.join(work, 'attention-ruled'), edited, { recursive: true });
    const report = readJson<Report>(edited, 'report.json');
    const name = `${layer}mlp.shared_experts.up_proj.weight`;
    const tensors = report.tensors.map((tensor) =>
      tensor.name === name ? { ...tensor, ruled: false } : tensor,
    );
    fs.writeFileSync(path.join(edited, 'report.json'), JSON.stringify({ ...report, tensors }));
    await expectProblems(edited, [name], /no rule/);
  });

  test('fails where there is no report at all', async () => {
    const bare = path.join(work, 'no-report');
    fs.cpSync(path.join(work, 'attention-ruled'), bare, { recursive: true });
    fs.rmSync(path.join(bare, 'report.json'));
    await expectProblems(bare, ['experts'], /no rule/);
  });
});

describe('the wrong original', () => {
  test('of the same names with other weights', async () => {
    const source = writeModel(path.join(work, 'mixtral'), mixtral(), { seed: 1 });
    const other = writeModel(path.join(work, 'mixtral-2'), mixtral(), { seed: 2 });
    const out = path.join(work, 'mixtral-int4');
    await quantizeCheckpoint(source, { out, recipe: 'int4' });
    expect((await verifyModel(out, source)).problems).toEqual([]);
    const { ok, problems, tensors } = await verifyModel(out, other);
    expect(ok).toBe(false);
    expect(problems.length).toBe(tensors.length);
  });

  test('of another architecture', async () => {
    const { ok, problems } = await verifyModel(intact, path.join(work, 'mixtral'));
    expect(ok).toBe(false);
    expect(problems).toContainEqual(expect.stringMatching(/missing here/));
    expect(problems).toContainEqual(expect.stringMatching(/not in the original/));
  });

  test('that is not there', async () => {
    await rejectsCode(verifyModel(intact, path.join(work, 'nowhere')), 'ERR_IO', /nowhere/);
  });
});
