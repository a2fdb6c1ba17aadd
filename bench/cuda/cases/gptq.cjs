'use strict';
// GPTQ: sums of x x^T, and the whole solution of a weight (Cholesky, columns).

const { ARIA, SHAPES, tensorOf } = require('./tensors.cjs');

/** Columns that one launch quantizes, and rows and columns of a tile of float32 products: csrc/ops/gptq. */
const BLOCK = 128;

/** One triangle of x x^T is enough. */
const hessian = (n, m, dtype) => ({
  family: 'Hessian.update',
  dtype,
  shape: [n],
  m,
  async setup(q, device) {
    const sums = new q.Hessian(n, { device });
    const x = tensorOf(q, device, [m, n], dtype);
    const work = {
      bytes: x.byteLength + 4 * n * n,
      operations: m * n * n,
      rate: dtype === 'float32' ? 'float32' : 'float16',
    };
    return {
      units: 1,
      work,
      passes: [{ kernel: /outer_products/, ...work }],
      run() {
        sums.update(x);
      },
      dispose() {
        for (const held of [sums, x]) held.dispose();
      },
    };
  },
});

/**
 * One weight: n^3 / 3 operations of the Cholesky factor, rows n^2 of the columns, and what cannot be spread: the columns of a
 * block come one after the other, in the factor as in the weight.
 */
const solution = (shape, scheme, label) => ({
  family: `gptq.quantize ${label}`,
  dtype: 'float16',
  shape,
  m: 0,
  async setup(q, device) {
    const [rows, n] = shape;
    const w = tensorOf(q, device, shape, 'float16', 0.02);
    const hessian = new q.Hessian(n, { device });
    const x = tensorOf(q, device, [2 * n, n], 'bfloat16');
    hessian.update(x);
    x.dispose();
    const blocks = Math.ceil(n / BLOCK);
    const passes = [
      { kernel: /^factor_triangle/, bytes: 0, steps: n },
      { kernel: /^solve_panel/, bytes: 2 * n * n, operations: BLOCK * n * n },
      {
        kernel: /^subtract_products/,
        bytes: (4 * n * n * blocks) / 3,
        operations: n ** 3 / 3,
        rate: 'float32',
      },
      { kernel: /^invert/, bytes: 0, steps: BLOCK },
      { kernel: /^multiply$/, bytes: 4 * rows * n, operations: rows * n * n, rate: 'float32' },
      {
        kernel: /^quantize_columns/,
        bytes: 12 * rows * n,
        operations: rows * n * BLOCK,
        steps: n,
        rate: 'float32',
      },
      { kernel: /^(index|gather|load|pack)/, bytes: 8 * Math.max(rows * n, n * n) },
      {
        kernel: /^multiply_energy/,
        bytes: 4 * (rows * n + n * n),
        operations: rows * n * n,
        rate: 'float32',
      },
    ];
    return {
      units: 1,
      waits: true,
      work: {
        bytes: 2 * rows * n + 4 * n * n + rows * n * 0.5,
        operations: n ** 3 / 3 + rows * n * n,
        rate: 'float32',
      },
      passes,
      run() {
        return q.gptq.quantize(w, hessian, { scheme }).then(({ quantized }) => quantized.dispose());
      },
      dispose() {
        for (const held of [w, hessian]) held.dispose();
      },
    };
  },
});

const INT4 = { kind: 'int', bits: 4, symmetric: true, range: 'full', granularity: 'group', groupSize: 128 };

function gptqCases() {
  const cases = [];
  for (const n of [ARIA.hidden, ARIA.inter, 4096, 8192, 11008]) cases.push(hessian(n, 16384, 'bfloat16'));
  cases.push(hessian(4096, 16384, 'float32'));
  for (const shape of SHAPES) cases.push(solution(shape, INT4, 'int4 g128'));
  return cases;
}

module.exports = { gptqCases };
