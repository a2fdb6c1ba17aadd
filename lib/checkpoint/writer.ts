import { createReadStream, lstatSync, rmSync, type Stats } from 'node:fs';
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { bytesOf, dtypeOfStored } from '../dtype';
import { QuantariaError } from '../errors';
import { type NativeOutputFile, type NativeTensor, native } from '../native';
import { checkShape, show, Tensor } from '../tensor';
import { tensorInfo } from '../tensor_info';
import { ioError } from './json_file';
import { type Entry, layoutShard, type ShardLayout } from './layout';

/** Makes a rename durable: the directory's own contents must reach the disk too. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await fs.open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** A file's text, or the file that it is a copy of, of any size. */
export type FileContent = string | { copyOf: string };

/** Writes a file beside the weights so that a reader sees all of it or nothing. */
export async function writeFileAtomic(file: string, content: FileContent): Promise<void> {
  const temporary = path.join(path.dirname(file), `.${path.basename(file)}.partial`);
  try {
    const handle = await fs.open(temporary, 'w');
    try {
      await fs.writeFile(handle, typeof content === 'string' ? content : createReadStream(content.copyOf));
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, file);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw ioError(file, error);
  }
}

/** @internal One safetensors file under a temporary name, written in any order. */
export class ShardFile {
  readonly layout: ShardLayout;
  readonly #temporary: string;
  readonly #file: NativeOutputFile;

  /** Creates the file, or goes on with one that is there. */
  constructor(layout: ShardLayout, temporary: string) {
    this.layout = layout;
    this.#temporary = temporary;
    this.#file = native.outputOpen(temporary, layout.bytes);
  }

  async writeHeader(): Promise<void> {
    const { header } = this.layout;
    const bytes = native.tensorFromBytes(header, 'uint8', [header.length]);
    await native.outputWrite(this.#file, 0, bytes).finally(() => native.tensorDispose(bytes));
  }

  /**
   * Writes a tensor's bytes at `offset` within the place of tensor `name`; with `rows`, each row of that many bytes at its own
   * place, `stride` bytes after the one before.
   * @returns the number of bytes
   */
  async write(
    name: string,
    tensor: NativeTensor,
    offset = 0,
    rows?: { bytes: number; stride: number },
  ): Promise<number> {
    const place = this.layout.tensors.get(name);
    if (!place)
      throw new QuantariaError('ERR_ARGUMENT', `tensor ${show(name)} has no place in ${this.layout.file}`);
    const { shape, dtype } = tensorInfo(tensor);
    const bytes = shape.reduce((a, b) => a * b, bytesOf(dtype));
    const span = rows && bytes > 0 ? (bytes / rows.bytes - 1) * rows.stride + rows.bytes : bytes;
    if (offset + span > place.bytes) {
      throw new QuantariaError(
        'ERR_SHAPE',
        `tensor ${show(name)}: ${span} bytes at ${offset} of ${place.bytes}`,
      );
    }
    await native.outputWrite(this.#file, place.begin + offset, tensor, rows?.bytes, rows?.stride);
    return bytes;
  }

  async sync(): Promise<void> {
    await native.outputSync(this.#file);
  }

  /** Makes all that was written durable and gives the file its name. */
  async finish(file: string): Promise<void> {
    await this.sync();
    this.close();
    try {
      await fs.rename(this.#temporary, file);
      await syncDirectory(path.dirname(file));
    } catch (error) {
      throw ioError(file, error);
    }
  }

  close(): void {
    native.outputClose(this.#file);
  }
}

function removeQuietly(file: string): void {
  try {
    rmSync(file, { force: true });
  } catch {
    // a name that cannot be, of which the caller has the error already
  }
}

/** A rename replaces what it finds, also a device: that is nobody's wish. @throws QuantariaError `ERR_IO` */
function checkReplaceable(file: string): void {
  let found: Stats | undefined;
  try {
    found = lstatSync(file, { throwIfNoEntry: false });
  } catch (error) {
    throw ioError(file, error);
  }
  if (found && !found.isFile() && !found.isSymbolicLink()) {
    throw new QuantariaError('ERR_IO', `${file}: something that is not a regular file is there`);
  }
}

/** Writers of one process do not share a temporary name, even where they write the same file. */
let writers = 0;

/** A name or text that UTF-8 can hold. */
const isText = (value: unknown): value is string =>
  typeof value === 'string' && !/\p{Surrogate}/u.test(value);

function checkEntry(entry: unknown): Entry {
  const { name, dtype, shape } = (typeof entry === 'object' && entry !== null ? entry : {}) as Partial<Entry>;
  if (!isText(name) || typeof dtype !== 'string') {
    throw new QuantariaError('ERR_ARGUMENT', `entries: ${show(entry)} came, expected {name, dtype, shape}`);
  }
  return { name, dtype, shape: checkShape(`entries: ${show(name)}`, shape) };
}

function checkMetadata(metadata: unknown): Record<string, string> {
  if (typeof metadata !== 'object' || metadata === null) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `metadata: ${show(metadata)} came, expected an object of strings`,
    );
  }
  const pairs = Object.entries(metadata);
  const wrong = pairs.find(([key, value]) => !isText(key) || !isText(value));
  if (wrong)
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `metadata.${wrong[0]}: ${show(wrong[1])} came, expected a string`,
    );
  return Object.fromEntries(pairs);
}

function checkFits(entry: Entry, bytes: number, tensor: Tensor): void {
  const { name, dtype, shape } = entry;
  const wanted = dtypeOfStored(dtype);
  if (tensor.dtype !== (wanted ?? 'uint8')) {
    throw new QuantariaError(
      'ERR_DTYPE',
      `tensor ${show(name)}: ${tensor.dtype} came, expected ${wanted ?? `uint8 for ${dtype}`}`,
    );
  }
  const fits = wanted
    ? shape.length === tensor.shape.length && shape.every((n, i) => n === tensor.shape[i])
    : tensor.byteLength === bytes;
  if (fits) return;
  const expected = wanted ? `[${shape}]` : `${bytes} bytes`;
  throw new QuantariaError('ERR_SHAPE', `tensor ${show(name)}: [${tensor.shape}] came, expected ${expected}`);
}

/**
 * Writes one safetensors file as a stream: names, dtypes and shapes are given first, the data in any order, and a reader
 * sees nothing until `finish`.
 *
 * ```ts
 * const writer = new SafetensorsWriter('out.safetensors', [{ name: 'w', dtype: 'BF16', shape: [2, 3] }]);
 * await writer.write('w', tensor);
 * await writer.finish();
 * ```
 */
export class SafetensorsWriter {
  readonly #path: string;
  readonly #temporary: string;
  readonly #shard: ShardFile;
  readonly #missing: Set<string>;
  readonly #underWay = new Set<Promise<void>>();
  #state: 'open' | 'ended' = 'open';

  /** @throws QuantariaError `ERR_ARGUMENT` for entries that cannot be, `ERR_IO` if the file cannot be created */
  constructor(file: string, entries: readonly Entry[], metadata: Record<string, string> = { format: 'pt' }) {
    if (typeof file !== 'string' || file === '' || file.includes('\0') || !Array.isArray(entries)) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `file: ${show(file)} came, expected a path and a list of entries`,
      );
    }
    const checked: Entry[] = [];
    // Holes included, which map passes over.
    for (let i = 0; i < entries.length; i++) checked.push(checkEntry(entries[i]));
    this.#path = file;
    this.#temporary = path.join(
      path.dirname(file),
      `.${path.basename(file)}.${process.pid}-${++writers}.partial`,
    );
    const layout = layoutShard(path.basename(file), checked, checkMetadata(metadata));
    checkReplaceable(file);
    try {
      this.#shard = new ShardFile(layout, this.#temporary);
    } catch (error) {
      removeQuietly(this.#temporary); // a disk that is too small is noticed when the file is there already
      throw error;
    }
    this.#missing = new Set(checked.map((entry) => entry.name));
  }

  /**
   * A tensor of a dtype that is only copied (U16, F8_E8M0, F4 and so on) is given as uint8 of as many bytes.
   * @throws QuantariaError (as a rejection) `ERR_ARGUMENT`, `ERR_DTYPE` or `ERR_SHAPE` if it is not what was announced
   */
  async write(name: string, tensor: Tensor): Promise<void> {
    this.#checkOpen();
    const handle = Tensor.native(tensor, 'tensor');
    const place = this.#shard.layout.tensors.get(name);
    if (!place || !this.#missing.has(name)) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `tensor ${show(name)} was not announced, or is written already`,
      );
    }
    checkFits(place.entry, place.bytes, tensor);
    this.#missing.delete(name);
    const writing = this.#shard.write(name, handle).then(() => undefined);
    this.#underWay.add(writing);
    try {
      await writing;
    } catch (error) {
      this.#missing.add(name);
      throw error;
    } finally {
      this.#underWay.delete(writing);
    }
  }

  /** @throws QuantariaError (as a rejection) `ERR_ARGUMENT` if a tensor was not written; the file is then dropped */
  async finish(): Promise<void> {
    this.#checkOpen();
    this.#state = 'ended';
    await Promise.allSettled([...this.#underWay]);
    const [missing] = this.#missing;
    if (missing !== undefined) {
      await this.#drop();
      throw new QuantariaError('ERR_ARGUMENT', `tensor ${show(missing)} was announced and never written`);
    }
    try {
      await this.#shard.writeHeader();
      await this.#shard.finish(this.#path);
    } catch (error) {
      await this.#drop();
      throw error;
    }
  }

  /** Drops what was written. */
  async abort(): Promise<void> {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    await this.#drop();
  }

  async #drop(): Promise<void> {
    this.#shard.close();
    await fs.rm(this.#temporary, { force: true });
  }

  #checkOpen(): void {
    if (this.#state === 'ended') throw new QuantariaError('ERR_DISPOSED', 'the writer has finished');
  }
}
