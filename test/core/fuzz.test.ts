import { spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import * as quantaria from '../../lib';

const root = join(__dirname, '..', '..');
const CALLS = 12_000;
const NOBODY = 65534;

/** Runs the fuzzer in a process of its own: a crash is a failed test that names the seed. */
function fuzz(
  mode: 'public' | 'raw',
  seed: number,
): { functions: string[]; calls: number; rejected: number } {
  const directory = mkdtempSync(join(tmpdir(), 'quantaria-fuzz-'));
  // Names are random: never with the rights to harm the machine.
  const user = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
  if (user.uid) chownSync(directory, NOBODY, NOBODY);
  try {
    const { status, signal, stdout, stderr } = spawnSync(
      process.execPath,
      ['--expose-gc', join(__dirname, 'fuzz_child.cjs'), root, mode, String(seed), String(CALLS)],
      {
        ...user,
        cwd: directory,
        encoding: 'utf8',
        timeout: 60_000,
        env: { ...process.env, QUANTARIA_POISON: '1' },
      },
    );
    expect({ seed, status, signal, stderr }).toEqual({ seed, status: 0, signal: null, stderr: '' });
    return JSON.parse(stdout);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

test.skipIf(!existsSync(join(root, 'dist'))).each([1, 2, 3])(
  'seed %i: random arguments end in a result, a QuantariaError, or what the argument threw',
  { timeout: 90_000 },
  (seed) => {
    const { functions, rejected } = fuzz('public', seed);
    const exported = Object.entries(quantaria).filter(([, value]) => typeof value === 'function');
    for (const [name] of exported) expect(functions).toContain(name);
    for (const name of [
      'Tensor#read',
      'Tensor.from',
      'QuantizedTensor.fromParts',
      'moe.sequentialToGrouped',
      'moe.experts',
      'moe.groupedMatmul',
    ]) {
      expect(functions).toContain(name);
    }
    // Enough is wrong to be refused and enough is right to be done.
    expect(rejected).toBeGreaterThan(CALLS / 10);
    expect(rejected).toBeLessThan(CALLS * 0.9);
  },
);

test.each([4, 5, 6])(
  'seed %i: the addon under the package outlives any argument',
  { timeout: 90_000 },
  (seed) => {
    const { functions } = fuzz('raw', seed);
    for (const name of [
      'tensorFromBytes',
      'dequantize',
      'weight',
      'weightDispose',
      'linear',
      'llmInt8Linear',
      'moeExperts',
      'moeGroupedMatmul',
      'arrange',
      'outputWrite',
      'mappedTensor',
    ])
      expect(functions).toContain(name);
  },
);
