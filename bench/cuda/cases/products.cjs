'use strict';
// linear of 16-bit and of quantized weights, LLM.int8, integer products; and what turns weights into codes and back.

const {
  LARGE_SHAPE,
  MOST_ROTATED_ROWS,
  ROWS,
  SHAPES,
  WEIGHTS,
  copiesFor,
  countOf,
  filled,
  heldWeights,
  tensorOf,
} = require('./tensors.cjs');

function rotatedWeights(q, device, family, scheme, [n, k], dtype, rotate) {
  return heldWeights(`${device} ${family} ${n} ${k} ${dtype} ${rotate}`, () => {
    const plain = q.Tensor.from(filled(n * k), [n, k], { dtype });
    const host = scheme ? q.quantize(plain, scheme) : plain;
    const copies = rotate ? copiesFor(host.byteLength) : 1;
    const weights = Array.from({ length: copies }, () => host.to(device));
    for (const tensor of new Set([plain, host])) tensor.dispose();
    return weights;
  });
}

/** Activations are quantized first: x is read, its codes are written. */
const rowQuantization = (m, k) => [
  { kernel: /^quantize_(row|groups)/, bytes: 3 * m * k },
  { kernel: /^compact/, bytes: 2 * m * k, share: 0.01 },
];

function product(family, scheme, shape, m, dtype, compute) {
  const [n, k] = shape;
  const integers = scheme?.kind === 'llm.int8' || compute === 'int8';
  return {
    family: `linear ${family}`,
    dtype,
    shape,
    m,
    async setup(q, device, { rotate = true } = {}) {
      const all = rotatedWeights(q, device, family, scheme, shape, dtype, rotate);
      const weights = m <= MOST_ROTATED_ROWS ? all : all.slice(0, 1);
      const bytes = all[0].byteLength;
      const x = tensorOf(q, device, [m, k], dtype);
      const work = {
        bytes: bytes + 2 * m * (n + k),
        operations: 2 * m * n * k,
        rate: integers ? 'int8' : 'float16',
        products: [{ rows: [m], n, k }],
      };
      return {
        units: weights.length,
        work,
        passes: [{ kernel: /^(gemm|coded_product|int8_product)/, ...work }, ...rowQuantization(m, k)],
        run() {
          for (const weight of weights) q.linear(x, weight, compute ? { compute } : {}).dispose();
        },
        dispose() {
          x.dispose();
        },
      };
    },
  };
}

/** Bytes of codes and constants for each weight. */
const storedBytes = (q, scheme) => {
  const one = q.quantize(q.Tensor.from(filled(256 * 256), [256, 256]), scheme);
  const bytes = one.byteLength / 65536;
  one.dispose();
  return bytes;
};

/** Once from 16 bits to codes: the least is one reading and one writing, kernels read twice. */
function quantization(family, scheme, shape) {
  return {
    family: `quantize ${family}`,
    dtype: 'float16',
    shape,
    m: 0,
    async setup(q, device) {
      const count = countOf(shape);
      const w = tensorOf(q, device, shape, 'float16', 0.02);
      const stored = count * storedBytes(q, scheme);
      return {
        units: 1,
        work: { bytes: 2 * count + stored, operations: 0, rate: 'float32' },
        passes: [
          { kernel: /^(fit_|pass_of|measure)/, bytes: 2 * count },
          { kernel: /^pack_words/, bytes: 2 * count + stored },
        ],
        run() {
          q.quantize(w, scheme).dispose();
        },
        dispose() {
          w.dispose();
        },
      };
    },
  };
}

function dequantization(family, scheme, shape) {
  return {
    family: `dequantize ${family}`,
    dtype: 'float16',
    shape,
    m: 0,
    async setup(q, device) {
      const plain = q.Tensor.from(filled(countOf(shape)), shape);
      const host = q.quantize(plain, scheme);
      const weight = host.to(device);
      for (const tensor of [plain, host]) tensor.dispose();
      const work = { bytes: weight.byteLength + 2 * countOf(shape), operations: 0, rate: 'float32' };
      return {
        units: 1,
        work,
        run() {
          q.dequantize(weight, { dtype: 'float16' }).dispose();
        },
        dispose() {
          weight.dispose();
        },
      };
    },
  };
}

const CONVERTED = [
  'int4 g128',
  'int4 g128 zero points',
  'int3 g128',
  'nf4 b64',
  'nf4 b64 double',
  'fp8 e4m3',
  'mxfp4',
  'llm.int8',
];

function productCases() {
  const cases = [];
  for (const [family, scheme] of Object.entries(WEIGHTS))
    for (const shape of SHAPES)
      for (const dtype of family === 'dense' || family === 'int4 g128'
        ? ['float16', 'bfloat16']
        : ['float16'])
        for (const m of ROWS) cases.push(product(family, scheme, shape, m, dtype));
  for (const family of ['dense', 'int4 g128'])
    for (const m of ROWS.filter((rows) => rows <= MOST_ROTATED_ROWS))
      cases.push(product(family, WEIGHTS[family], LARGE_SHAPE, m, 'float16'));
  for (const shape of SHAPES)
    for (const m of ROWS)
      cases.push(product('int4 g128 by int8', WEIGHTS['int4 g128'], shape, m, 'float16', 'int8'));
  for (const family of CONVERTED)
    for (const shape of SHAPES)
      cases.push(
        quantization(family, WEIGHTS[family], shape),
        ...(family === 'llm.int8' ? [] : [dequantization(family, WEIGHTS[family], shape)]),
      );
  return cases;
}

module.exports = { productCases };
