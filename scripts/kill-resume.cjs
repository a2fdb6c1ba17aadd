#!/usr/bin/env node
'use strict';
// Kills `quantaria quantize` at random moments, resumes it each time, and compares what comes out with an undisturbed run.
// While it runs, and after every kill, whatever has a final name must be whole, and an index must come after its shards.
//
//   node scripts/kill-resume.cjs <model> <kills> <seed> [flags of quantize]
//
// Twice the output's size is needed below $TMPDIR. The last line is a JSON object; exit 1 if anything was wrong.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { fileHashes } = require('./file-hashes.cjs');

const MAIN = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
const POLL_MS = 2;

/** mulberry32 */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What is wrong with a safetensors file, or null. */
function defectOf(file) {
  const fd = fs.openSync(file, 'r');
  try {
    const { size } = fs.fstatSync(fd);
    const length = Buffer.alloc(8);
    if (fs.readSync(fd, length, 0, 8, 0) < 8) return `${size} bytes only`;
    const header = Buffer.alloc(Math.min(Number(length.readBigUInt64LE()), size));
    fs.readSync(fd, header, 0, header.length, 8);
    const { __metadata__: _, ...tensors } = JSON.parse(header.toString('utf8'));
    const end = Object.values(tensors).reduce(
      (most, { data_offsets: offsets }) => Math.max(most, offsets[1]),
      0,
    );
    const expected = 8 + header.length + end;
    return size === expected ? null : `${size} bytes, ${expected} expected`;
  } catch (error) {
    return error.message;
  } finally {
    fs.closeSync(fd);
  }
}

/** What is wrong with the files that have a final name. Whole ones are not read again: they may not change any more. */
function defectsOf(directory, whole) {
  const defects = [];
  const names = fs.existsSync(directory)
    ? fs.readdirSync(directory).filter((name) => !name.startsWith('.'))
    : [];
  for (const name of names) {
    const file = path.join(directory, name);
    if (whole.has(name)) continue;
    let defect = null;
    try {
      if (name.endsWith('.safetensors')) defect = defectOf(file);
      else if (name.endsWith('.json')) {
        const content = JSON.parse(fs.readFileSync(file, 'utf8'));
        const missing = Object.values(content.weight_map ?? {}).find((shard) => !names.includes(shard));
        if (name.endsWith('.index.json') && missing) defect = `${missing} is not there yet`;
      }
    } catch (error) {
      defect = error.message;
    }
    if (defect === null) whole.add(name);
    else defects.push(`${name}: ${defect}`);
  }
  return defects;
}

/** Runs quantize, kills it after `killAfter` ms if it still runs then, and watches the directory. */
function run(model, out, flags, killAfter, defects) {
  const began = performance.now();
  const child = spawn(process.execPath, [MAIN, 'quantize', model, '--out', out, '--resume', ...flags], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  const whole = new Set();
  const poll = setInterval(() => defects.push(...defectsOf(out, whole)), POLL_MS);
  const kill = killAfter === null ? null : setTimeout(() => child.kill('SIGKILL'), killAfter);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearInterval(poll);
      clearTimeout(kill);
      defects.push(...defectsOf(out, new Set()));
      if (signal !== 'SIGKILL' && code !== 0)
        reject(new Error(`quantize failed: ${stderr.trim().split('\n').at(-1)}`));
      resolve({ killed: signal === 'SIGKILL', milliseconds: performance.now() - began });
    });
  });
}

async function main([model, killsText, seedText, ...flags]) {
  const kills = Number(killsText);
  const seed = Number(seedText);
  if (!model || !Number.isSafeInteger(kills) || kills < 0 || !Number.isSafeInteger(seed)) {
    throw new Error('usage: kill-resume.cjs <model> <kills> <seed> [flags of quantize]');
  }
  const next = random(seed);
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-kill-'));
  process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }));
  const defects = [];
  const undisturbed = path.join(work, 'undisturbed');
  await run(model, undisturbed, flags, null, defects);
  const expected = fileHashes(undisturbed);
  // Timed the second time: the first run may read the model from the disk, and later ones would end before their kills.
  const timed = path.join(work, 'timed');
  const { milliseconds } = await run(model, timed, flags, null, defects);
  fs.rmSync(timed, { recursive: true });

  let killed = 0;
  let outputs = 0;
  while (killed < kills || outputs === 0) {
    const out = path.join(work, `out-${outputs}`);
    for (let ended = false; !ended; ) {
      // A little beyond the end, so that the last steps are hit too; once all kills are spent, undisturbed.
      const killAfter = killed < kills ? next() * milliseconds * 1.1 : null;
      const result = await run(model, out, flags, killAfter, defects);
      if (result.killed) killed++;
      ended = !result.killed;
    }
    const found = fileHashes(out);
    for (const name of new Set([...Object.keys(expected), ...Object.keys(found)])) {
      if (found[name] !== expected[name]) defects.push(`${name} differs from the undisturbed run's`);
    }
    outputs++;
    fs.rmSync(out, { recursive: true });
    console.error(`${killed} of ${kills} kills, ${outputs} outputs compared, ${defects.length} defects`);
  }
  console.log(
    JSON.stringify({
      kills: killed,
      outputs,
      files: Object.keys(expected).length,
      defects: [...new Set(defects)],
    }),
  );
  if (defects.length > 0) process.exitCode = 1;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
