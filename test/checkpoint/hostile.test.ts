import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { expect, test } from 'vitest';
import { openCheckpoint, type QuantariaError } from '../../lib';
import { rejectsCode } from '../core/errors';
import { scratch } from './files';
import { MALFORMED_HEADERS } from './malformed_headers';
import { MALFORMED_PLACES } from './malformed_places';

const MALFORMED = [...MALFORMED_HEADERS, ...MALFORMED_PLACES];

/** The most memory that the process has had, mapped files left out: the system's own high-water mark counts those. */
function anonymousBytes(): number {
  return Number(/RssAnon:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
}

const collect = (globalThis as { gc?: () => void }).gc as () => void;

const atStart = anonymousBytes();

test('there are over 200 of them, and no two of one name', () => {
  expect(MALFORMED.length).toBeGreaterThanOrEqual(200);
  expect(new Set(MALFORMED.map(({ name }) => name)).size).toBe(MALFORMED.length);
});

test.each(MALFORMED)(
  '$name: refused within a second, by file and reason, in under 100 MB',
  async ({ make, code, says, names }) => {
    const path = make(scratch());
    collect();
    const before = anonymousBytes();
    let peak = before;
    const watch = setInterval(() => {
      peak = Math.max(peak, anonymousBytes());
    }, 2);
    const started = performance.now();
    const opened = openCheckpoint(path);
    await rejectsCode(opened, code, says);
    const seconds = (performance.now() - started) / 1000;
    clearInterval(watch);
    peak = Math.max(peak, anonymousBytes());
    const { message } = (await opened.catch((error: unknown) => error)) as QuantariaError;
    expect(message).toContain(names ?? basename(path));
    expect(message.length).toBeLessThan(600);
    expect(seconds).toBeLessThan(1);
    expect(peak - before).toBeLessThan(100_000_000);
  },
);

test('all of them together leave less than 100 MB behind', () => {
  collect();
  expect(anonymousBytes() - atStart).toBeLessThan(100_000_000);
});

test('a path that is no text is an argument that is wrong', async () => {
  for (const path of [undefined, null, 3, '', 'a\0b', {}, Buffer.from('x')]) {
    await rejectsCode(openCheckpoint(path as string), 'ERR_ARGUMENT', /^dir/);
  }
});
