'use strict';
// Times the library's operations on a CUDA device, by its own events, beside the roofline of its data sheet.
//   node bench/cuda/run.cjs [--device cuda:0] [--budget 0.2] [--out FILE] [--list] [regular expression...]
// A case runs if every expression matches its label, `linear int4 g128 float16 4096x4096 m=16`. --budget: seconds of samples
// for each. With --out, all figures are written as JSON. An operation that has no kernel on the device is listed as that.

const fs = require('node:fs');
const { parseArgs } = require('node:util');
const { allCases, labelOf, releaseHeld } = require('./cases.cjs');
const { floorSeconds, machineOf } = require('./machines.cjs');

const SAMPLE_SECONDS = 0.005; // long against the resolution of events, which is half a microsecond
const LEAST_SAMPLES = 7;

async function sample(q, device, { run, units }, rounds) {
  await q.startTimer(device);
  const from = process.hrtime.bigint();
  for (let i = 0; i < rounds; i++) run();
  const queued = Number(process.hrtime.bigint() - from) / 1e9;
  const seconds = await q.stopTimer(device);
  return { seconds: seconds / (rounds * units), queued: queued / (rounds * units) };
}

async function time(q, device, made, budget) {
  made.run(); // code is loaded, weights are brought into the order of products
  await q.synchronize(device);
  const first = await sample(q, device, made, 1);
  const rounds = Math.max(1, Math.ceil(SAMPLE_SECONDS / (first.seconds * made.units)));
  const samples = [];
  for (let spent = 0; samples.length < LEAST_SAMPLES || spent < budget; ) {
    const one = await sample(q, device, made, rounds);
    samples.push(one);
    spent += one.seconds * made.units * rounds;
  }
  const sorted = samples.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const queued = Math.min(...samples.map((one) => one.queued));
  const median = sorted[sorted.length >> 1];
  return {
    median,
    best: sorted[0],
    p95: sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.95))],
    samples: sorted.length,
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
    if (!(error instanceof q.QuantariaError)) throw error;
    return { ...facts, failed: error.code, reason: error.message };
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
  return `${label} ${(row.median * 1e6).toFixed(1).padStart(10)} us ${share}${row.hostBound ? ' (the host is slower)' : ''}`;
}

async function benchmarkDevice(q, { device, budget, wanted, print }) {
  const info = q.devices().find(({ id }) => id === device);
  const machine = machineOf(info.name);
  const patterns = wanted.map((text) => new RegExp(text));
  const rows = [];
  for (const entry of allCases()) {
    if (!patterns.every((pattern) => pattern.test(labelOf(entry)))) continue;
    rows.push(await runCase(q, device, machine, entry, budget));
    print(lineOf(rows.at(-1)));
  }
  releaseHeld();
  addSpeedUps(rows);
  return { device: info, build: q.buildId(), rooflineKnown: machine !== null, rows };
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

module.exports = { benchmarkDevice };
