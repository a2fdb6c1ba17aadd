'use strict';
// Every operation on small shapes with tails, for compute-sanitizer, which slows a GPU down a hundredfold: each loop of each kernel,
// and what blocks leave for each other, though not every dtype and width.
//   node scripts/gpu-bundle/small_shapes.cjs cuda:0
// Operations without a kernel on the device are listed; any other error fails.

const q = require('../../dist');
const bits = require('../../dist/ops/bits');
const { add, attend, embed, rmsNorm, rotate, scoreTokens, swiglu } = require('../../dist/ops/decoder');
const { ColumnMagnitudes, clampGroups, roundToScale, scaleMatrix } = require('../../dist/ops/scaling');

const device = process.argv[2] ?? 'cuda:0';
const values = (count) =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.7) * (i % 97 === 0 ? 8 : 1));
const tensor = (shape, dtype = 'float16') =>
  q.Tensor.from(values(shape.reduce((a, b) => a * b)), shape, { dtype, device });

const group = (width, groupSize) => ({
  kind: 'int',
  bits: width,
  symmetric: true,
  granularity: 'group',
  groupSize,
});
const byRow = (width) => ({ kind: 'int', bits: width, symmetric: false, granularity: 'row' });
const SCHEMES = [
  ...[2, 3, 4, 8].map((width) => group(width, 32)),
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
function expertLayer(make, options = {}) {
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
  return q.moe.experts(tensor([19, 64]), experts, routing, options).read();
}

async function calibrated(scheme, options = {}) {
  const hessian = new q.Hessian(160, { device });
  hessian.update(tensor([40, 160]));
  hessian.update(tensor([33, 160], 'float32'));
  const { quantized: result } = await q.gptq.quantize(tensor([72, 160]), hessian, { scheme, ...options });
  return readAll([q.dequantize(result), q.linear(tensor([17, 160]), result)]);
}

/** Products of few tiles, whose columns blocks share: the last one of each tile adds up what all have left. */
const shared = (dtype) =>
  readAll([
    ...[3, 12, 30, 65].map((m) => q.linear(tensor([m, 2080], dtype), quantized([72, 2080], INT4))),
    q.linear(tensor([3, 2080], dtype), quantized([72, 2080], { kind: 'nf4', blockSize: 32 })),
    ...[33, 40].map((n) => q.matmul(tensor([17, 1000], dtype), tensor([1000, n], dtype))),
    q.matmul(tensor([17, 1000], dtype), tensor([33, 1000], dtype), { transposeB: true }),
  ]);

/** Groups of every kind that int8 products tell apart; few rows and more. */
const integerProducts = () =>
  readAll(
    [group(3, 32), ...[4, 8].flatMap((width) => [byRow(width), group(width, 32), group(width, 128)])].flatMap(
      (scheme) => {
        const weight = quantized([72, 320], scheme);
        return [5, 65].map((m) => q.linear(tensor([m, 320]), weight, { compute: 'int8' }));
      },
    ),
  );

/** Of many tiles, which are larger ones; a group of 128 columns is a step where there is more than one. */
const largeIntegerProducts = () =>
  readAll(
    [byRow(4), group(4, 128), byRow(8), group(8, 128), { kind: 'llm.int8' }].flatMap((scheme) => {
      const compute = scheme.kind === 'int' ? 'int8' : 'auto';
      return [
        [65, 3456],
        [129, 13824],
      ].map(([m, n]) => {
        const k = scheme.groupSize === 128 ? 256 : 128;
        return q.linear(tensor([m, k]), quantized([n, k], scheme), { compute });
      });
    }),
  );

function packed() {
  const codes = q.Tensor.from(
    Array.from({ length: 5 * 40 }, (_, i) => i % 4),
    [5, 40],
    { dtype: 'uint8', device },
  );
  const words = bits.packBits(codes, 3);
  const planes = bits.packPlanar(codes, 2);
  return readAll([
    bits.unpackBits(words, 40, 3),
    bits.unpackPlanar(planes, 5, 2),
    bits.swapNibbles(words),
    bits.offsetCodes(codes, -2, 'int8'),
  ]);
}

function scaled() {
  const w = tensor([33, 65], 'float32');
  const magnitudes = new ColumnMagnitudes(65);
  magnitudes.update(w);
  return readAll([
    scaleMatrix(w, tensor([33], 'float32'), tensor([65], 'float32')),
    clampGroups(w, 32, tensor([33, 3], 'float32')),
    roundToScale(w, 0.01),
  ]);
}

function scored() {
  const ids = q.Tensor.from([0, 3, 1, 2, 0], [5], { dtype: 'int32', device });
  const logits = tensor([5, 300], 'float32');
  return readAll([
    embed(tensor([4, 33]), ids, 'float16'),
    scoreTokens(logits, tensor([5, 300], 'float32'), ids),
  ]);
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
  transpose: () => readAll([tensor([33, 65]).transpose(), tensor([64, 72]).transpose()]),
  matmul: () => q.matmul(tensor([17, 70]), tensor([70, 33])).read(),
  'matmul float32': () => q.matmul(tensor([17, 70], 'float32'), tensor([70, 33], 'float32')).read(),
  'columns that blocks share, float16': () => shared('float16'),
  'columns that blocks share, bfloat16': () => shared('bfloat16'),
  ...Object.fromEntries(
    [16, 160, 512, 1280, 4096, 5120, 40960, 65536, 131072].map((n) => [
      `hadamard ${n}`,
      () => q.hadamard(tensor([3, n])).read(),
    ]),
  ),
  'hadamardQuantize int4': () => q.dequantize(q.hadamardQuantize(tensor([5, 160]), INT4)).read(),
  'hadamardQuantize mx': () =>
    q.dequantize(q.hadamardQuantize(tensor([5, 256]), { kind: 'mx', element: 'e2m1' })).read(),
  route: () => q.moe.route(tensor([37, 8], 'float32'), { topK: 2, order: 'topk-softmax' }).order.read(),
  'route many': () =>
    q.moe.route(tensor([600, 8], 'float32'), { topK: 2, order: 'topk-softmax' }).order.read(),
  groupedMatmul: () => {
    const counts = q.Tensor.from([0, 1, 16, 3], [4], { dtype: 'int32', device });
    return q.moe.groupedMatmul(tensor([20, 64]), tensor([4, 64, 40]), counts).read();
  },
  'experts of 16 bits': () => expertLayer((shape) => tensor(shape)),
  'experts of 4 bits': () => expertLayer((shape, e) => quantized(shape, INT4, e / 8)),
  'experts of 4 bits, int8': () =>
    expertLayer((shape, e) => quantized(shape, INT4, e / 8), { compute: 'int8' }),
  'grouped to sequential': () =>
    readAll(q.moe.groupedToSequential(tensor([3, 33, 34]), tensor([3, 17, 33])).flatMap(Object.values)),
  'gptq int4': () => calibrated(INT4),
  'gptq int4 act-order': () => calibrated(INT4, { actOrder: true, staticGroups: true }),
  'gptq int4 act-order, groups of its own': () => calibrated(INT4, { actOrder: true }),
  'gptq int4 whole groups in order': () => calibrated(INT4, { actOrder: true, groupAware: true }),
  'gptq int4 of one group': () => calibrated(group(4, 160)),
  'gptq fp8': () => calibrated({ kind: 'fp8', format: 'e4m3', granularity: 'row' }),
  'gptq nf4': () => calibrated({ kind: 'nf4', blockSize: 32 }),
  'gptq mx': () => calibrated({ kind: 'mx', element: 'e2m1' }),
  'integer products': integerProducts,
  'large integer products': largeIntegerProducts,
  'pack and unpack': packed,
  'scale and clamp': scaled,
  'embed and score': scored,
  add: () => add(tensor([5, 33]), tensor([5, 33]), tensor([5, 1])).read(),
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
    [
      { ...INT4, search: 'mse' },
      { ...INT4, granularity: 'tensor', groupSize: undefined, search: 'mse' },
      { ...INT4, granularity: 'column', groupSize: undefined },
      { kind: 'fp8', format: 'e5m2', granularity: 'tensor' },
      { kind: 'dynamic8', blockSize: 64 },
      { kind: 'mx', element: 'e4m3', preScale: true },
    ].map((scheme) => [
      `quantize ${JSON.stringify(scheme)}`,
      () => q.dequantize(q.quantize(tensor([72, 128]), scheme)).read(),
    ]),
  ),
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
