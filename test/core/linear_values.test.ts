import { expect, test } from 'vitest';
import { linear, QuantizedTensor, type QuantScheme, quantize, Tensor } from '../../lib';
import { ISAS, withIsa } from './machine';
import { decoded, sumsOf } from './products';
import { normals } from './random';

// What linear does with values at the edges of the floats.

test('NaN and infinities of activations reach their own row only, and no sum of it is finite', async () => {
  const [out, depth] = [34, 70];
  // All codes odd: none stands for 0, which times infinity would be NaN.
  const codes = Uint8Array.from({ length: out * depth }, (_, i) => (i % 3 === 0 ? 15 : 1));
  const q = QuantizedTensor.fromParts(
    { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 },
    [out, depth],
    {
      codes: Tensor.from(codes, [out, depth]),
      scales: Tensor.from(new Float32Array(out * 3).fill(0.5), [out, 3]),
      zeros: Tensor.from(new Int32Array(out * 3).fill(8), [out, 3]),
    },
  );
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const compute of ['float32', 'bfloat16', 'int8'] as const) {
        for (const rows of [2, 4, 9]) {
          const x = normals(rows * depth, rows);
          const clean = await linear(Tensor.from(x, [rows, depth]), q, { compute }).toFloat32();
          for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
            x[depth + 69] = bad;
            const y = await linear(Tensor.from(x, [rows, depth]), q, { compute }).toFloat32();
            const own = y.subarray(out, 2 * out);
            expect(own.some(Number.isFinite)).toBe(false);
            if (Number.isNaN(bad)) expect(own.every(Number.isNaN)).toBe(true);
            expect(y.filter((_, i) => Math.floor(i / out) !== 1)).toEqual(
              clean.filter((_, i) => Math.floor(i / out) !== 1),
            );
          }
        }
      }
    });
  }
});

test('NaN among the scales of a weight reaches its own output only, whatever its payload', async () => {
  const [out, depth] = [20, 64];
  const bits = new Int32Array(new Float32Array(out).fill(0.5).buffer);
  bits[7] = 0x7fffffff;
  const q = QuantizedTensor.fromParts(
    { kind: 'int', bits: 8, symmetric: true, granularity: 'row' },
    [out, depth],
    {
      codes: Tensor.from(new Int8Array(out * depth).fill(3), [out, depth]),
      scales: Tensor.from(new Float32Array(bits.buffer), [out, 1]),
    },
  );
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const compute of ['float32', 'bfloat16', 'int8'] as const) {
        for (const rows of [1, 6]) {
          const y = await linear(Tensor.from(new Float32Array(rows * depth).fill(1), [rows, depth]), q, {
            compute,
          }).toFloat32();
          const label = `${isa} ${compute} ${rows}`;
          expect([label, Array.from(y, Number.isNaN)]).toEqual([
            label,
            Array.from(y, (_, i) => i % out === 7),
          ]);
        }
      }
    });
  }
});

test('subnormal and huge activations stay within the bound', async () => {
  const [out, depth] = [20, 64];
  const scheme: QuantScheme = { kind: 'int', bits: 4, symmetric: true, granularity: 'group', groupSize: 32 };
  const q = quantize(Tensor.from(normals(out * depth, 1), [out, depth]), scheme);
  const w = await decoded(q);
  const weights = Float64Array.from({ length: out }, (_, j) =>
    Array.from(w.values as Float32Array)
      .slice(j * depth, (j + 1) * depth)
      .reduce((a, b) => a + Math.abs(b), 0),
  );
  for (const isa of ISAS) {
    await withIsa(isa, async () => {
      for (const power of [-140, -128, -100, 100]) {
        const x = normals(6 * depth, 3).map((value) => value * 2 ** power);
        const sums = sumsOf(x, w);
        for (const compute of ['float32', 'bfloat16', 'int8'] as const) {
          for (const rows of [1, 6]) {
            const y = await linear(Tensor.from(x.slice(0, rows * depth), [rows, depth]), q, {
              compute,
            }).toFloat32();
            // float32 keeps subnormals to 2^-150; bfloat16 instructions take what is under 2^-126 for 0; a step of
            // int8 activations, absmax / 127, is rounded like any float32.
            const floor = { float32: 2 ** -149, bfloat16: 2 ** -125, int8: 2 ** -142 }[compute];
            y.forEach((value, i) => {
              const error = Math.abs(value - sums.exact[i]!) - floor * depth * (1 + weights[i % out]!);
              expect(error).toBeLessThanOrEqual(
                Math.max(0, 2 ** -6 * sums.magnitude[i]! + sums.half[i]! * 1.01),
              );
            });
          }
        }
      }
    });
  }
});
