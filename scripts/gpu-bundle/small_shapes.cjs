'use strict';
// Every operation once on small shapes with tails, for compute-sanitizer, which slows a GPU down a hundredfold.
//   node scripts/gpu-bundle/small_shapes.cjs cuda:0
// Operations without a kernel on the device are listed; any other error fails.

const q = require('../../dist');
const { attend, rmsNorm, rotate, swiglu } = require('../../dist/ops/decoder');

const device = process.argv[2] ?? 'cuda:0';
const values = (count) =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.7) * (i % 97 === 0 ? 8 : 1));
const tensor = (shape, dtype = 'float16') =>
  q.Tensor.from(values(shape.reduce((a, b) => a * b)), shape, { dtype, device });

const group = (bits, groupSize) => ({ kind: 'int', bits, symmetric: true, granularity: 'group', groupSize });
const SCHEMES = [
  ...[2, 3, 4, 8].map((bits) => group(bits, 32)),
  { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 32 },
  { kind: 'nf4', blockSize: 64, doubleQuant: true },
  { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  { kind: 'mx', element: 'e2m1' },
  { kind: 'llm.int8' },
];

const INT4 = group(4, 32);
const quantized = (shape, scheme, seed = 0) =>
  q
    .quantize(
      q.Tensor.from(
        values(shape[0] * shape[1]).map((value) => value + seed),
        shape,
      ),
      scheme,
    )
    .to(device);
const readAll = (tensors) => Promise.all(tensors.map((tensor) => tensor.read()));

/** A layer of four experts, 64 -> 40, of which one gets no token. */
function expertLayer(make) {
  const experts = Array.from({ length: 4 }, (_, e) => ({
    gate: make([40, 64], e),
    up: make([40, 64], e + 4),
    down: make([64, 40], e + 8),
  }));
  const logits = q.Tensor.from(
    values(19 * 4).map((value, i) => (i % 4 === 2 ? -9 : value)),
    [19, 4],
    { device },
  );
  const routing = q.moe.route(logits, { topK: 2, order: 'topk-softmax' });
  return q.moe.experts(tensor([19, 64]), experts, routing).read();
}

async function calibrated(scheme, options = {}) {
  const hessian = new q.Hessian(160, { device });
  hessian.update(tensor([40, 160]));
  hessian.update(tensor([33, 160], 'float32'));
  const { quantized: result } = await q.gptq.quantize(tensor([72, 160]), hessian, { scheme, ...options });
  return q.dequantize(result).read();
}

/** Not the values, which are those of calls: that a graph is captured and launched under the tool's eyes. */
async function inGraph() {
  const weight = quantized([72, 128], INT4);
  const x = tensor([17, 128]);
  q.linear(x, weight).dispose();
  let y = null;
  const graph = await q.captureGraph(device, () => {
    y = q.linear(x, weight);
  });
  for (let i = 0; i < 3; i++) graph.launch();
  const read = await y.read();
  graph.dispose();
  return read;
}

function turned() {
  const angles = (of) => q.Tensor.from(values(9 * 8).map(of), [9, 8], { device });
  const table = { cosines: angles(Math.cos), sines: angles(Math.sin) };
  const rotary = { heads: 2, headDim: 16, offset: 0, dims: 16, interleaved: false, sequence: 9, first: 0 };
  return rotate(tensor([9, 32]), table, rotary).read();
}

const attended = () =>
  attend(tensor([33, 64]), tensor([33, 32]), tensor([33, 32]), {
    sequences: 1,
    queries: 33,
    keys: 33,
    heads: 4,
    kvHeads: 2,
    keyDim: 16,
    valueDim: 16,
    scale: 0.25,
    window: 0,
  }).read();

const OPERATIONS = {
  cast: () => tensor([33, 65]).cast('bfloat16').read(),
  transpose: () => tensor([33, 65]).transpose().read(),
  matmul: () => q.matmul(tensor([17, 70]), tensor([70, 33])).read(),
  'matmul float32': () => q.matmul(tensor([17, 70], 'float32'), tensor([70, 33], 'float32')).read(),
  hadamard: () => q.hadamard(tensor([5, 160])).read(),
  route: () => q.moe.route(tensor([37, 8], 'float32'), { topK: 2, order: 'topk-softmax' }).order.read(),
  groupedMatmul: () => {
    const counts = q.Tensor.from([0, 1, 16, 3], [4], { dtype: 'int32', device });
    return q.moe.groupedMatmul(tensor([20, 64]), tensor([4, 64, 40]), counts).read();
  },
  'experts of 16 bits': () => expertLayer((shape) => tensor(shape)),
  'experts of 4 bits': () => expertLayer((shape, e) => quantized(shape, INT4, e / 8)),
  'grouped to sequential': () =>
    readAll(q.moe.groupedToSequential(tensor([3, 33, 34]), tensor([3, 17, 33])).flatMap(Object.values)),
  'gptq int4': () => calibrated(INT4),
  'gptq int4 act-order': () => calibrated(INT4, { actOrder: true, staticGroups: true }),
  'gptq nf4': () => calibrated({ kind: 'nf4', blockSize: 32 }),
  'gptq mx': () => calibrated({ kind: 'mx', element: 'e2m1' }),
  'integer products': () =>
    q.linear(tensor([17, 128]), quantized([72, 128], INT4), { compute: 'int8' }).read(),
  'outlier columns': () => q.llmInt8.outlierColumns(tensor([17, 300])),
  'a graph': inGraph,
  rmsNorm: () => rmsNorm(tensor([5, 300]), tensor([300]), 1e-6).read(),
  swiglu: () => swiglu(tensor([5, 33]), tensor([5, 33])).read(),
  rotate: turned,
  attend: attended,
  hessian: () => {
    const hessian = new q.Hessian(96, { device });
    hessian.update(tensor([40, 96]));
    return hessian.value().read();
  },
  ...Object.fromEntries(
    SCHEMES.flatMap((scheme) => {
      const name = `${scheme.kind} ${scheme.bits ?? scheme.blockSize ?? scheme.element ?? ''}`.trim();
      const weight = () => q.quantize(q.Tensor.from(values(72 * 128), [72, 128]), scheme).to(device);
      return [
        [
          `quantize ${name} ${scheme.symmetric}`,
          () => q.dequantize(q.quantize(tensor([72, 128]), scheme)).read(),
        ],
        ...[1, 17, 65].map((m) => [
          `linear ${name} ${scheme.symmetric} m=${m}`,
          () => q.linear(tensor([m, 128]), weight()).read(),
        ]),
      ];
    }),
  ),
};

async function main() {
  let ran = 0;
  for (const [name, operation] of Object.entries(OPERATIONS)) {
    try {
      await operation();
      ran++;
    } catch (error) {
      if (error.code !== 'ERR_UNSUPPORTED') throw new Error(`${name}: ${error.message}`);
      console.log(`no kernel: ${error.message}`);
    }
  }
  await q.synchronize(device);
  console.log(`${ran} of ${Object.keys(OPERATIONS).length} operations ran on ${device}`);
  if (ran === 0) throw new Error('nothing ran');
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
