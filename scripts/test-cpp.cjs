'use strict';
// Builds the C++ tests with the address and undefined-behaviour sanitizers and runs them, then those of threads, queues,
// devices and emulated kernels with the thread sanitizer. A part of a test's name as argument picks tests, of the first build only.

const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { build } = require('./cmake.cjs');

/** The thread sanitizer wants memory where it expects it, and newer kernels scatter it further than it knows. */
function withFixedAddresses(sanitizers) {
  const fix = ['setarch', '-R'];
  const works = sanitizers === 'thread' && spawnSync(fix[0], [fix[1], 'true']).status === 0;
  return works ? fix : [];
}

function run(target, sanitizers, args) {
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
  const [command, ...rest] = [...withFixedAddresses(sanitizers), path.join(folder, target), ...args];
  const { status } = spawnSync(command, rest, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

const wanted = process.argv.slice(2);
run('quantaria_tests', 'address,undefined', wanted);
if (wanted.length === 0) run('quantaria_thread_tests', 'thread', wanted);
