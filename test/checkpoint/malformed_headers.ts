/** Files whose header is malformed. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bytes, container, f32, writeContainer } from './files';
import { FILE, type Malformed, many, sparse } from './malformed';

const at = (make: (file: string) => void) => (directory: string) => {
  const file = join(directory, FILE);
  make(file);
  return file;
};
const format = (name: string, says: RegExp, make: (file: string) => void): Malformed => ({
  name,
  make: at(make),
  code: 'ERR_FORMAT',
  says,
});
const header = (name: string, text: string | Uint8Array, says: RegExp, data = 8): Malformed =>
  format(`header ${name}`, says, (file) => writeFileSync(file, container(text, bytes(data))));
const entries = (name: string, tensors: Record<string, unknown>, says: RegExp, data = 8): Malformed =>
  format(name, says, (file) => void writeContainer(file, tensors, bytes(data)));

const wrapped = (entry: string): string => `{"a":${entry}}`;
const RIGHT = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}';
const withField = (field: string, value: string): string =>
  wrapped(
    `{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`.replace(
      new RegExp(`"${field}":("[^"]*"|\\[[^\\]]*\\])`),
      value,
    ),
  );

const NOT_JSON = [
  ...[
    '',
    ' ',
    '\0',
    'null',
    'true',
    '3',
    '"a"',
    '[]',
    '{',
    '}',
    '{]',
    '{}}',
    '{} {}',
    '{}x',
    '{,}',
    `{"a":${RIGHT},}`,
    `{"a":${RIGHT}`,
  ],
  ...[
    `{"a" ${RIGHT}}`,
    `{a:${RIGHT}}`,
    `{'a':${RIGHT}}`,
    `{"a":}`,
    '{"a"}',
    `{"a":${RIGHT};}`,
    `{"a":${RIGHT}}//`,
    `/**/{"a":${RIGHT}}`,
  ],
  ...[
    '{"a\n":1}',
    '{"a\t":1}',
    '{"\\x":1}',
    '{"\\u12":1}',
    '{"\\u12g4":1}',
    '{"a',
    '{"a\\',
    '{"a\\u',
    '{"\\ud800":1}',
    '{"\\udc00":1}',
  ],
  ...[
    '{"\\ud800\\u0041":1}',
    '\ufeff{}',
    'NaN',
    '{"a":NaN}',
    '{"a":Infinity}',
    '{"a":undefined}',
    '{"a":0x10}',
    '{"a":+1}',
    '{"a":.5}',
  ],
].map((text, i) =>
  header(
    `${i} that is no JSON object: ${JSON.stringify(text.slice(0, 30))}`,
    text,
    /header: not valid at byte \d+: .* expected|too few/,
  ),
);

const EXTRA_VALUES = [
  '01',
  '1.',
  '-',
  '1e',
  '1e+',
  '--1',
  'tru',
  'nulll',
  '"\n"',
  '[1,]',
  '[1 2]',
  '{"x":1,"x":2}',
  '{"x"}',
  '[',
  '"',
].map((value) =>
  header(
    `with an extra field of ${JSON.stringify(value)}`,
    `{"a":{"extra":${value},"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`,
    /not valid at byte|twice/,
  ),
);

const NOT_NATURAL = [
  '-1',
  '1.0',
  '2.5',
  '1e2',
  '"2"',
  'null',
  'true',
  '[2]',
  '9007199254740992',
  '18446744073709551616',
  `1${'0'.repeat(400)}`,
  '02',
  '-0',
];
const NUMBERS = NOT_NATURAL.flatMap((value) => [
  header(
    `with a dimension ${value.slice(0, 30)}`,
    withField('shape', `"shape":[${value}]`),
    /not valid at byte/,
  ),
  header(
    `with an offset ${value.slice(0, 30)}`,
    withField('data_offsets', `"data_offsets":[0,${value}]`),
    /not valid at byte/,
  ),
]);

const FIELDS = [
  ...['dtype', 'shape', 'data_offsets'].flatMap((field) => [
    header(`without ${field}`, withField(field, '"x":1'), new RegExp(`tensor 'a' lacks its ${field}`)),
    header(`with ${field} null`, withField(field, `"${field}":null`), /not valid at byte/),
    header(`with ${field} an object`, withField(field, `"${field}":{}`), /not valid at byte/),
    header(`with ${field} a number`, withField(field, `"${field}":3`), /not valid at byte/),
    header(
      `with ${field} twice`,
      wrapped(
        RIGHT.replace(
          '}',
          `,${{ dtype: '"dtype":"F32"', shape: '"shape":[2]', data_offsets: '"data_offsets":[0,8]' }[field]}}`,
        ),
      ),
      new RegExp(`gives its ${field} twice`),
    ),
  ]),
  ...[[], [0], [0, 8, 8], [8]].map((offsets) =>
    entries(
      `${offsets.length} offsets: ${offsets}`,
      { a: { ...f32(), data_offsets: offsets } },
      /data_offsets/,
    ),
  ),
  ...['f32', 'F33', '', 'FLOAT32', 'F32 ', 'BF16\u0000', 'torch.float32', 'x'.repeat(10_000)].map((dtype) =>
    entries(
      `dtype ${JSON.stringify(dtype.slice(0, 20))}`,
      { a: { ...f32(), dtype } },
      /tensor 'a' has the unknown dtype/,
    ),
  ),
  ...['null', '3', '"x"', '[]', 'true'].map((value) =>
    header(`with an entry that is ${value}`, wrapped(value), /not valid at byte/),
  ),
  ...['3', '[]', '"x"', '{"a":1}', '{"a":null}', '{"a":{}}', '{"a":["b"]}', '{"a":"b",}', '{1:"b"}'].map(
    (value) =>
      header(`with metadata ${value}`, `{"__metadata__":${value},"a":${RIGHT}}`, /not valid at byte/),
  ),
];

const SIZES = [
  ...[
    [0, 7],
    [0, 9],
    [0, 4],
    [8, 0],
    [0, 0],
    [4, 8],
    [0, 2 ** 53 - 1],
  ].map(([begin, end]) =>
    entries(
      `offsets ${begin} to ${end} for 8 bytes`,
      { a: { ...f32(), data_offsets: [begin, end] } },
      /tensor 'a' lies at \d+ to \d+, but F32 of shape \[2\] takes 8 bytes/,
      end === 9 ? 9 : 8,
    ),
  ),
  ...[
    [2 ** 32, 2 ** 32],
    [2 ** 31, 2 ** 31, 2],
    [2 ** 53 - 1, 2 ** 53 - 1],
    new Array(60).fill(2 ** 20),
    [2 ** 40, 2 ** 40, 0],
  ].map((shape) =>
    entries(
      `a shape of ${shape.length} dimensions from ${shape[0]} that overflows`,
      { a: { dtype: 'F32', shape, data_offsets: [0, 8] } },
      /too large/,
    ),
  ),
  entries(
    'a shape of 2^50',
    { a: { dtype: 'U8', shape: [2 ** 50], data_offsets: [0, 8] } },
    /takes 1125899906842624 bytes/,
  ),
  entries(
    '100 dimensions',
    { a: { dtype: 'F32', shape: new Array(100).fill(1), data_offsets: [0, 4] } },
    /more than 64 shape/,
  ),
  ...(
    [
      ['F4', [3]],
      ['F4', [1]],
      ['F6_E2M3', [2]],
      ['F6_E3M2', [5]],
    ] as const
  ).map(([dtype, shape]) =>
    entries(`${dtype} ${shape}`, { a: { dtype, shape, data_offsets: [0, 8] } }, /does not fill whole bytes/),
  ),
];

const RANGES = [
  entries('a first tensor that begins late', { a: f32(1) }, /begins at 1, 0 expected \(a hole\)/, 9),
  entries('a hole', { a: f32(), b: f32(9) }, /begins at 9, 8 expected \(a hole\)/, 17),
  entries('an overlap by one', { a: f32(), b: f32(7) }, /begins at 7, 8 expected \(an overlap\)/, 15),
  entries('two tensors on one range', { a: f32(), b: f32() }, /an overlap/),
  entries(
    'one tensor inside another',
    { a: { dtype: 'U8', shape: [20], data_offsets: [0, 20] }, b: f32(4) },
    /an overlap/,
    20,
  ),
  entries(
    'a tensor beyond the end',
    { a: f32(), b: f32(8) },
    /tensor 'b' ends at byte 16 of 15 bytes of data/,
    15,
  ),
  entries('a byte too many', { a: f32() }, /1 bytes after the last tensor/, 9),
  entries('data and no tensors', {}, /8 bytes after the last tensor/),
  entries('no data', { a: f32() }, /ends at byte 8 of 0 bytes/, 0),
  entries(
    'an empty tensor behind the end',
    { a: f32(), b: { dtype: 'F32', shape: [0], data_offsets: [9, 9] } },
    /ends at byte 9|hole/,
  ),
  header('with a name twice', `{"a":${RIGHT},"a":${RIGHT}}`, /tensor 'a' occurs twice/),
  header('with a name twice, once escaped', `{"a":${RIGHT},"\\u0061":${RIGHT}}`, /tensor 'a' occurs twice/),
  header(
    'with an empty tensor twice',
    '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    /occurs twice/,
    0,
  ),
  header(
    'with metadata twice',
    `{"__metadata__":{},"__metadata__":{},"a":${RIGHT}}`,
    /__metadata__ occurs twice/,
  ),
  header(
    'with a key of the metadata twice',
    `{"__metadata__":{"k":"1","k":"2"},"a":${RIGHT}}`,
    /key of __metadata__ occurs twice/,
  ),
];

const INVALID_UTF8 = [
  [0x80],
  [0xc0, 0x80],
  [0xc1, 0xbf],
  [0xe0, 0x80, 0x80],
  [0xed, 0xa0, 0x80],
  [0xed, 0xbf, 0xbf],
  [0xf0, 0x80, 0x80, 0x80],
  [0xf4, 0x90, 0x80, 0x80],
  [0xf8, 0x88, 0x80, 0x80, 0x80],
  [0xff],
  [0xfe],
  [0xe2, 0x82],
  [0xc3, 0x28],
];
const UTF8 = INVALID_UTF8.map((sequence) =>
  header(
    `with the bytes ${Buffer.from(sequence).toString('hex')} in a name`,
    Buffer.concat([Buffer.from('{"'), Buffer.from(sequence), Buffer.from(`":${RIGHT}}`)]),
    /header is not UTF-8/,
  ),
);

const LENGTHS = [
  ...Array.from({ length: 8 }, (_, n) =>
    format(`a file of ${n} bytes`, new RegExp(`${n} bytes are too few`), (file) =>
      writeFileSync(file, bytes(n)),
    ),
  ),
  ...[100_000_001n, 2n ** 31n, 2n ** 32n, 2n ** 63n, 2n ** 64n - 1n].map((n) =>
    format(`a header of ${n} bytes`, /a header of \d+ bytes, at most 100000000 expected/, (file) =>
      sparse(file, n, 64),
    ),
  ),
  ...[1n, 57n, 1000n, 100_000_000n].map((n) =>
    format(`a header of ${n} bytes in a file of 8 + ${n} - 1`, /a header of \d+ bytes in a file of/, (file) =>
      sparse(file, n, 8 + Number(n) - 1),
    ),
  ),
  format('a header of 100 MB of zeros', /header: not valid at byte 0/, (file) =>
    sparse(file, 100_000_000n, 100_000_100),
  ),
  format('a header that says 0 bytes', /header: not valid at byte 0/, (file) => sparse(file, 0n, 16)),
];

const EMPTY_ENTRY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}';
const LARGE = [
  header('of 50 MB of spaces', Buffer.alloc(50_000_000, 0x20), /not valid at byte 50000000/),
  header(
    'of an entry and 20 MB of spaces, with an end missing',
    Buffer.concat([Buffer.from(`{"a":${RIGHT}`), Buffer.alloc(20_000_000, 0x20)]),
    /'}' expected/,
  ),
  header(
    'with a million tensors',
    `{${many(1_000_000, (i) => `"${i}":${EMPTY_ENTRY}`)}}`,
    /more than 500000 tensors/,
    0,
  ),
  header(
    'with a million keys in an entry',
    `{"a":{${many(1_000_000, (i) => `"${i}":0`)}}}`,
    /lacks its dtype/,
    0,
  ),
  header(
    'with a million keys in the metadata, one twice',
    `{"__metadata__":{${many(1_000_000, (i) => `"${i}":""`)},"7":""}}`,
    /occurs twice/,
    0,
  ),
  header(
    'with a million dimensions',
    `{"a":{"shape":[${many(1_000_000, () => '1')}]}}`,
    /more than 64 shape/,
  ),
  header('with a name of 20 MB', `{"${'n'.repeat(20_000_000)}":${RIGHT}}`, /a string of at most/),
  header('nested 130 deep', `{"a":{"x":${'['.repeat(130)}${']'.repeat(130)}}}`, /levels of nesting/),
  header('nested a million deep', `{"a":{"x":${'['.repeat(1_000_000)}`, /levels of nesting/),
  header('nested a million deep in objects', `{"a":{"x":${'{"x":'.repeat(1_000_000)}`, /levels of nesting/),
];

export const MALFORMED_HEADERS: readonly Malformed[] = [
  ...NOT_JSON,
  ...EXTRA_VALUES,
  ...NUMBERS,
  ...FIELDS,
  ...SIZES,
  ...RANGES,
  ...UTF8,
  ...LENGTHS,
  ...LARGE,
];
