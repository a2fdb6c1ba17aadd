'use strict';
// Compiles the CUDA kernels for an A100 and holds what came out against csrc/cuda/kernels.json: for each kernel registers a
// thread, bytes of shared memory a block (those it is launched with, and static ones, of which there should be none), and how
// many instructions of the kinds that a product or a copy lives by its PTX has, in all and in its hot loop, and how many machine
// instructions a warp issues for a step of that loop (sass.cjs says on which way through it). A spill fails in any case. So does a
// change: for the worse it is a mistake, and one for the better is recorded, so that it is not lost again:
// `npm run test:kernels -- --update`.
// The addon, where it has been built, is held against the size recorded for the compilers that built it.
// Where there is no nvcc, or one of another version, whose registers and unrolling differ, only what does not depend on them is
// compared: shared memory, and that no kind of instruction has gone.

const { spawn, spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { isDeepStrictEqual } = require('node:util');
const { root } = require('./cmake.cjs');
const { shortName } = require('./kernel-names.cjs');
const { stepsOf } = require('./sass.cjs');

const table = path.join(root, 'csrc', 'cuda', 'kernels.json');
const addon = path.join(root, 'build', 'Release', 'quantaria.node');
const stamp = path.join(root, 'build-cmake', 'kernels.stamp');

/** What is counted in the PTX of each kernel; fewer of them are worse, but for those of MORE_IS_WORSE. */
const COUNTED = {
  mma: /\bmma\.sync/g,
  ldmatrix: /\bldmatrix/g,
  copies16: /\bcp\.async\.cg\.shared\.global[^;]*,\s*16,/g,
  copies8: /\bcp\.async\.ca\.shared\.global[^;]*,\s*8,/g,
  copies4: /\bcp\.async\.ca\.shared\.global[^;]*,\s*4,/g,
  vectorLoads: /\bld\.(global|shared)(\.nc)?\.v4\.[ufb]32|\bld\.(global|shared)(\.nc)?\.v2\.[bu]64/g,
  fma: /\bfma\.rn\.f32/g,
};
/** What is included before a kernel's file to make it say in its PTX, where nothing else does, how much shared memory it takes. */
const REMARKS = 'remarks.h';
const REMARKS_TEXT = `
#include "simt/simt.h"
namespace quantaria::simt {
template <class Layout>
__device__ __forceinline__ Layout& remarked() {
  asm volatile("// shared %0" ::"n"(static_cast<int>(sizeof(Layout))));
  return shared<Layout>();
}
}  // namespace quantaria::simt
#define shared remarked
`;
/** 4-byte copies and plain arithmetic stand where wider ones, or tensor cores, could. */
const MORE_IS_WORSE = new Set(['registers', 'shared', 'staticShared', 'copies4', 'fma', 'instructions']);
/** What depends on the source alone, whatever compiles it. */
const OF_THE_SOURCE = new Set(['shared', 'staticShared']);
/** The size that is allowed is a fiftieth more than the recorded one, rounded up: a few functions more are no news. */
const ROOM = 1.02;
const SIZE_STEP = 100_000;

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

async function demangle(names) {
  const output = await run('c++filt', [], names.join('\n'));
  return output.trim().split('\n').map(shortName);
}

/** Registers and static shared memory by mangled name, from what ptxas says; functions that kernels call must not spill either. */
function resources(log, source) {
  const found = new Map();
  let entry = null;
  let current = null;
  for (const line of log.split('\n')) {
    entry = /Compiling entry function '(\w+)'/.exec(line)?.[1] ?? entry;
    current = /Function properties for (\w+)/.exec(line)?.[1] ?? current;
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spill && Number(spill[1]) + Number(spill[2]) > 0)
      throw new Error(`${source}: ${current ?? entry} spills: ${line.trim()}`);
    const used = /Used (\d+) registers/.exec(line);
    if (used)
      found.set(entry, {
        registers: Number(used[1]),
        staticShared: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0),
      });
  }
  return found;
}

function counts(ptx) {
  const found = {};
  for (const [what, pattern] of Object.entries(COUNTED)) {
    const count = ptx.match(pattern)?.length ?? 0;
    if (count > 0) found[what] = count;
  }
  return found;
}

/** The smallest stretch of PTX that a branch leads back over and that holds most of the instructions a kernel is there for. */
function hotLoop(ptx) {
  const labels = new Map([...ptx.matchAll(/^(\$L__BB\w+):/gm)].map(({ 1: label, index }) => [label, index]));
  let best = null;
  for (const { 1: label, index } of ptx.matchAll(/\bbra(?:\.uni)?\s+(\$L__BB\w+);/g)) {
    const from = labels.get(label) ?? index;
    if (from >= index) continue;
    const found = counts(ptx.slice(from, index));
    const work = (found.mma ?? 0) * 1000 + (found.fma ?? 0);
    if (work > 0 && (!best || work > best.work || (work === best.work && index - from < best.length)))
      best = { work, length: index - from, found };
  }
  return best && (best.found.mma || best.found.fma >= 64) ? best.found : null;
}

/** The PTX of each kernel, by name. */
async function bodies(file) {
  const text = fs.readFileSync(file, 'utf8');
  const starts = [...text.matchAll(/\.entry (\w+)\(/g)];
  if (starts.length === 0) return new Map();
  const names = await demangle(starts.map(([, mangled]) => mangled));
  return new Map(names.map((name, i) => [name, text.slice(starts[i].index, starts[i + 1]?.index)]));
}

async function compile(source, folder) {
  const base = path.basename(source, '.cu');
  const ptx = path.join(folder, `${base}.ptx`);
  const flags = ['-std=c++20', '-Icsrc', '--expt-relaxed-constexpr', '-fmad=false'];
  const toPtx = [...flags, '-arch=compute_80', '-ptx', path.join('csrc', source), '-o'];
  await run('nvcc', [...toPtx, ptx]);
  // By itself, as a remark can cost registers.
  const remarks = path.join(folder, `${base}-remarks.ptx`);
  await run('nvcc', [...toPtx, remarks, '-include', path.join(folder, REMARKS)]);
  const cubin = path.join(folder, `${base}.cubin`);
  const log = await run('ptxas', ['-arch=sm_80', '-v', '-o', cubin, ptx]);
  const steps = stepsOf(fs.readFileSync(cubin));
  const used = [...resources(log, source)];
  const names = used.length > 0 ? await demangle(used.map(([mangled]) => mangled)) : [];
  const [plain, remarked] = [await bodies(ptx), await bodies(remarks)];
  const kernels = {};
  for (const [i, [mangled, { registers, staticShared }]] of used.entries()) {
    const name = names[i];
    const sizes = remarked.get(name).matchAll(/\/\/ shared (\d+)/g);
    const shared = Math.max(0, ...[...sizes].map(([, bytes]) => Number(bytes)));
    const loop = hotLoop(plain.get(name));
    kernels[name] = {
      registers,
      ...(shared > 0 ? { shared } : {}),
      ...(staticShared > 0 ? { staticShared } : {}),
      ...counts(plain.get(name)),
      ...(loop ? { loop, step: steps.get(mangled) } : {}),
    };
  }
  return kernels;
}

async function measure() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-kernels-'));
  fs.writeFileSync(path.join(folder, REMARKS), REMARKS_TEXT);
  const waiting = sources().filter((file) => file.endsWith('_cuda.cu'));
  const all = {};
  const work = async () => {
    for (let source = waiting.pop(); source !== undefined; source = waiting.pop())
      for (const [name, kernel] of Object.entries(await compile(source, folder))) {
        // The table and the predictions know kernels by name. One template may be used in several files.
        if (all[name] && !isDeepStrictEqual(all[name], kernel))
          throw new Error(
            `${source}: another file has a kernel ${name} too: the table cannot tell them apart`,
          );
        all[name] = kernel;
      }
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

/** What of two rows of the table differs, in words; "(worse)" where it is. */
function differences(then, now, sameTools) {
  const found = [];
  const named = (part, counts) =>
    Object.fromEntries(Object.entries(counts ?? {}).map(([what, count]) => [`${part} ${what}`, count]));
  const flat = ({ loop, step, ...rest }) => ({ ...rest, ...named('loop', loop), ...named('step', step) });
  const [before, after] = [flat(then), flat(now)];
  for (const what of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const [old, fresh] = [before[what] ?? 0, after[what] ?? 0];
    const kind = what.replace(/^(loop|step) /, '');
    const matters = sameTools || OF_THE_SOURCE.has(kind) || (fresh === 0 && !MORE_IS_WORSE.has(kind));
    if (old === fresh || !matters) continue;
    const worse = MORE_IS_WORSE.has(kind) ? fresh > old : fresh < old;
    found.push(`${what} ${old} -> ${fresh}${worse ? ' (worse)' : ''}`);
  }
  return found;
}

function compare(recorded, measured, sameTools) {
  const problems = [];
  for (const name of new Set([...Object.keys(recorded), ...Object.keys(measured)])) {
    const [then, now] = [recorded[name], measured[name]];
    if (!then || !now) problems.push(`${name} is ${then ? 'gone' : 'new'}: --update records that`);
    else for (const difference of differences(then, now, sameTools)) problems.push(`${name}: ${difference}`);
  }
  return problems;
}

/** The addon's size and what compiled it; null where it has not been built. */
function addonSize() {
  if (!fs.existsSync(addon)) return null;
  const content = fs.readFileSync(addon);
  // Of the build id: "...; GNU 12.2.0; x86_64; Release; cuda 13.0.88 80-real,90-real,90-virtual)"
  const tools = /quantaria [\d.]+ \([^;)]*; ([^)]*)\)/.exec(content.toString('latin1'))?.[1] ?? '';
  return { tools, bytes: content.length };
}

function checkSize(recorded) {
  const built = addonSize();
  if (!built || built.tools !== recorded?.tools) {
    console.log(`the addon's size is not checked: ${built ? `built by ${built.tools}` : 'not built here'}`);
    return [];
  }
  console.log(`the addon has ${built.bytes} bytes, ${recorded.mostBytes} are allowed`);
  if (built.bytes <= recorded.mostBytes) return [];
  return [
    `${path.relative(root, addon)} has ${built.bytes} bytes, at most ${recorded.mostBytes} are allowed (worse)`,
  ];
}

function noteChecked(version) {
  fs.mkdirSync(path.dirname(stamp), { recursive: true });
  fs.writeFileSync(stamp, fingerprint(version));
}

async function update(version) {
  const built = addonSize();
  if (!built) throw new Error('build the addon first: its size is recorded as well');
  const mostBytes = Math.ceil((built.bytes * ROOM) / SIZE_STEP) * SIZE_STEP;
  const kernels = await measure();
  fs.writeFileSync(
    table,
    `${JSON.stringify({ nvcc: version, addon: { tools: built.tools, mostBytes }, kernels }, null, 2)}\n`,
  );
  noteChecked(version);
}

/** Compiles nothing if the kernels have not changed since all was well with them. */
async function checkKernels(version, recorded) {
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === fingerprint(version)) {
    console.log('kernels unchanged since they were last checked');
    return [];
  }
  const measured = await measure();
  const problems = compare(recorded.kernels, measured, recorded.nvcc === version);
  console.log(`${Object.keys(measured).length} kernels, no spills, ${problems.length} differences`);
  if (problems.length === 0) noteChecked(version);
  return problems;
}

async function main() {
  const version = nvccVersion();
  if (version !== null && process.argv.includes('--update')) return update(version);
  const recorded = JSON.parse(fs.readFileSync(table, 'utf8'));
  const problems = checkSize(recorded.addon);
  if (version === null) console.log('no nvcc here: the kernels are not checked');
  else problems.push(...(await checkKernels(version, recorded)));
  for (const problem of problems) console.error(`error: ${problem}`);
  if (problems.length > 0) process.exitCode = 1;
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
