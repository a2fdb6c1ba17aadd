import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { rejectsCode } from '../core/errors';
import { DEVICE } from '../device';
import { mixtral } from '../models/checkpoints';
import {
  EXAMPLE,
  endOf,
  lastLine,
  negated,
  ROOT,
  startCli,
  temporaryDirectory,
  tree,
  writeModel,
} from './helpers';

const work = temporaryDirectory();
/** Several shards, a unit at a time: there is something to interrupt. */
const SMALL: Partial<QuantizeOptions> = { recipe: 'int4', maxShardBytes: 100_000, maxMemoryBytes: 1 };
const SMALL_FLAGS = [
  '--recipe',
  'int4',
  '--max-shard-size',
  '100KB',
  '--max-memory',
  '1',
  '--device',
  DEVICE,
];

const undisturbed = path.join(work, 'undisturbed');
const undisturbedSingle = path.join(work, 'undisturbed-single');

beforeAll(async () => {
  await quantizeCheckpoint(EXAMPLE, { ...SMALL, out: undisturbed });
  await quantizeCheckpoint(EXAMPLE, { ...SMALL, out: undisturbedSingle, maxShardBytes: undefined });
});

/** Stops a run when a share of its input is done. */
async function interrupted(
  out: string,
  share: number,
  options: Partial<QuantizeOptions> = SMALL,
): Promise<void> {
  const controller = new AbortController();
  const running = quantizeCheckpoint(EXAMPLE, {
    ...options,
    out,
    signal: controller.signal,
    onProgress: ({ doneBytes, totalBytes }) => {
      if (doneBytes >= share * totalBytes) controller.abort();
    },
  });
  await rejectsCode(running, 'ERR_ABORTED', /interrupted/);
}

describe('killed at random moments, then resumed', () => {
  test.each([
    ['many small shards', 1, ['--max-shard-size', '100KB', '--threads', '1', '--max-memory', '1']],
    ['one file', 2, ['--recipe', 'nf4-dq']],
  ])(
    '%s: the output is that of an undisturbed run, and nothing half-written ever had a final name',
    async (_, seed, flags) => {
      const script = path.join(ROOT, 'scripts', 'kill-resume.cjs');
      const child = spawn(process.execPath, [script, EXAMPLE, '15', String(seed), ...flags]);
      const { code, stdout, stderr } = await endOf(child);
      expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
      expect(JSON.parse(stdout)).toMatchObject({ kills: 15, defects: [] });
    },
    90_000,
  );
});

describe('interrupted by a signal', () => {
  test.each(['SIGINT', 'SIGTERM'] as const)(
    '%s ends with exit 1 and leaves what can be resumed',
    async (signal) => {
      const out = path.join(work, signal);
      const args = ['quantize', EXAMPLE, '--out', out, ...SMALL_FLAGS];
      const { child, ended } = startCli(args);
      child.stderr?.once('data', () => child.kill(signal)); // the first words come before any work
      const { code, stdout, stderr } = await ended;
      expect({ code, stdout, last: lastLine(stderr) }).toEqual({
        code: 1,
        stdout: '',
        last: 'error: interrupted',
      });
      expect(fs.existsSync(path.join(out, 'config.json'))).toBe(false);

      const resumed = await startCli([...args, '--resume']).ended;
      expect(resumed.code).toBe(0);
      expect(tree(out)).toEqual(tree(undisturbed));
    },
  );

  test.each([0, 0.1, 0.5, 0.9, 0.99, 1])(
    'after %s of the work, --resume makes the same files',
    async (share) => {
      const out = path.join(work, `share-${share}`);
      // With all done, there is nothing that a signal could stop.
      if (share < 1) await interrupted(out, share);
      const names = share < 1 ? fs.readdirSync(out) : [];
      expect(names.filter((name) => /^config\.json$|index/.test(name))).toEqual([]);
      await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
      expect(tree(out)).toEqual(tree(undisturbed));
    },
  );

  test('before anything is done, the directory is as it was', async () => {
    const signal = AbortSignal.abort();
    const nested = path.join(work, 'new', 'nested', 'out');
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { ...SMALL, out: nested, signal }), 'ERR_ABORTED');
    expect(fs.existsSync(path.join(work, 'new'))).toBe(false);

    const empty = path.join(work, 'empty');
    fs.mkdirSync(empty);
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { ...SMALL, out: empty, signal }), 'ERR_ABORTED');
    expect(fs.readdirSync(empty)).toEqual([]);
  });

  test('what is done is not done again', async () => {
    const out = path.join(work, 'not-again');
    await interrupted(out, 0.7);
    const shards = fs.readdirSync(out).filter((name) => /safetensors$/.test(name));
    expect(shards.length).toBeGreaterThan(0);
    const before = shards.map((name) => fs.statSync(path.join(out, name)).mtimeMs);
    await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
    expect(shards.map((name) => fs.statSync(path.join(out, name)).mtimeMs)).toEqual(before);
  });
});

describe('after a crash of the system', () => {
  const journalOf = (out: string) => path.join(out, '.quantaria', 'journal.jsonl');
  /** The journal as another boot finds it, with data of the first `synced` units on the disk. */
  function crash(out: string, synced: number): void {
    const [head, ...lines] = fs.readFileSync(journalOf(out), 'utf8').trimEnd().split('\n');
    const other = JSON.stringify({ ...JSON.parse(head as string), boot: 'another boot' });
    const marked = [other, ...lines.slice(0, synced), JSON.stringify({ synced }), ...lines.slice(synced)];
    fs.writeFileSync(journalOf(out), `${marked.join('\n')}\n`);
  }

  test('units whose data was not synced are done again, over whatever is there', async () => {
    const out = path.join(work, 'crash-all');
    await interrupted(out, 0.6);
    crash(out, 0);
    const begun = fs
      .readdirSync(path.join(out, '.quantaria'))
      .filter((name) => name.endsWith('.safetensors'));
    expect(begun.length).toBeGreaterThan(0);
    for (const name of begun) {
      const file = path.join(out, '.quantaria', name);
      fs.writeFileSync(file, Buffer.alloc(fs.statSync(file).size, 0xaa));
    }
    await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
    expect(tree(out)).toEqual(tree(undisturbed));
  });

  test.each([1, 10, 40])(
    'the first %s units, in files that have their names already, are kept',
    async (synced) => {
      const out = path.join(work, `crash-${synced}`);
      await interrupted(out, 0.9);
      crash(out, synced);
      await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
      expect(tree(out)).toEqual(tree(undisturbed));
    },
  );

  test('a torn last line of the journal is as if it were not there', async () => {
    const out = path.join(work, 'torn');
    await interrupted(out, 0.5);
    const text = fs.readFileSync(journalOf(out), 'utf8');
    fs.writeFileSync(journalOf(out), text.slice(0, -20));
    await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
    expect(tree(out)).toEqual(tree(undisturbed));
  });

  test('a run that ended but could not tidy up is complete', async () => {
    const out = path.join(work, 'untidy');
    fs.cpSync(undisturbed, out, { recursive: true });
    fs.mkdirSync(path.join(out, '.quantaria'));
    await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
    expect(tree(out)).toEqual(tree(undisturbed));
  });
});

describe('--resume', () => {
  test('with nothing there, or an empty directory, starts afresh', async () => {
    for (const make of [false, true]) {
      const out = path.join(work, `fresh-${make}`);
      if (make) fs.mkdirSync(out);
      await quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume: true });
      expect(tree(out)).toEqual(tree(undisturbed));
    }
  });

  test('on a complete output tells the same and changes nothing', async () => {
    const files = tree(undisturbed);
    const times = () =>
      fs.readdirSync(undisturbed).map((name) => fs.statSync(path.join(undisturbed, name)).mtimeMs);
    const before = times();
    const { code, stdout } = await startCli([
      'quantize',
      EXAMPLE,
      '--out',
      undisturbed,
      ...SMALL_FLAGS,
      '--resume',
      '--json',
    ]).ended;
    expect(code).toBe(0);
    const report = JSON.parse(fs.readFileSync(path.join(undisturbed, 'report.json'), 'utf8'));
    expect(JSON.parse(stdout)).toMatchObject(report);
    expect(tree(undisturbed)).toEqual(files);
    expect(times()).toEqual(before);
  });

  test('on a complete output that was damaged since fails', async () => {
    for (const [name, damage] of [
      ['shortened', (out: string) => fs.truncateSync(path.join(out, 'model.safetensors'), 5000)],
      ['without-weights', (out: string) => fs.rmSync(path.join(out, 'model.safetensors'))],
      ['without-config', (out: string) => fs.rmSync(path.join(out, 'config.json'))],
    ] as const) {
      const out = path.join(work, name);
      fs.cpSync(undisturbedSingle, out, { recursive: true });
      damage(out);
      const options = { ...SMALL, maxShardBytes: undefined, out, resume: true };
      await rejectsCode(quantizeCheckpoint(EXAMPLE, options), 'ERR_FORMAT');
    }
  });

  const others: readonly (readonly [string, Partial<QuantizeOptions>])[] = [
    ['another recipe', { recipe: 'int8' }],
    ['another format', { format: 'gptq' }],
    ['another group size', { groupSize: 32 }],
    ['the same scheme by another recipe', { recipe: undefined, bits: 4, groupSize: 128 }],
    ['another shard size', { maxShardBytes: 200_000 }],
    ['other expert names', { expertTemplate: 'mlp.experts.{expert}.{projection}' }],
  ];
  test.each(others)('with %s fails and changes nothing, complete or not', async (_, other) => {
    const partial = path.join(work, 'partial');
    if (!fs.existsSync(partial)) await interrupted(partial, 0.5);
    for (const out of [undisturbed, partial]) {
      const files = tree(out);
      await rejectsCode(
        quantizeCheckpoint(EXAMPLE, { ...SMALL, ...other, out, resume: true }),
        'ERR_ARGUMENT',
        /--resume/,
      );
      expect(tree(out)).toEqual(files);
    }
  });

  test('of another model fails and changes nothing, complete or not', async () => {
    const other = writeModel(path.join(work, 'mixtral'), mixtral());
    for (const out of [undisturbed, path.join(work, 'partial')]) {
      const files = tree(out);
      await rejectsCode(
        quantizeCheckpoint(other, { ...SMALL, out, resume: true }),
        'ERR_ARGUMENT',
        /--resume/,
      );
      expect(tree(out)).toEqual(files);
    }
  });

  test('of another model of the same shapes fails and changes nothing, complete or not', async () => {
    const other = negated(EXAMPLE, path.join(work, 'negated'));
    for (const out of [undisturbed, path.join(work, 'partial')]) {
      const files = tree(out);
      await rejectsCode(
        quantizeCheckpoint(other, { ...SMALL, out, resume: true }),
        'ERR_ARGUMENT',
        /--resume.*another model/,
      );
      expect(tree(out)).toEqual(files);
    }
  });

  test('in a directory of other things fails and changes nothing', async () => {
    const out = path.join(work, 'other-things');
    fs.mkdirSync(out);
    fs.writeFileSync(path.join(out, 'notes.txt'), 'mine');
    for (const resume of [true, false]) {
      await rejectsCode(quantizeCheckpoint(EXAMPLE, { ...SMALL, out, resume }), 'ERR_ARGUMENT', /not empty/);
      expect(fs.readdirSync(out)).toEqual(['notes.txt']);
    }
  });
});

test('without --resume an interrupted or complete output is an error, and stays', async () => {
  for (const [out, what] of [
    [path.join(work, 'partial'), /--resume/],
    [undisturbed, /not empty/],
  ] as const) {
    const files = tree(out);
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { ...SMALL, out }), 'ERR_ARGUMENT', what);
    expect(tree(out)).toEqual(files);
  }
});
