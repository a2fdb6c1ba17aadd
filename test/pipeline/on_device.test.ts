/** Whole jobs on a CUDA device, held against the CPU's. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import * as q from '../../lib';
import { openCheckpoint } from '../../lib';
import { describeModel } from '../../lib/models';
import { native } from '../../lib/native';
import { measureVariants, partOf } from '../../lib/pipeline/measured_sensitivity';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { verifyModel } from '../../lib/pipeline/verify';
import { tensorInfo } from '../../lib/tensor_info';
import { DEVICE, hasCuda } from '../core/cuda_device';
import { rejectsCode } from '../core/errors';
import { cli, EXAMPLE, lastLine, readJson, temporaryDirectory, tree } from './helpers';

vi.setConfig({ testTimeout: 180_000 });

const SMALL = path.join(__dirname, '..', 'models', 'reference', 'fixtures', 'mixtral');
const work = temporaryDirectory();

async function on<T>(device: q.DeviceId, body: () => Promise<T>): Promise<T> {
  q.setDefaultDevice(device);
  try {
    return await body();
  } finally {
    q.setDefaultDevice('cpu');
  }
}

/** Devices on which weights were quantized meanwhile. */
function watchQuantizers() {
  const seen = new Set<string>();
  const own = native.quantize;
  const spy = vi.spyOn(native, 'quantize').mockImplementation((weight, scheme) => {
    seen.add(tensorInfo(weight).device);
    return own(weight, scheme);
  });
  return { seen, [Symbol.dispose]: () => spy.mockRestore() };
}

/** Files but the report, which names the device, and what it says but for errors, which are sums in another order. */
function result(out: string) {
  const { 'report.json': _, ...files } = tree(out);
  const { fingerprint, device, tensors, ...facts } = readJson<Report>(out, 'report.json');
  const errors = tensors.map(({ name, relativeError }) => ({ name, relativeError }));
  return { device, files, facts, plain: tensors.map((t) => ({ ...t, relativeError: 0 })), errors };
}

describe.skipIf(!hasCuda)('rounded to nearest on a CUDA device', () => {
  /** Integers, code books with nested scales, shared exponents, outlier columns, mixed bits, and bits that are chosen. */
  const JOBS: { name: string; options: Omit<QuantizeOptions, 'out'>; model?: string }[] = [
    { name: 'int4', options: { recipe: 'int4' } },
    { name: 'int8 as gptq', options: { recipe: 'int8', format: 'gptq' } },
    { name: 'nf4-dq', options: { recipe: 'nf4-dq' } },
    { name: 'mxfp8', options: { recipe: 'mxfp8' } },
    { name: 'llm.int8', options: { recipe: 'llm.int8' } },
    { name: 'moe-mixed-2bit as quanto', options: { recipe: 'moe-mixed-2bit', format: 'quanto' } },
    { name: '5 bits on average', options: { targetBits: 5 }, model: SMALL },
  ];

  test.each(JOBS)(
    '$name: the files are those of the CPU, byte for byte',
    async ({ name, options, model = EXAMPLE }) => {
      const [here, there] = [path.join(work, `${name} here`), path.join(work, `${name} there`)];
      await quantizeCheckpoint(model, { ...options, out: here });
      using quantizers = watchQuantizers();
      await on(DEVICE, () => quantizeCheckpoint(model, { ...options, out: there }));
      expect([...quantizers.seen]).toEqual([DEVICE]);
      const [expected, found] = [result(here), result(there)];
      expect(expected.device).toBe(undefined);
      expect(found.device).toBe(DEVICE);
      expect(found.files).toEqual(expected.files);
      expect(found.facts).toEqual(expected.facts);
      expect(found.plain).toEqual(expected.plain);
      for (const [i, { name: tensor, relativeError }] of found.errors.entries()) {
        const other = expected.errors[i]?.relativeError as number;
        // The CPU sums in float32 over some hundred squares at a time before float64 takes over.
        expect(Math.abs(relativeError - other), tensor).toBeLessThanOrEqual(2 ** -17 * other);
      }
    },
  );

  test('what the CPU wrote verifies there, with the same errors', async () => {
    const out = path.join(work, 'verified');
    await quantizeCheckpoint(EXAMPLE, { out, recipe: 'int4' });
    const here = await verifyModel(out, EXAMPLE);
    using quantizers = watchQuantizers();
    const there = await on(DEVICE, () => verifyModel(out, EXAMPLE));
    expect([...quantizers.seen]).toEqual([DEVICE]);
    expect(there.problems).toEqual([]);
    expect(there.tensors.map(({ name }) => name)).toEqual(here.tensors.map(({ name }) => name));
    for (const [i, { name, relativeError }] of there.tensors.entries()) {
      expect(relativeError, name).toBeCloseTo(here.tensors[i]?.relativeError as number, 6);
    }
  });

  test('what rounding parts of layers costs the predictions is what the CPU measures', async () => {
    using source = await openCheckpoint(SMALL);
    const scheme = { kind: 'int', bits: 3, symmetric: true, granularity: 'row' } as const;
    const parts = ['0 attention qkv', '0 expert gate-up', '1 expert down'];
    const linears = describeModel(source.config, source.entries()).linears;
    const membersOf = (part: string) => linears.filter((linear) => partOf(linear) === part);
    const variants = new Map(
      parts.map((part) => [part, new Map(membersOf(part).map((linear) => [linear, scheme]))]),
    );
    const rows = { ids: Int32Array.from({ length: 96 }, (_, i) => (i * 37) % 47), length: 16 };
    const measure = () => measureVariants(SMALL, { base: new Map(), variants, rows }, {});
    const [here, there] = [await measure(), await on(DEVICE, measure)];
    for (const part of parts) {
      const [expected, found] = [here.variants.get(part) as number, there.variants.get(part) as number];
      expect(expected).toBeGreaterThan(1e-6);
      // The same codes; sums differ in their order.
      expect(Math.abs(found / expected - 1), part).toBeLessThan(1e-2);
    }
  });

  test('a run that began on the CPU is not gone on with elsewhere', async () => {
    const out = path.join(work, 'begun');
    await quantizeCheckpoint(EXAMPLE, { out, recipe: 'int4' });
    await on(DEVICE, () =>
      rejectsCode(
        quantizeCheckpoint(EXAMPLE, { out, recipe: 'int4', resume: true }),
        'ERR_ARGUMENT',
        /other options/,
      ),
    );
  });

  test('--device names it, and moving bytes from file to file refuses it', async () => {
    const out = path.join(work, 'cli');
    const made = await cli('quantize', SMALL, '--out', out, '--recipe', 'int4', '--device', DEVICE, '--json');
    expect({ code: made.code, device: JSON.parse(made.stdout).device }).toEqual({ code: 0, device: DEVICE });
    expect(fs.readFileSync(path.join(out, 'report.html'), 'utf8')).toContain(` on ${DEVICE}</p>`);
    const planned = await cli('plan', SMALL, '--target-bits', '5', '--device', DEVICE, '--json');
    expect(planned.code).toBe(0);
    const verified = await cli('verify', out, '--against', SMALL, '--device', DEVICE);
    expect(verified.code).toBe(0);
    const moved = path.join(work, 'moved');
    const refused = await cli('convert', SMALL, '--to', 'fused', '--out', moved, '--device', DEVICE);
    expect(refused.code).toBe(1);
    expect(lastLine(refused.stderr)).toMatch(new RegExp(`^error: --device ${DEVICE}: .*moves bytes`));
    expect(fs.existsSync(moved)).toBe(false);
  });
});

describe.skipIf(!hasCuda)('experts on a CUDA device', () => {
  const tokens = path.join(work, 'ids.u16');
  fs.writeFileSync(tokens, Buffer.from(Uint16Array.from({ length: 96 }, (_, i) => (i * 37) % 47).buffer));
  const EXPERTS = 5;
  const options = { method: 'gptq', bits: 4, groupSize: 16, tokens, seqLen: 16, samples: 6 } as const;

  /** A run there: how many experts' sums each call added to, and how many weights each call quantized. */
  async function quantized(name: string, own: Partial<QuantizeOptions> = {}) {
    const out = path.join(work, name);
    const updated = new Set<number>();
    const solved: number[] = [];
    const { hessianUpdateEach: update, gptqQuantize: solve } = native;
    const spies = [
      vi.spyOn(native, 'hessianUpdateEach').mockImplementation((products, x, counts) => {
        updated.add(tensorInfo(products).shape[0] as number);
        update(products, x, counts);
      }),
      vi.spyOn(native, 'gptqQuantize').mockImplementation((problems, ...rest) => {
        solved.push(problems.length);
        return solve(problems, ...rest);
      }),
    ];
    await on(DEVICE, () => quantizeCheckpoint(SMALL, { ...options, ...own, out })).finally(() => {
      for (const spy of spies) spy.mockRestore();
    });
    return { files: tree(out), updated: [...updated], solved, report: readJson<Report>(out, 'report.json') };
  }
  /** Of each of two layers: q, k and v; o; gate and up; down. */
  const weightsOf = (experts: number) => [3, 1, 2 * experts, experts];

  test.each([false, true])(
    'routing weights %s: those of a wave are worked on together, and the bytes are those of one by one',
    async (routingWeights) => {
      const together = await quantized(`together ${routingWeights}`, { routingWeights });
      expect(together.updated).toEqual([EXPERTS]);
      expect(together.solved).toEqual([...weightsOf(EXPERTS), ...weightsOf(EXPERTS)]);
      const single = await quantized(`single ${routingWeights}`, { routingWeights, maxMemoryBytes: 1 });
      expect(single.updated).toEqual([1]);
      expect(single.solved.slice(0, 6)).toEqual([3, 1, 2, 1, 2, 1]);
      expect(single.files).toEqual(together.files);
      // Room for the sums of all, and for what GPTQ takes beside them of one.
      const between = await quantized(`between ${routingWeights}`, {
        routingWeights,
        maxMemoryBytes: 100_000,
      });
      expect(between.updated).toEqual([EXPERTS]);
      expect(between.solved).toEqual(single.solved);
      expect(between.files).toEqual(together.files);
    },
  );

  test('an expert that no token reaches is rounded to nearest beside those that GPTQ quantizes', async () => {
    const rare = { seqLen: 2, samples: 1, minExpertTokens: 0 };
    const together = await quantized('rare together', rare);
    const experts = together.report.tensors.filter(({ expert }) => expert !== undefined);
    for (const { name, calibration } of experts) {
      expect(calibration?.method, name).toBe(calibration?.tokens === 0 ? 'rtn' : 'gptq');
    }
    expect(new Set(experts.map(({ calibration }) => calibration?.method)).size).toBe(2);
    const single = await quantized('rare single', { ...rare, maxMemoryBytes: 1 });
    expect(single.files).toEqual(together.files);
  });
});
