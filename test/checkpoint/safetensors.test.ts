import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  type DType,
  dequantize,
  memory,
  openCheckpoint,
  quantize,
  SafetensorsWriter,
  synchronize,
  Tensor,
} from '../../lib';
import { rejectsCode, throwsCode } from '../core/errors';
import { bytes, container, f32, scratch, writeContainer } from './files';

const STORED: [DType, string, number][] = [
  ['float32', 'F32', 4],
  ['float16', 'F16', 2],
  ['bfloat16', 'BF16', 2],
  ['float8_e4m3', 'F8_E4M3', 1],
  ['float8_e5m2', 'F8_E5M2', 1],
  ['int8', 'I8', 1],
  ['uint8', 'U8', 1],
  ['int16', 'I16', 2],
  ['int32', 'I32', 4],
  ['int64', 'I64', 8],
  ['bool', 'BOOL', 1],
];
const ONLY_COPIED = [
  ['F4', 4],
  ['F6_E2M3', 6],
  ['F6_E3M2', 6],
  ['F8_E8M0', 8],
  ['F8_E4M3FNUZ', 8],
  ['F8_E5M2FNUZ', 8],
  ['U16', 16],
  ['U32', 32],
  ['U64', 64],
  ['F64', 64],
  ['C64', 64],
] as const;

const raw = async (tensor: Tensor): Promise<Buffer> => Buffer.from((await tensor.read()).buffer);
const header = (file: string): Record<string, { data_offsets: [number, number] }> => {
  const content = readFileSync(file);
  return JSON.parse(content.subarray(8, 8 + Number(content.readBigUInt64LE())).toString());
};

async function write(file: string, tensors: Record<string, [string, Tensor, number[]?]>): Promise<void> {
  const entries = Object.entries(tensors).map(([name, [dtype, tensor, shape]]) => ({
    name,
    dtype,
    shape: shape ?? tensor.shape,
  }));
  const writer = new SafetensorsWriter(file, entries);
  for (const [name, [, tensor]] of Object.entries(tensors)) await writer.write(name, tensor);
  await writer.finish();
}

test.each(STORED)(
  '%s is written and read back bit by bit: a matrix, a scalar, an empty tensor',
  async (dtype, stored, size) => {
    const file = join(scratch(), 'x.safetensors');
    const data = dtype === 'bool' ? bytes(12).map((b) => b % 2) : bytes(12 * size);
    const source = Tensor.from(data, [data.length]);
    const of = async (shape: number[], count: number) => {
      const part = (await source.slice(0, 0, count * size).read()) as Uint8Array;
      const arrays = { 1: Uint8Array, 2: Uint16Array, 4: Int32Array, 8: BigInt64Array } as const;
      if (dtype === 'float32') return Tensor.from(new Float32Array(part.buffer), shape);
      if (dtype === 'int8') return Tensor.from(new Int8Array(part.buffer), shape);
      if (dtype === 'int16') return Tensor.from(new Int16Array(part.buffer), shape);
      return Tensor.from(new arrays[size as 1](part.buffer), shape, { dtype });
    };
    const tensors = { matrix: await of([3, 4], 12), scalar: await of([], 1), empty: await of([0, 5], 0) };
    await write(
      file,
      Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, [stored, tensor]])),
    );
    const checkpoint = await openCheckpoint(file);
    expect(checkpoint.names().sort()).toEqual(['empty', 'matrix', 'scalar']);
    for (const [name, tensor] of Object.entries(tensors)) {
      expect(checkpoint.info(name)).toEqual({
        dtype,
        shape: tensor.shape,
        file: 'x.safetensors',
        bytes: tensor.byteLength,
      });
      expect(await raw(await checkpoint.read(name))).toEqual(await raw(tensor));
    }
    checkpoint.close();
  },
);

test.each(ONLY_COPIED)('%s is described and copied, and not computed with', async (stored, bits) => {
  const file = join(scratch(), 'x.safetensors');
  const data = Tensor.from(bytes(bits), [bits]); // 8 elements
  await write(file, { t: [stored, data, [2, 4]] });
  const checkpoint = await openCheckpoint(file);
  expect(checkpoint.info('t')).toEqual({ dtype: stored, shape: [2, 4], file: 'x.safetensors', bytes: bits });
  expect(await raw(Tensor.wrap(checkpoint.bytes('t', 0, bits)))).toEqual(await raw(data));
  await rejectsCode(checkpoint.read('t'), 'ERR_DTYPE', new RegExp(stored));
});

test('tensors lie wide types first, then by name, and begin at multiples of their size', async () => {
  const file = join(scratch(), 'x.safetensors');
  const one = (dtype: DType) => Tensor.zeros([1], { dtype });
  await write(file, {
    z: ['F32', one('float32')],
    b: ['U8', one('uint8')],
    a: ['BF16', one('bfloat16')],
    y: ['F32', one('float32')],
    i: ['I64', one('int64')],
  });
  const { __metadata__: metadata, ...entries } = header(file);
  expect(metadata).toEqual({ format: 'pt' });
  expect(Object.keys(entries)).toEqual(['i', 'y', 'z', 'a', 'b']);
  expect(Object.values(entries).map((entry) => entry.data_offsets[0])).toEqual([0, 8, 12, 16, 18]);
  expect(Number(readFileSync(file).readBigUInt64LE()) % 8).toBe(0);
});

test('names of any script, of digits, and names that objects have already are names', async () => {
  const file = join(scratch(), 'x.safetensors');
  const names = [
    '模型.权重',
    'é😀',
    '10',
    '2',
    '__proto__',
    'constructor',
    'a"b\\c',
    ' ',
    'toString',
    '\u0001',
    '',
  ];
  const writer = new SafetensorsWriter(
    file,
    names.map((name) => ({ name, dtype: 'I32', shape: [1] })),
  );
  for (const [i, name] of names.entries()) await writer.write(name, Tensor.from(Int32Array.of(i), [1]));
  await writer.finish();
  const checkpoint = await openCheckpoint(file);
  expect(checkpoint.names().sort()).toEqual([...names].sort());
  for (const name of checkpoint.names())
    expect(await (await checkpoint.read(name)).read()).toEqual(Int32Array.of(names.indexOf(name)));
});

test('any order, any alignment, extra fields, no metadata and padding are read', async () => {
  const directory = scratch();
  const data = bytes(27);
  const entries = {
    b: { dtype: 'F32', shape: [2], data_offsets: [3, 11], extra: { deep: [1, null, { x: 'y' }] } },
    a: { data_offsets: [0, 3], shape: [3], dtype: 'U8' },
    c: { dtype: 'I64', shape: [2, 1], data_offsets: [11, 27] },
  };
  const variants: Record<string, unknown>[] = [
    entries,
    { __metadata__: null, ...entries },
    { __metadata__: {}, ...entries },
  ];
  for (const [i, variant] of variants.entries()) {
    for (const padding of ['', ' ', '   \n\t']) {
      const file = join(directory, `${i}${padding.length}.safetensors`);
      writeFileSync(file, container(`${padding}${JSON.stringify(variant)}${padding}`, data));
      const checkpoint = await openCheckpoint(file);
      expect(checkpoint.names()).toEqual(['a', 'b', 'c']);
      for (const [name, begin, end] of [
        ['a', 0, 3],
        ['b', 3, 11],
        ['c', 11, 27],
      ] as const) {
        expect(await raw(await checkpoint.read(name))).toEqual(Buffer.from(data.subarray(begin, end)));
      }
      checkpoint.close();
    }
  }
});

test('an empty header is a checkpoint without tensors', async () => {
  const file = join(scratch(), 'x.safetensors');
  writeFileSync(file, container('{}'));
  expect((await openCheckpoint(file)).names()).toEqual([]);
});

test('ranges of rows are read, aligned or not, and others refused', async () => {
  const file = join(scratch(), 'x.safetensors');
  const data = bytes(1 + 5 * 3 * 2);
  writeContainer(
    file,
    {
      p: { dtype: 'U8', shape: [1], data_offsets: [0, 1] },
      w: { dtype: 'BF16', shape: [5, 3], data_offsets: [1, 31] },
    },
    data,
  );
  const checkpoint = await openCheckpoint(file);
  for (let start = 0; start <= 5; start++) {
    for (let end = start; end <= 5; end++) {
      const part = await checkpoint.read('w', { range: [start, end] });
      expect(part.shape).toEqual([end - start, 3]);
      expect(await raw(part)).toEqual(Buffer.from(data.subarray(1 + 6 * start, 1 + 6 * end)));
    }
  }
  for (const range of [[0, 6], [-1, 2], [3, 2], [0.5, 2], [0], 'x', [0, Number.NaN]]) {
    await rejectsCode(checkpoint.read('w', { range: range as [number, number] }), 'ERR_SHAPE', /range/);
  }
  await rejectsCode(checkpoint.read('v'), 'ERR_ARGUMENT', /"v" is not in/);
  await rejectsCode(checkpoint.read('w', { device: 'cuda:99' }), 'ERR_DEVICE', /cuda:99/);
});

test('the index goes before model.safetensors, that before a single other file; other files are not looked at', async () => {
  const directory = scratch();
  writeFileSync(join(directory, 'pytorch_model.bin'), 'not a checkpoint');
  writeContainer(join(directory, 'only.safetensors'), { only: f32() }, bytes(8));
  expect((await openCheckpoint(directory)).names()).toEqual(['only']);
  writeContainer(join(directory, 'model.safetensors'), { single: f32() }, bytes(8));
  expect((await openCheckpoint(directory)).names()).toEqual(['single']);
  for (const [file, name] of [
    ['s2', 'b'],
    ['s1', 'a'],
  ])
    writeContainer(join(directory, `${file}.safetensors`), { [name as string]: f32() }, bytes(8));
  const map = { b: 's2.safetensors', a: 's1.safetensors' };
  writeFileSync(
    join(directory, 'model.safetensors.index.json'),
    JSON.stringify({ metadata: {}, weight_map: map }),
  );
  const checkpoint = await openCheckpoint(directory);
  expect(checkpoint.names().sort()).toEqual(['a', 'b']);
  expect([checkpoint.info('a').file, checkpoint.info('b').file]).toEqual([
    's1.safetensors',
    's2.safetensors',
  ]);
  expect((await openCheckpoint(join(directory, 'model.safetensors'))).names()).toEqual(['single']);
});

test('config.json comes as it is, or null', async () => {
  const directory = scratch();
  const file = writeContainer(join(directory, 'model.safetensors'), {});
  expect((await openCheckpoint(file)).config).toBeNull();
  writeFileSync(join(directory, 'config.json'), '{"model_type": "aria", "é": [1.5]}');
  expect((await openCheckpoint(directory)).config).toEqual({ model_type: 'aria', é: [1.5] });
});

test('a link to a file is that file', async () => {
  const directory = scratch();
  mkdirSync(join(directory, 'snapshot'));
  writeContainer(join(directory, 'blob'), { a: f32() }, bytes(8));
  symlinkSync('../blob', join(directory, 'snapshot', 'model.safetensors'));
  expect((await openCheckpoint(join(directory, 'snapshot'))).names()).toEqual(['a']);
});

test('a closed checkpoint is closed, and tensors that it gave stay', async () => {
  const file = writeContainer(join(scratch(), 'x.safetensors'), { a: f32() }, bytes(8));
  const checkpoint = await openCheckpoint(file);
  const tensor = await checkpoint.read('a');
  checkpoint.close();
  checkpoint.close();
  await rejectsCode(checkpoint.read('a'), 'ERR_DISPOSED', /closed/);
  throwsCode(() => checkpoint.info('a'), 'ERR_DISPOSED');
  expect(await raw(tensor)).toEqual(Buffer.from(bytes(8)));
});

test('reading maps the file: aligned tensors take no memory of their own', async () => {
  const file = writeContainer(
    join(scratch(), 'x.safetensors'),
    { big: { dtype: 'U8', shape: [1 << 20], data_offsets: [0, 1 << 20] } },
    bytes(1 << 20),
  );
  await synchronize();
  const before = memory().liveBytes;
  const checkpoint = await openCheckpoint(file);
  using tensor = await checkpoint.read('big');
  expect(memory().liveBytes).toBe(before);
  expect(await raw(tensor)).toEqual(Buffer.from(bytes(1 << 20)));
});

test('nothing stands under the final name before finish, and nothing else after it', async () => {
  const directory = scratch();
  const file = join(directory, 'x.safetensors');
  const writer = new SafetensorsWriter(file, [{ name: 'a', dtype: 'F32', shape: [2] }]);
  expect(readdirSync(directory)).not.toContain('x.safetensors');
  await writer.write('a', Tensor.from([1, 2], [2]));
  expect(readdirSync(directory)).not.toContain('x.safetensors');
  await writer.finish();
  expect(readdirSync(directory)).toEqual(['x.safetensors']);
  for (const call of [() => writer.finish(), () => writer.write('a', Tensor.zeros([2]))])
    await rejectsCode(call(), 'ERR_DISPOSED');
});

test('who reads the old file goes on reading it while a new one takes its place', async () => {
  const file = join(scratch(), 'x.safetensors');
  await write(file, { a: ['F32', Tensor.from([1, 2], [2])] });
  const old = await openCheckpoint(file);
  await write(file, { a: ['F32', Tensor.from([3, 4], [2])] });
  expect(await (await old.read('a')).read()).toEqual(Float32Array.of(1, 2));
  expect(await (await (await openCheckpoint(file)).read('a')).read()).toEqual(Float32Array.of(3, 4));
});

test('abort, a tensor that is missing and a tensor that fails leave nothing behind', async () => {
  const directory = scratch();
  const start = () =>
    new SafetensorsWriter(join(directory, 'x.safetensors'), [{ name: 'a', dtype: 'F32', shape: [1, 2] }]);
  const aborted = start();
  await aborted.abort();
  await aborted.abort();
  expect(readdirSync(directory)).toEqual([]);
  await rejectsCode(start().finish(), 'ERR_ARGUMENT', /"a" was announced and never written/);
  expect(readdirSync(directory)).toEqual([]);
  const failed = dequantize(quantize(Tensor.from([Number.NaN, 1], [1, 2]), { kind: 'nf4', blockSize: 64 }));
  const writer = start();
  const writing = rejectsCode(writer.write('a', failed), 'ERR_ARGUMENT', /row 0, column 0/);
  await rejectsCode(writer.finish(), 'ERR_ARGUMENT', /"a" was announced and never written/);
  await writing;
  expect(readdirSync(directory)).toEqual([]);
});

test('the data is written in any order and at once', async () => {
  const file = join(scratch(), 'x.safetensors');
  const entries = Array.from({ length: 20 }, (_, i) => ({ name: `t${i}`, dtype: 'F32', shape: [1000] }));
  const writer = new SafetensorsWriter(file, entries);
  const writes = entries.map((_, i) =>
    writer.write(`t${19 - i}`, Tensor.from(new Float32Array(1000).fill(i), [1000])),
  );
  await writer.finish(); // waits for what is under way
  await Promise.all(writes);
  const checkpoint = await openCheckpoint(file);
  for (let i = 0; i < 20; i++) expect((await (await checkpoint.read(`t${19 - i}`)).read())[999]).toBe(i);
});

test('two writers of one file do not disturb each other', async () => {
  const directory = scratch();
  const writers = [1, 2].map(
    () => new SafetensorsWriter(join(directory, 'x.safetensors'), [{ name: 'a', dtype: 'F32', shape: [1] }]),
  );
  for (const [i, writer] of writers.entries()) await writer.write('a', Tensor.from([i], [1]));
  for (const [i, writer] of writers.entries()) {
    await writer.finish();
    expect(await (await (await openCheckpoint(directory)).read('a')).read()).toEqual(Float32Array.of(i));
  }
  expect(readdirSync(directory)).toEqual(['x.safetensors']);
});

test('what was not announced, or not so, is refused', async () => {
  const directory = scratch();
  const writer = new SafetensorsWriter(join(directory, 'x.safetensors'), [
    { name: 'a', dtype: 'BF16', shape: [2] },
  ]);
  await rejectsCode(writer.write('b', Tensor.zeros([2])), 'ERR_ARGUMENT', /"b" was not announced/);
  await rejectsCode(
    writer.write('a', Tensor.zeros([2], { dtype: 'float16' })),
    'ERR_DTYPE',
    /float16 came, expected bfloat16/,
  );
  await rejectsCode(
    writer.write('a', Tensor.zeros([1, 2], { dtype: 'bfloat16' })),
    'ERR_SHAPE',
    /\[1,2\] came, expected \[2\]/,
  );
  await rejectsCode(writer.write('a', {} as Tensor), 'ERR_ARGUMENT', /Tensor/);
  await writer.write('a', Tensor.zeros([2], { dtype: 'bfloat16' }));
  await rejectsCode(
    writer.write('a', Tensor.zeros([2], { dtype: 'bfloat16' })),
    'ERR_ARGUMENT',
    /written already/,
  );
  await writer.abort();
});

test('arguments that cannot become a file are refused and create nothing', () => {
  const directory = scratch();
  const file = join(directory, 'x.safetensors');
  const make = (entries: unknown, metadata?: unknown) => () =>
    new SafetensorsWriter(file, entries as [], metadata as Record<string, string>);
  const a = { name: 'a', dtype: 'F32', shape: [1] };
  throwsCode(make(null), 'ERR_ARGUMENT');
  throwsCode(make([null]), 'ERR_ARGUMENT', /entries/);
  throwsCode(make(new Array(2 ** 32 - 1)), 'ERR_ARGUMENT', /entries/);
  throwsCode(make([{ ...a, dtype: 'F31' }]), 'ERR_ARGUMENT', /F31/);
  throwsCode(make([{ ...a, dtype: 'F4' }]), 'ERR_ARGUMENT', /whole bytes/);
  throwsCode(make([{ ...a, shape: [-1] }]), 'ERR_SHAPE', /entries: "a"/);
  throwsCode(make([a, a]), 'ERR_ARGUMENT', /twice/);
  throwsCode(make([{ ...a, name: '__metadata__' }]), 'ERR_ARGUMENT', /reserved/);
  throwsCode(make([{ ...a, name: '\ud800' }]), 'ERR_ARGUMENT', /entries/);
  throwsCode(make([a], { format: 1 }), 'ERR_ARGUMENT', /metadata\.format/);
  throwsCode(make([a], 'pt'), 'ERR_ARGUMENT', /metadata/);
  throwsCode(make([{ ...a, name: 'x'.repeat(100_000_000) }]), 'ERR_ARGUMENT', /header of/);
  throwsCode(make([{ ...a, shape: [2 ** 50] }]), 'ERR_IO');
  throwsCode(() => new SafetensorsWriter(join(directory, 'no', 'x'), [a]), 'ERR_IO', /No such file/);
  throwsCode(() => new SafetensorsWriter(join(directory, 'n'.repeat(300)), [a]), 'ERR_IO');
  throwsCode(() => new SafetensorsWriter('a\0b', [a]), 'ERR_ARGUMENT');
  throwsCode(() => new SafetensorsWriter(directory, [a]), 'ERR_IO', /not a regular file/);
  expect(readdirSync(directory)).toEqual([]);
});
