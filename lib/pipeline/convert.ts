import { layoutShards } from '../checkpoint/layout';
import { type Checkpoint, openCheckpoint } from '../checkpoint/reader';
import { QuantariaError } from '../errors';
import { describeModel, type Layout, layoutTensors, type TargetTensor } from '../models';
import { carriedFiles } from './carry';
import { isComplete } from './complete';
import { readConfigText } from './config_file';
import { copyUnits, pieceUnits } from './copy_units';
import { fingerprintOf, sampleOf } from './fingerprint';
import { isUnfinished, OutputDirectory, removeWork } from './output';
import { PeakRss } from './rss';
import { type Progress, runUnits } from './run';

export interface ConvertOptions {
  to: Layout;
  out: string;
  /** Module of one expert's projection: `mlp.experts.{expert}.{projection}`. */
  expertTemplate?: string;
  maxShardBytes?: number;
  maxMemoryBytes?: number;
  resume?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface ConvertSummary {
  tensorsIn: number;
  tensorsOut: number;
  bytes: number;
  seconds: number;
  peakRssBytes: number;
}

/**
 * Rewrites a checkpoint with its routed experts in another layout, byte for byte and as a stream.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` if the model has no routed experts; `ERR_FORMAT`, `ERR_UNSUPPORTED`, `ERR_IO`
 */
export async function convertCheckpoint(model: string, options: ConvertOptions): Promise<ConvertSummary> {
  const began = performance.now();
  const rss = new PeakRss();
  using source = await openCheckpoint(model);
  try {
    const described = describeModel(source.config, source.entries());
    if (described.experts === 0) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `${model}: ${described.architecture} has no routed experts to convert`,
      );
    }
    const targets = layoutTensors(described, options.to, { sequentialTemplate: options.expertTemplate });
    const shards = layoutShards(
      targets.map(({ name, dtype, shape }) => [{ name, dtype, shape }]),
      options.maxShardBytes,
    );
    const units = targets.flatMap((target) =>
      'copy' in target.from
        ? copyUnits(source, target.from.copy, target.name, source.info(target.from.copy).bytes)
        : pieceUnits(source, target),
    );
    const config = await readConfigText(source.directory);
    const files = {
      ...(await carriedFiles(source.directory)),
      ...(config === null ? {} : { 'config.json': config }),
    };
    const entries = source.entries();
    const summary = () => ({
      tensorsIn: entries.length,
      tensorsOut: targets.length,
      bytes: entries.reduce((sum, { bytes }) => sum + bytes, 0),
      seconds: (performance.now() - began) / 1000,
      peakRssBytes: rss.stop(),
    });
    if (
      options.resume &&
      !(await isUnfinished(options.out)) &&
      (await isComplete(options.out, shards, files))
    ) {
      await checkCopies(source, options.out, targets);
      await removeWork(options.out);
      return summary();
    }
    const output = await OutputDirectory.open(options.out, shards, units, {
      fingerprint: await fingerprintOf(source, {
        to: options.to,
        shards: shards.map(({ file, header }) => [file, header.toString()]),
      }),
      resume: options.resume ?? false,
    });
    try {
      await runUnits(units, output, {
        maxMemoryBytes: options.maxMemoryBytes,
        signal: options.signal,
        onProgress: options.onProgress,
      });
      await output.finish(files);
    } catch (error) {
      await output.abandon();
      throw error;
    }
    return summary();
  } finally {
    rss.stop();
  }
}

/** A complete output has no note of its model, but copies of that model's tensors. @throws QuantariaError `ERR_ARGUMENT` */
async function checkCopies(source: Checkpoint, out: string, targets: readonly TargetTensor[]): Promise<void> {
  using output = await openCheckpoint(out);
  for (const { name, from } of targets) {
    if (!('copy' in from)) continue;
    if ((await sampleOf(source, from.copy)).equals(await sampleOf(output, name))) continue;
    throw new QuantariaError('ERR_ARGUMENT', `--resume: ${out} is complete, but of another model`);
  }
}
