'use strict';
// Writes stand-ins for libc.so.6 and libm.so.6 that have every symbol of the real ones in the newest version not above a
// floor. Linking against them gives a binary that an older glibc can load; at run time the real libraries are used.
//   node scripts/glibc-stub.cjs 2.28 <folder> [compiler]

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const [floor, folder, compiler = 'c++'] = process.argv.slice(2);
const run = (command, ...args) => execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
const compare = new Intl.Collator('en', { numeric: true }).compare; // 2.4 < 2.28

/** The exported symbols of a library, each in its newest version up to the floor: name -> {version, object, size}. */
function symbols(library) {
  const chosen = new Map();
  for (const line of run('objdump', '-T', library).split('\n')) {
    // 000000000008a5b0 g    DF .text  0000000000000177  GLIBC_2.2.5 memcpy      (a version in brackets is an old one)
    const match = /^\w{16} (.{7}) (\S+)\s+(\w{16})\s+\(?GLIBC_(\d[\d.]*)\)?\s+(?:0x\S+ )?(\S+)$/.exec(line);
    if (!match) continue;
    const [, flags, section, size, version, name] = match;
    if (section.startsWith('*') || compare(version, floor) > 0) continue; // *UND*, *ABS*
    const known = chosen.get(name);
    if (known && compare(known.version, version) >= 0) continue;
    chosen.set(name, { version, object: flags.includes('O'), size: Number.parseInt(size, 16) || 1 });
  }
  return chosen;
}

function assembly(chosen) {
  return [...chosen]
    .map(([name, { object, size }]) =>
      object
        ? `.data\n.globl ${name}\n.type ${name},@object\n.size ${name},${size}\n${name}: .zero ${size}\n`
        : `.text\n.globl ${name}\n.type ${name},@function\n${name}: ret\n`,
    )
    .join('');
}

function versionScript(chosen) {
  const versions = [...new Set([...chosen.values()].map(({ version }) => version))].sort(compare);
  return versions
    .map((version, i) => {
      const names = [...chosen].filter(([, symbol]) => symbol.version === version).map(([name]) => name);
      const previous = i > 0 ? ` GLIBC_${versions[i - 1]}` : '';
      return `GLIBC_${version} { global: ${names.join('; ')}; }${previous};\n`;
    })
    .join('');
}

fs.mkdirSync(folder, { recursive: true });
for (const name of ['libc', 'libm']) {
  const base = path.join(folder, name);
  const chosen = symbols(run(compiler, `-print-file-name=${name}.so.6`).trim());
  fs.writeFileSync(`${base}.s`, assembly(chosen));
  fs.writeFileSync(`${base}.map`, versionScript(chosen));
  const options = ['-shared', '-nostdlib', `-Wl,--version-script=${base}.map`, `-Wl,-soname,${name}.so.6`];
  run(compiler, ...options, '-o', `${base}.so`, `${base}.s`);
}
