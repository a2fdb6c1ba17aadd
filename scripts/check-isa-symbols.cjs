'use strict';
// Fails if an object compiled for AVX2, AVX-512, ... holds a weak function. The linker keeps one copy of it for the
// whole binary; if it keeps that one, the first processor without the instruction set stops at it. Weak data (V, an
// inline constexpr table) has the same bytes everywhere and may be.
// Looks at every release build there is.

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { root } = require('./cmake.cjs');

const folder = path.join(root, 'build-cmake');
const files = fs.existsSync(folder) ? fs.readdirSync(folder, { recursive: true }) : [];
const objects = files.filter((file) => /^release.*\/kernels_\w+\.dir\/.*\.o$/.test(file));
if (objects.length === 0) {
  console.error('error: no kernels to check: npm run build:native');
  process.exit(1);
}
const special = objects.filter((file) => !file.includes('/kernels_scalar.dir/'));
let weak = 0;
for (const object of special) {
  const table = execFileSync('nm', ['-C', path.join(folder, object)], { encoding: 'utf8' });
  for (const [, name] of table.matchAll(/^\S* +[wW] (.*)$/gm)) {
    console.error(
      `error: ${object}: weak function ${name}; make it static, or put it into an unnamed namespace`,
    );
    weak++;
  }
}
console.log(`${special.length} objects for special instruction sets: ${weak} weak functions`);
process.exitCode = weak > 0 ? 1 : 0;
