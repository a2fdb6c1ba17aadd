import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import { rejectsCode } from '../core/errors';
import { llama, mixtral } from '../models/checkpoints';
import {
  cli,
  EXAMPLE,
  endOf,
  lastLine,
  MAIN,
  random,
  randomBytes,
  readTensors,
  type Tensors,
  temporaryDirectory,
  tree,
  writeModel,
} from './helpers';

const work = temporaryDirectory();

describe('output that cannot be written', () => {
  /** Runs the command line in a shell that allows no file beyond so many blocks of 512 or 1024 bytes. */
  function limited(blocks: number, args: readonly string[]) {
    const command = `ulimit -f ${blocks}; exec "$0" "$@"`;
    return endOf(spawn('bash', ['-c', command, process.execPath, MAIN, ...args]));
  }

  test.each([
    ['at once', []],
    ['after some shards', ['--max-shard-size', '100KB']],
  ])(
    'a full disk, %s: exit 1, an error that names the file, nothing half-written under a final name',
    async (name, flags) => {
      const out = path.join(work, `full ${name}`);
      const args = ['quantize', EXAMPLE, '--out', out, '--recipe', 'int8', ...flags];
      // Shards are below 200 kB or above 1 MB; the report has about 100 kB.
      const { code, signal, stdout, stderr } = await limited(flags.length === 0 ? 500 : 90, args);
      expect({ code, signal, stdout }).toEqual({ code: 1, signal: null, stdout: '' });
      expect(lastLine(stderr)).toMatch(/^error: .*(safetensors|json).*(too large|EFBIG)/i);
      expect(stderr).not.toMatch(/^\s+at /m);
      const names = fs.existsSync(out) ? fs.readdirSync(out) : [];
      expect(names.filter((file) => /^config\.json$|index|\.partial$/.test(file))).toEqual([]);
      for (const file of names.filter((own) => own.endsWith('.safetensors'))) {
        (await openCheckpoint(path.join(out, file))).close();
      }

      // With room again, the run can be gone on with.
      expect((await cli(...args, '--resume')).code).toBe(0);
      const undisturbed = path.join(work, `room ${name}`);
      expect((await cli('quantize', EXAMPLE, '--out', undisturbed, '--recipe', 'int8', ...flags)).code).toBe(
        0,
      );
      expect(tree(out)).toEqual(tree(undisturbed));
    },
  );

  test.each([
    ['under a regular file', (file: string) => path.join(file, 'out')],
    ['that is a regular file', (file: string) => file],
  ])('a path %s is an I/O error that names it', async (_, at) => {
    const file = path.join(work, 'regular');
    fs.writeFileSync(file, 'mine');
    const out = at(file);
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { out }), 'ERR_IO', /regular/);
    expect(fs.readFileSync(file, 'utf8')).toBe('mine');
  });

  test('a name that is too long is an I/O error', async () => {
    const out = path.join(work, 'x'.repeat(300));
    await rejectsCode(quantizeCheckpoint(EXAMPLE, { out }), 'ERR_IO', /ENAMETOOLONG/);
  });
});

describe('weights that cannot be quantized', () => {
  const { config, tensors } = llama();
  const bad = 'model.layers.5.mlp.down_proj.weight';

  test.each([
    ['NaN', 0x7fc0],
    ['infinity', 0xff80],
  ])('%s: the error names the tensor and the position, and nothing has a final name', async (name, bits) => {
    const shape = (tensors.find((tensor) => tensor.name === bad) as Tensors).shape as [number, number];
    const bytes = randomBytes('BF16', shape, random(3));
    bytes.writeUInt16LE(bits, 2 * (3 * shape[1] + 7));
    const model = writeModel(path.join(work, name), {
      config,
      tensors: tensors.map((tensor) => (tensor.name === bad ? { ...tensor, bytes } : tensor)),
    });
    const out = path.join(work, `${name}-out`);
    const { code, stderr } = await cli('quantize', model, '--out', out, '--recipe', 'int4');
    expect(code).toBe(1);
    const last = lastLine(stderr);
    expect(last).toMatch(/^error: model\.layers\.5\.mlp\.down_proj: /);
    expect(last).toMatch(/\b3\b.*\b7\b/);
    expect(fs.existsSync(out) ? fs.readdirSync(out) : []).toEqual(fs.existsSync(out) ? ['.quantaria'] : []);
  });

  test('before any unit is done, the directory is as it was', async () => {
    const first = tensors.map((tensor) => ({
      ...tensor,
      bytes: Buffer.from(
        Uint16Array.from({ length: tensor.shape.reduce((a, b) => a * b, 1) }, () => 0x7fc0).buffer,
      ),
    }));
    const model = writeModel(path.join(work, 'all-nan'), { config, tensors: first });
    const out = path.join(work, 'deep', 'er', 'all-nan');
    await rejectsCode(
      quantizeCheckpoint(model, { out, recipe: 'int4', maxMemoryBytes: 1 }),
      'ERR_ARGUMENT',
      /NaN|finite/i,
    );
    expect(fs.existsSync(path.join(work, 'deep'))).toBe(false);
  });

  test('all zeros come out as zeros, with no error', async () => {
    const zeros = tensors.map((tensor) => ({
      ...tensor,
      bytes: Buffer.alloc(2 * tensor.shape.reduce((a, b) => a * b, 1)),
    }));
    const model = writeModel(path.join(work, 'zeros'), { config, tensors: zeros });
    for (const recipe of ['int4', 'nf4-dq', 'mxfp4', 'mxfp8', 'llm.int8']) {
      const out = path.join(work, `zeros-${recipe}`);
      const summary = await quantizeCheckpoint(model, { out, recipe });
      expect(summary.tensors.every(({ relativeError }) => relativeError === 0)).toBe(true);
      const verified = await cli('verify', out, '--against', model, '--json');
      expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
    }
  });
});

describe('models that cannot be read: exit 1, an error that names the file, nothing written', () => {
  const copy = (name: string): string => {
    const model = path.join(work, name);
    fs.cpSync(EXAMPLE, model, { recursive: true });
    return model;
  };
  const shard = 'model-00002-of-00003.safetensors';

  test.each<readonly [string, (model: string) => void, RegExp]>([
    [
      'config.json is not JSON',
      (model) => fs.writeFileSync(path.join(model, 'config.json'), '{"a": '),
      /config\.json/,
    ],
    [
      'config.json is a list',
      (model) => fs.writeFileSync(path.join(model, 'config.json'), '[]'),
      /config\.json/,
    ],
    [
      'config.json is a directory',
      (model) => {
        fs.rmSync(path.join(model, 'config.json'));
        fs.mkdirSync(path.join(model, 'config.json'));
      },
      /config\.json/,
    ],
    ['a shard is cut short', (model) => fs.truncateSync(path.join(model, shard), 500_000), /model-00002/],
    ['a shard is empty', (model) => fs.truncateSync(path.join(model, shard), 0), /model-00002/],
    ['a shard is missing', (model) => fs.rmSync(path.join(model, shard)), /model-00002/],
    [
      'the index is not JSON',
      (model) => fs.writeFileSync(path.join(model, 'model.safetensors.index.json'), '<html>'),
      /index\.json/,
    ],
    [
      'there are no weights',
      (model) => {
        for (const file of fs.readdirSync(model))
          if (/safetensors/.test(file)) fs.rmSync(path.join(model, file));
      },
      /no safetensors/,
    ],
  ])('%s', async (name, damage, what) => {
    const model = copy(name);
    damage(model);
    const out = path.join(work, `${name}-out`);
    for (const args of [
      ['quantize', model, '--out', out],
      ['inspect', model],
    ]) {
      const { code, stdout, stderr } = await cli(...args, '--json');
      expect({ args, code, stdout }).toEqual({ args, code: 1, stdout: '' });
      expect(lastLine(stderr)).toMatch(/^error: /);
      expect(lastLine(stderr)).toMatch(what);
    }
    expect(fs.existsSync(out)).toBe(false);
  });
});

describe('what is unusual and works', () => {
  test('one byte of memory for weights under way gives the same files', async () => {
    const outs = [1, 512e6].map((maxMemoryBytes) => ({
      out: path.join(work, `memory-${maxMemoryBytes}`),
      maxMemoryBytes,
    }));
    for (const options of outs) await quantizeCheckpoint(EXAMPLE, { ...options, recipe: 'nf4' });
    const [little, much] = outs.map(({ out }) => tree(out));
    expect(little).toEqual(much);
  });

  test('tensor names of 2000 characters', async () => {
    const { config, tensors } = mixtral();
    const name = `model.${'a.very.long.name.'.repeat(120)}weight`;
    const model = writeModel(path.join(work, 'long'), {
      config,
      tensors: [...tensors, { name, dtype: 'BF16', shape: [4, 32] }],
    });
    const out = path.join(work, 'long-out');
    const { stdout } = await cli('quantize', model, '--out', out, '--recipe', 'int4', '--json');
    expect(JSON.parse(stdout).tensors).toContainEqual(expect.objectContaining({ name, scheme: null }));
    expect(
      readTensors(out)
        .get(name)
        ?.bytes.equals(readTensors(model).get(name)?.bytes as Buffer),
    ).toBe(true);
  });

  test('paths with spaces, quotes, line breaks and letters of other scripts', async () => {
    const model = path.join(work, 'a "model"\nмодель 模型');
    fs.cpSync(EXAMPLE, model, { recursive: true });
    const out = path.join(work, "an 'output'\t出力");
    expect((await cli('quantize', model, '--out', out, '--recipe', 'int4')).code).toBe(0);
    expect((await cli('verify', out, '--against', model)).code).toBe(0);
  });

  test('a checkpoint without config.json, given as one file', async () => {
    const { tensors } = llama();
    const model = path.join(
      writeModel(path.join(work, 'bare'), { config: null, tensors }),
      'model.safetensors',
    );
    const out = path.join(work, 'bare-out');
    expect((await cli('quantize', model, '--out', out, '--recipe', 'int8')).code).toBe(0);
    expect((await cli('verify', out, '--against', model)).code).toBe(0);
  });

  test('files beside the weights that are links, hidden or directories: links are followed, the others left', async () => {
    const { config, tensors } = llama();
    const model = writeModel(path.join(work, 'beside'), { config, tensors });
    fs.writeFileSync(path.join(work, 'elsewhere'), 'vocabulary');
    fs.symlinkSync(path.join(work, 'elsewhere'), path.join(model, 'vocab.txt'));
    fs.writeFileSync(path.join(model, '.hidden'), '');
    fs.mkdirSync(path.join(model, 'folder'));
    fs.writeFileSync(path.join(model, 'pytorch_model.bin'), 'weights');
    const out = path.join(work, 'beside-out');
    await quantizeCheckpoint(model, { out, recipe: 'int4' });
    expect(fs.readdirSync(out).sort()).toEqual([
      'config.json',
      'model.safetensors',
      'report.html',
      'report.json',
      'vocab.txt',
    ]);
    expect(fs.lstatSync(path.join(out, 'vocab.txt')).isFile()).toBe(true);
    expect(fs.readFileSync(path.join(out, 'vocab.txt'), 'utf8')).toBe('vocabulary');
  });
});
