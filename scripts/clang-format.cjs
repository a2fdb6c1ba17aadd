'use strict';
// Formats the C++ and CUDA sources (--write) or fails where they are not formatted (--check). The version is pinned in
// package.json: two versions of clang-format do not agree.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { root } = require('./cmake.cjs');

const write = process.argv[2] === '--write';
const files = ['csrc', 'test/cpp', 'test/golden', 'bench']
  .filter((folder) => fs.existsSync(path.join(root, folder)))
  .flatMap((folder) =>
    fs.readdirSync(path.join(root, folder), { recursive: true }).map((file) => path.join(folder, file)),
  )
  .filter((file) => /\.(h|cc|cu|cuh)$/.test(file));
const args = [
  require.resolve('clang-format-node/build/cli.js'),
  ...(write ? ['-i'] : ['--dry-run', '-Werror', '--ferror-limit=1']),
  ...files,
];
const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' });
if (status !== 0 && !write) console.error('error: C++ sources are not formatted; `npm run format` does it');
process.exit(status ?? 1);
