/** Calibrated quantization of small models on the emulated device, held against the CPU's. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import * as q from '../../lib';
import { native } from '../../lib/native';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report, ReportTensor } from '../../lib/pipeline/report';
import { verifyModel } from '../../lib/pipeline/verify';
import { tensorInfo } from '../../lib/tensor_info';
import { readJson, temporaryDirectory } from '../pipeline/helpers';
import { rejectsCode } from './errors';

const DEVICE = 'cuda-emulated';
const isEmulated = q.devices().some(({ id }) => id === DEVICE);
const FIXTURES = path.join(__dirname, '..', 'models', 'reference', 'fixtures');

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

describe.skipIf(!isEmulated)('calibrated quantization on a CUDA device', () => {
  const work = temporaryDirectory();
  const tokens = path.join(work, 'ids.u16');
  fs.writeFileSync(tokens, Buffer.from(Uint16Array.from({ length: 96 }, (_, i) => (i * 37) % 47).buffer));
  const data = { tokens, seqLen: 16, samples: 6 };
  const options: QuantizeOptions = { ...data, out: '', method: 'gptq', bits: 4, groupSize: 16 };

  async function quantized(device: q.DeviceId, model: string, own: Partial<QuantizeOptions> = {}) {
    const out = path.join(work, `${device}-${fs.readdirSync(work).length}`);
    q.setDefaultDevice(device);
    try {
      await quantizeCheckpoint(path.join(FIXTURES, model), { ...options, ...own, out });
    } finally {
      q.setDefaultDevice('cpu');
    }
    return { out, report: readJson<Report>(out, 'report.json') };
  }

  const calibrated = ({ tensors }: Report) =>
    tensors.filter(({ calibration }) => calibration) as Required<ReportTensor>[];

  describe.each(['llama-linear', 'aria_text', 'mixtral'])('%s', (model) => {
    let here: Awaited<ReturnType<typeof quantized>>;
    let there: typeof here;
    let solvedOn: string[];
    beforeAll(async () => {
      here = await quantized('cpu', model);
      const solve = native.gptqQuantize;
      solvedOn = [];
      const spy = vi.spyOn(native, 'gptqQuantize').mockImplementation((problems, ...rest) => {
        solvedOn.push(...problems.map(({ weight }) => tensorInfo(weight).device));
        return solve(problems, ...rest);
      });
      there = await quantized(DEVICE, model).finally(() => spy.mockRestore());
    });
    afterAll(() => expect(q.getDefaultDevice()).toBe('cpu'));

    test('every weight is calibrated on the same tokens, and loses as much of its output as on the CPU', () => {
      const [expected, found] = [calibrated(here.report), calibrated(there.report)];
      expect(found.length).toBeGreaterThan(10);
      expect(found.map(({ name }) => name)).toEqual(expected.map(({ name }) => name));
      expect(there.report.device).toBe(DEVICE);
      expect(here.report.device).toBe(undefined);
      expect(solvedOn).toEqual(found.map(() => DEVICE));
      for (const [i, { name, calibration: own }] of found.entries()) {
        const other = expected[i]?.calibration as typeof own;
        expect(own.method, name).toBe('gptq');
        expect(own.hessian, name).toBe(other.hessian);
        // States are rounded to 16 bits on their way, in which the devices may differ; a token near a tie may go to another expert.
        expect(Math.abs(own.tokens - other.tokens), name).toBeLessThanOrEqual(2);
        const [mine, theirs] = [own.outputError as number, other.outputError as number];
        expect(Math.abs(mine - theirs), `${name}: ${mine}, ${theirs} on the CPU`).toBeLessThan(
          0.1 * (own.outputErrorRtn as number) + 1e-6,
        );
      }
    });

    test('it verifies against the original, and is as near to it as what the CPU makes', async () => {
      const original = path.join(FIXTURES, model);
      expect((await verifyModel(there.out, original)).problems).toEqual([]);
      const [own, other] = [
        await evaluateModel(there.out, { ...data, baseline: original }),
        await evaluateModel(here.out, { ...data, baseline: original }),
      ];
      const ratio = (own.baseline?.klDivergence as number) / (other.baseline?.klDivergence as number);
      expect(ratio).toBeGreaterThan(0.8);
      expect(ratio).toBeLessThan(1.25);
    });
  });

  test.each([
    { method: 'awq', model: 'llama-linear', bits: 4, groupSize: 16 },
    { method: 'awq', model: 'mixtral', bits: 3, groupSize: 16 },
    { method: 'smoothquant', model: 'aria_text', bits: 8, groupSize: -1 },
    { method: 'rtn', model: 'qwen2_moe', bits: 8, groupSize: -1, activations: 'static' },
  ] as const)(
    '$method of $model: weights lose as much of their outputs as on the CPU, and it verifies on either',
    async ({ model, ...own }) => {
      const [here, there] = [await quantized('cpu', model, own), await quantized(DEVICE, model, own)];
      const [expected, found] = [calibrated(here.report), calibrated(there.report)];
      expect(there.report.device).toBe(DEVICE);
      expect(found.map(({ name }) => name)).toEqual(expected.map(({ name }) => name));
      for (const [i, { name, calibration }] of found.entries()) {
        const other = expected[i]?.calibration as typeof calibration;
        expect(calibration.method, name).toBe(own.method);
        expect(Math.abs(calibration.tokens - other.tokens), name).toBeLessThanOrEqual(2);
        const [mine, theirs] = [calibration.outputError as number, other.outputError as number];
        // A search among some exponents may take the next one where two are as good.
        expect(Math.abs(mine - theirs), `${name}: ${mine}, ${theirs} on the CPU`).toBeLessThan(
          0.1 * (other.outputErrorRtn as number) + 1e-6,
        );
        const scales = [calibration.inputScale ?? 1, other.inputScale ?? 1] as const;
        expect(Math.abs(scales[0] / scales[1] - 1), name).toBeLessThan(0.03);
      }
      const original = path.join(FIXTURES, model);
      expect((await verifyModel(there.out, original)).problems).toEqual([]);
      q.setDefaultDevice(DEVICE);
      try {
        expect((await verifyModel(there.out, original)).problems).toEqual([]);
      } finally {
        q.setDefaultDevice('cpu');
      }
    },
  );

  test('a run that began on the CPU is not gone on with elsewhere', async () => {
    const { out } = await quantized('cpu', 'llama-linear');
    q.setDefaultDevice(DEVICE);
    try {
      await rejectsCode(
        quantizeCheckpoint(path.join(FIXTURES, 'llama-linear'), { ...options, out, resume: true }),
        'ERR_ARGUMENT',
        /other options/,
      );
    } finally {
      q.setDefaultDevice('cpu');
    }
  });
});
