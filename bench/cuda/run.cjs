'use strict';
// Times the library's operations on a CUDA device, by its own events, launched from CUDA graphs, beside the roofline of its data
// sheet. What waits for the device is timed by calls, and says so.
//   node bench/cuda/run.cjs [--device cuda:0] [--budget 0.2] [--out FILE] [--list] [regular expression...]
// A case runs if every expression matches its label, `linear int4 g128 float16 4096x4096 m=16`. --budget: seconds of samples
// for each. With --out, all figures are written as JSON. An operation that has no kernel on the device is listed as that.
// With QUANTARIA_CUBLASLT set (1 or a path), large products of 16-bit weights are the vendor's, which the results then say.

const fs = require('node:fs');
const { parseArgs } = require('node:util');
const { allCases, labelOf, releaseHeld } = require('./cases.cjs');
const { floorSeconds, machineOf } = require('./machines.cjs');

const SAMPLE_SECONDS = 0.005; // long against the resolution of events, which is half a microsecond
const LEAST_SAMPLES = 7;

/** The case as a CUDA graph, or null if it waits for the device. */
async function graphOf(q, device, { run, waits }) {
  if (waits) return null;
  try {
    return await q.captureGraph(device, run);
  } catch (error) {
    if (error.code !== 'ERR_UNSUPPORTED') throw error;
    return null;
  }
}

async function sample(q, device, { launch, units }, rounds) {
  await q.startTimer(device);
  const from = process.hrtime.bigint();
  for (let i = 0; i < rounds; i++) await launch();
  const queued = Number(process.hrtime.bigint() - from) / 1e9;
  const seconds = await q.stopTimer(device);
  return { seconds: seconds / (rounds * units), queued: queued / (rounds * units) };
}

async function samplesOf(q, device, launched, budget) {
  const first = await sample(q, device, launched, 1);
  const rounds = Math.max(1, Math.ceil(SAMPLE_SECONDS / (first.seconds * launched.units)));
  const samples = [];
  for (let spent = 0; samples.length < LEAST_SAMPLES || spent < budget; ) {
    const one = await sample(q, device, launched, rounds);
    samples.push(one);
    spent += one.seconds * launched.units * rounds;
  }
  return samples;
}

async function time(q, device, made, budget) {
  await made.run(); // code is loaded, weights are brought into the order of products
  await q.synchronize(device);
  const graph = await graphOf(q, device, made);
  const launch = graph ? () => graph.launch() : made.run;
  let samples = [];
  try {
    samples = await samplesOf(q, device, { units: made.units, launch }, budget);
  } finally {
    graph?.dispose();
  }
  const sorted = samples.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const queued = Math.min(...samples.map((one) => one.queued));
  const median = sorted[sorted.length >> 1];
  return {
    median,
    best: sorted[0],
    p95: sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.95))],
    samples: sorted.length,
    launched: graph ? 'graph' : 'calls',
    // The device waited for the host: the time is that of giving it work, not of the work.
    hostBound: queued > 0.9 * median,
  };
}

async function runCase(q, device, machine, entry, budget) {
  const { family, dtype, shape, m } = entry;
  const facts = { family, dtype, shape, m };
  let made = null;
  try {
    made = await entry.setup(q, device);
    const measured = await time(q, device, made, budget);
    const floor = machine ? floorSeconds(made.work, machine) : null;
    return { ...facts, ...made.work, ...measured, floor, ofRoofline: floor && floor / measured.median };
  } catch (error) {
    // Whatever it is, the other cases are worth their time.
    return { ...facts, failed: error.code ?? error.name, reason: error.message };
  } finally {
    made?.dispose();
    await q.synchronize(device).catch(() => {}); // an operation's failure has been told above
  }
}

/** How much faster than the dense product of the same shape, rows and dtype. */
function addSpeedUps(rows) {
  const key = ({ family, dtype, shape, m }) => `${family.split(' ')[0]} ${dtype} ${shape} ${m}`;
  const dense = new Map(
    rows.filter((row) => row.median && / dense$/.test(row.family)).map((row) => [key(row), row]),
  );
  for (const row of rows) {
    const beside = dense.get(key(row));
    if (row.median && beside && beside !== row) row.over16Bits = beside.median / row.median;
  }
}

function lineOf(row) {
  const label = labelOf(row).padEnd(52);
  if (row.failed) return `${label} ${row.failed}: ${row.reason}`;
  const share =
    row.ofRoofline === null ? '' : `${(100 * row.ofRoofline).toFixed(0).padStart(4)} % of the roofline`;
  return `${label} ${(row.median * 1e6).toFixed(1).padStart(10)} us ${share}${row.launched === 'calls' ? ' (by calls)' : ''}${row.hostBound ? ' (the host is slower)' : ''}`;
}

/** goOn() false: no further case is begun; `left` says how many that were. */
async function benchmarkDevice(q, { device, budget, wanted, print, goOn = () => true }) {
  const info = q.devices().find(({ id }) => id === device);
  const machine = machineOf(info.name);
  const patterns = wanted.map((text) => new RegExp(text));
  const cases = allCases().filter((entry) => patterns.every((pattern) => pattern.test(labelOf(entry))));
  const result = {
    device: info,
    build: q.buildId(),
    cublasLt: q.cudaStatus().cublasLt,
    rooflineKnown: machine !== null,
    left: 0,
    rows: [],
  };
  for (const [i, entry] of cases.entries()) {
    result.left = cases.length - i;
    if (!goOn()) break;
    const row = await runCase(q, device, machine, entry, budget);
    result.rows.push(row);
    result.left--;
    addSpeedUps(result.rows);
    print(lineOf(row), result);
    if (row.failed === 'ERR_CUDA') break; // the device does no more work
  }
  releaseHeld();
  return result;
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      device: { type: 'string', default: 'cuda:0' },
      budget: { type: 'string', default: '0.2' },
      out: { type: 'string' },
      list: { type: 'boolean', default: false },
    },
  });
  if (values.list) {
    for (const entry of allCases()) console.log(labelOf(entry));
    return;
  }
  const q = require('../../dist');
  q.memory(values.device); // ERR_DEVICE says why it is not there
  const result = await benchmarkDevice(q, {
    device: values.device,
    budget: Number(values.budget),
    wanted: positionals,
    print: (line) => console.log(line),
  });
  if (values.out) fs.writeFileSync(values.out, `${JSON.stringify(result, null, 2)}\n`);
}

if (require.main === module) {
  main().catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}

module.exports = { addSpeedUps, benchmarkDevice };
