import type { Progress } from '../pipeline/run';

const BAR = 30;
const BAR_MS = 100;
const LINE_MS = 1000;

export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ['TB', 1e12],
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3],
  ] as const) {
    if (bytes >= size) return `${(bytes / size).toFixed(2)} ${unit}`;
  }
  return `${bytes} B`;
}

/** One object on stdout, and nothing else there. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

export function print(...lines: readonly string[]): void {
  for (const line of lines) process.stdout.write(`${line}\n`);
}

/** What is worth knowing while a command runs; on stderr, so that stdout holds the result alone. */
export function log(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** Columns as wide as their widest cell; numbers to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [head, ...rows];
  const widths = head.map((_, i) => Math.max(...all.map((row) => (row[i] ?? '').length)));
  const numeric = head.map((_, i) => rows.length > 0 && rows.every((row) => /^[\d.,%-]/.test(row[i] ?? '')));
  return all.map((row) =>
    row
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i] as number) : cell.padEnd(widths[i] as number)))
      .join('  ')
      .trimEnd(),
  );
}

/** A bar on a terminal; elsewhere a line a second, and one at the end. */
export function progressPrinter(what: string): (progress: Progress) => void {
  const began = performance.now();
  const period = process.stderr.isTTY ? BAR_MS : LINE_MS;
  let told = began;
  return ({ doneBytes, totalBytes }) => {
    const now = performance.now();
    const done = doneBytes >= totalBytes;
    if (now - told < period && !done) return;
    told = now;
    const share = totalBytes === 0 ? 1 : doneBytes / totalBytes;
    const rate = formatBytes((doneBytes / Math.max(now - began, 1)) * 1000);
    const text = `${what} ${(share * 100).toFixed(0).padStart(3)} %  ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}  ${rate}/s`;
    if (process.stderr.isTTY) {
      const filled = Math.round(share * BAR);
      process.stderr.write(
        `\r[${'#'.repeat(filled)}${'.'.repeat(BAR - filled)}] ${text}\x1b[K${done ? '\n' : ''}`,
      );
    } else {
      log(text);
    }
  };
}
