'use strict';
// linear with quantized and dense weights: y [M, N] = x [M, K] w [N, K] transposed.

const { normals, passes, rotation } = require('./measure.cjs');

const ARIA = [
  [3328, 2560],
  [2560, 1664],
];
const SHAPES = [[4096, 4096], ...ARIA];

/** Scales in 16 bits, as checkpoints and the peers have them. */
const int4 = (groupSize) => ({
  kind: 'int',
  bits: 4,
  symmetric: true,
  range: 'full',
  granularity: 'group',
  groupSize,
  scaleDtype: 'float16',
});
const INT8_ROWS = { kind: 'int', bits: 8, symmetric: true, granularity: 'row' };

/** The dtype of the activations that each kind of product is meant for. */
const ACTIVATIONS = { float32: 'float32', bfloat16: 'bfloat16', int8: 'float32' };

/** x with four columns of large values, as LLM.int8 finds them in practice. */
function withOutliers(values, columns) {
  return values.map((value, i) => ((i % columns) % (columns / 4) === 7 ? 20 : value));
}

function product({ name, scheme, compute, dtype, shape: [n, k], m, outliers = false }) {
  return {
    name,
    compute,
    shape: [n, k],
    m,
    needs: ['linear'],
    async setup(q) {
      const values = normals(m * k, 1, 2);
      const x = q.Tensor.from(outliers ? withOutliers(values, k) : values, [m, k], { dtype });
      const plain = q.Tensor.from(normals(n * k), [n, k]);
      const make = () => (scheme ? q.quantize(plain, scheme) : plain.cast(dtype));
      const first = make();
      // Scales of 16 bits are stored as float32, but read as they are.
      const bytes = first.byteLength - (scheme?.scaleDtype ? (2 * n * k) / scheme.groupSize : 0);
      const weights = [first];
      while (weights.length < rotation(bytes, m)) weights.push(make());
      plain.dispose();
      await q.synchronize();
      const options = scheme ? { compute } : {};
      const turns = passes(weights.length, m);
      return {
        units: turns * weights.length,
        work: { bytes, operations: 2 * m * n * k },
        async run() {
          for (let turn = 0; turn < turns; turn++)
            for (const weight of weights) q.linear(x, weight, options).dispose();
          await q.synchronize();
        },
        dispose() {
          for (const tensor of [x, ...weights]) tensor.dispose();
        },
      };
    },
  };
}

const cases = [];
for (const shape of SHAPES) {
  for (const groupSize of [32, 128]) {
    for (const compute of ['float32', 'bfloat16', 'int8']) {
      for (const m of [1, 16, 256]) {
        cases.push(
          product({
            name: `linear int4 g${groupSize}`,
            scheme: int4(groupSize),
            compute,
            dtype: ACTIVATIONS[compute],
            shape,
            m,
          }),
        );
      }
    }
  }
  for (const m of [1, 256]) {
    cases.push(
      product({
        name: 'linear nf4',
        scheme: { kind: 'nf4', blockSize: 64 },
        compute: 'bfloat16',
        dtype: 'bfloat16',
        shape,
        m,
      }),
    );
  }
}
for (const m of [1, 256, 1024]) {
  for (const dtype of ['float32', 'bfloat16'])
    cases.push(product({ name: `linear dense ${dtype}`, compute: dtype, dtype, shape: [4096, 4096], m }));
}
for (const m of [1, 16, 256]) {
  cases.push(
    product({
      name: 'linear int8 rows',
      scheme: INT8_ROWS,
      compute: 'int8',
      dtype: 'float32',
      shape: [4096, 4096],
      m,
    }),
  );
}
for (const m of [1, 256]) {
  cases.push(
    product({
      name: 'linear llm.int8',
      scheme: { kind: 'llm.int8' },
      compute: 'auto',
      dtype: 'float16',
      shape: [4096, 4096],
      m,
      outliers: true,
    }),
  );
}

module.exports = cases;
