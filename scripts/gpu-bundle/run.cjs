'use strict';
// What the bundle of scripts/pack-gpu-bundle.cjs does on a GPU host, which needs a driver and nothing else: the parity tests, the
// golden vectors, compute-sanitizer on small shapes where it is installed, and the microbenchmarks, beside PyTorch where that is
// installed. All of it ends up in one file.
//   ./run.sh [--device cuda:0] [--out results.json] [--budget 0.2] [--only parity,golden,sanitizer,benchmarks,torch]
// Exit code: 0 if all that ran was right, 1 if something was not, 3 if there is no CUDA device.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const root = path.join(__dirname, '..', '..');
const NO_DEVICE = 3;
const MOST_TEXT = 20_000; // of what a tool says, in the results

function start(command, args, env = {}) {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  });
  return {
    ok: status === 0,
    status,
    signal,
    stdout: stdout ?? '',
    stderr: stderr ?? '',
    missing: error?.code === 'ENOENT',
  };
}

const tail = (text) => text.slice(-MOST_TEXT);

/** The suites of operations on the device, and the references of other projects; fresh memory is poisoned. */
function parity(device) {
  const report = path.join(root, 'parity.json');
  fs.rmSync(report, { force: true });
  const vitest = path.join(root, 'node_modules', 'vitest', 'vitest.mjs');
  const args = [vitest, 'run', 'test/core', 'test/reference', '--reporter=json', `--outputFile=${report}`];
  const run = start(process.execPath, args, { QUANTARIA_POISON: '1', QUANTARIA_TEST_DEVICE: device });
  if (!fs.existsSync(report))
    return { ok: false, failed: 'the tests did not run', said: tail(run.stdout + run.stderr) };
  const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(
    fs.readFileSync(report, 'utf8'),
  );
  const failures = testResults.flatMap(({ name, message, assertionResults, status }) => [
    ...(status === 'failed' && assertionResults.length === 0 ? [{ name, message }] : []),
    ...assertionResults
      .filter((test) => test.status === 'failed')
      .map((test) => ({ name: test.fullName, message: test.failureMessages.join('\n').slice(0, 2000) })),
  ]);
  // Not those of suites that hold the device against the CPU, which make their tensors on the CPU.
  const onDevice = testResults
    .flatMap(({ name, assertionResults }) => assertionResults.map((test) => ({ ...test, file: name })))
    .filter(
      ({ status, file }) => status === 'passed' && !/\/(cuda_emulated|devices)[^/]*$/.test(file),
    ).length;
  // A run in which nothing was compared on the device shows nothing.
  return {
    ok: run.ok && onDevice > 0,
    passed: numPassedTests,
    onDevice,
    failed: numFailedTests,
    skipped: numPendingTests,
    failures,
  };
}

function golden(out) {
  const run = start(path.join(root, 'quantaria_golden'), []);
  if (!run.ok) return { ok: false, failed: tail(run.stderr) };
  const file = path.join(path.dirname(out), 'golden.txt');
  fs.writeFileSync(file, run.stdout);
  return { ok: true, file, vectors: run.stdout.trim().split('\n').length - 1 };
}

function sanitizer(device) {
  const script = path.join(__dirname, 'small_shapes.cjs');
  const tools = {};
  for (const tool of ['memcheck', 'racecheck']) {
    const args = ['--tool', tool, '--error-exitcode', '9', process.execPath, script, device];
    const run = start('compute-sanitizer', args);
    if (run.missing) return { ok: true, skipped: 'compute-sanitizer is not installed' };
    tools[tool] = { ok: run.ok, said: tail(run.stdout + run.stderr) };
  }
  return { ok: Object.values(tools).every(({ ok }) => ok), ...tools };
}

function torch() {
  const found = start('python3', ['-c', 'import torch; assert torch.cuda.is_available()']);
  if (!found.ok) return { ok: true, skipped: 'python3 has no torch that sees a CUDA device' };
  const run = start('python3', [path.join(root, 'bench', 'cuda', 'torch_products.py')]);
  const rows = run.stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
  return { ok: run.ok, rows, ...(run.ok ? {} : { failed: tail(run.stderr) }) };
}

async function benchmarks(q, device, budget) {
  const { benchmarkDevice } = require('../../bench/cuda/run.cjs');
  const print = (line) => console.log(`  ${line}`);
  return { ok: true, ...(await benchmarkDevice(q, { device, budget, wanted: [], print })) };
}

function describe(result) {
  if (result.skipped && typeof result.skipped === 'string') return `skipped: ${result.skipped}`;
  const counts = ['passed', 'onDevice', 'failed', 'vectors'].filter((name) => result[name] !== undefined);
  return `${result.ok ? 'ok' : 'FAILED'} ${counts.map((name) => `${name} ${result[name]}`).join(', ')}`;
}

async function main() {
  const { values } = parseArgs({
    options: {
      device: { type: 'string', default: 'cuda:0' },
      out: { type: 'string', default: path.join(root, 'results.json') },
      budget: { type: 'string', default: '0.2' },
      only: { type: 'string' },
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
  const results = {
    device,
    cuda,
    build: q.buildId(),
    host: { cpu: os.cpus()[0]?.model ?? '', memoryBytes: os.totalmem(), kernel: os.release() },
    at: new Date().toISOString(),
  };
  console.log(`${device.name} (${device.id}), driver for CUDA ${cuda.driver}; ${results.build}`);
  const parts = {
    parity: () => parity(device.id),
    golden: () => golden(values.out),
    sanitizer: () => sanitizer(device.id),
    benchmarks: () => benchmarks(q, device.id, Number(values.budget)),
    torch,
  };
  const wanted = values.only?.split(',') ?? Object.keys(parts);
  for (const name of wanted)
    if (!(name in parts)) throw new Error(`--only: there is no ${name}, only ${Object.keys(parts)}`);
  for (const name of wanted) {
    console.log(`${name} ...`);
    try {
      results[name] = await parts[name]();
    } catch (error) {
      results[name] = { ok: false, failed: error.message };
    }
    console.log(`${name}: ${describe(results[name])}`);
    fs.writeFileSync(values.out, `${JSON.stringify(results, null, 2)}\n`); // what was measured stays, whatever comes next
  }
  console.log(`results: ${values.out}`);
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
