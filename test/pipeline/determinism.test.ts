import { spawn } from 'node:child_process';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { EXAMPLE, endOf, MAIN, temporaryDirectory, tree } from './helpers';

const work = temporaryDirectory();

async function run(args: readonly string[], out: string, environment: Record<string, string> = {}) {
  const child = spawn(process.execPath, [MAIN, ...args, '--out', out], {
    env: { ...process.env, ...environment },
  });
  const { code, stderr } = await endOf(child);
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  return tree(out);
}

/** What may differ between two runs that have to give the same bytes. Instruction sets that are not there fall back. */
const VARIANTS: readonly (readonly [string, readonly string[], Record<string, string>])[] = [
  ['one thread, one unit at a time', ['--threads', '1', '--max-memory', '1'], {}],
  ['two threads, plain instructions', ['--threads', '2'], { QUANTARIA_ISA: 'scalar' }],
  ['AVX2', [], { QUANTARIA_ISA: 'avx2' }],
  ['AVX-512', [], { QUANTARIA_ISA: 'avx512' }],
];

describe('the same input gives the same bytes, every file of them', () => {
  test.each(['nf4-dq', 'mxfp8', 'llm.int8', 'moe-mixed-2bit'])('quantize, %s', async (recipe) => {
    const args = ['quantize', EXAMPLE, '--recipe', recipe];
    const expected = await run(args, path.join(work, recipe));
    for (const [name, flags, environment] of VARIANTS) {
      const found = await run([...args, ...flags], path.join(work, `${recipe}-${name}`), environment);
      expect({ name, found }).toEqual({ name, found: expected });
    }
  });

  test('convert', async () => {
    const args = ['convert', EXAMPLE, '--to', 'sequential'];
    const expected = await run(args, path.join(work, 'convert'));
    for (const [name, flags, environment] of VARIANTS) {
      const found = await run([...args, ...flags], path.join(work, `convert-${name}`), environment);
      expect({ name, found }).toEqual({ name, found: expected });
    }
  });
});
