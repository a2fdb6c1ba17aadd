'use strict';
// Builds the binary that the package ships, prebuilds/<platform>-<arch>/quantaria.node, and checks it. build/Release,
// which the tests load, stays as it is. npm also runs this before `npm run build`, because of its name: there it costs no
// more than another link. For a release, QUANTARIA_CUDA=ON makes a missing nvcc an error.

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const prebuildify = require('prebuildify');
const { build, place, root } = require('./cmake.cjs');

if (!process.report.getReport().header.glibcVersionRuntime) {
  console.warn('note: prebuilt binaries are made on Linux with glibc only');
  process.exit(0);
}
const folder = build({ config: 'Release', target: 'quantaria_portable' });
const binary = path.join(folder, 'quantaria_portable.node');

if (!fs.readFileSync(binary).includes('; cuda ')) console.warn('note: the prebuilt binary has no CUDA code');

// prebuildify runs node-gyp, then strips, names and moves what it finds in <cwd>/build/Release. Ours is built by now, so
// `true` plays node-gyp, and prebuildify is pointed at a folder that holds this binary and nothing else.
const cwd = path.join(folder, 'prebuild');
place(binary, path.join(cwd, 'build', 'Release', 'quantaria.node'));
prebuildify({ napi: true, strip: true, nodeGyp: 'true', name: 'quantaria', cwd, out: root }, (error) => {
  if (error) throw error;
  const file = path.join('prebuilds', `${process.platform}-${process.arch}`, 'quantaria.node');
  const check = path.join(__dirname, 'check-glibc.cjs');
  execFileSync(process.execPath, [check, file], { cwd: root, stdio: 'inherit' });
});
