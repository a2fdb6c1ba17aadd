'use strict';
// Builds the C++ tests with the address and undefined-behaviour sanitizers, then those of threads, queues, devices and
// emulated kernels with the thread sanitizer, and runs both programs side by side: each keeps little more than one core busy,
// for minutes. A part of a test's name as argument picks tests, of the first build only.

const { spawn, spawnSync } = require('node:child_process');
const path = require('node:path');
const { build } = require('./cmake.cjs');

const ADDRESSES = { target: 'quantaria_tests', sanitizers: 'address,undefined' };
const THREADS = { target: 'quantaria_thread_tests', sanitizers: 'thread' };

/** The thread sanitizer wants memory where it expects it, and newer kernels scatter it further than it knows. */
function withFixedAddresses(sanitizers) {
  const fix = ['setarch', '-R'];
  const works = sanitizers === 'thread' && spawnSync(fix[0], [fix[1], 'true']).status === 0;
  return works ? fix : [];
}

/** The command line of the built tests. */
function built({ target, sanitizers }) {
  const folder = build({
    config: 'Debug',
    target,
    definitions: {
      QUANTARIA_SANITIZE: sanitizers,
      QUANTARIA_TESTS: 'ON',
      QUANTARIA_ADDON: 'OFF',
      QUANTARIA_CUDA: 'OFF', // nvcc's host code knows no sanitizers
    },
  });
  return [...withFixedAddresses(sanitizers), path.join(folder, target)];
}

/** Runs it, and shows all that it said at once when it has ended: true if it passed. */
function passes([command, ...args], name) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const said = [];
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => said.push(chunk));
    child.on('error', reject);
    child.on('close', (status, signal) => {
      process.stdout.write(Buffer.concat([Buffer.from(`${name}\n`), ...said]));
      if (signal) console.log(`${name}: ended by ${signal}`);
      resolve(status === 0);
    });
  });
}

async function main(wanted) {
  const kinds = wanted.length === 0 ? [ADDRESSES, THREADS] : [ADDRESSES];
  const commands = kinds.map(built);
  const results = await Promise.all(
    kinds.map(({ sanitizers }, i) => passes([...commands[i], ...wanted], `C++, ${sanitizers} sanitizers:`)),
  );
  if (results.includes(false)) process.exitCode = 1;
}

main(process.argv.slice(2));
