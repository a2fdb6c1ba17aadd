'use strict';
// What reads and writes and hardly computes: conversions of dtype and layout, Hadamard transforms, a decoder's small parts. And
// attention, which computes in float32.

const { ROWS, countOf, tensorOf } = require('./tensors.cjs');

const elementwise = (family, shape, dtype, bytesPerElement, operation, more = {}) => ({
  family,
  dtype,
  shape,
  m: 0,
  async setup(q, device) {
    const x = tensorOf(q, device, shape, dtype);
    return {
      units: 1,
      work: { bytes: countOf(shape) * bytesPerElement, operations: 0, rate: 'float32' },
      ...more,
      run() {
        operation(q, x).dispose();
      },
      dispose() {
        x.dispose();
      },
    };
  },
});

/** Every row of x [m, n] by itself. */
const rowwise = (family, n, m, bytesPerElement, make, more = {}) => ({
  family,
  dtype: 'float16',
  shape: [n],
  m,
  async setup(q, device) {
    const x = tensorOf(q, device, [m, n], 'float16');
    const { run, held } = make(q, device, x);
    return {
      units: 1,
      work: { bytes: m * n * bytesPerElement, operations: 0, rate: 'float32' },
      ...more,
      run,
      dispose() {
        for (const tensor of [x, ...held]) tensor.dispose();
      },
    };
  },
});

const hadamard = (n, m) =>
  rowwise('hadamard', n, m, 4, (q, _device, x) => ({ held: [], run: () => q.hadamard(x).dispose() }), {
    spread: true,
  });

const norm = (n, m) =>
  rowwise('rmsNorm', n, m, 4, (q, device, x) => {
    const { rmsNorm } = require('../../../dist/ops/decoder');
    const gain = tensorOf(q, device, [n], 'float16');
    return { held: [gain], run: () => rmsNorm(x, gain, 1e-6).dispose() };
  });

const activation = (n, m) =>
  rowwise('swiglu', n, m, 6, (_q, _device, x) => {
    const { swiglu } = require('../../../dist/ops/decoder');
    return { held: [], run: () => swiglu(x, x).dispose() };
  });

const HEADS = 20;
const HEAD_DIM = 128;

/** One sequence of Aria's width; causal, so half of all pairs. */
const attention = (tokens) => ({
  family: 'attend',
  dtype: 'float16',
  shape: [HEADS, HEAD_DIM],
  m: tokens,
  async setup(q, device) {
    const { attend } = require('../../../dist/ops/decoder');
    const x = tensorOf(q, device, [tokens, HEADS * HEAD_DIM], 'float16');
    const shape = {
      sequences: 1,
      queries: tokens,
      keys: tokens,
      heads: HEADS,
      kvHeads: HEADS,
      keyDim: HEAD_DIM,
      valueDim: HEAD_DIM,
      scale: HEAD_DIM ** -0.5,
      window: 0,
    };
    return {
      units: 1,
      work: {
        bytes: 4 * x.byteLength,
        operations: (4 * tokens * tokens * HEADS * HEAD_DIM) / 2,
        rate: 'float32',
      },
      run() {
        attend(x, x, x, shape).dispose();
      },
      dispose() {
        x.dispose();
      },
    };
  },
});

function memoryBoundCases() {
  const cases = [
    elementwise('cast', [4096, 4096], 'float16', 4, (_q, x) => x.cast('bfloat16')),
    elementwise('transpose', [4096, 4096], 'float16', 4, (_q, x) => x.transpose()),
    elementwise('transpose', [11008, 4096], 'float16', 4, (_q, x) => x.transpose()),
  ];
  for (const n of [1024, 1664, 2560, 3328, 4096, 8192])
    for (const m of [1, 16, 4096]) cases.push(hadamard(n, m));
  for (const n of [2560, 4096, 8192])
    for (const m of ROWS.filter((rows) => rows !== 2)) cases.push(norm(n, m));
  for (const m of [1, 64, 4096]) cases.push(activation(1664, m), activation(11008, m));
  for (const tokens of [512, 2048, 4096]) cases.push(attention(tokens));
  return cases;
}

module.exports = { memoryBoundCases };
