import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { getDefaultDevice, setDefaultDevice, Tensor } from '../../lib';
import { KeyValueCache } from '../../lib/models/decoder';
import * as ops from '../../lib/ops/decoder';
import { Decoder } from '../../lib/pipeline/decoder';
import { evaluateModel } from '../../lib/pipeline/evaluate';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { EXAMPLE, floatsOf, readSafetensors, temporaryDirectory } from '../pipeline/helpers';
import { DEVICE, hasCuda } from './cuda_device';
import { rejectsCode, throwsCode } from './errors';
import { FLOATS } from './moe_layers';
import { normals } from './random';

// Models run on a CUDA device, emulated or not: QUANTARIA_BUILD=emulated npx vitest run cuda_emulated
const REFERENCE = path.join(__dirname, '..', 'models', 'reference', 'fixtures');

/** A model's kernels take the emulator seconds, and more on a machine that is busy. */
const PATIENCE = 180_000;

async function onDevice<T>(body: () => Promise<T>): Promise<T> {
  const before = getDefaultDevice();
  setDefaultDevice(DEVICE);
  try {
    return await body();
  } finally {
    setDefaultDevice(before);
  }
}

/** The largest difference, over the largest value expected. */
function worst(came: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(came.length).toBe(expected.length);
  const largest = Array.from(expected).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  let difference = 0;
  for (let i = 0; i < expected.length; ++i) {
    const here = Math.abs((came[i] as number) - (expected[i] as number));
    if (!(here <= difference)) difference = here;
  }
  return difference / largest;
}

describe.skipIf(!hasCuda)('a decoder s steps on a CUDA device', () => {
  const x = (rows: number, cols: number, dtype: (typeof FLOATS)[number], seed = 1) =>
    Tensor.from(normals(rows * cols, seed), [rows, cols], { dtype });

  test.each(FLOATS)('%s comes out as on the CPU, to a rounding', async (dtype) => {
    const unit = { float32: 2 ** -20, float16: 2 ** -10, bfloat16: 2 ** -7 }[dtype];
    const [a, b, gain] = [x(9, 48, dtype), x(9, 48, dtype, 2), Tensor.from(normals(48, 3), [48])];
    const gates = x(9, 1, dtype, 4);
    const angles = { cosines: x(12, 4, 'float32', 5), sines: x(12, 4, 'float32', 6) } as ops.RotaryTable;
    const rotary = { heads: 3, headDim: 16, offset: 4, dims: 8, interleaved: true, sequence: 9, first: 3 };
    const there = (t: Tensor) => t.to(DEVICE);
    const moved = { cosines: there(angles.cosines), sines: there(angles.sines) } as ops.RotaryTable;
    const ids = Tensor.from(Int32Array.from([8, 0, 3]), [3]) as Tensor<'int32'>;
    const shape = { sequences: 1, queries: 9, keys: 9, heads: 3, kvHeads: 1, keyDim: 16, valueDim: 16 };
    const attention = { ...shape, scale: 0.25, window: 5 };
    const [k, v] = [x(9, 16, dtype, 7), x(9, 16, dtype, 8)];
    const pairs: Record<string, [Tensor, Tensor]> = {
      rmsNorm: [ops.rmsNorm(a, gain, 1e-5), ops.rmsNorm(there(a), there(gain), 1e-5)],
      rotate: [ops.rotate(a, angles, rotary), ops.rotate(there(a), moved, rotary)],
      attend: [ops.attend(a, k, v, attention), ops.attend(there(a), there(k), there(v), attention)],
      embed: [ops.embed(a, ids, dtype), ops.embed(there(a), there(ids) as Tensor<'int32'>, dtype)],
      add: [ops.add(a, b), ops.add(there(a), there(b))],
      'add with gates': [ops.add(a, b, gates), ops.add(there(a), there(b), there(gates))],
      swiglu: [ops.swiglu(a, b), ops.swiglu(there(a), there(b))],
    };
    for (const [name, [here, got]] of Object.entries(pairs)) {
      expect(got).toMatchObject({ device: DEVICE, dtype, shape: here.shape });
      expect(worst(await got.toFloat32(), await here.toFloat32()), name).toBeLessThanOrEqual(unit);
    }
    expect(await pairs.embed?.[1].read()).toEqual(await pairs.embed?.[0].read());
  });

  test('scores are those of the CPU to a rounding, and what is empty stays so', async () => {
    const [logits, baseline] = [x(5, 300, 'float32'), x(5, 300, 'float32', 2)];
    const targets = Tensor.from(Int32Array.from([0, 299, 7, 7, 8]), [5]) as Tensor<'int32'>;
    const there = [logits.to(DEVICE), baseline.to(DEVICE), targets.to(DEVICE) as Tensor<'int32'>] as const;
    const here = await ops.scoreTokens(logits, baseline, targets).toFloat32();
    const got = await ops.scoreTokens(...there).toFloat32();
    got.forEach((score, i) => {
      expect(Math.abs(score - here[i]!)).toBeLessThanOrEqual(2 ** -18 * (1 + here[i]!));
    });
    const none = Tensor.zeros([0, 8], { device: DEVICE });
    const gain = Tensor.zeros([8], { device: DEVICE });
    for (const y of [ops.rmsNorm(none, gain, 1), ops.add(none, none), ops.swiglu(none, none)])
      expect(await y.read()).toHaveLength(0);
  });

  test('ids out of the vocabulary fail on the queue, tensors of two devices at once', async () => {
    const table = x(4, 8, 'float32').to(DEVICE);
    const ids = Tensor.from(Int32Array.from([1, 4]), [2], { device: DEVICE }) as Tensor<'int32'>;
    await rejectsCode(ops.embed(table, ids, 'float32').read(), 'ERR_ARGUMENT', /id 4 at position 1/);
    const two = x(2, 4, 'float32').to(DEVICE);
    await rejectsCode(ops.scoreTokens(two, null, ids).read(), 'ERR_ARGUMENT', /id 4 at position 1/);
    throwsCode(() => ops.swiglu(table, x(4, 8, 'float32')), 'ERR_DEVICE');
    throwsCode(() => ops.embed(table, ids.to('cpu') as Tensor<'int32'>, 'float32'), 'ERR_DEVICE');
  });
});

describe.skipIf(!hasCuda).each(fs.readdirSync(REFERENCE).sort())('%s on a CUDA device', (name) => {
  const directory = path.join(REFERENCE, name);
  const tensors = readSafetensors(path.join(directory, 'reference.safetensors'));
  const stored = tensors.get('input_ids')!;
  const own = new Uint8Array(stored.bytes).buffer;
  const all = stored.dtype === 'I64' ? Int32Array.from(new BigInt64Array(own), Number) : new Int32Array(own);
  const length = stored.shape[1] as number;
  const expected = () => floatsOf(tensors.get('logits')!);

  test(
    'logits are those of transformers in float32, whole rows and id by id',
    async () => {
      await onDevice(async () => {
        using decoder = await Decoder.open(directory);
        const ids = all.subarray(0, length);
        const states = await decoder.states({ ids, length });
        using logits = decoder.logits(states[0]!);
        expect(logits.device).toBe(DEVICE);
        const wanted = expected().subarray(0, length * decoder.vocabulary);
        expect(worst(await logits.toFloat32(), wanted)).toBeLessThan(1e-5);
        using resident = await decoder.resident();
        using table = decoder.rotaryTable(length);
        using cache = new KeyValueCache(length);
        for (const [first, end] of [
          [0, length - 2],
          [length - 2, length - 1],
          [length - 1, length],
        ] as const) {
          using next = await resident.next(ids.subarray(first, end), first, table, cache);
          const row = wanted.subarray((end - 1) * decoder.vocabulary, end * decoder.vocabulary);
          expect(worst(await next.toFloat32(), row), `id ${end - 1}`).toBeLessThan(1e-5);
        }
        for (const x of states) x.dispose();
      });
    },
    PATIENCE,
  );
});

describe.skipIf(!hasCuda)('evaluation on a CUDA device', () => {
  const work = temporaryDirectory();
  const quantized = path.join(work, 'int4');
  beforeAll(async () => {
    await quantizeCheckpoint(EXAMPLE, { out: quantized, bits: 4, groupSize: 32 } as never);
  });
  afterAll(() => fs.rmSync(work, { recursive: true, force: true }));

  const rows = { text: path.join(EXAMPLE, 'eval.txt'), seqLen: 48, samples: 2 };

  test(
    'perplexity and distance from the original are those of the CPU',
    async () => {
      const options = { ...rows, baseline: EXAMPLE };
      const here = await evaluateModel(quantized, options);
      const there = await onDevice(() => evaluateModel(quantized, options));
      expect(Math.abs(there.perplexity / here.perplexity - 1)).toBeLessThan(1e-4);
      expect(there.baseline!.klDivergence / here.baseline!.klDivergence).toBeCloseTo(1, 2);
      expect(there.baseline!.top1Agreement).toBeCloseTo(here.baseline!.top1Agreement, 1);
    },
    PATIENCE,
  );

  test(
    'in the checkpoint s own 16 bits too',
    async () => {
      const options = { ...rows, dtype: 'stored' } as const;
      const here = await evaluateModel(quantized, options);
      const there = await onDevice(() => evaluateModel(quantized, options));
      expect(Math.abs(there.perplexity / here.perplexity - 1)).toBeLessThan(1e-2);
    },
    PATIENCE,
  );
});
