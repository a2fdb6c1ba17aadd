'use strict';
// Packs what a GPU host without network or Node needs into one file, build/gpu/quantaria-gpu-<version>-<platform>.tgz: this Node,
// the addon and the golden vectors' program for sm_80, sm_90 and PTX, the tests with vitest, fixtures, the example model and the
// microbenchmarks. There: `tar xzf quantaria-gpu-*.tgz && quantaria-gpu/run.sh` (scripts/gpu-bundle/run.cjs).
//   node scripts/pack-gpu-bundle.cjs [--check]     --check: also unpacks it elsewhere and runs it there with nothing on PATH

const assert = require('node:assert/strict');
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { build, root } = require('./cmake.cjs');

const { version } = require('../package.json');
const MOST_BYTES = 60e6;
const NO_DEVICE = 3; // of scripts/gpu-bundle/run.cjs
const NEWEST_GLIBC_MINOR = 28;

/** Of the repository, as they are. */
const FOLDERS = [
  'dist',
  'lib',
  'bench/api',
  'bench/cuda',
  'examples/aria-bytes',
  'scripts/gpu-bundle',
  'test/core',
  'test/golden',
  'test/models',
  'test/pipeline',
  'test/reference',
];
const FILES = [
  'package.json',
  'tsconfig.build.json',
  'vitest.config.mts',
  'test/closing-line-reporter.mts',
  'test/device.ts',
  'test/device_setup.ts',
  'csrc/cuda/kernels.json',
  'LICENSE',
];
/** Packages that are run there, with all that they depend on. */
const PACKAGES = ['vitest', 'commander', '@huggingface/tokenizers', 'node-gyp-build'];
/** Nothing there reads them. */
const UNUSED = /\.(map|md|d\.[cm]?ts)$/;
/** For style sheets, of which there are none. */
const LEFT_OUT = /^lightningcss/;

/** Where a package lies that is asked for from a folder; null for an optional one that is not installed. */
function locate(name, from) {
  for (let folder = from; ; folder = path.dirname(folder)) {
    const found = path.join(folder, 'node_modules', name);
    if (fs.existsSync(path.join(found, 'package.json'))) return fs.realpathSync(found);
    if (folder === path.dirname(folder)) return null;
  }
}

/** Every package that `names` need, by the path that it has below node_modules. */
function closure(names) {
  const top = fs.realpathSync(path.join(root, 'node_modules'));
  const found = new Map();
  const visit = (name, from) => {
    const folder = locate(name, from);
    if (folder === null || LEFT_OUT.test(name) || found.has(folder)) return;
    found.set(folder, path.relative(top, folder));
    const { dependencies, optionalDependencies } = JSON.parse(
      fs.readFileSync(path.join(folder, 'package.json'), 'utf8'),
    );
    for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) visit(needed, folder);
  };
  for (const name of names) {
    assert.ok(locate(name, root), `${name} is not installed`);
    visit(name, root);
  }
  return found;
}

function copyPackages(to) {
  for (const [folder, place] of closure(PACKAGES)) {
    fs.cpSync(folder, path.join(to, 'node_modules', place), {
      recursive: true,
      filter: (file) =>
        path.relative(folder, file).split(path.sep)[0] !== 'node_modules' && !UNUSED.test(file),
    });
  }
}

/** What a host may lack: newer symbols of glibc than the addon's floor, or libraries beside those of any Linux. */
function requirePortable(file) {
  const dynamic = execFileSync('objdump', ['-p', file], { encoding: 'utf8' });
  const needed = [...dynamic.matchAll(/NEEDED\s+(\S+)/g)].map(([, name]) => name);
  const odd = needed.filter((name) => !/^(ld-linux|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.)/.test(name));
  assert.deepEqual(odd, [], `${file} needs libraries that a host may not have`);
  for (const [version, minor] of dynamic.matchAll(/GLIBC_2\.(\d+)/g))
    assert.ok(Number(minor) <= NEWEST_GLIBC_MINOR, `${file} needs ${version}`);
}

function stripped(from, to) {
  fs.mkdirSync(path.dirname(to), { recursive: true });
  fs.copyFileSync(from, to);
  execFileSync('strip', ['-s', to]);
  requirePortable(to);
  fs.chmodSync(to, 0o755);
}

function fill(to) {
  const folder = build({ config: 'Release', target: 'quantaria_portable' });
  build({ config: 'Release', target: 'quantaria_golden' });
  const addon = path.join(folder, 'quantaria_portable.node');
  assert.ok(fs.readFileSync(addon).includes('; cuda '), 'the addon has no CUDA code: there is no nvcc here');
  for (const name of FOLDERS)
    fs.cpSync(path.join(root, name), path.join(to, name), {
      recursive: true,
      filter: (file) => !UNUSED.test(file),
    });
  for (const name of FILES.filter((file) => fs.existsSync(path.join(root, file)))) {
    fs.mkdirSync(path.dirname(path.join(to, name)), { recursive: true });
    fs.copyFileSync(path.join(root, name), path.join(to, name));
  }
  stripped(process.execPath, path.join(to, 'node'));
  stripped(addon, path.join(to, 'build', 'Release', 'quantaria.node'));
  stripped(path.join(folder, 'quantaria_golden'), path.join(to, 'quantaria_golden'));
  copyPackages(to);
  fs.copyFileSync(path.join(root, 'scripts', 'gpu-bundle', 'run.sh'), path.join(to, 'run.sh'));
}

/** Unpacked in an empty folder, with no Node on PATH: here that must end in the reason why there is no device. */
function check(file, work) {
  execFileSync('tar', ['xzf', file, '-C', work]);
  const there = path.join(work, 'quantaria-gpu');
  const vitest = 'node_modules/vitest/vitest.mjs';
  const options = { encoding: 'utf8', cwd: work, env: { PATH: work, HOME: work } };
  const tests = spawnSync(
    path.join(there, 'node'),
    [
      vitest,
      'run',
      'test/core/devices.test.ts',
      'test/core/cast.test.ts',
      'test/reference/integer_grid.test.ts',
    ],
    { ...options, cwd: there },
  );
  assert.equal(tests.status, 0, `its tests do not run: ${tests.stdout}${tests.stderr}`);
  console.log(`ok: its tests run (${tests.stdout.trim().split('\n').at(-1)})`);
  // Every test file finds what it imports and reads.
  const listed = spawnSync(
    path.join(there, 'node'),
    [vitest, 'list', 'test/core', 'test/models/decoders', 'test/pipeline', 'test/reference'],
    { ...options, cwd: there, maxBuffer: 1 << 28 },
  );
  assert.equal(listed.status, 0, `a test file does not load: ${listed.stdout.slice(-2000)}${listed.stderr}`);
  console.log(`ok: all test files load (${listed.stdout.trim().split('\n').length} tests)`);
  const golden = spawnSync(path.join(there, 'quantaria_golden'), [], options);
  const run = spawnSync(path.join(there, 'run.sh'), [], options);
  if (/^no CUDA device: .{10,}/m.test(run.stderr)) {
    assert.deepEqual([run.status, golden.status], [NO_DEVICE, NO_DEVICE], run.stderr + golden.stderr);
    assert.equal(golden.stderr, run.stderr);
    console.log(`ok: without a device it exits with ${NO_DEVICE}: ${run.stderr.trim()}`);
    return;
  }
  assert.equal(run.status, 0, run.stdout + run.stderr);
  console.log('ok: all of it was right on the device here');
}

function main() {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-gpu-'));
  const out = path.join(
    root,
    'build',
    'gpu',
    `quantaria-gpu-${version}-${process.platform}-${process.arch}.tgz`,
  );
  try {
    const packed = path.join(work, 'packed');
    fill(path.join(packed, 'quantaria-gpu'));
    fs.mkdirSync(path.dirname(out), { recursive: true });
    execFileSync('tar', ['-I', 'gzip -9', '-cf', out, '-C', packed, 'quantaria-gpu']);
    const { size } = fs.statSync(out);
    assert.ok(size < MOST_BYTES, `${out} has ${size} bytes, ${MOST_BYTES} are allowed`);
    console.log(`${path.relative(root, out)}: ${(size / 1e6).toFixed(1)} MB`);
    if (process.argv.includes('--check')) check(out, work);
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}

try {
  main();
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
