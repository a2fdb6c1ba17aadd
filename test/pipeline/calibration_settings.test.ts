import * as fs from 'node:fs';
import { describe, expect, test, vi } from 'vitest';
import { Tensor } from '../../lib';
import { route } from '../../lib/ops/moe_route';
import { InputStatistics } from '../../lib/pipeline/calibration/inputs';
import { RoutedTokens } from '../../lib/pipeline/calibration/routed';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { verifyModel } from '../../lib/pipeline/verify';
import { idsOf, JOB_TIMEOUT, rowsOf } from '../device';
import { CALIB, calibratedRuns, EVAL, GPTQ } from './calibrated_runs';
import { EXAMPLE, readTensors } from './helpers';

/** Whole models are quantized and run. */
vi.setConfig({ testTimeout: JOB_TIMEOUT, hookTimeout: JOB_TIMEOUT });

const { at, quantized } = calibratedRuns();

describe('settings', () => {
  test.each([
    ['gptq', /\.g_idx$/],
    ['compressed-tensors', /\.weight_g_idx$/],
  ] as const)(
    'act-order in %s: groups follow the order, and the model computes with them',
    async (format, index) => {
      const name = `act-${format}`;
      const options = { ...GPTQ, ...rowsOf(4), format, staticGroups: false, bits: 8 };
      const report = await quantized(name, options);
      expect(report.calibration).toMatchObject({ actOrder: true, staticGroups: false });
      const moved = [...readTensors(at(name))].filter(([tensor, { bytes }]) => {
        const groups = new Int32Array(new Uint8Array(bytes).buffer);
        return index.test(tensor) && groups.some((group, column) => group !== Math.floor(column / 32));
      });
      expect(moved.length).toBeGreaterThan(100);
      expect((await verifyModel(at(name), EXAMPLE)).problems).toEqual([]);
      const { baseline } = await evaluateModel(at(name), { text: EVAL, ...rowsOf(4), baseline: EXAMPLE });
      expect(baseline?.logitError).toBeLessThan(0.02);
    },
  );

  test('groups that stay whole need no place for them, and lose less than columns as they come', async () => {
    const plain = { ...GPTQ, bits: 3 };
    const report = await quantized('whole', { ...plain, groupAware: true });
    expect(report.calibration).toMatchObject({ actOrder: true, groupAware: true, staticGroups: false });
    expect([...readTensors(at('whole')).keys()].filter((name) => /g_idx/.test(name))).toEqual([]);
    expect((await verifyModel(at('whole'), EXAMPLE)).problems).toEqual([]);
    await quantized('unordered', { ...plain, actOrder: false, staticGroups: false });
    const options = { text: EVAL, ...rowsOf(12), baseline: EXAMPLE };
    const [own, other] = [
      await evaluateModel(at('whole'), options),
      await evaluateModel(at('unordered'), options),
    ];
    expect(own.baseline?.klDivergence).toBeLessThan(other.baseline?.klDivergence as number);
  });

  test('tokens of an expert count by the weights of the router, 1 on average', async () => {
    using logits = Tensor.from([0, 2, 1, 0, 0, 1, 3, 0, 2, 0, 0, 1], [4, 3]);
    const routing = route(logits, { topK: 2, order: 'topk-softmax' });
    const [routed, equal] = [new RoutedTokens(3, true), new RoutedTokens(3, false)];
    for (const own of [routed, equal]) await own.add(routing);
    const [indices, weights] = [await routing.indices.read(), await routing.weights.toFloat32()];
    expect(routed.counts).toEqual(equal.counts);
    for (const e of routed.counts.keys()) {
      const own = Array.from(weights).filter((_, slot) => indices[slot] === e);
      const mean = own.reduce((a, b) => a + b, 0) / own.length;
      const shares = Array.from(routed.sharesOf(0, e) as Float32Array);
      expect(shares.length).toBe(own.length);
      for (const [i, share] of shares.entries()) expect(share).toBeCloseTo((own[i] as number) / mean, 5);
      expect(equal.sharesOf(0, e)).toBe(null);
    }
  });

  test('shares are those of rows in the sum of outer products', async () => {
    const [rows, width] = [7, 5];
    const values = Float32Array.from({ length: rows * width }, (_, i) => Math.sin(i * i));
    const shares = Float32Array.from({ length: rows }, (_, i) => (i * i) / 4);
    using x = Tensor.from(values, [rows, width]);
    using inputs = new InputStatistics(width);
    inputs.add(x, shares);
    const found = await inputs.hessian.value().toFloat32();
    for (let i = 0; i < width; ++i) {
      for (let j = 0; j < width; ++j) {
        const terms = Array.from(
          shares,
          (share, r) => share * (values[r * width + i] as number) * (values[r * width + j] as number),
        );
        const expected = (2 / rows) * terms.reduce((a, b) => a + b, 0);
        const bound = (2 / rows) * terms.reduce((a, b) => a + Math.abs(b), 0) * 8 * 2 ** -24;
        expect(Math.abs((found[i * width + j] as number) - expected)).toBeLessThanOrEqual(bound);
      }
    }
  });

  test('routing weights change the experts, and the report says so', async () => {
    const [plain, weighted] = [
      await quantized('by-count', { ...GPTQ, ...rowsOf(4) }),
      await quantized('by-weight', { ...GPTQ, ...rowsOf(4), routingWeights: true }),
    ];
    expect(weighted.calibration?.routingWeights).toBe(true);
    expect(plain.calibration?.routingWeights).toBe(undefined);
    const [own, other] = [readTensors(at('by-weight')), readTensors(at('by-count'))];
    const differ = [...own]
      .filter(([name, { bytes }]) => Buffer.compare(bytes, other.get(name)?.bytes as Buffer) !== 0)
      .map(([name]) => name);
    expect(differ.filter((name) => /layers\.0\./.test(name)).length).toBeGreaterThan(10);
    for (const name of differ.filter((found) => /layers\.0\./.test(found))) {
      expect(name).toMatch(/experts\.\d+\./);
    }
  });

  test('act-order in a format without a place for groups: they are static, and that is said', async () => {
    const { calibration, notes } = await quantized('act-awq', {
      ...GPTQ,
      ...rowsOf(4),
      format: 'awq',
      staticGroups: false,
    });
    expect(calibration).toMatchObject({ actOrder: true, staticGroups: true });
    expect(notes.join('\n')).toMatch(/act-order: awq has no place .* static/);
    expect((await verifyModel(at('act-awq'), EXAMPLE)).problems).toEqual([]);
  });

  test('weights of schemes that GPTQ does not know are rounded to nearest, and their loss is told all the same', async () => {
    fs.writeFileSync(
      at('mixed.json'),
      JSON.stringify({
        rules: [
          { match: { role: 'attention' }, scheme: { kind: 'mx', element: 'e4m3' } },
          {
            match: { role: 'expert' },
            scheme: { kind: 'int', bits: 4, symmetric: true, granularity: 'row' },
          },
          {
            match: { role: 'lm-head' },
            scheme: { kind: 'int', bits: 8, symmetric: true, granularity: 'row' },
          },
          { match: {}, scheme: null },
        ],
      }),
    );
    const report = await quantized('mixed', {
      method: 'gptq',
      recipe: at('mixed.json'),
      text: CALIB,
      ...rowsOf(4),
    });
    const of = (role: string) =>
      report.tensors.filter((tensor) => tensor.role === role && tensor.scheme !== null);
    for (const { name, calibration } of of('attention')) {
      expect(calibration, name).toMatchObject({ method: 'rtn', tokens: idsOf(4) });
      expect(calibration?.outputError).toBe(calibration?.outputErrorRtn);
    }
    for (const { name, calibration } of of('expert')) expect(calibration?.method, name).toBe('gptq');
    expect(of('lm-head')).toEqual([expect.not.objectContaining({ calibration: expect.anything() })]);
    expect((await verifyModel(at('mixed'), EXAMPLE)).problems).toEqual([]);
  });
});
