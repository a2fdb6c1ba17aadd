#!/usr/bin/env node
'use strict';
// Builds the addon into build/Release/quantaria.node. `npm run build:native`, node-gyp (binding.gyp) and an installation
// from source all end here.
//   node scripts/build-native.cjs [--config Release|Debug] [--outdir build/Release] [--emulated]
// --emulated: the addon with the device cuda-emulated and a stand-in for cuBLASLt, for tests, into build/emulated.
// Environment: QUANTARIA_CUDA=AUTO|ON|OFF, QUANTARIA_CUDA_ARCHS, QUANTARIA_WERROR, QUANTARIA_SANITIZE (see CMakeLists.txt).

const path = require('node:path');
const { parseArgs } = require('node:util');
const { build, place, root } = require('./cmake.cjs');

const { values } = parseArgs({
  options: {
    config: { type: 'string', default: 'Release' },
    outdir: { type: 'string' },
    emulated: { type: 'boolean', default: false },
  },
});
const variant = values.emulated ? 'emulated' : values.config;
const outdir = path.resolve(root, values.outdir ?? path.join('build', variant));
const target = values.emulated ? 'quantaria_emulated' : 'quantaria';
const folder = build({ config: values.config, target });
place(path.join(folder, `${target}.node`), path.join(outdir, 'quantaria.node'));
if (values.emulated) {
  const library = 'libcublaslt_standin.so';
  place(path.join(folder, library), path.join(outdir, library));
}
