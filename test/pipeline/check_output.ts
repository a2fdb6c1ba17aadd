/** Holds a quantized directory against its original: everything that its report says is found out again from the files. */
import { expect } from 'vitest';
import { dequantize, type QuantScheme, quantize, Tensor } from '../../lib';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { openModel } from '../../lib/pipeline/stored_model';
import { verifyModel } from '../../lib/pipeline/verify';
import { floatsOf, product, readJson, readTensors, type Stored } from './helpers';

export const DECODER = ['expert', 'shared-expert', 'dense-ffn', 'attention'];
const DTYPES: Readonly<Record<string, 'float32' | 'float16' | 'bfloat16'>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/**
 * How far a reported error may be off, relatively. Squares are summed in float32 in 16 lanes, over a row or over at most 256
 * blocks of 64, before float64 takes over: `terms` in a lane. A sum of squared differences is then off by (terms + 3) units of
 * 2^-24, that of squared weights by (terms + 1); a square root halves both, and the result is rounded once.
 */
function roundingOf(shape: readonly number[]): number {
  const together = Math.min(product(shape), Math.max(shape[1] ?? 1, 256 * 64));
  return (Math.ceil(together / 16) + 3) * 2 ** -24;
}

async function roundToNearest({ dtype, shape, bytes }: Stored, scheme: QuantScheme): Promise<Float32Array> {
  const own = new Uint8Array(bytes).buffer;
  const words = dtype === 'F32' ? new Float32Array(own) : new Uint16Array(own);
  using weight = Tensor.from(words, shape, { dtype: DTYPES[dtype] as 'bfloat16' });
  using quantized = quantize(weight, scheme);
  using values = dequantize(quantized);
  return values.toFloat32();
}

function relativeError(values: Float32Array, original: Float32Array): number {
  let error = 0;
  let reference = 0;
  original.forEach((value, i) => {
    error += ((values[i] as number) - value) ** 2;
    reference += value ** 2;
  });
  return error === 0 ? 0 : Math.sqrt(error / reference);
}

/**
 * @param out what was quantized
 * @param sequential the original's tensors with an expert's matrices each, by the names that the output should use
 * @returns the report
 */
export async function checkOutput(out: string, sequential: ReadonlyMap<string, Stored>): Promise<Report> {
  const report = readJson<Report>(out, 'report.json');
  const stored = readTensors(out);
  const opened = await openModel(out);
  const modules = new Map(opened.modules.map((module) => [`${module.module}.weight`, module]));
  try {
    expect(report.tensors.map(({ name }) => name).sort()).toEqual([...sequential.keys()].sort());

    // Of tensors that several modules share, each has its part.
    const users = new Map<string, number>();
    for (const { tensors } of modules.values()) {
      for (const name of tensors) users.set(name, (users.get(name) ?? 0) + 1);
    }
    const used = new Set<string>();
    let decoderBytes = 0;
    let parameters = 0;
    for (const { name, role, scheme, relativeError: told, bytes } of report.tensors) {
      const original = sequential.get(name) as Stored;
      let own: number;
      if (scheme === null) {
        const kept = stored.get(name) as Stored;
        expect({ name, dtype: kept.dtype, shape: kept.shape }).toEqual({
          name,
          dtype: original.dtype,
          shape: original.shape,
        });
        expect(kept.bytes.equals(original.bytes), `${name} is kept byte for byte`).toBe(true);
        expect(told).toBe(0);
        used.add(name);
        own = kept.bytes.length;
      } else {
        const module = modules.get(name);
        if (module === undefined || opened.format === null) throw new Error(`${name} is not in the output`);
        const parts = module.tensors.map((part) => stored.get(part) as Stored);
        for (const part of module.tensors) used.add(part);
        own = parts.reduce(
          (sum, part, i) => sum + part.bytes.length / (users.get(module.tensors[i]!) ?? 1),
          0,
        );
        using decoded = await opened.format.decode(module, opened.stored.read);
        using values = dequantize(decoded);
        const found = await values.toFloat32();
        const expected = await roundToNearest(original, scheme);
        expect(found.length).toBe(expected.length);
        expect(
          Buffer.from(found.buffer).equals(Buffer.from(expected.buffer)),
          `${name} decodes to round-to-nearest`,
        ).toBe(true);
        const error = relativeError(expected, floatsOf(original));
        expect(Math.abs(told - error), `relative error of ${name}`).toBeLessThanOrEqual(
          roundingOf(original.shape) * error,
        );
      }
      expect({ name, bytes }).toEqual({ name, bytes: own });
      const isWeight = /(\.weight|_proj)$/.test(name) && original.shape.length >= 2;
      if (!DECODER.includes(role) || !isWeight) continue;
      decoderBytes += own;
      parameters += original.shape.reduce((a, b) => a * b, 1);
    }

    expect([...stored.keys()].filter((name) => !used.has(name))).toEqual([]);
    expect(report.averageBits).toBe((8 * decoderBytes) / parameters);
    const written = [...stored.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
    expect(report.bytesOut).toBe(written);
    const quantized = report.tensors.filter(({ scheme }) => scheme !== null).length;
    expect([report.quantized, report.kept]).toEqual([quantized, report.tensors.length - quantized]);
    return report;
  } finally {
    opened.checkpoint.close();
  }
}

/** Quantizes, holds everything against the files and the original, and verifies: only weights without a rule may fail. */
export async function quantizeAndCheck({
  model,
  expected,
  options,
}: {
  model: string;
  expected: ReadonlyMap<string, Stored>;
  options: QuantizeOptions;
}): Promise<Report & { out: string }> {
  await quantizeCheckpoint(model, options);
  const report = await checkOutput(options.out, expected);
  const unruled = report.tensors.filter(({ role, ruled }) => DECODER.includes(role) && !ruled);
  const { ok, problems } = await verifyModel(options.out, model);
  const missed = unruled.map(({ name }) => `${name}: kept as it is, and no rule says so`);
  expect({ ok, problems: problems.sort() }).toEqual({ ok: missed.length === 0, problems: missed.sort() });
  return { ...report, out: options.out };
}
