'use strict';
// Times the library's operations, and peers where they are installed (bench/peers), beside the machine's ceilings.
//   npm run bench -- [--budget 0.5] [--threads 2] [--out FILE] [--no-peers] [--list] [regular expression...]
// A case runs if every expression matches its label, `linear int4 g32 int8 4096x4096 m=1`. --budget: seconds for each case.
// Prints one table (bench/table.cjs) and, with --out, writes it and all figures as JSON; exits with 1 if even the best
// repetition of a case is below half of a goal.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { buildBench } = require('../scripts/bench-native.cjs');
const { time } = require('./api/measure.cjs');
const { peersFor } = require('./peers/index.cjs');
const { labelOf, report } = require('./table.cjs');
const quantaria = require('../dist');

const cases = [
  ...require('./api/products.cjs'),
  ...require('./api/experts.cjs'),
  ...require('./api/weights.cjs'),
];

const jsonLines = (text) =>
  text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));

/** Bytes or operations a second, by name. */
function measureCeilings(bench, threads) {
  const args = ['--ceilings', '--threads', String(threads), '--budget', '0.1'];
  const { status, stdout, stderr } = spawnSync(bench, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`the ceilings could not be measured: ${stderr}`);
  const rate = ({ bytes, operations, median }) => (bytes || operations) / median;
  return Object.fromEntries(jsonLines(stdout).map((row) => [row.case, rate(row)]));
}

const larger = (a, b) => Object.fromEntries(Object.keys(a).map((name) => [name, Math.max(a[name], b[name])]));

const isExported = (name) => name.split('.').reduce((value, key) => value?.[key], quantaria) !== undefined;

async function runCase(entry, budget) {
  const { name, compute, shape, m } = entry;
  const { units, work, run, dispose } = await entry.setup(quantaria);
  try {
    return { kind: 'ours', name, compute, shape, m, ...work, ...(await time(run, units, budget)) };
  } finally {
    dispose();
    await quantaria.synchronize();
  }
}

/** What one group's peers report; those that are not installed report nothing. */
function runPeers(group, threads, budget) {
  return peersFor(group).flatMap(({ name, command, args }) => {
    const { status, stdout, stderr } = spawnSync(command, [...args, String(threads), String(budget)], {
      encoding: 'utf8',
      maxBuffer: 1 << 26,
    });
    if (status !== 0) console.error(`peer ${name} failed: ${stderr.trim().split('\n').at(-1)}`);
    return status === 0 ? jsonLines(stdout).map((row) => ({ kind: 'peer', ...row })) : [];
  });
}

/** Cases whose figures are compared with one another stand together in time. */
function groupsOf(wanted) {
  const groups = new Map();
  for (const entry of wanted) {
    const [family] = entry.name.split(' ');
    const key = `${family} ${entry.shape} ${entry.m}`;
    if (!groups.has(key)) groups.set(key, { family, shape: entry.shape, m: entry.m, cases: [] });
    groups.get(key).cases.push(entry);
  }
  return [...groups.values()];
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      budget: { type: 'string', default: '0.5' },
      threads: { type: 'string', default: String(os.availableParallelism()) },
      out: { type: 'string' },
      'no-peers': { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
    },
  });
  const [budget, threads] = [Number(values.budget), Number(values.threads)];
  const patterns = positionals.map((text) => new RegExp(text));
  const wanted = cases.filter((entry) => patterns.every((pattern) => pattern.test(labelOf(entry))));
  if (wanted.length === 0) throw new Error('no case matches');
  if (values.list) return console.log(wanted.map(labelOf).join('\n'));

  const bench = buildBench();
  quantaria.setThreads(threads);
  const rows = [];
  let failed = false;
  for (const group of groupsOf(wanted)) {
    const before = measureCeilings(bench, threads);
    const measured = [];
    for (const entry of group.cases) {
      const missing = entry.needs.filter((name) => !isExported(name));
      if (missing.length > 0) {
        console.log(`skipped: ${labelOf(entry)}: ${missing.join(', ')} is not exported yet`);
        continue;
      }
      try {
        measured.push(await runCase(entry, budget));
        console.error(`${labelOf(entry)}: ${(measured.at(-1).median * 1e3).toFixed(3)} ms`);
      } catch (error) {
        failed = true;
        console.error(`error: ${labelOf(entry)}: ${error.message}`);
      }
    }
    if (!values['no-peers']) measured.push(...runPeers(group, threads, budget));
    const ceilings = larger(before, measureCeilings(bench, threads));
    rows.push(...measured.map((row) => ({ ...row, ceilings })));
  }

  const cpu = quantaria.devices().find(({ id }) => id === 'cpu');
  const result = {
    date: new Date().toISOString().slice(0, 10),
    machine: `${os.cpus()[0].model}, ${os.availableParallelism()} cores, ${cpu.isa}`,
    node: process.version,
    threads,
    rows,
  };
  if (values.out) fs.writeFileSync(path.resolve(values.out), `${JSON.stringify(result, null, 1)}\n`);
  if (!report(result) || failed) process.exitCode = 1;
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
