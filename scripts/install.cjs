'use strict';
// npm's install step: nothing to do where a binary loads (prebuilds/ in the package, or an earlier build); else builds one.
// Not `node-gyp-build` itself, which would go through node-gyp and so want Python, make and Node's headers as well.

const { spawnSync } = require('node:child_process');
const { root } = require('./cmake.cjs');

const forced = process.env.npm_config_build_from_source === 'true';
// In a process of its own: a binary made for another machine may end it.
const loads = () =>
  spawnSync(process.execPath, [require.resolve('node-gyp-build/build-test.js')], { cwd: root }).status === 0;
if (forced || !loads()) require('./build-native.cjs');
