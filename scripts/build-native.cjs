#!/usr/bin/env node
'use strict';
// Builds the addon into build/Release/quantaria.node. `npm run build:native`, node-gyp (binding.gyp) and an installation
// from source all end here.
//   node scripts/build-native.cjs [--config Release|Debug] [--outdir build/Release]
// Environment: QUANTARIA_CUDA=AUTO|ON|OFF, QUANTARIA_CUDA_ARCHS, QUANTARIA_EMULATED=ON, QUANTARIA_WERROR,
// QUANTARIA_SANITIZE (see CMakeLists.txt).

const path = require('node:path');
const { parseArgs } = require('node:util');
const { build, place, root } = require('./cmake.cjs');

const { values } = parseArgs({
  options: { config: { type: 'string', default: 'Release' }, outdir: { type: 'string' } },
});
const outdir = path.resolve(root, values.outdir ?? path.join('build', values.config));
const folder = build({ config: values.config, target: 'quantaria' });
place(path.join(folder, 'quantaria.node'), path.join(outdir, 'quantaria.node'));
