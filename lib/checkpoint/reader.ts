import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { checkDevice, type DeviceId, getDefaultDevice } from '../device';
import { bytesOf, type DType, dtypeOfStored } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeMappedFile, type NativeTensor, native } from '../native';
import { checkOptions, show, Tensor } from '../tensor';
import { ioError, isJsonObject, isMissing, type JsonObject, readJsonObject } from './json_file';

export const INDEX_FILE = 'model.safetensors.index.json';
export const SINGLE_FILE = 'model.safetensors';

export interface TensorInfo {
  /** The library's name of the dtype, or safetensors' own for those that are only copied. */
  dtype: DType | string;
  shape: readonly number[];
  /** Name of the file that holds it. */
  file: string;
  bytes: number;
}

/** A tensor as the header gives it. */
export interface StoredEntry {
  name: string;
  /** As safetensors spells it: `BF16`. */
  dtype: string;
  shape: readonly number[];
  file: string;
  bytes: number;
}

interface Located extends StoredEntry {
  mapped: NativeMappedFile;
  begin: number;
}

export interface ReadOptions {
  /** Where the tensor is wanted; default: the default device. */
  device?: DeviceId;
  /** Only `[start, end)` of the first dimension. */
  range?: readonly [number, number];
}

/** Held by this module alone: the constructor is not for others. */
const OWN = Symbol('Checkpoint');

/** An opened checkpoint: its files are mapped, and tensors are read where they lie, when they are used. */
export class Checkpoint {
  /** The directory that holds it. */
  readonly directory: string;
  /** config.json, or null without one. */
  readonly config: JsonObject | null;
  readonly #tensors: ReadonlyMap<string, Located>;
  readonly #files: readonly NativeMappedFile[];
  #closed = false;

  /** @internal Use `openCheckpoint`. */
  constructor(directory: string, config: JsonObject | null, shards: readonly Shard[], token: symbol) {
    if (token !== OWN)
      throw new QuantariaError('ERR_ARGUMENT', 'checkpoints are opened by openCheckpoint, not by `new`');
    this.directory = directory;
    this.config = config;
    this.#files = shards.map((shard) => shard.mapped);
    const tensors = new Map<string, Located>();
    for (const { entries } of shards) {
      for (const entry of entries) {
        const other = tensors.get(entry.name);
        if (other) {
          throw new QuantariaError(
            'ERR_FORMAT',
            `tensor ${show(entry.name)} is in ${other.file} and in ${entry.file}`,
          );
        }
        tensors.set(entry.name, entry);
      }
    }
    this.#tensors = tensors;
  }

  names(): string[] {
    return [...this.#tensors.keys()];
  }

  /** @throws QuantariaError `ERR_ARGUMENT` if there is no such tensor */
  info(name: string): TensorInfo {
    const { dtype, shape, file, bytes } = this.#find(name);
    return { dtype: dtypeOfStored(dtype) ?? dtype, shape, file, bytes };
  }

  /** @internal All tensors, in the order of names(). */
  entries(): StoredEntry[] {
    return [...this.#tensors.values()];
  }

  /**
   * A tensor, on the CPU read when it is used; a view of the mapped file where its bytes are aligned.
   * @throws QuantariaError `ERR_ARGUMENT`, `ERR_SHAPE` for a range outside, `ERR_DTYPE` for a type that is only copied
   */
  async read(name: string, opts?: ReadOptions): Promise<Tensor> {
    const { device = getDefaultDevice(), range } = checkOptions(opts);
    checkDevice(device);
    const mapped = Tensor.wrap(this.view(name, range));
    if (device === mapped.device) return mapped;
    using source = mapped;
    return source.to(device);
  }

  /** @internal */
  view(name: string, range?: readonly [number, number]): NativeTensor {
    const entry = this.#find(name);
    const dtype = dtypeOfStored(entry.dtype);
    if (!dtype)
      throw new QuantariaError(
        'ERR_DTYPE',
        `tensor ${show(name)} is ${entry.dtype}, which cannot be computed with`,
      );
    if (range === undefined) return native.mappedTensor(entry.mapped, entry.begin, dtype, entry.shape);
    const [start, end] = checkRange(name, entry.shape, range);
    const rest = entry.shape.slice(1);
    const rowBytes = rest.reduce((a, b) => a * b, bytesOf(dtype));
    return native.mappedTensor(entry.mapped, entry.begin + start * rowBytes, dtype, [end - start, ...rest]);
  }

  /** @internal The bytes of a tensor of any dtype, from `start` to `end`. */
  bytes(name: string, start: number, end: number): NativeTensor {
    const entry = this.#find(name);
    return native.mappedTensor(entry.mapped, entry.begin + start, 'uint8', [end - start]);
  }

  /** Gives up the files. Tensors that were read stay valid. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const file of this.#files) native.mappedClose(file);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #find(name: string): Located {
    if (this.#closed) throw new QuantariaError('ERR_DISPOSED', 'the checkpoint was closed');
    const entry = typeof name === 'string' ? this.#tensors.get(name) : undefined;
    if (!entry) throw new QuantariaError('ERR_ARGUMENT', `tensor ${show(name)} is not in the checkpoint`);
    return entry;
  }
}

function checkRange(name: string, shape: readonly number[], range: unknown): [number, number] {
  const rows = shape[0];
  if (Array.isArray(range) && range.length === 2 && rows !== undefined) {
    const [start, end] = range as [number, number];
    if (
      Number.isSafeInteger(start) &&
      Number.isSafeInteger(end) &&
      0 <= start &&
      start <= end &&
      end <= rows
    ) {
      return [start, end];
    }
  }
  throw new QuantariaError(
    'ERR_SHAPE',
    `range: ${show(range)} came for tensor ${show(name)} of shape [${shape}]`,
  );
}

interface Shard {
  mapped: NativeMappedFile;
  entries: Located[];
}

async function openShard(directory: string, file: string): Promise<Shard> {
  const header = await native.openSafetensors(path.join(directory, file));
  const entries = header.tensors.map(({ name, dtype, shape, begin, end }) => ({
    name,
    dtype,
    shape: Object.freeze(shape),
    file,
    bytes: end - begin,
    mapped: header.file,
    begin,
  }));
  return { mapped: header.file, entries };
}

/** Names that stay in the directory: no separators, no parent, nothing hidden in them. */
function checkShardName(index: string, file: unknown): string {
  const fine = typeof file === 'string' && /^[^/\\\0]+$/.test(file) && file !== '.' && file !== '..';
  if (fine) return file;
  throw new QuantariaError(
    'ERR_FORMAT',
    `${index}: ${show(file)} is not the name of a file in the same directory`,
  );
}

async function openIndexed(directory: string, indexPath: string, index: JsonObject): Promise<Shard[]> {
  const map = index.weight_map;
  if (!isJsonObject(map)) throw new QuantariaError('ERR_FORMAT', `${indexPath}: no weight_map`);
  const files = [...new Set(Object.values(map).map((file) => checkShardName(indexPath, file)))].sort();
  const shards: Shard[] = [];
  for (const file of files) {
    try {
      await fs.access(path.join(directory, file));
    } catch {
      throw new QuantariaError('ERR_FORMAT', `${indexPath}: ${show(file)} is not there`);
    }
    shards.push(await openShard(directory, file));
  }
  const held = new Map(
    shards.flatMap((shard) => shard.entries.map((entry) => [entry.name, entry.file] as const)),
  );
  for (const [name, file] of Object.entries(map)) {
    if (held.get(name) !== file)
      throw new QuantariaError('ERR_FORMAT', `${indexPath}: tensor ${show(name)} is not in ${file}`);
  }
  for (const [name, file] of held) {
    if (!Object.hasOwn(map, name)) {
      throw new QuantariaError(
        'ERR_FORMAT',
        `${indexPath}: tensor ${show(name)} of ${file} is not in the weight_map`,
      );
    }
  }
  return shards;
}

/** Without an index: model.safetensors, or the only file of its kind. */
async function findSingle(directory: string): Promise<string> {
  const files = (await fs.readdir(directory)).filter((file) => file.endsWith('.safetensors')).sort();
  if (files.includes(SINGLE_FILE)) return SINGLE_FILE;
  if (files.length === 1) return files[0] as string;
  const found =
    files.length === 0 ? 'no safetensors file' : `${files.length} safetensors files and no ${INDEX_FILE}`;
  throw new QuantariaError('ERR_FORMAT', `${directory}: ${found}`);
}

/**
 * Opens a checkpoint: a .safetensors file, or a directory with `model.safetensors.index.json`, else `model.safetensors`, else
 * exactly one .safetensors file. Headers are read and checked, data is not. Files are mapped and have to stay as they are: one
 * that is cut short while it is open ends the process at the next read of what is gone (SIGBUS).
 * @throws QuantariaError (as a rejection) `ERR_IO` if it cannot be read, `ERR_FORMAT` if it is malformed
 */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  if (typeof dir !== 'string' || dir === '' || dir.includes('\0')) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `dir: ${show(dir)} came, expected the path of a file or directory`,
    );
  }
  let isDirectory: boolean;
  try {
    isDirectory = (await fs.stat(dir)).isDirectory();
  } catch (error) {
    throw isMissing(error)
      ? new QuantariaError('ERR_IO', `${dir}: no such file or directory`)
      : ioError(dir, error);
  }
  const directory = isDirectory ? dir : path.dirname(dir);
  const indexPath = path.join(directory, INDEX_FILE);
  const index = isDirectory ? await readJsonObject(indexPath) : null;
  const shards = index
    ? await openIndexed(directory, indexPath, index)
    : [await openShard(directory, isDirectory ? await findSingle(directory) : path.basename(dir))];
  const config = await readJsonObject(path.join(directory, 'config.json'));
  return new Checkpoint(directory, config, shards, OWN);
}
