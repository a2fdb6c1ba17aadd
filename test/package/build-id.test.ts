import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const root = join(__dirname, '..', '..');
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };

/** The id that CMake wrote into the binary which the tests load. */
function buildId(): string {
  const binary = readFileSync(join(root, 'build', 'Release', 'quantaria.node'), 'latin1');
  const id = /quantaria \d+\.\d+\.\d+ \([^)]*\)/.exec(binary)?.[0];
  if (id === undefined) throw new Error('no build id in build/Release/quantaria.node');
  return id;
}

test('the binary says its version, compiler, processor and CUDA', () => {
  expect(buildId()).toMatch(
    /^quantaria \S+ \((git \S+|source); \w+ [\d.]+; \w+; Release; (cuda [\d.]+ \S+|no cuda)\)$/,
  );
  expect(buildId()).toContain(`quantaria ${version} (`);
});

// The failure that this finds: `npm run test:ts` on a binary of another commit.
test.skipIf(!existsSync(join(root, '.git')))('the binary is of the commit that is checked out', () => {
  const head = execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
  const built = /git ([0-9a-f]+)/.exec(buildId())?.[1] ?? 'none';
  expect(head.slice(0, built.length)).toBe(built);
});
