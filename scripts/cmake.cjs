'use strict';
// Configures and builds with CMake in a folder of its own for each variant, and says plainly what is missing.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');

/** What a person may set in the environment and CMakeLists.txt knows by the same name. */
const options = ['QUANTARIA_CUDA', 'QUANTARIA_CUDA_ARCHS', 'QUANTARIA_WERROR', 'QUANTARIA_SANITIZE'];

/** CMake runs below node-gyp's make too, whose variables must not steer CMake's. */
function environment() {
  const env = { ...process.env };
  for (const name of ['MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'MAKE_TERMOUT', 'MAKE_TERMERR', 'BUILDTYPE', 'V']) {
    delete env[name];
  }
  return env;
}

function works(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function requireTools() {
  const compilers = process.env.CXX ? [process.env.CXX.split(' ')[0]] : ['c++', 'g++', 'clang++'];
  const missing = [];
  if (!works('cmake')) missing.push('CMake 3.22 or newer (no `cmake` on PATH)');
  if (!compilers.some(works)) missing.push(`a C++20 compiler (tried ${compilers.join(', ')})`);
  if (missing.length === 0) return;
  console.error(
    `error: quantaria's native addon has to be built here, and that needs ${missing.join(' and ')}.\n` +
      'Debian, Ubuntu: apt-get install cmake g++ ; Fedora: dnf install cmake gcc-c++\n' +
      'nvcc is optional: without it the CPU backend alone is built.',
  );
  process.exit(1);
}

function findCmakeJs() {
  try {
    return path.join(
      path.dirname(require.resolve('cmake-js/package.json', { paths: [root] })),
      'bin',
      'cmake-js',
    );
  } catch {
    return null; // a development dependency: an installation from source has plain CMake only
  }
}

/** `QUANTARIA_CUDA=OFF` in Release -> `release-cuda-off`. CMake's cache keeps old values, so new values need a new folder. */
function variantName(config, definitions) {
  const parts = Object.entries(definitions)
    .sort()
    .map(([name, value]) => `${name.replace('QUANTARIA_', '')}-${value}`);
  return [config, ...parts]
    .join('-')
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-');
}

/**
 * Builds one target; exits the process if that fails.
 * @param {{config: string, target: string, definitions?: Record<string, string>}} what
 * @returns {string} the folder that holds what was built
 */
function build({ config, target, definitions = {} }) {
  requireTools();
  const asked = options.filter((name) => process.env[name]).map((name) => [name, process.env[name]]);
  const all = { ...Object.fromEntries(asked), ...definitions };
  const folder = path.join(root, 'build-cmake', variantName(config, all));
  const jobs = process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(os.availableParallelism());
  const defines = Object.entries({ CMAKE_BUILD_TYPE: config, ...all }).map(
    ([name, value]) => `${name}=${value}`,
  );
  const cmakeJs = findCmakeJs();
  const cmakeJsArgs = [cmakeJs, '--log-level', 'warn', '-d', root, '-O', folder, '-B', config];
  const steps = cmakeJs
    ? [
        // Not `cmake-js compile`: where a source does not compile it throws the folder away and starts over.
        [process.execPath, ...cmakeJsArgs, 'configure', ...defines.map((define) => `--CD${define}`)],
        [process.execPath, ...cmakeJsArgs, 'build', '-T', target, '--parallel', jobs],
      ]
    : [
        ['cmake', '-S', root, '-B', folder, ...defines.map((define) => `-D${define}`)],
        ['cmake', '--build', folder, '--config', config, '--target', target, '--parallel', jobs],
      ];
  for (const [command, ...args] of steps) {
    const { status } = spawnSync(command, args, { cwd: root, env: environment(), stdio: 'inherit' });
    if (status !== 0) {
      console.error(
        `error: the native build failed; its folder is ${folder}. QUANTARIA_CUDA=OFF leaves CUDA out.`,
      );
      process.exit(1);
    }
  }
  return folder;
}

/** Puts a library in place by renaming: writing over one that a running process has mapped would crash that process. */
function place(from, to) {
  fs.mkdirSync(path.dirname(to), { recursive: true });
  const temporary = `${to}.${process.pid}.tmp`;
  fs.copyFileSync(from, temporary);
  fs.renameSync(temporary, to);
}

module.exports = { build, place, root };
