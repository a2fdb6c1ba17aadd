/** Checkpoints whose index or config.json is malformed, and places where no checkpoint is. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bytes, f32, writeContainer } from './files';
import { FILE, type Malformed, many, sparse } from './malformed';

/** A directory of shards a (x), b (y) with an index of this text. */
const sharded = (
  name: string,
  index: string | Uint8Array,
  says: RegExp,
  more?: (directory: string) => void,
  code: Malformed['code'] = 'ERR_FORMAT',
): Malformed => ({
  name: `index: ${name}`,
  code,
  says,
  names: 'model.safetensors.index.json',
  make: (directory) => {
    writeContainer(join(directory, 'a.safetensors'), { x: f32() }, bytes(8));
    writeContainer(join(directory, 'b.safetensors'), { y: f32() }, bytes(8));
    writeFileSync(join(directory, 'model.safetensors.index.json'), index);
    more?.(directory);
    return directory;
  },
});
const map = (weights: Record<string, unknown>): string =>
  JSON.stringify({ metadata: {}, weight_map: weights });
const BOTH = { x: 'a.safetensors', y: 'b.safetensors' };
const INDEXES = [
  ...['', '{', '[]', 'null', '"x"', '{"weight_map":{}', '{"weight_map":{"x":"a"},}', '\ufeff{}', 'x'].map(
    (text) => sharded(JSON.stringify(text), text, /not valid at byte|JSON object/),
  ),
  ...[
    '{}',
    '{"weight_map":null}',
    '{"weight_map":[]}',
    '{"weight_map":"a"}',
    '{"weight_map":3}',
    '{"__proto__":{"weight_map":{}}}',
  ].map((text) => sharded(text, text, /no weight_map/)),
  ...[
    '../a.safetensors',
    '/etc/passwd',
    'sub/a.safetensors',
    '..',
    '.',
    '',
    'a\\b',
    'a\0b',
    '\0',
    './a.safetensors',
    'C:\\a',
    3,
    null,
    {},
    ['a.safetensors'],
    true,
  ].map((file) =>
    sharded(`a file named ${JSON.stringify(file)}`, map({ x: file }), /not the name of a file/),
  ),
  sharded('a file that is missing', map({ ...BOTH, z: 'c.safetensors' }), /"c.safetensors" is not there/),
  sharded(
    'a tensor that its file does not hold',
    map({ ...BOTH, z: 'a.safetensors' }),
    /tensor "z" is not in a.safetensors/,
  ),
  sharded(
    'tensors that lie in each other’s file',
    map({ x: 'b.safetensors', y: 'a.safetensors' }),
    /tensor "x" is not in b.safetensors/,
  ),
  sharded(
    'a tensor that is not in the map',
    map({ y: 'b.safetensors', z: 'a.safetensors' }),
    /tensor "z" is not in|tensor "x" of/,
  ),
  sharded(
    'a tensor beside those in the map',
    map(BOTH),
    /tensor "w" of a.safetensors is not in the weight_map/,
    (directory) => void writeContainer(join(directory, 'a.safetensors'), { x: f32(), w: f32(8) }, bytes(16)),
  ),
  {
    ...sharded(
      'a name in two files',
      map(BOTH),
      /tensor "x"/,
      (directory) =>
        void writeContainer(join(directory, 'b.safetensors'), { x: f32(), y: f32(8) }, bytes(16)),
    ),
    names: '',
  },
  sharded('a name twice', '{"weight_map":{"x":"a.safetensors","x":"a.safetensors"}}', /no name twice/),
  sharded('weight_map twice', `{"weight_map":{},"weight_map":${JSON.stringify(BOTH)}}`, /no name twice/),
  sharded('bytes that are not UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), /not UTF-8/),
  sharded('nested a million deep', '['.repeat(1_000_000), /levels of nesting/),
  sharded(
    'a million names, one twice',
    `{"weight_map":{${many(1_000_000, (i) => `"${i}":""`)},"7":""}}`,
    /no name twice/,
  ),
  {
    ...sharded(
      'a malformed shard',
      map(BOTH),
      /unknown dtype/,
      (directory) =>
        void writeContainer(join(directory, 'b.safetensors'), { y: { ...f32(), dtype: 'X' } }, bytes(8)),
    ),
    names: 'b.safetensors',
  },
  {
    ...sharded(
      'a shard that is a directory',
      map({ ...BOTH, z: 'd.safetensors' }),
      /not a regular file/,
      (directory) => mkdirSync(join(directory, 'd.safetensors')),
      'ERR_IO',
    ),
    names: 'd.safetensors',
  },
];

const CONFIGS: Malformed[] = [
  '',
  '{',
  '[]',
  'null',
  '3',
  '{"a":1,"a":2}',
  '{"a":NaN}',
  '{"a":1}}',
  '['.repeat(1_000_000),
].map((text) => ({
  name: `config.json ${JSON.stringify(text.slice(0, 20))}`,
  code: 'ERR_FORMAT',
  says: /not valid at byte|JSON object/,
  names: 'config.json',
  make: (directory) => {
    writeContainer(join(directory, FILE), {});
    writeFileSync(join(directory, 'config.json'), text);
    return directory;
  },
}));

const place = (
  name: string,
  code: Malformed['code'],
  says: RegExp,
  make: (directory: string) => string,
  names?: string,
): Malformed => ({ name, code, says, make, names });
const pipe = (file: string): string => {
  execFileSync('mkfifo', [file]);
  return file;
};
const PLACES = [
  place('nothing', 'ERR_IO', /no such file/, (directory) => join(directory, 'none')),
  place('a path through a file', 'ERR_IO', /not a directory|ENOTDIR/i, (directory) =>
    join(writeContainer(join(directory, FILE), {}), 'x'),
  ),
  place('an empty directory', 'ERR_FORMAT', /no safetensors file/, (directory) => directory),
  place(
    'two files and no index',
    'ERR_FORMAT',
    /2 safetensors files and no model.safetensors.index.json/,
    (directory) => {
      for (const file of ['a', 'b']) writeContainer(join(directory, `${file}.safetensors`), {});
      return directory;
    },
  ),
  place(
    'a directory in place of the file',
    'ERR_IO',
    /not a regular file/,
    (directory) => {
      mkdirSync(join(directory, FILE));
      return directory;
    },
    FILE,
  ),
  place('a pipe', 'ERR_IO', /not a regular file/, (directory) => pipe(join(directory, FILE))),
  place(
    'a pipe as config.json',
    'ERR_IO',
    /not a regular file/,
    (directory) => {
      writeContainer(join(directory, FILE), {});
      pipe(join(directory, 'config.json'));
      return directory;
    },
    'config.json',
  ),
  place(
    'a pipe as index',
    'ERR_IO',
    /not a regular file/,
    (directory) => {
      pipe(join(directory, 'model.safetensors.index.json'));
      return directory;
    },
    'index.json',
  ),
  place(
    'an index of 200 MB',
    'ERR_FORMAT',
    /bytes, at most/,
    (directory) => {
      sparse(join(directory, 'model.safetensors.index.json'), 0n, 200_000_000);
      return directory;
    },
    'index.json',
  ),
  place('a device', 'ERR_IO', /not a regular file/, () => '/dev/null'),
  place('a pickle', 'ERR_FORMAT', /a header of \d+ bytes/, (directory) => {
    const file = join(directory, 'pytorch_model.bin');
    writeFileSync(file, Buffer.from('PK\u0003\u0004archive/data.pkl', 'latin1'));
    return file;
  }),
];

export const MALFORMED_PLACES: readonly Malformed[] = [...INDEXES, ...CONFIGS, ...PLACES];
