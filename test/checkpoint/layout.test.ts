import { expect, test } from 'vitest';
import { bytesOfEntry, type Entry, indexOf, layoutShard, layoutShards } from '../../lib/checkpoint/layout';
import { throwsCode } from '../core/errors';
import { random } from '../core/random';

const entry = (name: string, bytes: number): Entry => ({ name, dtype: 'U8', shape: [bytes] });
const namesOf = (groups: Entry[][], limit: number) =>
  layoutShards(groups, limit).map((shard) => [...shard.tensors.keys()]);

test('one file has the plain name and needs no index', () => {
  const shards = layoutShards([[entry('a', 3)], [entry('b', 4)]], 7);
  expect(shards.map(({ file }) => file)).toEqual(['model.safetensors']);
  expect(indexOf(shards)).toBeNull();
  expect(layoutShards([], 100).map(({ file }) => file)).toEqual(['model.safetensors']);
});

test('several are numbered from 1 with five digits, and the index maps every name, sorted', () => {
  const shards = layoutShards([[entry('b', 5)], [entry('c', 5)], [entry('a', 5)]], 10);
  expect(shards.map(({ file }) => file)).toEqual([
    'model-00001-of-00002.safetensors',
    'model-00002-of-00002.safetensors',
  ]);
  const index = JSON.parse(indexOf(shards) as string);
  expect(index.metadata).toEqual({ total_size: 15 });
  expect(Object.entries(index.weight_map)).toEqual([
    ['a', 'model-00002-of-00002.safetensors'],
    ['b', 'model-00001-of-00002.safetensors'],
    ['c', 'model-00001-of-00002.safetensors'],
  ]);
});

test('a group that fits a file is not parted; a larger one is parted between tensors; a tensor never is', () => {
  expect(namesOf([[entry('a', 6)], [entry('b', 3), entry('c', 3)]], 10)).toEqual([['a'], ['b', 'c']]);
  expect(namesOf([[entry('a', 6), entry('b', 6), entry('c', 4)]], 10)).toEqual([['a'], ['b', 'c']]);
  expect(namesOf([[entry('a', 1)], [entry('b', 99)], [entry('c', 1)]], 10)).toEqual([['a'], ['b'], ['c']]);
});

test('any layout holds each tensor once, in files under the limit unless they hold one tensor, without holes', () => {
  const next = random(3);
  for (let round = 0; round < 200; round++) {
    const groups = Array.from({ length: 1 + Math.floor(next() * 8) }, (_, g) =>
      Array.from({ length: 1 + Math.floor(next() * 4) }, (_, i) =>
        entry(`${g}.${i}`, Math.floor(next() * 30)),
      ),
    );
    const limit = 1 + Math.floor(next() * 60);
    const shards = layoutShards(groups, limit);
    expect(shards.flatMap((shard) => [...shard.tensors.keys()]).sort()).toEqual(
      groups
        .flat()
        .map(({ name }) => name)
        .sort(),
    );
    for (const { tensors, header, bytes } of shards) {
      const placed = [...tensors.values()].sort((a, b) => a.begin - b.begin || a.bytes - b.bytes);
      let at = header.length;
      for (const { begin, bytes: size, entry: source } of placed) {
        expect([begin, size]).toEqual([at, bytesOfEntry(source)]);
        at += size;
      }
      expect(at).toBe(bytes);
      expect(header.length % 8).toBe(0);
      const full = placed.filter((tensor) => tensor.bytes > 0);
      expect(full.length <= 1 || bytes - header.length <= limit).toBe(true);
    }
  }
});

test('sub-byte types count in bits', () => {
  expect(bytesOfEntry({ name: 'a', dtype: 'F4', shape: [3, 2] })).toBe(3);
  expect(bytesOfEntry({ name: 'a', dtype: 'F6_E3M2', shape: [4] })).toBe(3);
  throwsCode(() => bytesOfEntry({ name: 'a', dtype: 'F4', shape: [3] }), 'ERR_ARGUMENT', /whole bytes/);
});

test('one layout does not hold a name twice', () => {
  throwsCode(() => layoutShard('x', [entry('a', 1), entry('a', 1)], {}), 'ERR_ARGUMENT', /twice/);
});
