'use strict';
// node onnxruntime_bench.cjs N K M THREADS BUDGET: products of a [M, K] with weights [N, K] by onnxruntime, as JSON lines.
// One session holds many products, so that the call from JavaScript does not count and weights come from memory. Equal
// weights are packed once only, so the copies differ.

const ort = require('onnxruntime-node');
const { normals, rotation, time } = require('../api/measure.cjs');
const onnx = require('./onnx_model.cjs');

const [n, k, m, threads] = process.argv.slice(2, 6).map(Number);
const budget = Number(process.argv[6]);

/** A different copy for each i. */
function variant(array, i) {
  const copy = array.slice();
  copy.fill(i + 1, 0, 16);
  return copy;
}

const randomBytes = (count, Type) => {
  const values = normals(count, 60);
  return Type.from(values, (value) => Math.max(-127, Math.min(127, Math.round(value))));
};

/** 4-bit weights in blocks; accuracy 4 lets products run in int8, 0 wants float32. */
function matMulNBits(block, accuracy) {
  const blocks = Math.ceil(k / block);
  const codes = randomBytes((n * blocks * block) / 2, Uint8Array);
  const scales = normals(n * blocks, 0.01);
  const weight = (i) => [
    onnx.tensor(`B${i}`, onnx.UINT8, [n, blocks, block / 2], variant(codes, i)),
    onnx.tensor(`S${i}`, onnx.FLOAT, [n, blocks], scales),
    onnx.node(
      'MatMulNBits',
      ['A', `B${i}`, `S${i}`],
      [`Y${i}`],
      { K: k, N: n, bits: 4, block_size: block, accuracy_level: accuracy },
      'com.microsoft',
    ),
    onnx.output(`Y${i}`, onnx.FLOAT, ['M', n]),
  ];
  return {
    name: `onnxruntime MatMulNBits b${block} a${accuracy}`,
    compute: accuracy === 4 ? 'int8' : 'float32',
    bytes: codes.byteLength + scales.byteLength,
    type: 'float32',
    weight,
  };
}

function matMulInteger() {
  const codes = randomBytes(n * k, Int8Array);
  return {
    name: 'onnxruntime MatMulInteger u8s8',
    compute: 'int8',
    bytes: n * k,
    type: 'uint8',
    weight: (i) => [
      onnx.tensor(`B${i}`, onnx.INT8, [k, n], variant(codes, i)),
      onnx.node('MatMulInteger', ['A', `B${i}`], [`Y${i}`]),
      onnx.output(`Y${i}`, onnx.INT32, ['M', n]),
    ],
  };
}

function matMul() {
  const values = normals(n * k);
  return {
    name: 'onnxruntime MatMul float32',
    compute: 'float32',
    bytes: 4 * n * k,
    type: 'float32',
    weight: (i) => [
      onnx.tensor(`B${i}`, onnx.FLOAT, [k, n], variant(values, i)),
      onnx.node('MatMul', ['A', `B${i}`], [`Y${i}`]),
      onnx.output(`Y${i}`, onnx.FLOAT, ['M', n]),
    ],
  };
}

async function run({ name, compute, bytes, type, weight }) {
  const units = rotation(bytes, m);
  const a = onnx.input('A', type === 'uint8' ? onnx.UINT8 : onnx.FLOAT, ['M', k]);
  const model = onnx.model(a, ...Array.from({ length: units }, (_, i) => weight(i)).flat());
  const session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionProviders: ['cpu'],
    logSeverityLevel: 3,
  });
  const data = type === 'uint8' ? randomBytes(m * k, Uint8Array) : normals(m * k, 1);
  const feeds = { A: new ort.Tensor(type, data, [m, k]) };
  // Results go into memory that is there already, as ours do.
  const result = () =>
    name.includes('Integer')
      ? new ort.Tensor('int32', new Int32Array(m * n), [m, n])
      : new ort.Tensor('float32', new Float32Array(m * n), [m, n]);
  const fetches = Object.fromEntries(Array.from({ length: units }, (_, i) => [`Y${i}`, result()]));
  const timing = await time(() => session.run(feeds, fetches), units, budget);
  const row = { name, compute, shape: [n, k], m, ...timing, bytes, operations: 2 * m * n * k };
  console.log(JSON.stringify(row));
  await session.release();
}

async function main() {
  for (const block of [128, 32]) for (const accuracy of [4, 0]) await run(matMulNBits(block, accuracy));
  await run(matMulInteger());
  await run(matMul());
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
