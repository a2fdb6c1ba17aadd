import { expect, test } from 'vitest';
import { linear, QuantizedTensor, type QuantScheme, quantize, Tensor } from '../../lib';
import { ON_CPU } from '../device';
import { ISAS, withIsa } from './machine';
import { FLOATS } from './moe_layers';
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

test('zero points far from the codes are taken off exactly', async () => {
  const [out, depth, group] = [5, 96, 32];
  const groups = depth / group;
  // -3 and 20 lie near, the others where float16 or bfloat16 would round a code less them; one row has each kind.
  const far = [129, 201, 257, 1025, 70_000, -300, -70_000];
  for (const bits of [2, 3, 4, 8] as const) {
    const codes = Uint8Array.from({ length: out * depth }, (_, i) => (i * 7) % 2 ** bits);
    for (const zero of far) {
      const zeros = Int32Array.from({ length: out * groups }, (_, i) => [zero, -3, 20][i % 3] as number);
      for (const named of [false, true]) {
        const index = Int32Array.from({ length: depth }, (_, k) =>
          named ? k % groups : Math.floor(k / group),
        );
        const q = QuantizedTensor.fromParts(
          { kind: 'int', bits, symmetric: false, granularity: 'group', groupSize: group },
          [out, depth],
          {
            codes: Tensor.from(codes, [out, depth]),
            scales: Tensor.from(new Float32Array(out * groups).fill(1), [out, groups]),
            zeros: Tensor.from(zeros, [out, groups]),
            ...(named ? { groupIndex: Tensor.from(index, [depth]) } : {}),
          },
        );
        // bfloat16 products of the CPU round weights, whatever they are made of.
        for (const dtype of ON_CPU ? FLOATS.slice(0, 2) : FLOATS) {
          for (const rows of [1, 18]) {
            const x = Float32Array.from({ length: rows * depth }, (_, i) => (i % 3) - 1);
            const expected = Float32Array.from({ length: rows * out }, (_, i) => {
              const [r, n] = [Math.floor(i / out), i % out];
              let sum = 0;
              for (let k = 0; k < depth; k++) {
                const taken = zeros[n * groups + (index[k] as number)] as number;
                sum += (x[r * depth + k] as number) * ((codes[n * depth + k] as number) - taken);
              }
              return sum;
            });
            const y = linear(Tensor.from(x, [rows, depth], { dtype }), q, { outDtype: 'float32' });
            expect(await y.read(), `${bits} bits, zero ${zero}, ${dtype}, ${rows} rows`).toEqual(expected);
          }
        }
      }
    }
  }
});
