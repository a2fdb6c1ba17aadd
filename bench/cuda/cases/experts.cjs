'use strict';
// Mixture-of-experts layers of Aria's shape: routing, grouped products, whole layers, and conversions of their layout.

const { ARIA, ROWS, WEIGHTS, filled, heldWeights, tensorOf } = require('./tensors.cjs');

const { hidden, inter, experts, topK } = ARIA;
const LAYER = [experts, hidden, inter];

const logitsOf = (q, device, m) => tensorOf(q, device, [m, experts], 'float32', 1, 5);

function expertLayer(family, scheme, m, dtype) {
  return {
    family: `moe.experts ${family}`,
    dtype,
    shape: LAYER,
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
      const x = tensorOf(q, device, [m, hidden], dtype, 1, 3);
      const logits = logitsOf(q, device, m);
      const routing = q.moe.route(logits, { topK, order: 'topk-softmax' });
      // By a kernel that predictions do not run, so on the CPU.
      const onHost = q.Tensor.from(filled(m * experts, 1, 5), [m, experts]);
      const counted = q.moe.route(onHost, { topK, order: 'topk-softmax' });
      const rows = Array.from(await counted.counts.read()).filter((count) => count > 0);
      for (const tensor of [onHost, ...Object.values(counted)]) tensor.dispose();
      const bytesOf = ({ gate, up, down }) => gate.byteLength + up.byteLength + down.byteLength;
      const slots = m * topK;
      const work = {
        bytes: bytesOf(all[0]) * rows.length + 2 * slots * (2 * hidden + 2 * inter),
        operations: 6 * slots * hidden * inter,
        rate: 'float16',
        products: [
          { rows, n: 2 * inter, k: hidden },
          { rows, n: hidden, k: inter },
        ],
      };
      return {
        units: 1,
        work,
        passes: [
          { kernel: /^(gemm|coded_product)/, ...work },
          { kernel: /^combine/, bytes: 4 * slots * hidden + 2 * m * hidden },
        ],
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

/** The first product of 16-bit experts alone, rows spread evenly over them: groupedMatmul of [E, hidden, 2 inter]. */
function groupedProduct(rows, dtype) {
  return {
    family: 'moe.groupedMatmul',
    dtype,
    shape: [experts, hidden, 2 * inter],
    m: rows,
    async setup(q, device) {
      const [w] = heldWeights(`${device} grouped ${dtype}`, () => [
        tensorOf(q, device, [experts, hidden, 2 * inter], dtype, 0.02, 1),
      ]);
      const rowsOf = Array.from(
        { length: experts },
        (_, e) => Math.floor((rows * (e + 1)) / experts) - Math.floor((rows * e) / experts),
      );
      const counts = q.Tensor.from(rowsOf, [experts], { dtype: 'int32', device });
      const x = tensorOf(q, device, [rows, hidden], dtype);
      const work = {
        bytes: 2 * Math.min(rows, experts) * hidden * 2 * inter + 2 * rows * (hidden + 2 * inter),
        operations: 2 * rows * hidden * 2 * inter,
        rate: 'float16',
        products: [{ rows: rowsOf, n: 2 * inter, k: hidden }],
      };
      return {
        units: 1,
        work,
        passes: [{ kernel: /^gemm/, ...work }],
        run() {
          q.moe.groupedMatmul(x, w, counts).dispose();
        },
        dispose() {
          for (const tensor of [x, counts]) tensor.dispose();
        },
      };
    },
  };
}

/** The choice of experts, and the slots sorted by them. */
function routing(m) {
  return {
    family: 'moe.route',
    dtype: 'float32',
    shape: [experts],
    m,
    async setup(q, device) {
      const logits = logitsOf(q, device, m);
      const slots = m * topK;
      return {
        units: 1,
        work: { bytes: 4 * m * experts + 16 * slots, operations: 0, rate: 'float32' },
        passes: [
          { kernel: /^route_tokens/, bytes: 4 * m * experts + 8 * slots },
          { kernel: /^(count|place)_chunks|^sort_chunk/, bytes: 12 * slots },
          // One block adds up all chunks, one after the other.
          { kernel: /^add_up_chunks/, bytes: 0, steps: Math.ceil(slots / 1024) },
        ],
        run() {
          for (const tensor of Object.values(q.moe.route(logits, { topK, order: 'topk-softmax' })))
            tensor.dispose();
        },
        dispose() {
          logits.dispose();
        },
      };
    },
  };
}

/** Every byte is read once and written once. */
function conversion(family, prepare) {
  return {
    family,
    dtype: 'bfloat16',
    shape: LAYER,
    m: 0,
    async setup(q, device) {
      const fc1 = q.Tensor.zeros([experts, hidden, 2 * inter], { dtype: 'bfloat16', device });
      const fc2 = q.Tensor.zeros([experts, inter, hidden], { dtype: 'bfloat16', device });
      const { run, made } = prepare(q, fc1, fc2);
      return {
        units: 1,
        work: { bytes: 2 * (fc1.byteLength + fc2.byteLength), operations: 0, rate: 'float32' },
        spread: true,
        run,
        dispose() {
          for (const tensor of [fc1, fc2, ...made]) tensor.dispose();
        },
      };
    },
  };
}

const tensorsOf = (all) => all.flatMap((expert) => Object.values(expert));
const dispose = (tensors) => {
  for (const tensor of tensors) tensor.dispose();
};

const CONVERSIONS = [
  conversion('moe.groupedToSequential', (q, fc1, fc2) => ({
    made: [],
    run: () => dispose(tensorsOf(q.moe.groupedToSequential(fc1, fc2))),
  })),
  conversion('moe.sequentialToGrouped', (q, fc1, fc2) => {
    const sequential = q.moe.groupedToSequential(fc1, fc2);
    return {
      made: tensorsOf(sequential),
      run: () => dispose(Object.values(q.moe.sequentialToGrouped(sequential))),
    };
  }),
];

function expertCases() {
  const cases = [];
  for (const family of ['dense', 'int4 g128', 'int8 g128', 'nf4 b64', 'mxfp4'])
    for (const m of ROWS) cases.push(expertLayer(family, WEIGHTS[family], m, 'bfloat16'));
  for (const rows of [64, 384, 1536, 6144, 24576]) cases.push(groupedProduct(rows, 'bfloat16'));
  for (const m of ROWS) cases.push(routing(m));
  return [...cases, ...CONVERSIONS];
}

module.exports = { expertCases };
