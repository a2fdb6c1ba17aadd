import * as fs from 'node:fs';
import { QuantariaError } from '../errors';

/** What a job noted of one finished unit: results that the report needs, as JSON. */
export type UnitResult = Record<string, unknown>;

interface Head {
  version: 1;
  fingerprint: string;
  boot: string;
}

/** Changes with every start of the system. Where there is none, nothing that was not synced is trusted. */
function bootId(): string {
  try {
    return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return '';
  }
}

/**
 * The record of a job's finished units, one JSON line each, appended after the unit's bytes are written. The death of the
 * process cannot undo a write, so then every line counts; after a crash of the system only those do that a `synced` mark
 * covers, which is made when their data has reached the disk.
 */
export class Journal {
  readonly done: ReadonlyMap<string, UnitResult>;
  #fd: number | null;
  #count: number;

  /**
   * Starts a journal, or goes on with the one that is there.
   * @throws QuantariaError `ERR_ARGUMENT` if that one is of another job
   */
  constructor(path: string, fingerprint: string) {
    const done = new Map<string, UnitResult>();
    const lines = fs.existsSync(path) ? parseLines(fs.readFileSync(path, 'utf8')) : [];
    const head = lines[0] as Head | undefined;
    if (head !== undefined && head.fingerprint !== fingerprint) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        '--resume: the run to be resumed had other options, another model or another version; finish it with its own, or start with an empty directory',
      );
    }
    const boot = bootId();
    const units = lines.filter((line) => typeof line.unit === 'string');
    const trusted = head?.boot === boot && boot !== '' ? units : units.slice(0, syncedUnits(lines));
    for (const line of trusted) done.set(line.unit as string, line.result as UnitResult);
    this.done = done;
    this.#count = done.size;
    // Written anew, so that a torn last line is gone.
    const kept = [...done].map(([unit, result]) => JSON.stringify({ unit, result }));
    const synced = syncedUnits(lines);
    if (synced > 0) kept.splice(synced, 0, JSON.stringify({ synced }));
    const fresh: Head = { version: 1, fingerprint, boot };
    fs.writeFileSync(`${path}.new`, [JSON.stringify(fresh), ...kept, ''].join('\n'));
    fs.renameSync(`${path}.new`, path);
    this.#fd = fs.openSync(path, 'a');
  }

  /** Units noted so far, those of earlier runs included. */
  get count(): number {
    return this.#count;
  }

  add(unit: string, result: UnitResult): void {
    this.#count++;
    fs.writeSync(this.#open, `${JSON.stringify({ unit, result })}\n`);
  }

  /** Call when the data of the first `count` units is on the disk. */
  synced(count: number): void {
    fs.writeSync(this.#open, `${JSON.stringify({ synced: count })}\n`);
    fs.fsyncSync(this.#open);
  }

  close(): void {
    if (this.#fd !== null) fs.closeSync(this.#fd);
    this.#fd = null;
  }

  get #open(): number {
    if (this.#fd === null) throw new QuantariaError('ERR_DISPOSED', 'the journal was closed');
    return this.#fd;
  }
}

/** The lines up to the first that is not whole. */
function parseLines(text: string): Record<string, unknown>[] {
  const lines: Record<string, unknown>[] = [];
  for (const line of text.split('\n')) {
    if (line === '') continue;
    try {
      lines.push(JSON.parse(line) as Record<string, unknown>);
    } catch {
      break;
    }
  }
  return lines;
}

/** How many of the first units are known to be on the disk. */
const syncedUnits = (lines: readonly Record<string, unknown>[]): number =>
  lines.reduce((most, { synced }) => (typeof synced === 'number' ? Math.max(most, synced) : most), 0);
