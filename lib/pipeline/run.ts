import { QuantariaError } from '../errors';
import type { UnitResult } from './journal';
import type { OutputDirectory, Write } from './output';

/** A piece of a job that is done or not done: it reads some weights and writes whole tensors, or parts of them. */
export interface WorkUnit {
  /** The same in every run of the job. */
  key: string;
  /** Bytes that it reads, for progress. */
  inputBytes: number;
  /** Memory that it takes while it is under way; infinity: no other unit is under way beside it. */
  memoryBytes: number;
  /** Tensors that it writes into. */
  outputs: readonly string[];
  /**
   * Does the work. All that takes time is queued before the first wait, so that units overlap.
   * @returns what the journal keeps of it
   */
  run(write: (part: Write) => Promise<void>): Promise<UnitResult>;
}

export interface Progress {
  doneBytes: number;
  totalBytes: number;
}

export interface RunOptions {
  /** Memory that units under way may take together (default: 512 MB); one unit runs in any case. */
  maxMemoryBytes?: number;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

const DEFAULT_MEMORY_BYTES = 512e6;

/** Enough to keep the queue and the file thread busy; more would only take memory. */
const MAX_UNDER_WAY = 12;

/**
 * Runs a job's units in order, several under way at a time, skipping those that an earlier run has done.
 * @returns each unit's result, by key
 * @throws the first failure, after all that was under way has ended; `ERR_ABORTED` at the signal
 */
export async function runUnits(
  units: readonly WorkUnit[],
  output: OutputDirectory,
  options: RunOptions,
): Promise<Map<string, UnitResult>> {
  const results = new Map<string, UnitResult>();
  const underWay = new Map<Promise<void>, WorkUnit>();
  const progress: Progress = {
    doneBytes: 0,
    totalBytes: units.reduce((sum, unit) => sum + unit.inputBytes, 0),
  };
  const maxMemoryBytes = options.maxMemoryBytes ?? DEFAULT_MEMORY_BYTES;
  // Summed anew each time: a unit may need all memory, and infinity less infinity is no number.
  const memory = () => [...underWay.values()].reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  let failure: { error: unknown } | null = null;

  const finished = (unit: WorkUnit, result: UnitResult) => {
    results.set(unit.key, result);
    progress.doneBytes += unit.inputBytes;
    options.onProgress?.(progress);
  };

  for (const unit of units) {
    const earlier = output.resultOf(unit.key);
    if (earlier !== undefined) {
      finished(unit, earlier);
      continue;
    }
    while (
      underWay.size > 0 &&
      failure === null &&
      (underWay.size >= MAX_UNDER_WAY || memory() + unit.memoryBytes > maxMemoryBytes)
    ) {
      await Promise.race(underWay.keys());
    }
    if (failure !== null || options.signal?.aborted) break;
    const task = runUnit(unit, output)
      .then((result) => finished(unit, result))
      .catch((error: unknown) => {
        failure ??= { error };
      })
      .finally(() => underWay.delete(task));
    underWay.set(task, unit);
  }
  await Promise.all(underWay.keys());
  if (failure !== null) throw (failure as { error: unknown }).error;
  if (options.signal?.aborted) throw new QuantariaError('ERR_ABORTED', 'interrupted');
  return results;
}

async function runUnit(unit: WorkUnit, output: OutputDirectory): Promise<UnitResult> {
  let bytes = 0;
  const result = await unit.run(async (part) => {
    bytes += await output.write(part);
  });
  await output.complete(unit.key, unit.outputs, bytes, result);
  return result;
}
