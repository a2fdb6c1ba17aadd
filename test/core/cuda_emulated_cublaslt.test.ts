import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { DEVICE } from './cuda_device';

// Large dense products by the vendor's library, for which a stand-in is loaded.
const root = join(__dirname, '..', '..');
const STANDIN = join(root, 'build', 'emulated', 'libcublaslt_standin.so');

function run(
  args: string[],
  variables: Record<string, string>,
): { stdout: string; log: Record<string, unknown>[] } {
  const folder = mkdtempSync(join(tmpdir(), 'quantaria-cublaslt-'));
  const log = join(folder, 'log');
  const { QUANTARIA_CUBLASLT: _, ...inherited } = process.env;
  try {
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, args, {
      encoding: 'utf8',
      timeout: 120_000,
      env: { ...inherited, QUANTARIA_BUILD: 'emulated', QUANTARIA_STANDIN_LOG: log, ...variables },
    });
    expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' });
    const lines = existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : [];
    return { stdout, log: lines.map((line) => JSON.parse(line)) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function child(which: 'status' | 'large' | 'products' | 'others', variables: Record<string, string>) {
  const { stdout, log } = run([join(__dirname, 'cublaslt_child.cjs'), root, which], variables);
  return { ...JSON.parse(stdout), log };
}

const SAME = { same: true };

describe.skipIf(DEVICE !== 'cuda-emulated' || !existsSync(join(root, 'dist')))('cuBLASLt', () => {
  const unused = {
    status: { used: false, reason: 'QUANTARIA_CUBLASLT does not ask for it' },
    loaded: false,
    log: [],
  };

  test('without being asked for it is not loaded, and large products are those of our kernels', () => {
    expect(child('large', {})).toEqual({ large: SAME, ...unused });
  });

  test.each(['', '0'])('QUANTARIA_CUBLASLT=%s does not ask for it', (setting) => {
    expect(child('status', { QUANTARIA_CUBLASLT: setting })).toEqual(unused);
  });

  test('a library that is named takes the large products, to the same bits where sums are exact, and no small ones', () => {
    const { log, ...found } = child('products', { QUANTARIA_CUBLASLT: STANDIN });
    expect(found).toEqual({
      small: SAME,
      large: SAME,
      inColumns: SAME,
      graph: true,
      smallAfter: SAME,
      status: { used: true, reason: null, version: '13.0.0', path: STANDIN },
      loaded: true,
    });
    const shape = { m: 64, n: 4096, k: 4096, factors: 'bfloat16', result: 'bfloat16', workspace: 0 };
    expect(log).toEqual([
      { ...shape, bias: true },
      { ...shape, bias: false },
      { ...shape, bias: false }, // once into the graph, however often that is launched
    ]);
  });

  test('products of fewer rows, of rows that are not aligned, of float32 and of quantized weights are those of our kernels', () => {
    const { log, status, loaded, quantized, ...found } = child('others', { QUANTARIA_CUBLASLT: STANDIN });
    for (const [name, what] of Object.entries(found)) expect({ name, what }).toEqual({ name, what: SAME });
    expect(Object.keys(found).length).toBe(3);
    expect(quantized).toHaveProperty('same'); // as near, in other bits
    expect(log).toEqual([]);
  });

  test.each([
    [
      'one that is not there',
      { QUANTARIA_CUBLASLT: '/nowhere/libcublasLt.so' },
      'QUANTARIA_CUBLASLT: /nowhere/libcublasLt.so: cannot open shared object file: No such file or directory',
    ],
    [
      'a library that is another',
      { QUANTARIA_CUBLASLT: join(root, 'build', 'emulated', 'quantaria.node') },
      `QUANTARIA_CUBLASLT: ${join(root, 'build', 'emulated', 'quantaria.node')} is no cuBLASLt that can be used: it has no cublasLtGetVersion`,
    ],
    [
      'one that is too old',
      { QUANTARIA_CUBLASLT: STANDIN, QUANTARIA_STANDIN_FAULT: 'version' },
      `QUANTARIA_CUBLASLT: ${STANDIN} is cuBLASLt 11.9.2, 12 or 13 is needed`,
    ],
  ])('%s fails the products that are large, with the reason, and nothing else', (_, variables, reason) => {
    const { small, large, inColumns, smallAfter, status } = child('products', variables);
    expect(status).toEqual({ used: false, reason });
    expect([small, smallAfter]).toEqual([SAME, SAME]);
    for (const refused of [large, inColumns])
      expect(refused).toEqual({ code: 'ERR_NATIVE_LOAD', message: reason });
  });

  test('`quantaria info` says whether it is used, or why not', () => {
    const info = (variables: Record<string, string>) =>
      run([join(root, 'dist', 'cli', 'main.js'), 'info'], variables).stdout;
    expect(info({ QUANTARIA_CUBLASLT: STANDIN })).toContain(`cublaslt 13.0.0, ${STANDIN}\n`);
    expect(info({})).toContain('cublaslt not used: QUANTARIA_CUBLASLT does not ask for it\n');
  });
});
