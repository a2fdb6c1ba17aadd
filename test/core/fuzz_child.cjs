'use strict';
// node fuzz_child.cjs <package> <public|raw> <seed> <calls>: calls everything with random arguments, in the working directory.
// Prints {calls, rejected} at the end, or the first wrong error and exits with 1. A crash shows in the exit status.

const { OWN, values } = require('./fuzz_values.cjs');

const [packageRoot, mode, seed, calls] = [
  process.argv[2],
  process.argv[3],
  Number(process.argv[4]),
  Number(process.argv[5]),
];
const quantaria = require(packageRoot);
const pool = [];
const raw = mode === 'raw';
const build = process.env.QUANTARIA_BUILD || 'Release';
const binding = require(require('node:path').join(packageRoot, 'build', build, 'quantaria.node'));
const device = process.env.QUANTARIA_TEST_DEVICE || 'cpu';
quantaria.setDefaultDevice(device);
const random = values(seed, quantaria, pool, raw ? binding : null);

/** Not for users: whatever they throw, they must not crash. */
const INTERNAL =
  /\.(wrap|native|fromStored|stored|view|bytes|entries)$|#(view|bytes|entries|stored)$|^QuantariaError/;

/** [name, call(args)] of all functions, classes, static and prototype members. */
function targets(root) {
  const found = [];
  const visit = (value, name) => {
    if (typeof value === 'object' && value !== null) {
      for (const [key, member] of Object.entries(value)) visit(member, name === '' ? key : `${name}.${key}`);
    }
    if (typeof value !== 'function') return;
    const isClass = /^class\b/.test(Function.prototype.toString.call(value));
    if (!isClass) return void found.push([name, (args) => value(...args)]);
    found.push([name, (args) => Reflect.construct(value, args)]);
    for (const key of Reflect.ownKeys(value)) {
      if (typeof value[key] === 'function')
        found.push([`${name}.${String(key)}`, (args) => value[key](...args)]);
    }
    for (const key of Reflect.ownKeys(value.prototype)) {
      if (key === 'constructor') continue;
      const { get, value: method } = Object.getOwnPropertyDescriptor(value.prototype, key);
      const instance = () => random.pick(pool.filter((item) => item instanceof value));
      const call = (args) => {
        const own = instance();
        if (own === undefined) return undefined;
        return get ? get.call(own) : method.apply(own, args);
      };
      found.push([`${name}#${String(key)}`, call]);
    }
  };
  visit(root, '');
  return found;
}

function fail(name, args, error) {
  const shown = require('node:util').inspect(args, { depth: 3 }).slice(0, 2000);
  console.error(`${name}(${shown})\n${error instanceof Error ? error.stack : String(error)}`);
  process.exit(1);
}

function keep(value) {
  for (const item of Array.isArray(value) ? value : [value]) {
    if (typeof item !== 'object' || item === null) continue;
    if (pool.length < 200) pool.push(item);
    else pool[random.below(200)] = item;
    for (const member of item.constructor === Object ? Object.values(item) : [])
      if (typeof member === 'object') pool.push(member);
  }
}

/** Expected of public functions: the library's own error, or what the argument threw. */
const expected = (error) =>
  error === OWN || (error instanceof quantaria.QuantariaError && /^ERR_/.test(error.code));

let current = ['nothing', []];
let finished = false;

async function main() {
  const all = targets(raw ? binding : quantaria);
  if (raw)
    for (const shape of [[4], [3, 4], [2, 2, 2]])
      for (const dtype of ['float32', 'uint8', 'int32']) pool.push(binding.tensorZeros(dtype, shape, device));
  const writer = new quantaria.SafetensorsWriter('model.safetensors', [
    { name: 'w', dtype: 'F32', shape: [3, 4] },
  ]);
  await writer.write('w', quantaria.Tensor.zeros([3, 4], { device: 'cpu' }));
  await writer.finish();
  let rejected = 0;
  for (let i = 0; i < calls; i++) {
    const [name, call] = all[i % all.length];
    const args = random.args(name);
    current = [name, args];
    if (i % 1000 === 0) pool.push(await quantaria.openCheckpoint('.'));
    try {
      const result = call(args);
      const settled = result instanceof Promise ? await result : result;
      keep(settled);
    } catch (error) {
      rejected++;
      if (!raw && !INTERNAL.test(name) && !expected(error)) fail(name, args, error);
    }
    if (i % 500 === 499) {
      quantaria.setThreads(1 + (i % 3));
      await quantaria.synchronize().catch((error) => expected(error) || fail('synchronize', [], error));
      if (i % 5000 === 4999) globalThis.gc();
    }
  }
  await quantaria.synchronize().catch(() => {});
  finished = true;
  console.log(JSON.stringify({ functions: all.map(([name]) => name), calls, rejected }));
}

// With nothing left to wait for, a promise that is pending will not settle any more.
process.on('exit', (code) => code === 0 && !finished && fail(...current, 'never settled'));
process.on('uncaughtException', (error) => fail('uncaught', [], error));
process.on('unhandledRejection', (error) =>
  mode === 'raw' || expected(error) ? undefined : fail('unhandled', [], error),
);
main().catch((error) => fail('the fuzzer itself', current, error));
