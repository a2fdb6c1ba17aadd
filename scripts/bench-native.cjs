'use strict';
// Builds bench/native and runs it; arguments are handed on (bench/native/main.cc says which there are).

const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { build } = require('./cmake.cjs');

/** Builds the executable and returns its path. */
function buildBench() {
  const folder = build({
    config: 'Release',
    target: 'quantaria_bench',
    definitions: { QUANTARIA_BENCH: 'ON', QUANTARIA_ADDON: 'OFF', QUANTARIA_CUDA: 'OFF' },
  });
  return path.join(folder, 'quantaria_bench');
}

if (require.main === module) {
  const { status } = spawnSync(buildBench(), process.argv.slice(2), { stdio: 'inherit' });
  process.exitCode = status ?? 1;
}

module.exports = { buildBench };
