'use strict';
// Families x shapes on one CUDA device. Each case says the least that it has to read and write, and the operations that it has
// to do, whoever does it: `work`.

const { normals } = require('../api/measure.cjs');

const ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];
const ARIA = { hidden: 2560, inter: 1664, experts: 64, topK: 6 };
/** Of weights, [out, in]. */
const SHAPES = [
  [3328, 2560],
  [2560, 1664],
  [4096, 4096],
  [11008, 4096],
  [4096, 11008],
  [8192, 8192],
];

const group = (bits, groupSize, more = {}) => ({
  kind: 'int',
  bits,
  symmetric: true,
  range: 'full',
  granularity: 'group',
  groupSize,
  ...more,
});
/** What products of quantized weights are timed with, and 16 bits beside them. */
const WEIGHTS = {
  dense: null,
  'int4 g128': group(4, 128),
  'int4 g128 zero points': group(4, 128, { symmetric: false, range: undefined }),
  'int4 g32': group(4, 32),
  'int3 g128': group(3, 128),
  'int2 g32': group(2, 32),
  'int8 g128': group(8, 128),
  'nf4 b64': { kind: 'nf4', blockSize: 64 },
  'nf4 b64 double': { kind: 'nf4', blockSize: 64, doubleQuant: true },
  'fp8 e4m3': { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  mxfp4: { kind: 'mx', element: 'e2m1' },
  'llm.int8': { kind: 'llm.int8' },
};

/** Between two uses of one weight this much is read, more than twice any second-level cache here: from memory each time. */
const ROTATED_BYTES = 128 * 2 ** 20;
const MOST_ROTATED_ROWS = 64;

/** Values like a trained weight's; large ones repeat a stretch, as making them all anew would take longer than timing. */
function filled(count, deviation = 0.02, seed = 1) {
  const stretch = normals(Math.min(count, 65521), deviation, seed);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += stretch.length) values.set(stretch.subarray(0, count - i), i);
  return values;
}

/** The weights of the last case: those of the next one, if it differs in its rows alone. */
let held = { key: '', weights: [] };

function heldWeights(key, make) {
  if (held.key !== key) {
    for (const weight of held.weights) weight.dispose();
    held = { key: '', weights: [] };
    held = { key, weights: make() };
  }
  return held.weights;
}

function rotatedWeights(q, device, family, scheme, [n, k], dtype) {
  return heldWeights(`${device} ${family} ${n} ${k} ${dtype}`, () => {
    const plain = q.Tensor.from(filled(n * k), [n, k], { dtype });
    const host = scheme ? q.quantize(plain, scheme) : plain;
    const copies = Math.ceil(ROTATED_BYTES / host.byteLength);
    const weights = Array.from({ length: copies }, () => host.to(device));
    for (const tensor of new Set([plain, host])) tensor.dispose();
    return weights;
  });
}

function product(family, scheme, shape, m, dtype) {
  const [n, k] = shape;
  return {
    family: `linear ${family}`,
    dtype,
    shape,
    m,
    async setup(q, device) {
      const all = rotatedWeights(q, device, family, scheme, shape, dtype);
      const weights = m <= MOST_ROTATED_ROWS ? all : all.slice(0, 1);
      const bytes = all[0].byteLength;
      const x = q.Tensor.from(filled(m * k, 1, 2), [m, k], { dtype, device });
      return {
        units: weights.length,
        work: {
          bytes: bytes + 2 * m * (n + k),
          operations: 2 * m * n * k,
          rate: scheme?.kind === 'llm.int8' ? 'int8' : 'float16',
        },
        run() {
          for (const weight of weights) q.linear(x, weight).dispose();
        },
        dispose() {
          x.dispose();
        },
      };
    },
  };
}

function expertLayer(family, scheme, m, dtype) {
  const { hidden, inter, experts, topK } = ARIA;
  return {
    family: `moe.experts ${family}`,
    dtype,
    shape: [experts, hidden, inter],
    m,
    async setup(q, device) {
      const weights = heldWeights(`${device} experts ${family}`, () => {
        const wide = q.Tensor.from(filled(inter * hidden), [inter, hidden], { dtype });
        const tall = wide.reshape([hidden, inter]);
        const parts = [wide, wide, tall].map((w) => (scheme ? q.quantize(w, scheme) : w));
        const copies = Array.from({ length: experts }, () => parts.map((part) => part.to(device))).flat();
        for (const tensor of new Set([wide, tall, ...parts])) tensor.dispose();
        return copies;
      });
      const all = Array.from({ length: experts }, (_, e) => {
        const [gate, up, down] = weights.slice(3 * e, 3 * e + 3);
        return { gate, up, down };
      });
      const x = q.Tensor.from(filled(m * hidden, 1, 3), [m, hidden], { dtype, device });
      const logits = q.Tensor.from(normals(m * experts, 1, 5), [m, experts], { device });
      const routing = q.moe.route(logits, { topK, order: 'topk-softmax' });
      const hit = (await routing.counts.read()).filter((count) => count > 0).length;
      const bytesOf = ({ gate, up, down }) => gate.byteLength + up.byteLength + down.byteLength;
      return {
        units: 1,
        work: {
          bytes: bytesOf(all[0]) * hit + 2 * m * topK * (2 * hidden + 2 * inter),
          operations: 6 * m * topK * hidden * inter,
          rate: 'float16',
        },
        run() {
          q.moe.experts(x, all, routing).dispose();
        },
        dispose() {
          for (const tensor of [x, logits, ...Object.values(routing)]) tensor.dispose();
        },
      };
    },
  };
}

/** Grouped experts to sequential ones: every byte is read once and written once. */
const conversion = {
  family: 'moe.groupedToSequential',
  dtype: 'bfloat16',
  shape: [ARIA.experts, ARIA.hidden, ARIA.inter],
  m: 0,
  async setup(q, device) {
    const { hidden, inter, experts } = ARIA;
    const fc1 = q.Tensor.zeros([experts, hidden, 2 * inter], { dtype: 'bfloat16', device });
    const fc2 = q.Tensor.zeros([experts, inter, hidden], { dtype: 'bfloat16', device });
    return {
      units: 1,
      work: { bytes: 2 * (fc1.byteLength + fc2.byteLength), operations: 0, rate: 'float32' },
      run() {
        for (const expert of q.moe.groupedToSequential(fc1, fc2))
          for (const tensor of Object.values(expert)) tensor.dispose();
      },
      dispose() {
        for (const tensor of [fc1, fc2]) tensor.dispose();
      },
    };
  },
};

/** x xᵀ of calibration states: one triangle of it is enough. */
const hessian = (n, m) => ({
  family: 'Hessian.update',
  dtype: 'bfloat16',
  shape: [n],
  m,
  async setup(q, device) {
    const sums = new q.Hessian(n, { device });
    const x = q.Tensor.from(filled(m * n, 1, 2), [m, n], { dtype: 'bfloat16', device });
    return {
      units: 1,
      work: { bytes: 2 * m * n + 4 * n * n, operations: m * n * n, rate: 'float16' },
      run() {
        sums.update(x);
      },
      dispose() {
        for (const held of [sums, x]) held.dispose();
      },
    };
  },
});

const elementwise = (family, shape, dtype, bytesPerElement, operation) => ({
  family,
  dtype,
  shape,
  m: 0,
  async setup(q, device) {
    const count = shape.reduce((a, b) => a * b);
    const x = q.Tensor.from(filled(count), shape, { dtype, device });
    return {
      units: 1,
      work: { bytes: count * bytesPerElement, operations: 0, rate: 'float32' },
      run() {
        operation(q, x).dispose();
      },
      dispose() {
        x.dispose();
      },
    };
  },
});

function allCases() {
  const cases = [];
  for (const [family, scheme] of Object.entries(WEIGHTS))
    for (const shape of SHAPES)
      for (const dtype of family === 'dense' || family === 'int4 g128'
        ? ['float16', 'bfloat16']
        : ['float16'])
        for (const m of ROWS) cases.push(product(family, scheme, shape, m, dtype));
  for (const family of ['dense', 'int4 g128'])
    for (const m of ROWS) cases.push(expertLayer(family, WEIGHTS[family], m, 'bfloat16'));
  cases.push(conversion, hessian(ARIA.hidden, 16384), hessian(ARIA.inter, 16384), hessian(4096, 16384));
  cases.push(
    elementwise('quantize int4 g128', [4096, 4096], 'float16', 2 + 0.5 + 4 / 128, (q, x) =>
      q.quantize(x, WEIGHTS['int4 g128']),
    ),
    elementwise('quantize nf4 b64', [4096, 4096], 'float16', 2 + 0.5 + 4 / 64, (q, x) =>
      q.quantize(x, WEIGHTS['nf4 b64']),
    ),
    elementwise('cast', [4096, 4096], 'float16', 4, (_q, x) => x.cast('bfloat16')),
    elementwise('transpose', [4096, 4096], 'float16', 4, (_q, x) => x.transpose()),
  );
  for (const n of [1024, 2560, 4096, 11008])
    cases.push(elementwise('hadamard', [4096, n], 'float16', 4, (q, x) => q.hadamard(x)));
  return cases;
}

const labelOf = ({ family, dtype, shape, m }) =>
  `${family} ${dtype} ${shape.join('x')}${m > 0 ? ` m=${m}` : ''}`;

/** Gives back what the last case left for the next. */
const releaseHeld = () => heldWeights('', () => []);

module.exports = { allCases, labelOf, releaseHeld };
