'use strict';
// Which peers can run, and how. Each is a process of its own and prints JSON lines: {name, compute, shape, m, median, best,
// repetitions, bytes, operations}.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..', '..');

const installed = (name) => fs.existsSync(path.join(__dirname, 'node_modules', name));

let ggml; // path of the executable, or null
/** llama.cpp's library has a C interface only. */
function buildGgml() {
  if (ggml !== undefined) return ggml;
  ggml = null;
  const folder = path.join(__dirname, 'node_modules', '@node-llama-cpp', 'linux-x64', 'bins', 'linux-x64');
  if (!fs.existsSync(folder)) return null;
  const out = path.join(root, 'build-cmake', 'peers');
  fs.mkdirSync(out, { recursive: true });
  const program = path.join(out, 'ggml_bench');
  const source = path.join(__dirname, 'ggml_bench.cc');
  const args = ['-std=c++20', '-O2', '-Wall', '-Wextra', '-o', program, source, '-ldl'];
  const { status, stderr } = spawnSync(process.env.CXX ?? 'c++', args, { encoding: 'utf8' });
  if (status === 0) ggml = { program, folder };
  else console.error(`peer llama.cpp cannot be built: ${stderr}`);
  return ggml;
}

/** Commands for the peers of a group of cases; they take the number of threads and the budget as last arguments. */
function peersFor({ family, shape: [n, k], m }) {
  const found = [];
  if (family === 'linear' && installed('onnxruntime-node')) {
    const script = path.join(__dirname, 'onnxruntime_bench.cjs');
    found.push({
      name: 'onnxruntime',
      command: process.execPath,
      args: [script, String(n), String(k), String(m)],
    });
  }
  if ((family === 'linear' || family === 'moe.experts') && buildGgml()) {
    const kind = family === 'linear' ? 'product' : 'experts';
    const { program, folder } = ggml;
    found.push({
      name: 'llama.cpp',
      command: program,
      args: [folder, kind, String(n), String(k), String(m)],
    });
  }
  return found;
}

module.exports = { peersFor };
