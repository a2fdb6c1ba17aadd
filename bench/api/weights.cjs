'use strict';
// What is done to weights and rows: quantize, dequantize, GPTQ, the Hadamard transform, the split of LLM.int8. Results go
// into memory that the allocator kept from the run before, as in a job over many layers.

const { normals } = require('./measure.cjs');

const N = 4096;
const INT4 = {
  kind: 'int',
  bits: 4,
  symmetric: true,
  range: 'full',
  granularity: 'group',
  groupSize: 128,
};
const NF4 = { kind: 'nf4', blockSize: 64 };

/** One operation on a float32 [4096, 4096]; `run(q, own)` returns what is to be disposed of. */
const onSquare = ({ name, needs, prepare = () => ({}), run, bytes = 4 * N * N, operations = 0 }) => ({
  name,
  compute: 'float32',
  shape: [N, N],
  m: 1,
  needs,
  async setup(q) {
    const w = q.Tensor.from(normals(N * N), [N, N]);
    const own = await prepare(q, w);
    return {
      units: 1,
      work: { bytes, operations },
      async run() {
        const made = await run(q, { w, ...own });
        for (const item of made) item.dispose();
        await q.synchronize();
      },
      dispose() {
        for (const item of [w, ...Object.values(own)]) item.dispose();
      },
    };
  },
});

const HESSIAN_TOKENS = 16384;
const SAMPLES = 8;

module.exports = [
  onSquare({
    name: 'quantize int4 g128',
    needs: ['quantize'],
    run: (q, { w }) => [q.quantize(w, INT4)],
  }),
  onSquare({ name: 'quantize nf4', needs: ['quantize'], run: (q, { w }) => [q.quantize(w, NF4)] }),
  onSquare({
    name: 'dequantize nf4',
    needs: ['dequantize'],
    prepare: (q, w) => ({ quantized: q.quantize(w, NF4) }),
    run: (q, { quantized }) => [q.dequantize(quantized)],
  }),
  onSquare({
    name: 'hadamard',
    needs: ['hadamard'],
    run: (q, { w }) => [q.hadamard(w)],
    bytes: 8 * N * N,
    operations: 12 * N * N,
  }),
  onSquare({
    name: 'llmInt8.split',
    needs: ['llmInt8.split'],
    run: async (q, { w }) => {
      const { outliers, codes, scales } = await q.llmInt8.split(w);
      return [outliers, codes, scales];
    },
    bytes: 5 * N * N,
  }),
  onSquare({
    name: 'gptq hessian',
    needs: ['Hessian'],
    prepare: (q) => {
      const values = normals(2 ** 20, 1, 7);
      const all = new Float32Array(HESSIAN_TOKENS * N);
      for (let i = 0; i < all.length; i += values.length) all.set(values, i);
      return { x: q.Tensor.from(all, [SAMPLES, HESSIAN_TOKENS / SAMPLES, N]) };
    },
    run: (q, { x }) => {
      const hessian = new q.Hessian(N);
      hessian.update(x);
      return [hessian];
    },
    operations: 2 * HESSIAN_TOKENS * N * N,
  }),
  onSquare({
    name: 'gptq quantize',
    needs: ['Hessian', 'gptq.quantize'],
    prepare: (q) => {
      const hessian = new q.Hessian(N);
      const x = q.Tensor.from(normals(2 * N * N, 1, 9), [2 * N, N]);
      hessian.update(x);
      x.dispose();
      return { hessian };
    },
    run: async (q, { w, hessian }) => [(await q.gptq.quantize(w, hessian, { scheme: INT4 })).quantized],
    operations: 2 * N ** 3,
  }),
];
