#!/usr/bin/env node
'use strict';
// Asks of every barrier and wait in the kernels whether a test would miss it: the emulator leaves out one at a time, in every
// order of threads, wherever the C++ tests named "... need(s) each barrier ..." come to it (test/cpp/simt_test.h). Fails for
// those that no test comes to, and for those that none misses.
//   node scripts/mutate-barriers.cjs [part of a test's name]

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { build, root } = require('./cmake.cjs');

const SYNC = /\b(__syncthreads|__syncwarp|barrier_wait|barrier_arrive|cp_async_wait)\b(<[^;]*>)?\(/;

/** `file.cu:12` of each barrier and wait in the kernels' sources, with the line. */
function sites() {
  const found = new Map();
  for (const name of fs.readdirSync(path.join(root, 'csrc/ops'), { recursive: true, encoding: 'utf8' })) {
    if (!/\.cuh?$/.test(name)) continue;
    const lines = fs.readFileSync(path.join(root, 'csrc/ops', name), 'utf8').split('\n');
    lines.forEach((line, i) => {
      const code = line.replace(/\/\/.*/, '');
      if (SYNC.test(code)) found.set(`${path.basename(name)}:${i + 1}`, line.trim());
    });
  }
  return found;
}

/** Runs the tests; for each site how often it was left out, and how often that was noticed. */
function leaveOut(part) {
  const folder = build({
    config: 'Debug',
    target: 'quantaria_tests',
    definitions: {
      QUANTARIA_SANITIZE: 'address,undefined',
      QUANTARIA_TESTS: 'ON',
      QUANTARIA_ADDON: 'OFF',
      QUANTARIA_CUDA: 'OFF',
    },
  });
  const log = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-barriers-')), 'log');
  const tests = path.join(folder, 'quantaria_tests');
  const { status } = spawnSync(tests, [part], {
    stdio: 'inherit',
    env: { ...process.env, QUANTARIA_SYNC_LOG: log },
  });
  const counts = new Map();
  for (const line of fs.existsSync(log) ? fs.readFileSync(log, 'utf8').trim().split('\n') : []) {
    const [place, noticed, runs] = line.split(' ');
    const site = place.replace(/:\d+$/, ''); // without the column
    const [before, all] = counts.get(site) ?? [0, 0];
    counts.set(site, [before + Number(noticed), all + Number(runs)]);
  }
  fs.rmSync(path.dirname(log), { recursive: true });
  return { passed: status === 0, counts };
}

const all = sites();
const { passed, counts } = leaveOut(process.argv[2] ?? 'need');
let unnoticed = 0;
for (const [site, line] of all) {
  const [noticed, runs] = counts.get(site) ?? [0, 0];
  if (noticed > 0) continue;
  unnoticed++;
  console.log(`${site}: ${runs === 0 ? 'no test comes to it' : `unnoticed in ${runs} runs`}: ${line}`);
}
console.log(
  `${all.size - unnoticed} of ${all.size} barriers and waits are missed by a test when they are left out`,
);
process.exit(passed && unnoticed === 0 ? 0 : 1);
