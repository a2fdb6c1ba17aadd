'use strict';
// What the operations should take on GPUs that are not at hand, so that a measurement can be held against it: per case the floor
// (bytes, operations), and a prediction from what its launches ask of a multiprocessor. Nothing here is measured on a GPU.
//   npm run build:emulated && node bench/cuda/predict.cjs [--out bench/cuda/predictions.json] [regular expression...]
// Kernels, grids, threads and shared memory are those of the real launches, noted down by the emulated device, which then does
// not run them; registers and instructions are in csrc/cuda/kernels.json.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const trace = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-launches-')), 'launches');
process.env.QUANTARIA_BUILD = 'emulated';
process.env.QUANTARIA_SIMT_TRACE = trace;

const { allCases, labelOf, releaseHeld } = require('./cases.cjs');
const { floorSeconds, machines } = require('./machines.cjs');
const { kernels, nvcc } = require('../../csrc/cuda/kernels.json');
const { shortName } = require('../../scripts/kernel-names.cjs');
const q = require('../../dist');

const ROWS = new Set([0, 1, 8, 16, 64, 256, 4096]);
const DEVICE = 'cuda-emulated';
const addon = path.join(__dirname, '..', '..', 'build', 'emulated', 'quantaria.node');

/** Assumed, not measured, and the same for all: what a comparison with a measurement has to put right first. */
const ASSUMED = {
  memoryShare: 0.9, // of the data sheet's rate that a long stream of reads reaches
  computeShare: 0.8, // of the peak that a full loop reaches
  issueShare: 0.8, // of the clocks at which a scheduler with enough warps has one that can go on
  stagesInFlight: 2 / 3, // of a block's shared memory that is being filled, where copies are asynchronous: two stages of three
  bytesInFlight: 16, // of a thread that reads into registers
  bytesInFlightWide: 32, // the same with 16-byte reads
  latencySeconds: 6e-7, // of a read from memory under load
  warpsToFill: 8, // of a multiprocessor, for tensor cores as for plain arithmetic
  stepSeconds: 3e-7, // of what has to wait for the step before: a barrier or two, a division, a few reads from shared memory
  nodeSeconds: 1.5e-6, // from the end of a kernel to the next one's start, in a graph
  reservedSharedBytes: 1024, // of each block, by the system
  registersAtOnce: 256, // a warp's registers come in pieces of so many
};

/** Names of kernels by where they lie in the addon. */
function kernelNames() {
  const { stdout, status } = spawnSync('nm', ['-C', '--defined-only', addon], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status !== 0) throw new Error(`nm does not read ${addon}: \`npm run build:emulated\` makes it`);
  const names = new Map();
  for (const line of stdout.split('\n')) {
    const [, address, name] = /^([0-9a-f]+) [a-zA-Z] (.*)$/.exec(line) ?? [];
    const short = name && shortName(name);
    if (short && kernels[short]) names.set(Number.parseInt(address, 16), short);
  }
  return names;
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

/** Rows, columns and depth of what a block of a product makes in a step of its loop; null of other kernels. */
function tileOf(name) {
  const [, turned, list] = /(?:Coded|(Turned))Tile<([^>]*)>/.exec(name) ?? [];
  if (list) {
    const [down, across, rows, cols, step] = list.split(', ').map(Number);
    return { rows: down * rows * (turned ? 8 : 16), cols: across * cols * (turned ? 16 : 8), step };
  }
  return name.startsWith('gemm<') ? { rows: 64, cols: 64, step: 32 } : null;
}

const MMA = { rows: 16, cols: 8, depth: { float16: 16, int8: 32 } };

/** Instructions of all warps: those of the hot loop's steps, whole tiles counted. */
function instructionsOf(name, part) {
  const tile = tileOf(name);
  const { step } = kernels[name];
  if (!tile || !step || !part.products) return 0;
  const whole = (size, of) => Math.ceil(size / of) * of;
  const mmas = part.products.reduce((sum, { rows, n, k }) => {
    const all = rows.reduce((total, count) => total + whole(count, tile.rows), 0);
    return (
      sum + (all * whole(n, tile.cols) * whole(k, tile.step)) / (MMA.rows * MMA.cols * MMA.depth[part.rate])
    );
  }, 0);
  return ((mmas / step.mma) * step.instructions) / (part.launches ?? 1);
}

/** Of all schedulers' clocks, where so many blocks a multiprocessor, not always a whole number, find room at once. */
function issuingShare(blocks, warps) {
  const most = Math.ceil(blocks); // multiprocessors that have them set the time
  return (blocks / most) * Math.min(1, (most * warps) / ASSUMED.warpsToFill);
}

/** The seconds that one launch takes, and by what. */
function launchSeconds(launch, part, machine) {
  const { threads } = launch;
  const kernel = kernels[launch.kernel];
  const { blocks, by } = occupancy(launch, kernel.registers, machine.multiprocessor);
  if (blocks === 0) throw new Error(`a block of ${launch.kernel}, ${launch.shared} bytes, does not fit`);
  const resident = blocks * machine.multiprocessors;
  const active = Math.min(launch.blocks, resident);
  const ofBlock =
    kernel.copies16 || kernel.copies4
      ? launch.shared * ASSUMED.stagesInFlight
      : threads * (kernel.vectorLoads ? ASSUMED.bytesInFlightWide : ASSUMED.bytesInFlight);
  const memoryRate = Math.min(
    machine.bytesPerSecond * ASSUMED.memoryShare,
    (active * ofBlock) / ASSUMED.latencySeconds,
  );
  const warps = (active * threads) / 32 / machine.multiprocessors;
  const waves = launch.blocks / resident;
  const filled = waves > 1 ? waves / Math.ceil(waves) : 1; // the last wave takes as long as a full one
  const computeRate =
    machine.operationsPerSecond[part.rate ?? 'float32'] *
    ASSUMED.computeShare *
    Math.min(1, warps / ASSUMED.warpsToFill) *
    filled;
  const memory = part.bytes / memoryRate;
  const compute = (part.operations ?? 0) / computeRate;
  const issueRate =
    machine.multiprocessors *
    machine.multiprocessor.schedulers *
    machine.clocksPerSecond *
    ASSUMED.issueShare *
    (waves > 1 ? filled : issuingShare(launch.blocks / machine.multiprocessors, threads / 32));
  const issue = instructionsOf(launch.kernel, part) / issueRate;
  const latency = (part.steps ?? 0) * ASSUMED.stepSeconds;
  const longest = Math.max(memory, compute, issue);
  const seconds = longest + latency;
  const bound =
    latency > seconds / 2
      ? 'latency'
      : longest === memory
        ? 'memory'
        : longest === compute
          ? 'compute'
          : 'issue';
  return { seconds: seconds + ASSUMED.nodeSeconds, bound, blocks, by };
}

const divided = (part, count) => ({
  ...part,
  bytes: part.bytes / count,
  operations: (part.operations ?? 0) / count,
  steps: (part.steps ?? 0) / count,
  launches: count,
});

/** What each launch does of a case (cases.cjs). Grouped launches have blocks that leave at once: their number is a bound. */
function partsOf({ work, passes, spread }, launches) {
  const nothing = { bytes: 0 };
  if (passes) {
    const passOf = ({ kernel }) => passes.find((pass) => pass.kernel.test(kernel));
    const totals = new Map();
    for (const launch of launches) totals.set(passOf(launch), (totals.get(passOf(launch)) ?? 0) + 1);
    return launches.map((launch) => {
      const pass = passOf(launch);
      return pass ? divided(pass, totals.get(pass)) : nothing;
    });
  }
  if (spread) return launches.map(() => divided(work, launches.length));
  const size = ({ blocks, threads }) => blocks * threads;
  const main = launches.reduce((best, launch) => (size(launch) > size(best) ? launch : best));
  return launches.map((launch) => (launch === main ? work : nothing));
}

function predict(made, launches, machine) {
  const floor = floorSeconds(made.work, machine);
  const all = partsOf(made, launches).map((part, i) => launchSeconds(launches[i], part, machine));
  const predicted = all.reduce((sum, { seconds }) => sum + seconds, 0);
  const longest = all.reduce((best, one) => (one.seconds > best.seconds ? one : best));
  return {
    floor,
    predicted,
    ofRoofline: floor / predicted,
    bound: longest.bound,
    blocksPerMultiprocessor: longest.blocks,
    limitedBy: longest.by,
  };
}

async function launchesOf(made, names) {
  await q.synchronize(DEVICE).catch(() => {});
  fs.writeFileSync(trace, '');
  // An operation that looks at its results finds none, as nothing ran: by then all of its launches are noted down.
  await Promise.resolve(made.run()).catch(() => {});
  await q.synchronize(DEVICE).catch(() => {});
  const lines = fs.readFileSync(trace, 'utf8').trim().split('\n').filter(Boolean);
  // All units launch the same.
  return lines.slice(0, lines.length / made.units).map((line) => {
    const [blocks, threads, shared, place] = line.split(' ').map(Number);
    const kernel = names.get(place);
    if (!kernel) throw new Error(`the kernel at ${place} of ${addon} is not in csrc/cuda/kernels.json`);
    return { kernel, blocks, threads, shared };
  });
}

/** Launches of one kernel after another are told as one, with their number. */
function told(launches) {
  const all = [];
  for (const launch of launches) {
    const found = all.find(({ kernel }) => kernel === launch.kernel);
    if (found) {
      found.launches++;
      found.blocks = Math.max(found.blocks, launch.blocks);
    } else all.push({ ...launch, launches: 1, registers: kernels[launch.kernel].registers });
  }
  return all;
}

async function main() {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { out: { type: 'string' } } });
  const patterns = positionals.map((text) => new RegExp(text));
  const names = kernelNames();
  const rows = [];
  for (const entry of allCases()) {
    if (/^linear/.test(entry.family) && entry.dtype !== 'float16') continue; // as float16, but for registers
    if (!ROWS.has(entry.m) && !/^(Hessian|attend|moe.grouped)/.test(entry.family)) continue;
    if (!patterns.every((pattern) => pattern.test(labelOf(entry)))) continue;
    const made = await entry.setup(q, DEVICE, { rotate: false });
    await Promise.resolve(made.run()).catch(() => {}); // weights are brought into the order of products
    const launches = await launchesOf(made, names);
    const { products: _, ...work } = made.work;
    const row = { case: labelOf(entry), ...work, launches: told(launches) };
    for (const [name, machine] of Object.entries(machines)) row[name] = predict(made, launches, machine);
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
    nvcc,
  };
  const rounded = (_key, value) =>
    typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value;
  const lines = rows.map((row) => `    ${JSON.stringify(row, rounded)}`).join(',\n');
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
