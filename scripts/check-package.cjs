'use strict';
// Proves that the package, packed as it is, works for a user: installed from the tarball into an empty folder without
// install scripts, run with nothing but Node on PATH. Needs `npm run prebuild` first.
//   node scripts/check-package.cjs [--source]     --source: also build it from source there, without development tools

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { root } = require('./cmake.cjs');

const { version } = require('../package.json');
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-package-'));
const npm = (args, options) => execFileSync('npm', args, { encoding: 'utf8', ...options });
const proved = (what) => console.log(`ok: ${what}`);

/** A PATH with Node's own commands and the shell that npx needs, and nothing else. */
function barePath() {
  const folder = path.join(work, 'bin');
  fs.mkdirSync(folder);
  for (const [name, target] of [
    ['node', process.execPath],
    ['sh', '/bin/sh'],
    ['npx', execFileSync('sh', ['-c', 'command -v npx'], { encoding: 'utf8' }).trim()],
  ]) {
    fs.symlinkSync(target, path.join(folder, name));
  }
  return folder;
}

function check() {
  const packed = JSON.parse(
    npm(['pack', '--json', '--ignore-scripts', '--pack-destination', work], { cwd: root }),
  )[0];
  const tarball = path.join(work, packed.filename);
  const binary = `prebuilds/${process.platform}-${process.arch}/quantaria.node`;
  const names = packed.files.map((file) => file.path);
  assert.ok(names.includes(binary), `${binary} is not in the package: npm run prebuild`);
  proved(`${packed.filename}: ${names.length} files, ${(packed.size / 1e6).toFixed(2)} MB, with ${binary}`);

  const user = path.join(work, 'user');
  fs.mkdirSync(user);
  fs.writeFileSync(path.join(user, 'package.json'), '{"private": true}\n');
  npm(['install', '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund', tarball], {
    cwd: user,
    stdio: 'pipe',
  });
  const count = fs
    .readdirSync(path.join(user, 'node_modules'), { recursive: true })
    .filter((file) => /(^|\/)package\.json$/.test(file));
  proved(`installed without install scripts (${count.length} package.json files in all)`);

  const bare = { cwd: user, encoding: 'utf8', env: { PATH: barePath(), HOME: user } };
  const run = (command, ...args) => execFileSync(command, args, bare).trim();
  // The addon's file as the system sees it, so that no other build lying about passes for this one.
  const report = "process.report.getReport().sharedObjects.find((file) => file.endsWith('.node'))";
  const loaded = () => run('node', '-p', `require('quantaria'); ${report}`);
  for (const tool of ['c++', 'g++', 'cmake', 'make', 'python3', 'nvcc']) {
    assert.throws(
      () => run('sh', '-c', `command -v ${tool}`),
      undefined,
      `${tool} is still on the bare PATH`,
    );
  }

  const installed = path.join(fs.realpathSync(user), 'node_modules', 'quantaria');
  assert.equal(loaded(), path.join(installed, binary));
  proved(`require('quantaria') loads ${binary}, with no compiler on PATH`);

  const compare = `import('quantaria').then((imported) => {
    for (const name of Object.keys(require('quantaria'))) {
      if (imported[name] !== require('quantaria')[name]) throw new Error('import lacks ' + name);
    }
  })`;
  run('node', '-e', compare);
  proved('import gives by name what require gives');

  assert.equal(run('npx', '--no-install', 'quantaria', '--version'), version);
  proved(`npx quantaria --version prints ${version}`);

  fs.writeFileSync(
    path.join(user, 'use.mts'),
    "import * as quantaria from 'quantaria';\nexport const names: string[] = Object.keys(quantaria);\n",
  );
  const tsc = require.resolve('typescript/bin/tsc');
  // dom for AbortSignal, as TypeScript has it by default; a user with @types/node has it from there.
  const strict = '--strict --noEmit --module node16 --target es2022 --lib es2023,esnext.disposable,dom'.split(
    ' ',
  );
  execFileSync(process.execPath, [tsc, ...strict, 'use.mts'], {
    cwd: user,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  proved('the types stand alone');

  if (process.argv.includes('--source')) {
    const env = { ...process.env, npm_config_build_from_source: 'true' };
    execFileSync(process.execPath, ['scripts/install.cjs'], { cwd: installed, env, stdio: 'inherit' });
    assert.equal(loaded(), path.join(installed, 'build/Release/quantaria.node'));
    proved('builds from source with plain CMake, and that build is what loads');
  }
}

try {
  check();
} finally {
  fs.rmSync(work, { recursive: true, force: true });
}
