import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { version } from '../../lib/version';
import { cli, EXAMPLE, lastLine, readJson, temporaryDirectory, tree } from '../pipeline/helpers';

const work = temporaryDirectory();
const at = (name: string) => path.join(work, name);

const ROLES =
  'expert shared-expert dense-ffn attention router embedding lm-head norm vision projector other'.split(' ');
const number = expect.any(Number);
const text = expect.any(String);

function file(name: string, content: unknown): string {
  fs.writeFileSync(at(name), typeof content === 'string' ? content : JSON.stringify(content));
  return at(name);
}

/** The object that --json printed: the one line on stdout. */
async function json(...args: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await cli(...args, '--json');
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.endsWith('}\n')).toBe(true);
  expect(stdout.trimEnd()).not.toContain('\n');
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** Without --json: exit 0, some words on stdout, no JSON. */
async function words(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await cli(...args);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).not.toMatch(/^\{/);
  return stdout;
}

describe('commands, with --json and without', () => {
  test('info: version, devices, cuda', async () => {
    const found = await json('info');
    expect(found).toMatchObject({
      version: readJson<{ version: string }>(__dirname, '..', '..', 'package.json').version,
      cuda: { available: expect.any(Boolean) },
    });
    expect(found.devices).toContainEqual(
      expect.objectContaining({
        id: 'cpu',
        kind: 'cpu',
        name: text,
        memoryBytes: number,
        threads: number,
        isa: text,
      }),
    );
    expect(found.cuda).toHaveProperty('reason');
    expect(await words('info')).toMatch(/^quantaria \d+\.\d+\.\d+/);
  });

  test('inspect: architecture, layers, experts, parameters, bytes, parts by role', async () => {
    const found = await json('inspect', EXAMPLE);
    // The figures of the example's own README.
    expect(found).toMatchObject({
      architecture: 'aria',
      layers: 3,
      experts: 16,
      parameters: 1_663_616,
      bytes: 3_327_232,
    });
    const parts = found.parts as Record<string, Record<string, number>>;
    expect(Object.keys(parts).every((role) => ROLES.includes(role))).toBe(true);
    expect(parts.expert).toEqual({ tensors: 6, parameters: 1_179_648, bytes: 2 * 1_179_648 });
    expect(parts.attention?.parameters).toBe(196_608);
    expect(parts['shared-expert']?.parameters).toBe(147_456);
    expect(parts.router?.parameters).toBe(6_144);
    for (const part of Object.values(parts))
      expect(part).toEqual({ tensors: number, parameters: number, bytes: number });
    expect(await words('inspect', EXAMPLE)).toMatch(/aria: 3 layers, 16 experts/);
  });

  test('plan: averageBits, bytes, every tensor with its scheme and reason; nothing is written', async () => {
    const before = tree(work);
    const found = await json('plan', EXAMPLE, '--recipe', 'int4');
    expect(found).toMatchObject({ averageBits: number, bytes: number });
    const tensors = found.tensors as Record<string, unknown>[];
    expect(tensors.length).toBe(232);
    for (const tensor of tensors) {
      expect(tensor).toMatchObject({ name: text, reason: text });
      expect(ROLES).toContain(tensor.role);
      expect(tensor.scheme === null || typeof (tensor.scheme as { kind: unknown }).kind === 'string').toBe(
        true,
      );
    }
    expect(await words('plan', EXAMPLE, '--recipe', 'int4')).toMatch(/bits a weight/);
    expect(tree(work)).toEqual(before);
  });

  test('convert: tensorsIn, tensorsOut, bytes, seconds, peakRssBytes', async () => {
    const found = await json('convert', EXAMPLE, '--to', 'sequential', '--out', at('convert-json'));
    const counts = { tensorsIn: 94, tensorsOut: 94 - 6 + 3 * 16 * 3, bytes: 3_327_232 };
    expect(found).toEqual({ ...counts, seconds: number, peakRssBytes: number });
    expect(await words('convert', EXAMPLE, '--to', 'sequential', '--out', at('convert'))).toMatch(
      /94 tensors in, 232 out/,
    );
    expect(tree(at('convert'))).toEqual(tree(at('convert-json')));
  });

  test('quantize: method, format, averageBits, bytes, counts, tensors; logs and progress on stderr', async () => {
    const { code, stdout, stderr } = await cli('quantize', EXAMPLE, '--out', at('quantize-json'), '--json');
    expect(code).toBe(0);
    expect(stdout.trimEnd()).not.toContain('\n');
    const found = JSON.parse(stdout);
    expect(found).toMatchObject({
      method: 'rtn',
      format: 'compressed-tensors',
      averageBits: number,
      bytesIn: 3_327_232,
      bytesOut: number,
      seconds: number,
      peakRssBytes: number,
      quantized: 165,
      kept: 67,
    });
    expect(found.tensors.length).toBe(232);
    for (const tensor of found.tensors) expect(tensor).toMatchObject({ name: text, relativeError: number });
    expect(stderr).toMatch(/^quantizing +100 %/m);
    expect(stderr).toMatch(/^warning: /m);
    // Plain lines where there is no terminal.
    for (const control of ['\r', '\x1b']) expect(stderr).not.toContain(control);

    expect(await words('quantize', EXAMPLE, '--out', at('quantize'))).toMatch(
      /165 tensors quantized, 67 kept/,
    );
    expect(tree(at('quantize'))).toEqual(tree(at('quantize-json')));
  });

  test('verify: ok, problems, tensors; a problem is JSON too, and exit 1', async () => {
    const good = await json('verify', at('quantize'), '--against', EXAMPLE);
    expect(good).toMatchObject({ ok: true, problems: [] });
    expect((good.tensors as unknown[]).length).toBe(232);
    expect(await words('verify', at('quantize'))).toMatch(/ok, 232 tensors/);

    const other = await cli('verify', at('quantize'), '--against', at('convert'), '--json');
    expect(JSON.parse(other.stdout)).toMatchObject({ ok: true });

    fs.cpSync(at('quantize'), at('broken'), { recursive: true });
    fs.truncateSync(path.join(at('broken'), 'model.safetensors'), 100_000);
    const bad = await cli('verify', at('broken'), '--json');
    expect(bad.code).toBe(1);
    expect(JSON.parse(bad.stdout)).toMatchObject({
      ok: false,
      problems: [expect.stringContaining('model.safetensors')],
    });
    expect(lastLine(bad.stderr)).toMatch(/^error: /);
  });

  test('verify of a plain model, alone', async () => {
    expect(await json('verify', EXAMPLE)).toMatchObject({ ok: true, problems: [] });
  });
});

describe('help and version', () => {
  const commands = ['info', 'inspect', 'convert', 'plan', 'quantize', 'verify'];

  test('--version prints the version', async () => {
    expect(await cli('--version')).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('--help names every command, and each command its flags', async () => {
    const { code, stdout } = await cli('--help');
    expect(code).toBe(0);
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
    const pages = await Promise.all(commands.map((command) => cli(command, '--help')));
    for (const page of pages)
      expect(page).toMatchObject({ code: 0, stdout: expect.stringContaining('--json'), stderr: '' });
    const flags = [
      'recipe',
      'method',
      'bits',
      'group-size',
      'format',
      'text',
      'samples',
      'seq-len',
      'usage',
      'target-bits',
      'max-shard-size',
      'max-memory',
      'resume',
      'out',
      'device',
      'threads',
    ];
    for (const flag of flags) expect(pages[4]?.stdout).toContain(`--${flag}`);
  });
});

type Case = readonly [name: string, args: readonly string[], message?: RegExp];

/** Ends with that code, nothing on stdout, one last line that starts with `error: `, and no stack trace. */
async function expectError(args: readonly string[], code: number, message = /./): Promise<void> {
  const ended = await cli(...args);
  expect({ args, code: ended.code, stdout: ended.stdout }).toEqual({ args, code, stdout: '' });
  expect(ended.stderr.endsWith('\n')).toBe(true);
  expect(lastLine(ended.stderr)).toMatch(/^error: \S/);
  expect(lastLine(ended.stderr)).toMatch(message);
  expect(ended.stderr).not.toMatch(/^\s+at .*:\d+/m);
}

const out = at('never');
const quantize = (...flags: string[]) => ['quantize', EXAMPLE, '--out', out, ...flags];

describe('exit 2: unknown or ill-formed commands, flags and values', () => {
  const cases: readonly Case[] = [
    ['no command', [], /command/],
    ['an unknown command', ['nosuch'], /nosuch/],
    ['an unknown flag of none', ['--nosuch'], /--nosuch/],
    ['an operand of info', ['info', 'x'], /too many arguments/],
    ...['inspect', 'plan', 'verify', 'convert', 'quantize'].map(
      (command): Case => [
        `${command} without a model`,
        [
          command,
          ...(command === 'quantize' || command === 'convert' ? ['--out', out] : []),
          ...(command === 'convert' ? ['--to', 'fused'] : []),
        ],
        /missing required argument 'model'/,
      ],
    ),
    ...['info', 'inspect', 'plan', 'verify'].map(
      (command): Case => [`an unknown flag of ${command}`, [command, '--nosuch'], /--nosuch/],
    ),
    [
      'an unknown flag of convert',
      ['convert', EXAMPLE, '--to', 'fused', '--out', out, '--nosuch'],
      /--nosuch/,
    ],
    ['an unknown flag of quantize', quantize('--nosuch'), /--nosuch/],
    ['two models', ['inspect', EXAMPLE, EXAMPLE], /too many arguments/],
    ['quantize without --out', ['quantize', EXAMPLE], /--out/],
    ['convert without --out', ['convert', EXAMPLE, '--to', 'fused'], /--out/],
    ['convert without --to', ['convert', EXAMPLE, '--out', out], /--to/],
    ['an unknown layout', ['convert', EXAMPLE, '--to', 'nosuch', '--out', out], /nosuch.*sequential/],
    ['--out without its value', ['quantize', EXAMPLE, '--out'], /--out/],
    ...(
      [
        ['--recipe', 'nosuch'],
        ['--method', 'nosuch'],
        ['--bits', '7'],
        ['--bits', 'four'],
        ['--bits', '4.0'],
        ['--bits', ''],
        ['--group-size', '0'],
        ['--group-size', '-2'],
        ['--group-size', '12.5'],
        ['--group-size', 'x'],
        ['--format', 'nosuch'],
        ['--samples', '0'],
        ['--samples', '-1'],
        ['--seq-len', '1'],
        ['--seq-len', 'x'],
        ['--target-bits', '0'],
        ['--target-bits', '-1'],
        ['--target-bits', 'x'],
        ['--max-shard-size', '0'],
        ['--max-shard-size', '5XB'],
        ['--max-shard-size', '-5GB'],
        ['--max-memory', 'x'],
        ['--max-memory', '0'],
        ['--threads', '0'],
        ['--threads', '1.5'],
        ['--threads', 'x'],
        ['--device', 'gpu'],
        ['--device', 'cuda:'],
        ['--device', 'cuda:-1'],
      ] as const
    ).map(
      ([flag, value]): Case => [`${flag} ${JSON.stringify(value)}`, quantize(flag, value), new RegExp(flag)],
    ),
  ];
  for (const [name, args, message] of cases) test.concurrent(name, () => expectError(args, 2, message));
});

describe('exit 1: a run that failed', () => {
  const missing = at('missing');
  const bare = at('bare');
  fs.mkdirSync(bare);
  const busy = at('busy');
  fs.mkdirSync(busy);
  fs.writeFileSync(path.join(busy, 'notes.txt'), 'mine');
  const broken = file('broken.safetensors', 'not a safetensors file');
  const text = file('text.json', '{"rules": [');
  const empty = file('empty.json', {});
  const unknownScheme = file('scheme.json', { rules: [{ match: {}, scheme: { kind: 'nosuch' } }] });
  const needsUsage = file('usage.json', { rules: [{ match: { usage: 'top:2' }, scheme: null }] });

  const cases: readonly Case[] = [
    ...['inspect', 'plan', 'verify'].map(
      (command): Case => [`${command} of a missing model`, [command, missing], /missing: no such file/],
    ),
    [
      'convert of a missing model',
      ['convert', missing, '--to', 'fused', '--out', out],
      /missing: no such file/,
    ],
    ['quantize of a missing model', ['quantize', missing, '--out', out], /missing: no such file/],
    ['a directory without weights', ['inspect', bare], /no safetensors file/],
    ['a malformed model', ['inspect', broken], /broken\.safetensors/],
    ['a malformed model to quantize', ['quantize', broken, '--out', out], /broken\.safetensors/],
    ['a malformed model to verify', ['verify', broken], /broken\.safetensors/],
    ['a missing original', ['verify', EXAMPLE, '--against', missing], /missing/],
    ['a malformed original', ['verify', EXAMPLE, '--against', broken], /broken\.safetensors/],
    ['an output that is not empty', ['quantize', EXAMPLE, '--out', busy], /busy: it is not empty/],
    [
      'an output of convert that is not empty',
      ['convert', EXAMPLE, '--to', 'fused', '--out', busy],
      /busy: it is not empty/,
    ],
    ['an output that is not empty, with --resume', ['quantize', EXAMPLE, '--out', busy, '--resume'], /busy/],
    [
      'an output where no directory can be made',
      ['quantize', EXAMPLE, '--out', '/proc/nosuch/out'],
      /\/proc\/nosuch\/out: /,
    ],
    [
      'an output of convert where no directory can be made',
      ['convert', EXAMPLE, '--to', 'fused', '--out', '/proc/nosuch/out'],
      /\/proc\/nosuch\/out: /,
    ],
    ['an output inside a file', ['quantize', EXAMPLE, '--out', path.join(text, 'out')], /text\.json/],
    ['an empty --out', ['quantize', EXAMPLE, '--out', ''], /./],
    ['CUDA where there is none', quantize('--device', 'cuda:99'), /cuda:99/],
    ['CUDA where there is none, to verify', ['verify', EXAMPLE, '--device', 'cuda:99'], /cuda:99/],
    ['a missing recipe file', quantize('--recipe', `${missing}.json`), /missing\.json/],
    ['a recipe file that is no JSON', quantize('--recipe', text), /text\.json/],
    ['a recipe file without rules', quantize('--recipe', empty), /empty\.json.*rules/],
    ['a recipe file with an unknown scheme', quantize('--recipe', unknownScheme), /scheme\.json.*nosuch/],
    ['a recipe that needs usage', quantize('--recipe', needsUsage), /usage/],
    ['a missing usage file', quantize('--usage', `${missing}.json`), /missing\.json/],
    ['a usage file that is none', quantize('--usage', empty), /usage/],
    [
      'a format that cannot hold the recipe',
      quantize('--recipe', 'nf4', '--format', 'gptq'),
      /gptq cannot hold nf4/,
    ],
    ['bits beside a recipe that sets them', quantize('--recipe', 'nf4', '--bits', '4'), /--bits/],
    ['bits out of reach', quantize('--target-bits', '1'), /out of reach/],
    ['bits beside a target for their average', quantize('--target-bits', '4', '--bits', '4'), /--bits/],
    ['an expert template without places', quantize('--expert-template', 'nosuch'), /nosuch/],
  ];
  for (const [name, args, message] of cases) test.concurrent(name, () => expectError(args, 1, message));

  test('nothing was written by any of them', () => {
    expect(fs.existsSync(out)).toBe(false);
    expect(fs.readdirSync(busy)).toEqual(['notes.txt']);
  });
});

test('--debug shows where an error came from, and the last line stays the error', async () => {
  const { code, stderr } = await cli('inspect', at('missing'), '--debug');
  expect(code).toBe(1);
  expect(stderr).toMatch(/^\s+at .*:\d+/m);
  expect(lastLine(stderr)).toMatch(/^error: .*no such file/);
});

describe('values that are fine', () => {
  const cases: readonly (readonly string[])[] = [
    ['--device', 'cpu', '--threads', '1'],
    ['--max-shard-size', '1.5MB', '--max-memory', '64mb'],
    ['--max-shard-size', '200000'],
    ['--bits', '8', '--group-size', '-1'],
    ['--text', '/nowhere', '--samples', '4', '--seq-len', '32', '--method', 'rtn'], // of no use to this method
  ];
  test.concurrent.each(cases.map((flags, i) => [flags.join(' '), flags, i] as const))(
    '%s',
    async (_, flags, i) => {
      const { code, stderr } = await cli(
        'quantize',
        EXAMPLE,
        '--out',
        at(`fine-${i}`),
        '--bits',
        '4',
        ...flags,
      );
      expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    },
  );
});
