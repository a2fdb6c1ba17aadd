'use strict';
// Every operation once on small shapes with tails, for compute-sanitizer, which slows a GPU down a hundredfold.
//   node scripts/gpu-bundle/small_shapes.cjs cuda:0
// Operations without a kernel on the device are listed; any other error fails.

const q = require('../../dist');

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
