'use strict';
// What methods and bits do to a model: perplexity, and KL divergence, top-1 agreement and logit error against the original.
//   node bench/quality/table.cjs --model DIR (--text FILE | --tokens FILE) (--calibration-text FILE | --calibration-tokens FILE)
//     [--rows N] [--samples 128] [--work DIR] [--only REGEXP] [--out FILE]
// --rows: rows of the evaluation (default: all). Every checkpoint is written under --work and removed again. Prints a table, writes JSON
// to --out, and exits with 1 if a goal is missed: GPTQ beats round-to-nearest at 4, 3 and 2 bits, chosen bits beat uniform ones, schemes of 8-bit integers stay
// within 0.5 % of the original's perplexity, mxfp8 within 1.5 %.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const cli = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');

const INT8_LIMIT = 0.005;
/** One scale for all activations needs smoothing, which the row without it shows. */
const IN_INT8 = /8 bits|int8|smoothquant W8A8|W8A8, activations by row/;
const MXFP8_LIMIT = 0.015;

/** Flags of `quantize` and, where activations are quantized too, of `evaluate`. */
function casesOf(usage) {
  const cases = [];
  for (const group of [128, 32]) {
    for (const bits of [8, 4, 3, 2]) {
      for (const method of ['rtn', 'gptq']) cases.push(integers(method, bits, group));
    }
    for (const bits of [4, 3]) cases.push(integers('awq', bits, group));
  }
  for (const [flag, what] of [
    ['--no-act-order', 'columns as they come'],
    ['--no-static-groups', 'groups that move'],
    ['--group-aware', 'whole groups in order'],
    ['--routing-weights', 'weighted by routing'],
  ]) {
    cases.push({ ...integers('gptq', 4, 32, [flag]), name: `gptq 4 bits g32, ${what}` });
  }
  for (const recipe of ['nf4', 'mxfp4', 'mxfp8', 'llm.int8']) {
    cases.push({ name: recipe, method: 'rtn', flags: ['--recipe', recipe] });
  }
  for (const method of ['rtn', 'smoothquant']) {
    const name = `${method} W8A8, activations by row`;
    cases.push({ name, method, flags: ['--method', method, '--bits', '8'], evaluate: ['--compute', 'int8'] });
    const fixed = ['--method', method, '--bits', '8', '--activations', 'static'];
    cases.push({ name: `${method} W8A8, one scale`, method, flags: fixed });
  }
  for (const method of ['rtn', 'gptq']) {
    // As many bits as uniform ones took: bits are chosen on the calibration data.
    const flags = (rows) => ['--method', method, '--target-bits', String(rows.find(isUniform).averageBits)];
    cases.push({ name: `${method}, --target-bits of 3 bits g128`, method, flags });
  }
  if (usage !== null) {
    for (const method of ['rtn', 'gptq']) {
      const flags = ['--method', method, '--recipe', 'moe-mixed', '--usage', usage];
      cases.push({ name: `moe-mixed, ${method}`, method, flags });
    }
  }
  return cases;
}

const isUniform = ({ name }) => name === 'rtn 3 bits g128';

function integers(method, bits, group, more = []) {
  const flags = ['--method', method, '--bits', String(bits), '--group-size', String(group), ...more];
  return { name: `${method} ${bits} bits g${group}`, method, bits, group, flags };
}

function run(...args) {
  const child = spawnSync(process.execPath, [cli, ...args, '--json'], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (child.status !== 0) throw new Error(`${args.join(' ')}\n${child.stderr}`);
  return JSON.parse(child.stdout);
}

const data = (text, tokens) => (tokens === undefined ? ['--text', text] : ['--tokens', tokens]);

function checkGoals(rows, original) {
  const missed = [];
  const find = (method, bits, group) => rows.find((row) => row.name === `${method} ${bits} bits g${group}`);
  for (const row of rows) {
    const excess = row.perplexity / original.perplexity - 1;
    const nearest = row.method === 'gptq' && row.bits < 8 && find('rtn', row.bits, row.group);
    if (nearest && !(row.klDivergence < nearest.klDivergence && row.perplexity < nearest.perplexity)) {
      missed.push(`${row.name}: perplexity ${row.perplexity}, ${nearest.perplexity} rounded to nearest`);
    }
    const uniform = /--target-bits/.test(row.name) && find(row.method, 3, 128);
    if (uniform && !(row.klDivergence < uniform.klDivergence)) {
      missed.push(`${row.name}: KL ${row.klDivergence}, ${uniform.klDivergence} with uniform bits`);
    }
    const limit = row.name === 'mxfp8' ? MXFP8_LIMIT : IN_INT8.test(row.name) ? INT8_LIMIT : null;
    if (limit !== null && excess > limit)
      missed.push(`${row.name}: perplexity up by ${(100 * excess).toFixed(2)} %`);
  }
  return missed;
}

function main() {
  const { values } = parseArgs({
    options: {
      model: { type: 'string' },
      text: { type: 'string' },
      tokens: { type: 'string' },
      'calibration-text': { type: 'string' },
      'calibration-tokens': { type: 'string' },
      rows: { type: 'string' },
      samples: { type: 'string', default: '128' },
      work: { type: 'string', default: path.join(os.tmpdir(), 'quantaria-quality') },
      only: { type: 'string', default: '' },
      out: { type: 'string' },
    },
  });
  const { model, work, samples } = values;
  fs.mkdirSync(work, { recursive: true });
  const evaluation = [
    ...data(values.text, values.tokens),
    ...(values.rows ? ['--samples', values.rows] : []),
  ];
  const calibration = [
    ...data(values['calibration-text'], values['calibration-tokens']),
    '--samples',
    samples,
  ];

  const original = run('evaluate', model, ...evaluation);
  const { experts } = run('inspect', model);
  const usage = experts > 0 ? path.join(work, 'usage.json') : null;
  if (usage !== null) fs.writeFileSync(usage, JSON.stringify(run('usage', model, ...calibration)));

  const rows = [];
  for (const { name, method, bits, group, flags, evaluate = [] } of casesOf(usage)) {
    if (!new RegExp(values.only).test(name)) continue;
    const out = path.join(work, 'model');
    fs.rmSync(out, { recursive: true, force: true });
    const own = typeof flags === 'function' ? flags(rows) : flags;
    const made = run('quantize', model, '--out', out, ...own, ...calibration);
    const found = run('evaluate', out, ...evaluation, '--baseline', model, ...evaluate);
    const { klDivergence, top1Agreement, logitError } = found.baseline;
    const { averageBits, seconds } = made;
    const row = {
      name,
      method,
      bits,
      group,
      averageBits,
      seconds,
      perplexity: found.perplexity,
      klDivergence,
    };
    rows.push({ ...row, top1Agreement, logitError });
    const cells = [
      name.padEnd(34),
      averageBits.toFixed(3),
      found.perplexity.toFixed(4),
      klDivergence.toFixed(5),
    ];
    console.log([...cells, `${(100 * top1Agreement).toFixed(2)} %`].join('  '));
    fs.rmSync(out, { recursive: true, force: true });
  }
  const missed = checkGoals(rows, original);
  console.log(`original: perplexity ${original.perplexity.toFixed(4)} over ${original.tokens} ids`);
  for (const line of missed) console.log(`missed: ${line}`);
  if (values.out !== undefined) {
    const found = {
      date: new Date().toISOString().slice(0, 10),
      machine: `${os.cpus()[0].model.trim()}, ${os.cpus().length} cores`,
      node: process.version,
      model: path.basename(model),
      evaluation: { data: path.basename(values.text ?? values.tokens), ids: original.tokens },
      calibration: {
        data: path.basename(values['calibration-text'] ?? values['calibration-tokens']),
        rows: Number(samples),
      },
      original: { perplexity: original.perplexity },
      rows,
      missed,
    };
    fs.writeFileSync(values.out, `${JSON.stringify(found, null, 2)}\n`);
  }
  process.exit(missed.length > 0 ? 1 : 0);
}

main();
