'use strict';
// Builds the C++ tests with the address and undefined-behaviour sanitizers, then those of threads, queues, devices and
// emulated kernels with the thread sanitizer, and runs both programs. A part of a test's name as argument picks tests, of the
// first build only.

const { spawnSync } = require('node:child_process');
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

const wanted = process.argv.slice(2);
const kinds = wanted.length === 0 ? [ADDRESSES, THREADS] : [ADDRESSES];
for (const kind of kinds) {
  const [command, ...args] = built(kind);
  console.log(`C++, ${kind.sanitizers} sanitizers:`);
  const { status, signal } = spawnSync(command, [...args, ...wanted], { stdio: 'inherit' });
  if (signal) console.log(`ended by ${signal}`);
  if (status !== 0) process.exitCode = 1;
}
