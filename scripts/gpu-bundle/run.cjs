'use strict';
// What the bundle of scripts/pack-gpu-bundle.cjs does on a GPU host, which needs a driver and nothing else, not even an
// administrator: the parity tests, the golden vectors, compute-sanitizer on small shapes where it is installed, and the
// microbenchmarks, beside PyTorch where that is installed. All of it ends up in one file.
//   ./run.sh [--device cuda:0] [--out results.json] [--minutes 120] [--budget 0.2]
//            [--only parity,golden,sanitizer,benchmarks,torch] [--cases 'regular expression of benchmarks']...
// After --minutes nothing new is begun, and what still runs is ended. Of a file of the same build and device what is not run again
// is kept, so that a few short calls add up to a long one.
// Exit code: 0 if all that ran was right, 1 if something was not, 3 if there is no CUDA device.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { Clock, cudaTool, driverFacts, root, saidBy, start, tail } = require('./tools.cjs');

const NO_DEVICE = 3;
const ROWS_BETWEEN_WRITES = 20;
const vitest = path.join(root, 'node_modules', 'vitest', 'vitest.mjs');

/** The suites that vitest.config.mts runs on a device: each by itself, so that one that breaks the device takes no other along. */
function testFiles(env) {
  const listed = start(process.execPath, [vitest, 'list', '--filesOnly', '--json'], { env });
  if (!listed.ok) throw new Error(`the tests cannot be listed: ${saidBy(listed)}`);
  return [...new Set(JSON.parse(listed.stdout).map(({ file }) => path.relative(root, file)))].sort();
}

function runTests(file, env, timeout) {
  const report = path.join(os.tmpdir(), `quantaria-parity-${process.pid}.json`);
  const args = [vitest, 'run', file, '--reporter=json', `--outputFile=${report}`];
  const run = start(process.execPath, args, { env, timeout });
  try {
    if (!fs.existsSync(report)) return { ok: false, file, failed: saidBy(run) };
    const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(
      fs.readFileSync(report, 'utf8'),
    );
    const failures = testResults.flatMap(({ name, message, assertionResults, status }) => [
      ...(status === 'failed' && assertionResults.length === 0 ? [{ name, message }] : []),
      ...assertionResults
        .filter((test) => test.status === 'failed')
        .map((test) => ({ name: test.fullName, message: test.failureMessages.join('\n').slice(0, 2000) })),
    ]);
    const facts = { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests };
    return { ok: run.ok, file, ...facts, failures };
  } finally {
    fs.rmSync(report, { force: true });
  }
}

/** The suites of operations, models and whole jobs on the device, and those that hold it against the CPU; fresh memory is poisoned. */
function parity({ device, env, clock, note }) {
  // The environment shows a GPU alone, so it is the first one there.
  const QUANTARIA_TEST_DEVICE = device.kind === 'cuda' ? 'cuda:0' : device.id;
  const own = { ...env, QUANTARIA_POISON: '1', QUANTARIA_TEST_DEVICE };
  const runs = [];
  for (const file of testFiles(own)) {
    runs.push(runTests(file, own, clock.left(20)));
    const { ok, passed = 0 } = runs.at(-1);
    console.log(`  ${ok ? 'ok' : 'FAILED'} ${file}: ${passed} passed`);
    note(summary(runs));
  }
  return summary(runs);
}

function summary(runs) {
  const sum = (name) => runs.reduce((total, run) => total + (Number.isInteger(run[name]) ? run[name] : 0), 0);
  return {
    // A run in which nothing was compared on the device shows nothing.
    ok: runs.every(({ ok }) => ok) && sum('passed') > 0,
    passed: sum('passed'),
    failed: sum('failed'),
    skipped: sum('skipped'),
    failures: runs.flatMap(({ failures }) => failures ?? []),
    notRun: runs
      .filter(({ failed }) => typeof failed === 'string')
      .map(({ file, failed }) => ({ file, failed })),
  };
}

function golden({ env, clock, out }) {
  const run = start(path.join(root, 'quantaria_golden'), [], { env, timeout: clock.left(5) });
  if (!run.ok) return { ok: false, failed: saidBy(run) };
  const file = path.join(path.dirname(out), 'golden.txt');
  fs.writeFileSync(file, run.stdout);
  return { ok: true, file, vectors: run.stdout.trim().split('\n').length - 1 };
}

function sanitizer({ env, clock, note }) {
  const command = cudaTool('compute-sanitizer');
  if (command === null) return { ok: true, skipped: 'compute-sanitizer is not installed' };
  const script = path.join(__dirname, 'small_shapes.cjs');
  const tools = {};
  const result = () => ({ ok: Object.values(tools).every(({ ok }) => ok), ...tools });
  for (const tool of ['memcheck', 'racecheck', 'synccheck']) {
    const args = ['--tool', tool, '--error-exitcode', '9', process.execPath, script, 'cuda:0'];
    const run = start(command, args, { env, timeout: clock.left(20) });
    tools[tool] = { ok: run.ok, said: run.ok ? tail(run.stdout + run.stderr) : saidBy(run) };
    note(result());
  }
  return result();
}

function torch({ env, clock }) {
  const python = ['python3', 'python'].find(
    (name) =>
      start(name, ['-c', 'import torch; assert torch.cuda.is_available()'], { env, timeout: clock.left(3) })
        .ok,
  );
  if (!python) return { ok: true, skipped: 'no python3 has a torch that sees a CUDA device' };
  const script = path.join(root, 'bench', 'cuda', 'torch_products.py');
  const run = start(python, [script], { env, timeout: clock.left(20) });
  const rows = run.stdout
    .split('\n')
    .filter((line) => /^\{.*\}$/.test(line))
    .map((line) => JSON.parse(line));
  return { ok: run.ok, rows, ...(run.ok ? {} : { failed: saidBy(run) }) };
}

async function benchmarks({ q, device, budget, cases, clock, note, before }) {
  const { addSpeedUps, benchmarkDevice } = require('../../bench/cuda/run.cjs');
  let printed = 0;
  const known = before?.rows ?? [];
  const merged = (result) => {
    const key = ({ family, dtype, shape, m }) => `${family} ${dtype} ${shape} ${m}`;
    const fresh = new Set(result.rows.map(key));
    const failed = result.rows.filter((row) => row.failed && row.failed !== 'ERR_UNSUPPORTED').length;
    const rows = [...known.filter((row) => !fresh.has(key(row))), ...result.rows];
    addSpeedUps(rows);
    return { ok: failed === 0, failed, ...result, rows };
  };
  const result = await benchmarkDevice(q, {
    device: device.id,
    budget,
    wanted: cases,
    print: (line, soFar) => {
      console.log(`  ${line}`);
      if (++printed % ROWS_BETWEEN_WRITES === 0) note(merged(soFar));
    },
    goOn: () => clock.left() > 0,
  });
  return merged(result);
}

function describe(result) {
  if (typeof result.skipped === 'string') return `skipped: ${result.skipped}`;
  const counts = ['passed', 'failed', 'vectors', 'left'].filter((name) => typeof result[name] === 'number');
  const why = typeof result.failed === 'string' ? `: ${result.failed.split('\n')[0]}` : '';
  return `${result.ok ? 'ok' : 'FAILED'}${why} ${counts.map((name) => `${name} ${result[name]}`).join(', ')}`;
}

/** Of an earlier call, if it was of this build and device. */
function earlier(file, build, device) {
  try {
    const found = JSON.parse(fs.readFileSync(file, 'utf8'));
    return found.build === build && found.device?.name === device.name ? found : {};
  } catch {
    return {};
  }
}

/** Child processes see this device alone, as their first. Its number counts those that cannot be used as well. */
function environmentFor(device) {
  const [, number] = /^cuda:(\d+)$/.exec(device.id) ?? [];
  if (number === undefined) return {};
  const visible = process.env.CUDA_VISIBLE_DEVICES?.split(',');
  return { CUDA_VISIBLE_DEVICES: visible?.[Number(number)] ?? number };
}

async function main() {
  const { values } = parseArgs({
    options: {
      device: { type: 'string', default: 'cuda:0' },
      out: { type: 'string', default: path.join(root, 'results.json') },
      minutes: { type: 'string', default: '120' },
      budget: { type: 'string', default: '0.2' },
      only: { type: 'string' },
      cases: { type: 'string', multiple: true, default: [] },
    },
  });
  const q = require('../../dist');
  const device = q.devices().find(({ id }) => id === values.device);
  const cuda = q.cudaStatus();
  if (!device) {
    console.error(
      `no CUDA device: ${cuda.reason ?? cuda.refused?.[values.device] ?? `${values.device} is not there`}`,
    );
    return NO_DEVICE;
  }
  const parts = { parity, golden, sanitizer, benchmarks, torch };
  const wanted = values.only?.split(',') ?? Object.keys(parts);
  for (const name of wanted)
    if (!(name in parts)) throw new Error(`--only: there is no ${name}, only ${Object.keys(parts)}`);
  const out = path.resolve(values.out);
  const write = () => fs.writeFileSync(out, `${JSON.stringify(results, null, 2)}\n`);
  const results = {
    ...earlier(out, q.buildId(), device),
    device,
    cuda,
    build: q.buildId(),
    host: { cpu: os.cpus()[0]?.model ?? '', memoryBytes: os.totalmem(), kernel: os.release() },
    driver: driverFacts(),
    at: new Date().toISOString(),
  };
  write(); // if it cannot be written, now
  console.log(`${device.name} (${device.id}), driver for CUDA ${cuda.driver}; ${results.build}`);
  const clock = new Clock(Number(values.minutes));
  const env = environmentFor(device);
  const given = { q, device, env, clock, out, budget: Number(values.budget), cases: values.cases };
  for (const name of wanted) {
    const note = (soFar) => {
      results[name] = soFar; // what was measured stays, whatever comes next
      write();
    };
    console.log(`${name} ...`);
    try {
      if (clock.left() === 0) throw new Error('the time was up before it began');
      note(await parts[name]({ ...given, note, before: results[name] }));
    } catch (error) {
      note({ ok: false, failed: error.message });
    }
    console.log(`${name}: ${describe(results[name])}`);
  }
  results.driverAfter = driverFacts();
  write();
  console.log(`results: ${out}`);
  return wanted.every((name) => results[name].ok) ? 0 : 1;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  },
);
