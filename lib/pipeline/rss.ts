import * as fs from 'node:fs';

const PERIOD_MS = 50;

/** Anonymous and shared memory of this process in bytes; pages of mapped files left out. */
export function residentBytes(): number {
  const status = fs.readFileSync('/proc/self/status', 'utf8');
  let kib = 0;
  for (const [, amount] of status.matchAll(/^Rss(?:Anon|Shmem):\s+(\d+) kB$/gm)) kib += Number(amount);
  return kib * 1024;
}

/** Samples the resident memory until it is stopped. */
export class PeakRss {
  #peak = 0;
  readonly #timer: NodeJS.Timeout;

  constructor() {
    this.sample();
    this.#timer = setInterval(() => this.sample(), PERIOD_MS).unref();
  }

  sample(): void {
    this.#peak = Math.max(this.#peak, residentBytes());
  }

  /** The highest sample so far, in bytes. */
  get peak(): number {
    this.sample();
    return this.#peak;
  }

  /** The highest sample, in bytes. */
  stop(): number {
    clearInterval(this.#timer);
    this.sample();
    return this.#peak;
  }
}
