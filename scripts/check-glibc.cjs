'use strict';
// Fails if a .node needs a newer glibc than the floor, or a library that a bare system does not have.
//   node scripts/check-glibc.cjs prebuilds/linux-x64/quantaria.node [2.28]

const { execFileSync } = require('node:child_process');

const [file, floor = '2.28'] = process.argv.slice(2);
const run = (...args) => execFileSync('objdump', args, { encoding: 'utf8' });
const compare = new Intl.Collator('en', { numeric: true }).compare;

const versions = [...run('-T', file).matchAll(/GLIBC_(\d[\d.]*)/g)].map(([, version]) => version);
const libraries = [...run('-p', file).matchAll(/NEEDED\s+(\S+)/g)].map(([, library]) => library);
if (versions.length === 0) throw new Error(`${file}: objdump shows no glibc symbols`);
const newest = versions.sort(compare).at(-1);
const strange = libraries.filter(
  (library) => !/^(libc|libm|libgcc_s|ld-linux-x86-64)\.so\.\d+$/.test(library),
);

console.log(`${file}: needs glibc ${newest}, ${libraries.join(', ')}`);
if (compare(newest, floor) > 0) {
  console.error(`error: ${file} needs glibc ${newest}, newer than ${floor}`);
  process.exitCode = 1;
}
if (strange.length > 0) {
  console.error(`error: ${file} needs ${strange.join(', ')}, which is not on every system`);
  process.exitCode = 1;
}
