/** What the tests of whole jobs share. Files are read and made here without the library, so that both can be compared. */
import { type SpawnOptions, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll } from 'vitest';
import { random } from '../core/random';

export const ROOT = path.join(__dirname, '..', '..');
export const EXAMPLE = path.join(ROOT, 'examples', 'aria-bytes');
export const MAIN = path.join(ROOT, 'dist', 'cli', 'main.js');
/** Models beside the repository; tests of them are skipped where they are not. */
export const SHARED_MODELS = path.join(ROOT, '..', 'shared', 'models');

/** A new empty directory, gone after the tests of the file. */
export function temporaryDirectory(): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'quantaria-test-'));
  afterAll(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export interface Stored {
  dtype: string;
  shape: number[];
  bytes: Buffer;
  file: string;
}

/** The tensors of one safetensors file; throws unless the file is whole. */
export function readSafetensors(file: string): Map<string, Stored> {
  const content = fs.readFileSync(file);
  const data = 8 + Number(content.readBigUInt64LE(0));
  const header = JSON.parse(content.toString('utf8', 8, data)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Stored>();
  let end = 0;
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    end = Math.max(end, offsets[1]);
    const bytes = content.subarray(data + offsets[0], data + offsets[1]);
    tensors.set(name, { dtype, shape, bytes, file: path.basename(file) });
  }
  if (data + end !== content.length)
    throw new Error(`${file}: ${content.length} bytes, ${data + end} expected`);
  return tensors;
}

/** All tensors of a directory's model files. */
export function readTensors(directory: string): Map<string, Stored> {
  const files = fs.readdirSync(directory).filter((name) => /^model.*\.safetensors$/.test(name));
  return new Map(files.flatMap((name) => [...readSafetensors(path.join(directory, name))]));
}

/** A copy of a model in 16 bits with the sign of each weight turned: other weights of the same names and shapes. */
export function negated(model: string, directory: string): string {
  fs.cpSync(model, directory, { recursive: true });
  for (const name of fs.readdirSync(directory).filter((file) => /^model.*\.safetensors$/.test(file))) {
    const file = path.join(directory, name);
    const content = fs.readFileSync(file);
    for (let i = 8 + Number(content.readBigUInt64LE(0)) + 1; i < content.length; i += 2)
      content[i] = (content[i] as number) ^ 0x80;
    fs.writeFileSync(file, content);
  }
  return directory;
}

export const readJson = <T = Record<string, unknown>>(...parts: string[]): T =>
  JSON.parse(fs.readFileSync(path.join(...parts), 'utf8')) as T;

/** Every file below a directory, hidden ones too, by path: a hash of its content; of `report.html`, which has times, none. */
export function tree(directory: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const name of (fs.readdirSync(directory, { recursive: true }) as string[]).sort()) {
    const file = path.join(directory, name);
    files[name] = fs.statSync(file).isDirectory()
      ? 'directory'
      : name === 'report.html'
        ? 'report'
        : createHash('sha256').update(fs.readFileSync(file)).digest('hex');
  }
  return files;
}

export { random };

export const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** Small random weights as a file holds them: BF16, F16 (both as random bits of exponents that are common) or F32. */
export function randomBytes(dtype: string, shape: readonly number[], next: () => number): Buffer {
  const size = product(shape);
  if (dtype === 'F32') {
    const values = Float32Array.from({ length: size }, () => (next() + next() + next() - 1.5) / 8);
    return Buffer.from(values.buffer);
  }
  if (dtype === 'BF16') {
    const values = Float32Array.from({ length: size }, () => (next() + next() + next() - 1.5) / 8);
    const bits = new Uint32Array(values.buffer);
    return Buffer.from(Uint16Array.from(bits, (word) => word >>> 16).buffer);
  }
  if (dtype === 'F16') {
    const half = () =>
      (next() < 0.5 ? 0x8000 : 0) | (Math.floor(8 + next() * 5) << 10) | Math.floor(next() * 1024);
    return Buffer.from(Uint16Array.from({ length: size }, half).buffer);
  }
  const width = { I64: 8, I32: 4, U8: 1, F64: 8 }[dtype];
  if (width === undefined) throw new Error(`no random ${dtype}`);
  return Buffer.from(Array.from({ length: size * width }, () => Math.floor(next() * 64)));
}

/** Values of stored floats. */
export function floatsOf({ dtype, bytes }: Pick<Stored, 'dtype' | 'bytes'>): Float32Array {
  const own = new Uint8Array(bytes).buffer;
  if (dtype === 'F32') return new Float32Array(own);
  const words = new Uint16Array(own);
  if (dtype === 'BF16') return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
  if (dtype !== 'F16') throw new Error(`no floats in ${dtype}`);
  return Float32Array.from(words, (word) => {
    const exponent = (word >> 10) & 31;
    const mantissa = word & 1023;
    const magnitude = exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25);
    return word & 0x8000 ? -magnitude : magnitude;
  });
}

export interface Tensors {
  name: string;
  dtype: string;
  shape: readonly number[];
  bytes?: Buffer;
}

/** One safetensors file, as plainly as the format allows. */
export function writeSafetensors(file: string, tensors: readonly (Tensors & { bytes: Buffer })[]): void {
  let end = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  for (const { name, dtype, shape, bytes } of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] };
    end += bytes.length;
  }
  const text = JSON.stringify(header);
  const padded = text.padEnd(Math.ceil(text.length / 8) * 8);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(padded.length));
  fs.writeFileSync(file, Buffer.concat([size, Buffer.from(padded), ...tensors.map(({ bytes }) => bytes)]));
}

/** A checkpoint in one file with random weights where none are given; returns its directory. */
export function writeModel(
  directory: string,
  { config, tensors }: { config: Record<string, unknown> | null; tensors: readonly Tensors[] },
  { seed = 1, dtype }: { seed?: number; dtype?: string } = {},
): string {
  const next = random(seed);
  fs.mkdirSync(directory, { recursive: true });
  const filled = tensors.map((tensor) => {
    const own = tensor.dtype === 'BF16' ? (dtype ?? 'BF16') : tensor.dtype;
    return { ...tensor, dtype: own, bytes: tensor.bytes ?? randomBytes(own, tensor.shape, next) };
  });
  writeSafetensors(path.join(directory, 'model.safetensors'), filled);
  if (config) fs.writeFileSync(path.join(directory, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  return directory;
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A process that runs the command line, and how it ends. */
export function startCli(args: readonly string[], options: SpawnOptions = {}) {
  const child = spawn(process.execPath, [MAIN, ...args], { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
  return { child, ended: endOf(child) };
}

export function endOf(child: ReturnType<typeof spawn>): Promise<Ended> {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (data) => (stdout += data));
  child.stderr?.on('data', (data) => (stderr += data));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

export const cli = (...args: string[]): Promise<Ended> => startCli(args).ended;

export const lastLine = (text: string): string => text.trimEnd().split('\n').at(-1) ?? '';
