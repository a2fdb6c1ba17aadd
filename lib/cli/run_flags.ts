import { type Command, Option } from 'commander';
import { ACTIVATION_DTYPES } from '../ops/decoder';
import type { RunOptions } from '../pipeline/usage';
import { type DeviceFlags, deviceOption, integer, threadsOption } from './flags';
import { log } from './output';

export interface RunFlags extends DeviceFlags {
  text?: string;
  tokens?: string;
  seqLen?: number;
  samples?: number;
  dtype?: RunOptions['dtype'];
  json?: boolean;
}

export const dtypeOption = (): Option =>
  new Option('--dtype <name>', 'of activations; stored is that of the checkpoint (default: float32)').choices(
    [...ACTIVATION_DTYPES, 'stored'],
  );

/** What every command that runs a model over a text takes. */
export function addRunFlags(command: Command): Command {
  return command
    .option('--text <file>', 'a text, documents parted by blank lines, or .jsonl')
    .option('--tokens <file>', 'token ids instead of a text: .u16 or .i32, rows of --seq-len')
    .option('--seq-len <n>', 'ids of a row (default: 256)', integer(2))
    .option('--samples <n>', 'the first N rows (default: all)', integer(1))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption());
}

export function runOptions({ text, tokens, seqLen, samples, dtype }: RunFlags): RunOptions {
  return { text, tokens, seqLen, samples, dtype };
}

const BAR_MS = 100;
const LINE_MS = 1000;

/** How much of the work is done: in place on a terminal, else a line a second. */
export function shareLogger(what: string): (done: number, total: number) => void {
  const terminal = process.stderr.isTTY;
  let told = performance.now();
  return (done, total) => {
    const now = performance.now();
    const ended = done >= total;
    if (now - told < (terminal ? BAR_MS : LINE_MS) && !ended) return;
    told = now;
    const text = `${what} ${((100 * done) / total).toFixed(0).padStart(3)} %`;
    if (terminal) process.stderr.write(`\r${text}\x1b[K${ended ? '\n' : ''}`);
    else log(text);
  };
}
