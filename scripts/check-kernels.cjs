'use strict';
// Compiles the CUDA kernels for an A100 and holds what came out against csrc/cuda/kernels.json: registers a thread, and how
// many instructions of the kind that a loop lives by its PTX has. A spill fails in any case, and a change of the table has
// to be looked at: `npm run test:kernels -- --update` writes it anew.
// Where there is no nvcc, or one of another version, whose registers differ, only what can be checked is.

const { spawn, spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { root } = require('./cmake.cjs');

const table = path.join(root, 'csrc', 'cuda', 'kernels.json');
const stamp = path.join(root, 'build-cmake', 'kernels.stamp');

/** What is counted in the PTX of each kernel. */
const COUNTED = {
  mma: /\bmma\.sync/g,
  ldmatrix: /\bldmatrix/g,
  copies16: /\bcp\.async\.cg\.shared\.global[^;]*,\s*16,/g,
  copies4: /\bcp\.async\.ca\.shared\.global[^;]*,\s*4,/g,
  vectorLoads: /\bld\.(global|shared)(\.nc)?\.v4\.[ufb]32|\bld\.(global|shared)(\.nc)?\.v2\.[bu]64/g,
  fma: /\bfma\.rn\.f32/g,
};

function sources() {
  const all = fs.readdirSync(path.join(root, 'csrc'), { recursive: true });
  return all.filter((file) => /\.(cuh?|h)$/.test(file)).sort();
}

function nvccVersion() {
  const { stdout, status } = spawnSync('nvcc', ['--version'], { encoding: 'utf8' });
  return status === 0 ? (/V([\d.]+)/.exec(stdout)?.[1] ?? null) : null;
}

async function run(command, args, input = '') {
  const child = spawn(command, args, { cwd: root });
  child.stdin.end(input);
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
  const [status] = await once(child, 'close');
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}\n${output}`);
  return output;
}

/** `void quantaria::ops::(anonymous namespace)::gemm<quantaria::simt::Half, true>(...)` to `gemm<Half, true>`. */
function shortName(demangled) {
  const head = demangled.replace(/^void /, '').replace(/\(anonymous namespace\)::/g, '');
  let depth = 0;
  let end = 0;
  for (; end < head.length && (depth > 0 || head[end] !== '('); end++) {
    if (head[end] === '<') depth++;
    if (head[end] === '>') depth--;
  }
  return head.slice(0, end).replace(/quantaria::(ops|simt)::/g, '');
}

async function demangle(names) {
  const output = await run('c++filt', [], names.join('\n'));
  return output.trim().split('\n').map(shortName);
}

/** Registers and spills by mangled name, from what ptxas says. */
function resources(log) {
  const found = new Map();
  let name = null;
  for (const line of log.split('\n')) {
    name = /Compiling entry function '(\w+)'/.exec(line)?.[1] ?? name;
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (name && spill) found.set(name, { spilled: Number(spill[1]) + Number(spill[2]) });
    const used = /Used (\d+) registers/.exec(line);
    if (name && used) found.set(name, { ...found.get(name), registers: Number(used[1]) });
  }
  return found;
}

async function compile(source, folder) {
  const base = path.basename(source, '.cu');
  const ptx = path.join(folder, `${base}.ptx`);
  const flags = ['-std=c++20', '-Icsrc', '--expt-relaxed-constexpr', '-fmad=false'];
  await run('nvcc', [...flags, '-arch=compute_80', '-ptx', '-o', ptx, path.join('csrc', source)]);
  const log = await run('ptxas', ['-arch=sm_80', '-v', '-o', path.join(folder, `${base}.cubin`), ptx]);
  const text = fs.readFileSync(ptx, 'utf8');
  const kernels = {};
  const entries = [...resources(log)];
  const names = entries.length > 0 ? await demangle(entries.map(([mangled]) => mangled)) : [];
  for (const [i, [mangled, { registers, spilled }]] of entries.entries()) {
    if (spilled > 0) throw new Error(`${source}: ${names[i]} spills ${spilled} bytes`);
    const from = text.indexOf(`.entry ${mangled}(`);
    const next = text.indexOf('.entry ', from + 1);
    const body = text.slice(from, next < 0 ? undefined : next);
    kernels[names[i]] = { registers };
    for (const [what, pattern] of Object.entries(COUNTED)) {
      const count = body.match(pattern)?.length ?? 0;
      if (count > 0) kernels[names[i]][what] = count;
    }
  }
  return kernels;
}

async function measure() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-kernels-'));
  const waiting = sources().filter((file) => file.endsWith('_cuda.cu'));
  const all = {};
  const work = async () => {
    for (let source = waiting.pop(); source !== undefined; source = waiting.pop())
      Object.assign(all, await compile(source, folder));
  };
  try {
    await Promise.all(Array.from({ length: os.availableParallelism() }, work));
    return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** What the kernels and the table depend on: nothing is compiled again while it is the same. */
function fingerprint(version) {
  const hash = crypto.createHash('sha256').update(`${version}\n`);
  for (const file of [...sources().map((name) => path.join(root, 'csrc', name)), table, __filename])
    if (fs.existsSync(file)) hash.update(fs.readFileSync(file));
  return hash.digest('hex');
}

async function check(version) {
  const recorded = JSON.parse(fs.readFileSync(table, 'utf8'));
  const measured = await measure();
  const sameTools = recorded.nvcc === version;
  const problems = [];
  for (const name of new Set([...Object.keys(recorded.kernels), ...Object.keys(measured)])) {
    const [then, now] = [recorded.kernels[name], measured[name]];
    if (!then || !now) problems.push(`${name} is ${then ? 'gone' : 'new'}`);
    else
      for (const what of new Set([...Object.keys(then), ...Object.keys(now)]))
        if (then[what] !== now[what] && (sameTools || what === 'mma'))
          problems.push(`${name}: ${what} ${then[what] ?? 0} -> ${now[what] ?? 0}`);
  }
  for (const problem of problems) console.error(`error: ${problem}`);
  console.log(`${Object.keys(measured).length} kernels, no spills, ${problems.length} differences`);
  return problems.length === 0;
}

async function main() {
  const version = nvccVersion();
  if (version === null) {
    console.log('no nvcc here: the kernels are not checked');
  } else if (process.argv.includes('--update')) {
    fs.writeFileSync(table, `${JSON.stringify({ nvcc: version, kernels: await measure() }, null, 2)}\n`);
  } else if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === fingerprint(version)) {
    console.log('kernels unchanged since they were last checked');
  } else if (await check(version)) {
    fs.mkdirSync(path.dirname(stamp), { recursive: true });
    fs.writeFileSync(stamp, fingerprint(version));
  } else {
    process.exitCode = 1;
  }
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
