'use strict';
// Builds the C++ tests with the address and undefined-behaviour sanitizers and runs them; arguments are handed on
// (a part of a test's name picks tests).

const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { build } = require('./cmake.cjs');

const folder = build({
  config: 'Debug',
  target: 'quantaria_tests',
  definitions: {
    QUANTARIA_SANITIZE: 'address,undefined',
    QUANTARIA_TESTS: 'ON',
    QUANTARIA_ADDON: 'OFF',
    QUANTARIA_CUDA: 'OFF', // nvcc's host code knows no sanitizers
  },
});
const { status } = spawnSync(path.join(folder, 'quantaria_tests'), process.argv.slice(2), {
  stdio: 'inherit',
});
process.exit(status ?? 1);
