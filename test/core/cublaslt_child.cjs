'use strict';
// node cublaslt_child.cjs <package> <status|large|products|others>: products on the emulated device, in a process of its own, as
// QUANTARIA_CUBLASLT is read once. Prints what became of each.

const { readFileSync } = require('node:fs');
const q = require(process.argv[2]);

/** Small integers: sums are exact, so whoever multiplies must get the same bits. */
const integers = (shape, salt, dtype) => {
  const count = shape.reduce((a, b) => a * b, 1);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = (Math.imul(i + salt, 0x9e3779b1) >>> 29) - 4;
  return q.Tensor.from(values, shape, { dtype });
};

/** Whether the device's result has the CPU's bits; else what it failed with. */
async function outcome(compute, operands) {
  const wanted = compute(...operands);
  const there = operands.map((tensor) => tensor.to('cuda-emulated'));
  try {
    const found = compute(...there);
    const [a, b] = [await found.read(), await wanted.read()];
    return { same: Buffer.from(a.buffer).equals(Buffer.from(b.buffer)) };
  } catch ({ code, message }) {
    return { code, message };
  } finally {
    for (const tensor of there) tensor.dispose();
  }
}

/** The same from a graph, which is launched twice. */
async function fromGraph(x, weight) {
  const [a, b] = [x, weight].map((tensor) => tensor.to('cuda-emulated'));
  await q.synchronize('cuda-emulated');
  let found;
  const graph = await q.captureGraph('cuda-emulated', () => {
    found = q.linear(a, b);
  });
  graph.launch();
  graph.launch();
  const bits = Buffer.from((await found.read()).buffer);
  graph.dispose();
  return bits.equals(Buffer.from((await q.linear(x, weight).read()).buffer));
}

const OPERANDS = [[64, 4096], [4096, 4096], [4096]].map((shape, i) => integers(shape, i, 'bfloat16'));

/** What the library is for. */
const large = async () => ({
  large: await outcome((a, b, c) => q.linear(a, b, { bias: c }), OPERANDS),
});

/** The same in other forms, and what has to work whatever becomes of it. */
async function products() {
  const [x, weight] = OPERANDS;
  const small = [integers([3, 64], 3, 'float16'), integers([64, 64], 4, 'float16')];
  const result = {
    small: await outcome(q.linear, small),
    ...(await large()),
    inColumns: await outcome(q.matmul, [x, weight]),
  };
  if (result.large.same) result.graph = await fromGraph(x, weight);
  return { ...result, smallAfter: await outcome(q.linear, small) };
}

/** Products as large as those, which are not for the library. */
async function others() {
  const [x, weight] = OPERANDS;
  const int8 = q.quantize(weight, { kind: 'int', bits: 8, symmetric: true, granularity: 'row' });
  return {
    fewRows: await outcome(q.linear, [integers([63, 4096], 2, 'bfloat16'), weight]),
    unevenRows: await outcome(q.matmul, [
      integers([64, 4104], 3, 'bfloat16'),
      integers([4104, 4095], 4, 'bfloat16'),
    ]),
    float32: await outcome(q.linear, [x.cast('float32'), weight.cast('float32')]),
    quantized: await outcome((a) => q.linear(a, a.device === 'cpu' ? int8 : int8.to(a.device)), [x]),
  };
}

async function main() {
  const result = await { status: () => ({}), large, products, others }[process.argv[3]]();
  result.status = q.cudaStatus().cublasLt;
  result.loaded = /libcublaslt/i.test(readFileSync('/proc/self/maps', 'utf8'));
  console.log(JSON.stringify(result));
}

main();
