import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Comparison, type Context, compare, modes, type Values } from './compare';
import {
  type CaseFacts,
  casesOf,
  factsOfFile,
  manifestOf,
  mapValues,
  otherFixtures,
  ownFixtures,
  type Runner,
  runCase,
} from './harness';
import { allRunners } from './runners';

/** For each mode, a reference that passes, and a value planted at [1, 2] of it that must not. */
const planted: Readonly<
  Record<string, { how: Omit<Comparison, 'mode'>; context?: Context; planted: number; at?: string }[]>
> = {
  exact: [
    { how: {}, planted: 1 + 2 ** -23 },
    { how: {}, planted: Number.NaN },
  ],
  exact_nan_equal: [
    { how: {}, planted: Number.NaN },
    { how: {}, planted: 2 },
  ],
  codes: [
    { how: { max_frac_diff: 0, max_step: 1 }, planted: 2 },
    { how: { max_frac_diff: 0.5, max_step: 1 }, planted: 3 },
    {
      how: { max_frac_diff: 0, max_step: 0, negative_zero_equals_zero: true },
      context: { signBit: 8 },
      planted: 9,
    },
  ],
  codes4: [{ how: { max_frac_diff: 0 }, planted: 0x11, at: '[flat 10]' }],
  codes_by_value: [
    { how: {}, context: { codebook: [0, 1, 2] }, planted: 2 },
    { how: { packed: true }, context: { codebook: [0, 1] }, planted: 0x11, at: '[flat 10]' },
  ],
  fp8_codes: [
    { how: { format: 'e4m3fn' }, planted: 0x7f },
    { how: { format: 'e5m2' }, planted: 0x81 },
  ],
  rel_fro: [
    { how: { tol: 0.1 }, planted: 1.3 },
    { how: { tol: 0.1 }, planted: Number.NaN },
  ],
  max_abs: [{ how: { tol: 0.1 }, planted: 1.11 }],
  allclose: [{ how: { rtol: 0.05, atol: 0.05 }, planted: 0.89 }],
  nearest: [{ how: { block: 3, eps: 1e-3 }, context: { of: [1, 1, 1, 1, 1, 1] }, planted: 0.99 }],
  err_at_most: [
    {
      how: { metric: 'mean_abs', factor: 1.5 },
      context: { of: [1.1, 1.1, 1.1, 1.1, 1.1, 1.1] },
      planted: 1.6,
    },
    { how: { metric: 'sum_abs_pow_2.4', factor: 1 }, context: { of: [1, 1, 1, 1, 1, 2] }, planted: 0.9 },
  ],
  set_per_row: [{ how: {}, planted: 2 }],
  at_most: [{ how: { factor: 1.5 }, planted: 1.6 }],
  gptq_err: [
    {
      how: { factor: 1.2 },
      context: {
        of: [1.5, 1.5, 1.5, 1.5, 1.5, 1.5],
        states: [
          { shape: [1, 3], data: [1, 0, 0] },
          { shape: [1, 1, 3], data: [0, 0, 1] },
        ],
      },
      planted: 2.5,
    },
  ],
};

const ones: Values = { shape: [2, 3], data: [1, 1, 1, 1, 1, 1] };

describe('comparison modes', () => {
  test('each has a planted difference', () => {
    expect(Object.keys(planted).sort()).toEqual(Object.keys(modes).sort());
  });

  const cases = Object.entries(planted).flatMap(([mode, plants]) =>
    plants.map((plant) => ({ mode, ...plant })),
  );
  test.each(cases)(
    '$mode takes the reference and names a planted $planted',
    ({ mode, how, context, planted, at }) => {
      const comparison = { mode, ...how };
      expect(compare(ones, ones, comparison, context)).toBeNull();
      const wrong = mapValues(ones, (one, i) => (i === 5 ? planted : one));
      expect(compare(wrong, ones, comparison, context)).toContain(`${at ?? '[1, 2]'}: got `);
    },
  );

  test('codes within the allowed share and step pass', () => {
    const wrong = mapValues(ones, (one, i) => (i === 5 ? 2 : one));
    expect(compare(wrong, ones, { mode: 'codes', max_frac_diff: 0.2, max_step: 1 })).toBeNull();
  });

  test('the sign of a zero code is ignored only where asked', () => {
    const [zeros, negative] = [mapValues(ones, () => 0), mapValues(ones, () => 8)];
    const how = { mode: 'codes', max_frac_diff: 0, max_step: 0 };
    expect(compare(negative, zeros, { ...how, negative_zero_equals_zero: true }, { signBit: 8 })).toBeNull();
    expect(compare(negative, zeros, how, { signBit: 8 })).not.toBeNull();
  });

  test('any NaN byte equals any NaN byte', () => {
    const nan = (byte: number) => ({ shape: [1], data: [byte] });
    expect(compare(nan(0x7d), nan(0xff), { mode: 'fp8_codes', format: 'e5m2' })).toBeNull();
    expect(compare(nan(0x7c), nan(0xff), { mode: 'fp8_codes', format: 'e5m2' })).not.toBeNull();
  });

  test('another size fails', () => {
    expect(compare({ shape: [5], data: [1, 1, 1, 1, 1] }, ones, { mode: 'exact' })).toContain(
      'shape [5] came',
    );
  });

  test('an unknown mode is an error', () => {
    expect(() => compare(ones, ones, { mode: 'near_enough' })).toThrow('no comparison mode near_enough');
  });
});

const layout = () => casesOf(ownFixtures).find(({ op }) => op === 'aria_grouped_to_linear') as CaseFacts;

describe('a case', () => {
  test('fails at a wrong value, naming case, tensor, coordinate, got and expected', async () => {
    const facts = layout();
    const wrong: Runner = {
      async run(check) {
        const gate = await check.values('expert1.gate');
        await check.output(
          'expert1.gate',
          mapValues(gate, (value, i) => (i === 35 ? 77 : value)),
        );
      },
    };
    await expect(runCase(ownFixtures, facts, wrong)).rejects.toThrow(
      /^aria\/\S+: expert1\.gate\[1, 3\]: got 77, expected -?[\d.e-]+ \(exact/,
    );
  });

  test('fails if an output was not compared', async () => {
    await expect(runCase(ownFixtures, layout(), { async run() {} })).rejects.toThrow(
      /outputs that were not compared/,
    );
  });

  test('fails if its op cannot run it', async () => {
    const unfit: Runner = { unfit: () => 'a reason', async run() {} };
    await expect(runCase(ownFixtures, layout(), unfit)).rejects.toThrow('cannot be run: a reason');
  });
});

describe('the recorded cases', () => {
  const cases = casesOf(ownFixtures);

  test('each has a runner that takes it', () => {
    const missing = cases.filter((facts) => {
      const runner = allRunners[facts.op];
      return !runner || (runner.unfit?.(facts) ?? null) !== null;
    });
    expect(missing.map(({ file, op }) => `${op}: ${file}`)).toEqual([]);
  });

  test('each runner has a case', () => {
    const ops = new Set(cases.map(({ op }) => op));
    expect(Object.keys(allRunners).filter((op) => !ops.has(op))).toEqual([]);
  });

  test('the manifest says what the files say', () => {
    const listed = manifestOf(ownFixtures);
    expect(listed.length).toBeGreaterThan(0);
    for (const { file, op, peer, params, tensors } of listed) {
      expect(fs.existsSync(path.join(ownFixtures, file)), file).toBe(true);
      expect({ file, op, peer, params, tensors }).toEqual(factsOfFile(ownFixtures, file));
    }
  });

  test('a file that the manifest does not list is a case too', () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-fixtures-'));
    try {
      const { file, op } = layout();
      fs.copyFileSync(path.join(ownFixtures, file), path.join(folder, 'dropped.safetensors'));
      expect(casesOf(folder)).toMatchObject([{ file: 'dropped.safetensors', op }]);
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
  });
});

test.runIf(otherFixtures !== undefined)('what QUANTARIA_FIXTURES holds and cannot be run', () => {
  const notRun = new Map<string, number>();
  for (const facts of casesOf(otherFixtures as string)) {
    const runner = allRunners[facts.op];
    const reason = runner ? runner.unfit?.(facts) : 'no runner';
    if (reason) notRun.set(`${facts.op}: ${reason}`, (notRun.get(`${facts.op}: ${reason}`) ?? 0) + 1);
  }
  console.log(['not run:', ...[...notRun].map(([what, count]) => `  ${count} x ${what}`)].join('\n'));
});
