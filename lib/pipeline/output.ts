import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError } from '../checkpoint/json_file';
import { indexOf, type ShardLayout } from '../checkpoint/layout';
import { INDEX_FILE } from '../checkpoint/reader';
import { type FileContent, ShardFile, syncDirectory, writeFileAtomic } from '../checkpoint/writer';
import { QuantariaError } from '../errors';
import type { NativeTensor } from '../native';
import { Journal, type UnitResult } from './journal';

/** Holds everything unfinished, so that nothing half-written ever has a final name. */
export const WORK = '.quantaria';
/** As long as it is there, the run is unfinished. */
const JOURNAL = path.join(WORK, 'journal.jsonl');
const SYNC_BYTES = 1e9;

/** Bytes of one tensor, from `offset` within it. */
export interface Write {
  name: string;
  tensor: NativeTensor;
  offset?: number;
  /** Rows that do not follow each other: bytes of one, and from one's beginning to the next's. */
  rows?: { bytes: number; stride: number };
}

interface OpenShard {
  file: ShardFile | null;
  /** Settles when it has its name; null until that is under way. */
  naming: Promise<void> | null;
  layout: ShardLayout;
  /** Units that still have to write into it. */
  remaining: number;
}

export interface OutputOptions {
  fingerprint: string;
  resume: boolean;
}

/**
 * An output checkpoint in the making. Shards are written under `.quantaria/` in any order, get their names when they are
 * complete, and the index comes last.
 */
export class OutputDirectory {
  readonly #directory: string;
  readonly #journal: Journal;
  readonly #shards = new Map<string, OpenShard>();
  readonly #shardOf = new Map<string, OpenShard>();
  readonly #layouts: readonly ShardLayout[];
  /** The outermost directory that was made for it; null if all were there. */
  readonly #created: string | null;
  #unsynced = 0;
  #syncing: Promise<void> = Promise.resolve();

  private constructor(
    directory: string,
    layouts: readonly ShardLayout[],
    journal: Journal,
    created: string | null,
  ) {
    this.#directory = directory;
    this.#layouts = layouts;
    this.#journal = journal;
    this.#created = created;
    for (const layout of layouts) {
      const shard = { file: null, naming: null, layout, remaining: 0 };
      this.#shards.set(layout.file, shard);
      for (const name of layout.tensors.keys()) this.#shardOf.set(name, shard);
    }
  }

  /**
   * @param units the tensors that each unit of the job writes
   * @throws QuantariaError `ERR_ARGUMENT` if the directory is not empty, or holds another job; `ERR_IO`
   */
  static async open(
    directory: string,
    layouts: readonly ShardLayout[],
    units: Iterable<{ key: string; outputs: readonly string[] }>,
    options: OutputOptions,
  ): Promise<OutputDirectory> {
    const created = await prepareDirectory(directory, options.resume);
    const work = path.join(directory, WORK);
    if (!(await exists(work)))
      await fs.mkdir(work).catch((error) => {
        throw ioError(work, error);
      });
    const journal = new Journal(path.join(directory, JOURNAL), options.fingerprint);
    const output = new OutputDirectory(directory, layouts, journal, created);
    for (const { key, outputs } of units) {
      if (journal.done.has(key)) continue;
      for (const shard of output.#shardsOf(outputs)) shard.remaining++;
    }
    for (const shard of output.#shards.values()) await output.#reopen(shard);
    return output;
  }

  /** Goes on with a file that an earlier run began, so that its bytes are synced too before any note says so. */
  async #reopen(shard: OpenShard): Promise<void> {
    const final = path.join(this.#directory, shard.layout.file);
    const temporary = this.#temporary(shard);
    // After a crash of the system, units whose notes were lost are done again: into the file that holds the others.
    if (shard.remaining > 0 && !(await exists(temporary)) && (await exists(final)))
      await fs.rename(final, temporary);
    if (await exists(temporary)) shard.file = new ShardFile(shard.layout, temporary);
  }

  /** What earlier runs of this job noted of a unit, or undefined if it is still to be done. */
  resultOf(key: string): UnitResult | undefined {
    return this.#journal.done.get(key);
  }

  /** Settles when the bytes are in the file. @returns how many */
  async write({ name, tensor, offset, rows }: Write): Promise<number> {
    const shard = this.#shardOf.get(name);
    if (!shard) throw new QuantariaError('ERR_ARGUMENT', `tensor ${name} has no place in the output`);
    // A file made anew under the shard's temporary name would replace it, without what others wrote.
    if (shard.remaining === 0) {
      throw new QuantariaError('ERR_ARGUMENT', `tensor ${name}: its file ${shard.layout.file} is complete`);
    }
    shard.file ??= new ShardFile(shard.layout, this.#temporary(shard));
    return shard.file.write(name, tensor, offset, rows);
  }

  /** Notes that all of a unit's bytes are written. */
  async complete(key: string, outputs: readonly string[], bytes: number, result: UnitResult): Promise<void> {
    this.#journal.add(key, result);
    this.#unsynced += bytes;
    if (this.#unsynced >= SYNC_BYTES) {
      this.#syncing = this.#sync();
      this.#syncing.catch(() => {}); // told by finish, which waits for it
    }
    for (const shard of this.#shardsOf(outputs)) {
      // A single shard waits for the files beside it: it is what readers look for first.
      if (--shard.remaining === 0 && this.#layouts.length > 1) await this.#finishShard(shard);
    }
  }

  /** Names the last shards and writes the index; then nothing of the work is left. */
  async finish(files: Readonly<Record<string, FileContent>>): Promise<void> {
    await this.#syncing;
    for (const [name, content] of Object.entries(files)) {
      await writeFileAtomic(path.join(this.#directory, name), content);
    }
    for (const shard of this.#shards.values()) await this.#finishShard(shard);
    const index = indexOf(this.#layouts);
    if (index !== null) await writeFileAtomic(path.join(this.#directory, INDEX_FILE), index);
    await syncDirectory(this.#directory);
    this.#journal.close();
    await fs.rm(path.join(this.#directory, JOURNAL));
    await removeWork(this.#directory);
  }

  /** Ends early. What is done stays for `--resume`; if nothing is, the directory is as it was. */
  async abandon(): Promise<void> {
    await this.#syncing.catch(() => {});
    for (const shard of this.#shards.values()) shard.file?.close();
    this.#journal.close();
    if (this.#journal.count > 0) return;
    await removeWork(this.#directory);
    if (this.#created === null) return;
    const outermost = path.dirname(this.#created);
    for (let made = path.resolve(this.#directory); made !== outermost; made = path.dirname(made))
      await fs.rmdir(made);
  }

  #temporary(shard: OpenShard): string {
    return path.join(this.#directory, WORK, shard.layout.file);
  }

  #shardsOf(outputs: readonly string[]): Set<OpenShard> {
    const shards = new Set<OpenShard>();
    for (const name of outputs) {
      const shard = this.#shardOf.get(name);
      if (shard) shards.add(shard);
    }
    return shards;
  }

  async #finishShard(shard: OpenShard): Promise<void> {
    const final = path.join(this.#directory, shard.layout.file);
    const temporary = this.#temporary(shard);
    const file = shard.file;
    if (file === null && !(await exists(temporary)) && (await exists(final))) return; // named before the interruption
    const open = file ?? new ShardFile(shard.layout, temporary);
    shard.file = null;
    shard.naming = open.writeHeader().then(() => open.finish(final));
    await shard.naming;
  }

  async #sync(): Promise<void> {
    this.#unsynced = 0;
    await this.#syncing;
    const { count } = this.#journal;
    await Promise.all([...this.#shards.values()].map(({ file, naming }) => file?.sync() ?? naming));
    this.#journal.synced(count);
  }
}

async function exists(file: string): Promise<boolean> {
  return fs.access(file).then(
    () => true,
    () => false,
  );
}

/**
 * Makes a directory and those that it lies in, and returns the outermost one that was made, or null. Node's recursive
 * `mkdir` never ends where a file system says ENOENT of a directory whose parent is there, as /proc does.
 */
async function makeDirectories(directory: string): Promise<string | null> {
  const missing: string[] = [];
  for (let at = directory; !(await exists(at)); at = path.dirname(at)) missing.push(at);
  let outermost: string | null = null;
  for (const at of missing.reverse()) {
    try {
      await fs.mkdir(at);
      outermost ??= at;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error; // made by another meanwhile
    }
  }
  return outermost;
}

/** Returns the outermost directory that was made, or null. */
async function prepareDirectory(directory: string, resume: boolean): Promise<string | null> {
  let names: string[];
  try {
    const made = await makeDirectories(path.resolve(directory));
    names = await fs.readdir(directory);
    if (names.length === 0) return made;
  } catch (error) {
    throw ioError(directory, error);
  }
  if (resume && names.includes(WORK)) return null;
  const hint = names.includes(WORK) ? 'go on with the interrupted run by `--resume`, or' : 'it is not empty:';
  throw new QuantariaError('ERR_ARGUMENT', `--out ${directory}: ${hint} name another directory`);
}

/** Whether the directory holds an unfinished run. */
export async function isUnfinished(directory: string): Promise<boolean> {
  return exists(path.join(directory, JOURNAL));
}

/** Removes what a finished or fruitless run leaves. */
export async function removeWork(directory: string): Promise<void> {
  await fs.rm(path.join(directory, WORK), { recursive: true, force: true });
}
