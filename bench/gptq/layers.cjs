'use strict';
// GPTQ (4 bits, groups of 128) of one 4096 x 4096 layer and of one layer of Aria's real shape, beside the reference implementation in
// torch, and what follows for the whole of Aria.
//   node bench/gptq/layers.cjs [--python PYTHON --gptq DIR] [--out FILE]
// PYTHON has torch; DIR holds gptq.py and quant.py of github.com/IST-DASLab/gptq. Both measure the same parts, in bursts of some
// seconds: Hessians of so many states, one weight of each shape, one expert. A layer is the sum of its parts, each times its number.
// Attention and norms of the forward pass are in neither; an expert includes its states' way through gate and up.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const LAYERS = 28;
const EXPERTS = 64;
const HIDDEN = 2560;
const WIDTH = 1664;
const SHARED = 2 * WIDTH;
/** Calibration: 128 rows of 256 ids, 6 of 64 experts each. */
const TOKENS = 128 * 256;
const ROUTED = (TOKENS * 6) / EXPERTS;
const SHORT = 2048;

/** What is measured: a name, the states and the shape. `hessian` of `tokens` states, `weight` without its Hessian, or an `expert`. */
const PARTS = [
  { name: 'hessian 4096', kind: 'hessian', tokens: SHORT, shape: [0, 4096] },
  { name: 'weight 4096 x 4096', kind: 'weight', tokens: SHORT, shape: [4096, 4096] },
  { name: 'hessian 2560', kind: 'hessian', tokens: SHORT, shape: [0, HIDDEN] },
  { name: 'hessian 3328', kind: 'hessian', tokens: SHORT, shape: [0, SHARED] },
  { name: 'weight 2560 x 2560', kind: 'weight', tokens: SHORT, shape: [HIDDEN, HIDDEN] },
  { name: 'weight 3328 x 2560', kind: 'weight', tokens: SHORT, shape: [SHARED, HIDDEN] },
  { name: 'weight 2560 x 3328', kind: 'weight', tokens: SHORT, shape: [HIDDEN, SHARED] },
  { name: 'expert', kind: 'expert', tokens: ROUTED, shape: [WIDTH, HIDDEN] },
];

/** How often a part comes in each sum. The reference has a Hessian for every weight; here those with the same input share one. */
const SUMS = {
  'one 4096 x 4096 layer, 16384 states': () => ({
    'hessian 4096': 16384 / SHORT,
    'weight 4096 x 4096': 1,
  }),
  'one layer of Aria, 32768 states': (ours) => ({
    'hessian 2560': ((ours ? 3 : 6) * TOKENS) / SHORT,
    'hessian 3328': TOKENS / SHORT,
    'weight 2560 x 2560': 4,
    'weight 3328 x 2560': 2,
    'weight 2560 x 3328': 1,
    expert: EXPERTS,
  }),
};

const sumOf = (counts, seconds) =>
  Object.entries(counts).reduce((sum, [name, count]) => sum + count * seconds[name], 0);

async function ours() {
  const { Tensor, Hessian, gptq, linear, synchronize } = require('../..');
  const { swiglu } = require('../../dist/ops/decoder.js');
  const { quantizeCalibrated } = require('../../dist/methods/gptq.js');
  const scheme = { kind: 'int', bits: 4, symmetric: false, granularity: 'group', groupSize: 128 };
  const settings = { actOrder: false, staticGroups: false, damping: 0.01 };
  const normal = (shape) => {
    const size = shape.reduce((a, b) => a * b, 1);
    let state = 1;
    const values = Float32Array.from({ length: size }, () => {
      let sum = -2;
      for (let i = 0; i < 4; ++i) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        sum += state / 2 ** 32;
      }
      return 1.7 * sum;
    });
    return Tensor.from(values, shape, { dtype: 'bfloat16' });
  };
  const hessianOf = (x) => {
    const hessian = new Hessian(x.shape[1]);
    hessian.update(x.reshape([x.shape[0], 1, x.shape[1]]));
    return hessian;
  };
  const runs = {
    hessian: (x) => async () => {
      const hessian = hessianOf(x);
      await synchronize();
      hessian.dispose();
    },
    weight: (x, [out, width]) => {
      const [weight, hessian] = [normal([out, width]), hessianOf(x)];
      return async () => (await gptq.quantize(weight, hessian, { ...settings, scheme })).quantized.dispose();
    },
    expert: (x, [out, width]) => {
      const weights = [normal([out, width]), normal([out, width]), normal([width, out])];
      return async () => {
        const [gate, up, down] = weights;
        const entering = hessianOf(x);
        const [gated, raised] = [linear(x, gate), linear(x, up)];
        const inner = swiglu(gated, raised);
        const leaving = hessianOf(inner);
        for (const [together, hessian] of [
          [[gate, up], entering],
          [[down], leaving],
        ]) {
          // With round-to-nearest measured beside it, as the job does.
          const made = await quantizeCalibrated(
            together.map((weight) => ({ weight, hessian })),
            scheme,
            settings,
          );
          for (const { quantized } of made) quantized.dispose();
        }
        for (const made of [entering, leaving, gated, raised, inner]) made.dispose();
      };
    },
  };
  const seconds = {};
  for (const { name, kind, tokens, shape } of PARTS) {
    const run = runs[kind](normal([tokens, shape[1]]), shape);
    await run();
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 3; ++i) {
      const began = performance.now();
      await run();
      best = Math.min(best, (performance.now() - began) / 1000);
    }
    seconds[name] = best;
  }
  return seconds;
}

/** Work of a layer of Aria in products: in float32 (factorisations, updates, errors), and in 16 bits (Hessians, forward). */
function workOfLayer() {
  const weight = (out, width) => 3 * out * width ** 2 + (2 / 3) * width ** 3;
  const float32 =
    4 * weight(HIDDEN, HIDDEN) +
    2 * weight(SHARED, HIDDEN) +
    weight(HIDDEN, SHARED) +
    EXPERTS * (2 * weight(WIDTH, HIDDEN) + weight(HIDDEN, WIDTH));
  const bfloat16 =
    TOKENS * (3 * HIDDEN ** 2 + SHARED ** 2) +
    EXPERTS * ROUTED * (HIDDEN ** 2 + WIDTH ** 2 + 4 * HIDDEN * WIDTH);
  return { float32, bfloat16 };
}

/** Of an A100 at half of its peaks, float32 without and bfloat16 with tensor cores; a bound by arithmetic, nothing was run. */
const A100 = { float32: 0.5 * 19.5e12, bfloat16: 0.5 * 312e12 };

async function main() {
  const { values } = parseArgs({
    options: { python: { type: 'string' }, gptq: { type: 'string' }, out: { type: 'string' } },
  });
  const found = { ours: await ours() };
  if (values.python !== undefined) {
    const child = spawnSync(values.python, [path.join(__dirname, 'reference.py'), values.gptq], {
      encoding: 'utf8',
      input: JSON.stringify(PARTS),
      env: { ...process.env, OMP_NUM_THREADS: String(os.availableParallelism()) },
    });
    if (child.status !== 0) throw new Error(child.stderr);
    found.reference = JSON.parse(child.stdout);
  }
  for (const { name } of PARTS) {
    const [own, other] = [found.ours[name], found.reference?.[name]];
    console.log(
      name.padEnd(36),
      own.toFixed(3),
      other?.toFixed(3) ?? '',
      other ? (other / own).toFixed(1) : '',
    );
  }
  const sums = {};
  for (const [name, counts] of Object.entries(SUMS)) {
    const own = sumOf(counts(true), found.ours);
    const other = found.reference && sumOf(counts(false), found.reference);
    sums[name] = { ours: own, reference: other, ratio: other && other / own };
    console.log(
      name.padEnd(36),
      own.toFixed(1),
      other?.toFixed(1) ?? '',
      other ? (other / own).toFixed(1) : '',
    );
  }
  const layer = sums['one layer of Aria, 32768 states'];
  const work = workOfLayer();
  const aria = {
    cpuMinutes: (LAYERS * layer.ours) / 60,
    referenceCpuMinutes: layer.reference && (LAYERS * layer.reference) / 60,
    layerFlop: work,
    a100Seconds: LAYERS * (work.float32 / A100.float32 + work.bfloat16 / A100.bfloat16),
  };
  console.log(aria);
  if (values.out === undefined) return;
  const machine = `${os.cpus()[0].model.trim()}, ${os.cpus().length} cores`;
  const date = new Date().toISOString().slice(0, 10);
  const result = { date, machine, node: process.version, seconds: found, sums, aria };
  fs.writeFileSync(values.out, `${JSON.stringify(result, null, 2)}\n`);
}

void main();
