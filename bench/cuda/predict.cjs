'use strict';
// What linear should take on GPUs that are not at hand, so that a measurement can be held against it: per shape the floor (bytes,
// operations), and a prediction from what its launch asks of a multiprocessor. Nothing here is measured on a GPU.
//   npm run build:emulated && node bench/cuda/predict.cjs [--out bench/cuda/predictions.json] [regular expression...]
// Grid, threads and shared memory are those of the real launch, noted down by the emulated device, which then does not run it;
// registers are in csrc/cuda/kernels.json, the most of any of a kernel's instantiations for that dtype and width.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const trace = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-launches-')), 'launches');
process.env.QUANTARIA_BUILD = 'emulated';
process.env.QUANTARIA_SIMT_TRACE = trace;

const { allCases, labelOf, releaseHeld } = require('./cases.cjs');
const { floorSeconds, machines } = require('./machines.cjs');
const { kernels } = require('../../csrc/cuda/kernels.json');
const q = require('../../dist');

const ROWS = new Set([1, 8, 16, 64, 256, 4096]);
const DEVICE = 'cuda-emulated';

/** Assumed, not measured, and the same for all: what a comparison with a measurement has to put right first. */
const ASSUMED = {
  memoryShare: 0.9, // of the data sheet's rate that a long stream of reads reaches
  computeShare: 0.8, // of the tensor cores' peak that a full loop reaches
  stagesInFlight: 2 / 3, // of a block's shared memory that is being filled: two stages of three
  latencySeconds: 6e-7, // of a read from memory under load
  warpsToFillTensorCores: 8, // of a multiprocessor
  launchSeconds: 3e-6,
  reservedSharedBytes: 1024, // of each block, by the system
  registersAtOnce: 256, // a warp's registers come in pieces of so many
};

/** The kernel's name in csrc/cuda/kernels.json, for float16. */
const KERNEL = {
  dense: /^gemm<Half/,
  'int4 g128': /^coded_product<Half.*IntegerDecoder<Half, 4>/,
  'int4 g128 zero points': /^coded_product<Half.*IntegerDecoder<Half, 4>/,
  'int4 g32': /^coded_product<Half.*IntegerDecoder<Half, 4>/,
  'int3 g128': /^coded_product<Half.*IntegerDecoder<Half, 3>/,
  'int2 g32': /^coded_product<Half.*IntegerDecoder<Half, 2>/,
  'int8 g128': /^coded_product<Half.*IntegerDecoder<Half, 8>/,
  'nf4 b64': /^coded_product<Half.*TableDecoder<Half, 4>/,
  'nf4 b64 double': /^coded_product<Half.*TableDecoder<Half, 4>/,
  mxfp4: /^coded_product<Half.*TableDecoder<Half, 4>/,
  'fp8 e4m3': /^coded_product<Half.*TableDecoder<Half, 8>/,
};

function registersOf(pattern) {
  const rows = Object.entries(kernels).filter(([name]) => pattern.test(name));
  if (rows.length === 0) throw new Error(`csrc/cuda/kernels.json has no kernel like ${pattern}`);
  return Math.max(...rows.map(([, { registers }]) => registers));
}

/** Blocks that a multiprocessor holds at once, and what it is that limits them. */
function occupancy({ threads, shared }, registers, multiprocessor) {
  const warps = threads / 32;
  const perWarp = Math.ceil((registers * 32) / ASSUMED.registersAtOnce) * ASSUMED.registersAtOnce;
  const limits = {
    registers: Math.floor(multiprocessor.registers / (perWarp * warps)),
    shared: Math.floor(multiprocessor.sharedBytes / (shared + ASSUMED.reservedSharedBytes)),
    threads: Math.floor(multiprocessor.threads / threads),
    blocks: multiprocessor.blocks,
  };
  const [by, blocks] = Object.entries(limits).sort(([, a], [, b]) => a - b)[0];
  return { blocks, by };
}

function predict(work, launches, registers, machine) {
  // The product is the launch with most to do; what follows adds up its parts.
  const main = [...launches].sort(
    (a, b) => b.blocks * b.threads * b.shared - a.blocks * a.threads * a.shared,
  )[0];
  const { blocks, by } = occupancy(main, registers, machine.multiprocessor);
  if (blocks === 0) throw new Error(`a block of ${main.threads} threads, ${main.shared} bytes does not fit`);
  const resident = blocks * machine.multiprocessors;
  const active = Math.min(main.blocks, resident);
  const inFlight = active * main.shared * ASSUMED.stagesInFlight;
  const memoryRate = Math.min(
    machine.bytesPerSecond * ASSUMED.memoryShare,
    inFlight / ASSUMED.latencySeconds,
  );
  const warps = (active * main.threads) / 32 / machine.multiprocessors;
  const waves = main.blocks / resident;
  const filled = waves > 1 ? waves / Math.ceil(waves) : 1; // the last wave takes as long as a full one
  const computeRate =
    machine.operationsPerSecond[work.rate] *
    ASSUMED.computeShare *
    Math.min(1, warps / ASSUMED.warpsToFillTensorCores) *
    filled;
  const memory = work.bytes / memoryRate;
  const compute = work.operations / computeRate;
  const seconds = Math.max(memory, compute) + ASSUMED.launchSeconds * launches.length;
  return {
    floor: floorSeconds(work, machine),
    predicted: seconds,
    ofRoofline: floorSeconds(work, machine) / seconds,
    bound: memory > compute ? 'memory' : 'compute',
    blocksPerMultiprocessor: blocks,
    limitedBy: by,
  };
}

async function launchesOf(made) {
  await q.synchronize(DEVICE);
  fs.rmSync(trace, { force: true });
  made.run();
  await q.synchronize(DEVICE);
  const lines = fs.readFileSync(trace, 'utf8').trim().split('\n');
  // All units launch the same.
  return lines.slice(0, lines.length / made.units).map((line) => {
    const [blocks, threads, shared] = line.split(' ').map(Number);
    return { blocks, threads, shared };
  });
}

async function main() {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { out: { type: 'string' } } });
  const patterns = positionals.map((text) => new RegExp(text));
  const rows = [];
  for (const entry of allCases()) {
    const kernel = KERNEL[entry.family.replace('linear ', '')];
    if (!entry.family.startsWith('linear ') || !kernel || entry.dtype !== 'float16' || !ROWS.has(entry.m))
      continue;
    if (!patterns.every((pattern) => pattern.test(labelOf(entry)))) continue;
    const made = await entry.setup(q, DEVICE);
    made.run(); // weights are brought into the order of products
    const launches = await launchesOf(made);
    const registers = registersOf(kernel);
    const row = { case: labelOf(entry), ...made.work, registers, launches };
    for (const [name, machine] of Object.entries(machines))
      row[name] = predict(made.work, launches, registers, machine);
    made.dispose();
    rows.push(row);
    const share = Object.keys(machines).map((name) => {
      const { predicted, ofRoofline } = row[name];
      return `${name} ${(predicted * 1e6).toFixed(1)} us, ${(100 * ofRoofline).toFixed(0)} %`;
    });
    console.log(`${row.case.padEnd(48)} ${share.join('; ')}`);
  }
  releaseHeld();
  if (!values.out) return;
  const head = {
    what: 'predictions, measured nowhere',
    assumed: ASSUMED,
    nvcc: require('../../csrc/cuda/kernels.json').nvcc,
  };
  const lines = rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n');
  fs.writeFileSync(
    values.out,
    `${JSON.stringify(head, null, 2).slice(0, -2)},\n  "rows": [\n${lines}\n  ]\n}\n`,
  );
}

main()
  .catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  })
  .finally(() => fs.rmSync(path.dirname(trace), { recursive: true, force: true }));
