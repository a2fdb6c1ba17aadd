/** Which device the suites run on: test/device_setup.ts makes it the default one of each test file. */
import { type DeviceId, devices } from '../lib';

/** QUANTARIA_TEST_DEVICE: cuda-emulated (in the build that has it, QUANTARIA_BUILD=emulated), cuda:0, ...; else the CPU. */
export const DEVICE = (process.env.QUANTARIA_TEST_DEVICE ?? 'cpu') as DeviceId;

/** Bits of the CPU, its threads and its instruction sets are expected there only; elsewhere the bounds are. */
export const ON_CPU = DEVICE === 'cpu';

/** An emulated device runs a few hundred million multiply-adds a second: shapes for it are smaller where a test says so. */
export const EMULATED = DEVICE === 'cuda-emulated';

/** QUANTARIA_SWEEP=full: all shapes and schemes on the emulator too, which take minutes. */
export const SWEEP = process.env.QUANTARIA_SWEEP === 'full';

/** On the emulator, but in the whole sweep: a part of the tests that covers the rest. */
export const SUBSET = EMULATED && !SWEEP;

/** So many rows of a text for a whole job; on the emulator half as many, of half the length. */
export const rowsOf = (samples: number): { samples: number; seqLen: number } =>
  EMULATED ? { samples: Math.ceil(samples / 2), seqLen: 128 } : { samples, seqLen: 256 };

/** How many ids those are. */
export function idsOf(samples: number): number {
  const rows = rowsOf(samples);
  return rows.samples * rows.seqLen;
}

/** How long a test of whole jobs may take, in ms. */
export const JOB_TIMEOUT = EMULATED ? 600_000 : 120_000;

/** All of them, or of a subset each `step`-th: a step that no period of the list divides. */
export const some = <T>(all: readonly T[], step: number): readonly T[] =>
  SUBSET ? all.filter((_, i) => i % step === 0) : all;

if (!devices().some(({ id }) => id === DEVICE))
  throw new Error(
    `QUANTARIA_TEST_DEVICE=${DEVICE} is not here: ${devices()
      .map(({ id }) => id)
      .join(', ')}`,
  );
