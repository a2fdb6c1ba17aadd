'use strict';
// GPTQ of a synthetic checkpoint of Aria's real shapes in bounded memory, some of its experts never reached: seconds and peak memory of an
// undisturbed run, layer by layer; a second one that is killed, interrupted and resumed in both layers, whose files must be the
// same byte for byte; and the jobs on what came out, and on the original.
//   node bench/checkpoint/calibrated.cjs [--work DIR] [--layers 2] [--unreached 5] [--rows 128] [--max-memory 2GB] [--out FILE]
// Some 6 GB are needed under --work. Memory is read from /proc while a job runs: anonymous and shared pages, which are the
// job's own, and the peak that the system keeps (VmHWM), which counts pages of mapped files as long as nothing else needs
// their place. Exits with 1 if files differ, a job fails, or its own memory grew beyond the limit.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { fileHashes } = require('../../scripts/file-hashes.cjs');
const { makeSynthetic } = require('./synthetic.cjs');

const root = path.join(__dirname, '..', '..');
const cli = path.join(root, 'dist', 'cli', 'main.js');
const VOCAB = 1024;
const SEQ_LEN = 256;
const POLL_MS = 50;
/** Rows that evaluations see. */
const EVALUATED_ROWS = 16;

/** Ids of no meaning, the same every time. */
function writeIds(file, rows) {
  const ids = new Uint16Array(rows * SEQ_LEN);
  let state = 1;
  for (let i = 0; i < ids.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    ids[i] = (state >>> 8) % VOCAB;
  }
  fs.writeFileSync(file, ids);
}

/** Bytes of /proc/PID/status, or null when the process is gone. */
function memoryOf(pid) {
  try {
    const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
    const of = (name) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0);
    return { own: of('RssAnon') + of('RssShmem'), highWater: of('VmHWM') };
  } catch {
    return null;
  }
}

function layersDone(out) {
  try {
    const journal = fs.readFileSync(path.join(out, '.quantaria', 'journal.jsonl'), 'utf8');
    return [...journal.matchAll(/"unit":"calibrate layer \d+"/g)].length;
  } catch {
    return 0;
  }
}

/**
 * Runs a command to its end, or sends it a signal.
 * @param options.out of a job whose layers are to be noted as they are done
 * @param options.stop `{ signal, layer, after }`: so many seconds after that layer has begun
 */
function run(args, { out, stop } = {}) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const child = spawn(process.execPath, [cli, ...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (data) => (stdout += data));
  child.stderr.on('data', (data) => (stderr += data));
  const found = { seconds: 0, peak: { own: 0, highWater: 0 }, layers: [] };
  let done = out === undefined ? 0 : layersDone(out);
  let layerBegan = 0;
  let stopped = null;
  const poll = setInterval(() => {
    const memory = memoryOf(child.pid);
    if (memory !== null) {
      found.peak.own = Math.max(found.peak.own, memory.own);
      found.peak.highWater = Math.max(found.peak.highWater, memory.highWater);
    }
    if (out === undefined) return;
    for (const now = layersDone(out); done < now; done++) {
      found.layers.push({ layer: done, seconds: seconds() - layerBegan, peak: { ...found.peak } });
      layerBegan = seconds();
    }
    if (stop && stopped === null && done === stop.layer && seconds() - layerBegan >= stop.after) {
      stopped = seconds();
      child.kill(stop.signal);
    }
  }, POLL_MS);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      clearInterval(poll);
      found.seconds = seconds();
      const last = stderr.trim().split('\n').at(-1);
      if (stop) {
        if (stopped === null && code !== 0) return reject(new Error(`${args[0]}: ${last}`));
        const inLayer = stopped !== null && layersDone(out) === stop.layer;
        return resolve({
          ...found,
          stop: { ...stop, inLayer, tookToStop: found.seconds - (stopped ?? found.seconds) },
        });
      }
      if (code !== 0) return reject(new Error(`${args[0]}: ${last}`));
      resolve({ ...found, summary: JSON.parse(stdout) });
    });
  });
}

/** Experts by where their Hessians came from, and weights whose damping had to grow. */
function calibrationOf({ tensors }) {
  const experts = { own: 0, blended: 0, layer: 0 };
  let unreached = 0;
  for (const { calibration, projection } of tensors) {
    if (calibration?.hessian === undefined || projection !== 'gate') continue;
    experts[calibration.hessian]++;
    if (calibration.tokens === 0) unreached++;
  }
  return { expertsByHessian: experts, unreached };
}

async function main() {
  const { values } = parseArgs({
    options: {
      work: { type: 'string', default: path.join(os.tmpdir(), 'quantaria-calibrated') },
      layers: { type: 'string', default: '2' },
      unreached: { type: 'string', default: '5' },
      rows: { type: 'string', default: '128' },
      'max-memory': { type: 'string', default: '2GB' },
      out: { type: 'string' },
    },
  });
  const { work, 'max-memory': limit } = values;
  const [layers, unreached, rows] = [values.layers, values.unreached, values.rows].map(Number);
  const limitBytes = Number.parseFloat(limit) * 1e9;
  const model = path.join(work, 'model');
  const ids = path.join(work, 'ids.u16');
  if (!fs.existsSync(path.join(model, 'config.json'))) {
    await makeSynthetic(model, { layers, vocab: VOCAB, unreached });
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
      fs.copyFileSync(path.join(root, 'examples', 'aria-bytes', name), path.join(model, name));
    }
  }
  writeIds(ids, rows);
  const result = {
    date: new Date().toISOString().slice(0, 10),
    machine: `${os.cpus()[0].model.trim()}, ${os.cpus().length} cores`,
    node: process.version,
    maxMemory: limit,
    model: { layers, unreached, bytes: sizeOf(model) },
    calibration: { rows, ids: rows * SEQ_LEN },
    load: { before: os.loadavg()[0] },
    defects: [],
  };
  const note = (line) => console.log(`${new Date().toISOString()}  ${line}`);
  const gb = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
  const described = ({ seconds, peak }) =>
    `${seconds.toFixed(1)} s, ${gb(peak.own)} (${gb(peak.highWater)} with mapped files)`;
  const flags = [
    '--method',
    'gptq',
    '--bits',
    '4',
    '--group-size',
    '128',
    '--tokens',
    ids,
    '--samples',
    String(rows),
  ];
  const quantize = (out) => ['quantize', model, '--out', out, ...flags, '--max-memory', limit, '--resume'];

  const undisturbed = path.join(work, 'undisturbed');
  fs.rmSync(undisturbed, { recursive: true, force: true });
  const { summary, ...first } = await run(quantize(undisturbed), { out: undisturbed });
  result.undisturbed = { ...first, bytesOut: summary.bytesOut, ...calibrationOf(summary) };
  note(`undisturbed: ${described(first)}`);
  for (const { layer, ...own } of first.layers) note(`  layer ${layer}: ${described(own)}`);

  const resumed = path.join(work, 'resumed');
  fs.rmSync(resumed, { recursive: true, force: true });
  result.resumed = [];
  const last = layers - 1;
  const half = (layer) => first.layers[layer].seconds / 2;
  for (const stop of [
    { signal: 'SIGKILL', layer: 0, after: half(0) },
    { signal: 'SIGINT', layer: last, after: half(last) },
    { signal: 'SIGKILL', layer: last, after: half(last) / 2 },
    undefined,
  ]) {
    const { summary: _, ...part } = await run(quantize(resumed), { out: resumed, stop });
    result.resumed.push(part);
    if (part.stop && !part.stop.inLayer)
      result.defects.push(`${part.stop.signal} came after layer ${part.stop.layer}`);
    note(
      `${part.stop ? `${part.stop.signal} in layer ${part.stop.layer}` : 'to the end'}: ${described(part)}`,
    );
  }
  const [expected, found] = [fileHashes(undisturbed), fileHashes(resumed)];
  for (const name of new Set([...Object.keys(expected), ...Object.keys(found)])) {
    if (expected[name] !== found[name]) result.defects.push(`${name} differs from the undisturbed run's`);
  }
  result.filesCompared = Object.keys(expected).length;
  note(`${result.filesCompared} files compared, ${result.defects.length} defects`);

  result.jobs = [];
  const data = ['--tokens', ids, '--samples', String(EVALUATED_ROWS)];
  const prompt = ['--prompt', 'Once upon a time', '--max-tokens', '8'];
  for (const [job, args] of [
    ['verify', ['verify', resumed, '--against', model]],
    [
      'evaluate, quantized beside original',
      ['evaluate', resumed, ...data, '--baseline', model, '--max-memory', limit],
    ],
    ['evaluate, original', ['evaluate', model, ...data, '--max-memory', limit]],
    ['generate, quantized', ['generate', resumed, ...prompt, '--max-memory', limit]],
    ['generate, original', ['generate', model, ...prompt, '--max-memory', limit]],
  ]) {
    const { summary: own, layers: _, ...rest } = await run(args);
    const { ok, problems, perplexity, baseline, text, tokensPerSecond } = own;
    if (ok === false) result.defects.push(`verify: ${problems.length} problems`);
    result.jobs.push({ job, ...rest, ok, perplexity, baseline, text, tokensPerSecond });
    note(`${job}: ${described(rest)}`);
  }
  result.load.after = os.loadavg()[0];
  for (const { job = 'quantize', peak } of [first, ...result.resumed, ...result.jobs]) {
    if (peak.own > limitBytes) result.defects.push(`${job}: ${gb(peak.own)} of its own, ${limit} allowed`);
  }
  for (const defect of result.defects) note(`defect: ${defect}`);
  if (values.out !== undefined) fs.writeFileSync(values.out, `${JSON.stringify(result, null, 2)}\n`);
  process.exitCode = result.defects.length > 0 ? 1 : 0;
}

function sizeOf(directory) {
  return fs
    .readdirSync(directory)
    .reduce((sum, name) => sum + fs.statSync(path.join(directory, name)).size, 0);
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
