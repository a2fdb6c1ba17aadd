'use strict';
// Measures the jobs from file to file on a synthetic checkpoint of Aria's real shapes, beside what the machine does in the same run:
// `cp` to the same place, and the disk's write rate.
//   node bench/checkpoint/pipeline.cjs [--model DIR] [--layers 2] [--memory /dev/shm] [--disk /tmp] [--repeat 3] [--out FILE]
// The model is written if DIR is not there. Input comes from the page cache (it is read once before), output goes to `--memory`
// (a memory-backed file system) and, for the disk's row, to `--disk`. Prints a table, writes JSON to --out.

const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { makeSynthetic } = require('./synthetic.cjs');

const cli = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');

const GOALS = {
  'quantize int4': { input: 2.5 },
  'quantize nf4': { input: 2.5 },
  'convert sequential': { ofCp: 0.5 },
  'quantize int4, disk': { ofDisk: 0.85 },
};

const GB = 1e9;
const seconds = (body) => {
  const began = process.hrtime.bigint();
  body();
  return Number(process.hrtime.bigint() - began) / 1e9;
};
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Every page of the model in the page cache. */
function warm(model) {
  const buffer = Buffer.alloc(1 << 24);
  for (const file of fs.readdirSync(model)) {
    const fd = fs.openSync(path.join(model, file), 'r');
    while (fs.readSync(fd, buffer, 0, buffer.length, null) > 0);
    fs.closeSync(fd);
  }
}

/** The job in a process of its own, as a user runs it; its own report has the time from file to file. */
function run(model, out, args) {
  fs.rmSync(out, { recursive: true, force: true });
  const child = spawnSync(process.execPath, [cli, args[0], model, '--out', out, ...args.slice(1), '--json'], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  fs.rmSync(out, { recursive: true, force: true });
  if (child.status !== 0) throw new Error(child.stderr);
  return JSON.parse(child.stdout);
}

function measureCp(model, out) {
  const took = seconds(() => execFileSync('cp', ['-r', model, out]));
  fs.rmSync(out, { recursive: true });
  return took;
}

/** Bytes per second that the disk takes, flushed to it. */
function diskRate(directory, bytes) {
  const file = path.join(directory, 'quantaria-disk-rate');
  const buffer = Buffer.alloc(1 << 24, 1);
  const took = seconds(() => {
    const fd = fs.openSync(file, 'w');
    for (let done = 0; done < bytes; done += buffer.length) fs.writeSync(fd, buffer);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
  });
  fs.rmSync(file);
  return bytes / took;
}

async function main() {
  const { values } = parseArgs({
    options: {
      model: { type: 'string', default: path.join(os.tmpdir(), 'quantaria-synthetic-aria') },
      layers: { type: 'string', default: '2' },
      memory: { type: 'string', default: '/dev/shm' },
      disk: { type: 'string', default: os.tmpdir() },
      repeat: { type: 'string', default: '3' },
      out: { type: 'string' },
    },
  });
  if (!fs.existsSync(path.join(values.model, 'config.json'))) {
    await makeSynthetic(values.model, { layers: Number(values.layers) });
  }
  warm(values.model);
  const inMemory = path.join(values.memory, 'quantaria-bench');
  const onDisk = path.join(values.disk, 'quantaria-bench');
  const repeat = Number(values.repeat);
  const rows = [];
  const inputBytes = fs
    .readdirSync(values.model)
    .reduce((sum, file) => sum + fs.statSync(path.join(values.model, file)).size, 0);

  for (const [name, args] of [
    ['quantize int4', ['quantize', '--recipe', 'int4']],
    ['quantize nf4', ['quantize', '--recipe', 'nf4']],
    ['convert sequential', ['convert', '--to', 'sequential']],
  ]) {
    const samples = [];
    for (let i = 0; i < repeat; i++) {
      // Beside each run, so that both see the same neighbours.
      const cp = measureCp(values.model, inMemory);
      const { seconds: took, peakRssBytes, bytesOut } = run(values.model, inMemory, args);
      samples.push({ took, cp, peakRssBytes, bytesOut });
    }
    const took = median(samples.map((sample) => sample.took));
    rows.push({
      job: name,
      seconds: took,
      best: Math.min(...samples.map((sample) => sample.took)),
      inputGBs: inputBytes / took / GB,
      cpSeconds: median(samples.map((sample) => sample.cp)),
      ofCp: median(samples.map((sample) => sample.cp / sample.took)),
      peakRssBytes: Math.max(...samples.map((sample) => sample.peakRssBytes)),
      samples,
    });
  }

  const disk = [];
  for (let i = 0; i < repeat; i++) {
    const {
      seconds: took,
      bytesOut,
      peakRssBytes,
    } = run(values.model, onDisk, ['quantize', '--recipe', 'int4']);
    disk.push({ took, ofDisk: bytesOut / took / diskRate(values.disk, bytesOut), peakRssBytes, bytesOut });
  }
  const took = median(disk.map((sample) => sample.took));
  rows.push({
    job: 'quantize int4, disk',
    seconds: took,
    best: Math.min(...disk.map((sample) => sample.took)),
    inputGBs: inputBytes / took / GB,
    ofDisk: median(disk.map((sample) => sample.ofDisk)),
    peakRssBytes: Math.max(...disk.map((sample) => sample.peakRssBytes)),
    samples: disk,
  });

  report(rows, { inputBytes, values });
}

function report(rows, { inputBytes, values }) {
  const machine = `${os.cpus()[0].model}, ${os.availableParallelism()} cores, ${Math.round(os.totalmem() / 1e9)} GB`;
  console.log(`${machine}; ${(inputBytes / GB).toFixed(2)} GB of input; load ${os.loadavg()[0].toFixed(2)}`);
  let failed = false;
  for (const row of rows) {
    const goal = GOALS[row.job];
    const [[kind, wanted]] = Object.entries(goal);
    const reached = { input: row.inputGBs, ofCp: row.ofCp, ofDisk: row.ofDisk }[kind];
    const unit = { input: 'GB/s of input', ofCp: 'of cp', ofDisk: "of the disk's write rate" }[kind];
    console.log(
      `${row.job.padEnd(22)} ${row.seconds.toFixed(2)} s  ${row.inputGBs.toFixed(2)} GB/s  peak ${(row.peakRssBytes / 1e6).toFixed(0)} MB  ` +
        `${reached.toFixed(2)} ${unit} (goal ${wanted})`,
    );
    // Below half of a goal something is broken, whatever the machine's neighbours do.
    if (reached < wanted / 2 || row.peakRssBytes > 2 ** 30) failed = true;
  }
  if (values.out) {
    const result = {
      date: new Date().toISOString().slice(0, 10),
      machine,
      node: process.version,
      inputBytes,
      goals: GOALS,
      rows,
    };
    fs.writeFileSync(values.out, `${JSON.stringify(result, null, 2)}\n`);
  }
  if (failed) {
    console.error('error: below half of a goal, or over 1 GiB of memory');
    process.exitCode = 1;
  }
}

void main();
