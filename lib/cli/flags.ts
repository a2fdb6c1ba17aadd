import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  checkDevice,
  type DeviceId,
  type DeviceInfo,
  devices,
  setDefaultDevice,
  setThreads,
} from '../device';
import { QuantariaError } from '../errors';

/** A value that a parser refuses is wrong usage: exit 2. */
function refuse(expected: string): never {
  throw new InvalidArgumentError(`Expected ${expected}.`);
}

export function integer(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = /^-?\d+$/.test(text) ? Number(text) : Number.NaN;
    return value >= min && value <= max
      ? value
      : refuse(
          max === Number.MAX_SAFE_INTEGER ? `an integer from ${min}` : `an integer from ${min} to ${max}`,
        );
  };
}

export function positive(text: string): number {
  const value = /^\d*\.?\d+$/.test(text) ? Number(text) : Number.NaN;
  return value > 0 ? value : refuse('a positive number');
}

export function number(min: number, max = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = /^\d*\.?\d+$/.test(text) ? Number(text) : Number.NaN;
    const expected =
      max === Number.POSITIVE_INFINITY ? `a number from ${min}` : `a number from ${min} to ${max}`;
    return value >= min && value <= max ? value : refuse(expected);
  };
}

const UNITS: Readonly<Record<string, number>> = { '': 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };

/** `500MB`, `2GB`, `64000`: powers of 1000. */
export function bytes(text: string): number {
  const found = /^(\d+(?:\.\d+)?)([KMGT]?)B?$/i.exec(text);
  const value = found ? Number(found[1]) * (UNITS[(found[2] ?? '').toUpperCase()] ?? Number.NaN) : Number.NaN;
  return Number.isFinite(value) && value >= 1
    ? Math.floor(value)
    : refuse('a size such as 64000, 500MB or 2GB');
}

export function groupSize(text: string): number {
  const value = /^-?\d+$/.test(text) ? Number(text) : Number.NaN;
  return value === -1 || value >= 1 ? value : refuse('a positive integer, or -1 for whole rows');
}

const deviceName = (text: string): string =>
  /^(cpu|cuda:\d+|cuda-emulated)$/.test(text) ? text : refuse('cpu or cuda:N');

export interface OutputFlags extends DeviceFlags {
  out: string;
  maxShardSize?: number;
  maxMemory?: number;
  resume?: boolean;
}

/** What every job that writes a checkpoint takes. */
export function addOutputFlags(command: Command): Command {
  return command
    .requiredOption('--out <dir>', 'where to write')
    .option('--max-shard-size <size>', 'tensors of one output file (default: 5GB)', bytes)
    .option(
      '--max-memory <size>',
      'memory for weights under way (default: 512MB; with calibration: 2GB)',
      bytes,
    )
    .option('--resume', 'go on with an interrupted run')
    .addOption(deviceOption())
    .addOption(threadsOption());
}

export function outputOptions({ out, maxShardSize, maxMemory, resume }: OutputFlags) {
  return { out, maxShardBytes: maxShardSize, maxMemoryBytes: maxMemory, resume };
}

export interface DeviceFlags {
  device?: string;
  threads?: number;
}

export const deviceOption = (): Option =>
  new Option('--device <id>', 'cpu or cuda:N (default: the best that the command can use)').argParser(
    deviceName,
  );
export const threadsOption = (): Option =>
  new Option('--threads <n>', 'CPU threads (default: all cores)').argParser(integer(1, 1024));

/**
 * For a command that moves bytes between files, which is the CPU's.
 * @throws QuantariaError `ERR_DEVICE` if the device is not there: it was asked for by name; `ERR_UNSUPPORTED` for any but the CPU
 */
export function runOnCpu({ device, threads }: DeviceFlags): void {
  if (device !== undefined && checkDevice(device) !== 'cpu') {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `--device ${device}: this command moves bytes from file to file, which the CPU does; leave --device out`,
    );
  }
  if (threads !== undefined) setThreads(threads);
}

/** The device of a command that is told none: the first GPU, else the CPU. The emulated one is for tests, and never meant unless it is named. */
export const bestDevice = (there: readonly Pick<DeviceInfo, 'id' | 'kind'>[]): DeviceId =>
  there.find(({ kind }) => kind === 'cuda')?.id ?? 'cpu';

/**
 * For commands that compute: all of it is done there.
 * @throws QuantariaError `ERR_DEVICE` if the device is not there: it was asked for by name
 */
export function runOnDevice({ device, threads }: DeviceFlags): void {
  setDefaultDevice((device as DeviceId | undefined) ?? bestDevice(devices()));
  if (threads !== undefined) setThreads(threads);
}
