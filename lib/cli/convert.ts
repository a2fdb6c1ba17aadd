import { type Command, Option } from 'commander';
import { LAYOUTS, type Layout } from '../models';
import { convertCheckpoint } from '../pipeline/convert';
import { bytes, type DeviceFlags, deviceOption, threadsOption, useDevice } from './flags';
import { abortOnInterrupt } from './interrupt';
import { formatBytes, print, printJson, progressPrinter } from './output';

interface Flags extends DeviceFlags {
  to: Layout;
  out: string;
  expertTemplate?: string;
  maxShardSize?: number;
  maxMemory?: number;
  resume?: boolean;
  json?: boolean;
}

/** `quantaria convert <model> --to <layout> --out <dir>`: expert layouts, byte for byte. */
export function convert(program: Command): void {
  program
    .command('convert')
    .description('rewrite a checkpoint with its experts in another layout, byte for byte')
    .argument('<model>', 'a directory or a .safetensors file')
    .addOption(
      new Option(
        '--to <layout>',
        "sequential: a linear layer each; grouped: Aria's stacks; fused: transformers v5's",
      )
        .choices([...LAYOUTS])
        .makeOptionMandatory(),
    )
    .requiredOption('--out <dir>', 'where to write')
    .option(
      '--expert-template <path>',
      'name of an expert in the sequential layout, mlp.experts.{expert}.{projection}',
    )
    .option('--max-shard-size <size>', 'tensors of one output file (default: 5GB)', bytes)
    .option('--max-memory <size>', 'memory for weights under way (default: 512MB)', bytes)
    .option('--resume', 'go on with an interrupted run')
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(async (model: string, flags: Flags) => {
      useDevice(flags);
      const { signal, done } = abortOnInterrupt();
      const summary = await convertCheckpoint(model, {
        to: flags.to,
        out: flags.out,
        expertTemplate: flags.expertTemplate,
        maxShardBytes: flags.maxShardSize,
        maxMemoryBytes: flags.maxMemory,
        resume: flags.resume,
        signal,
        onProgress: progressPrinter('converting'),
      }).finally(done);
      if (flags.json) return printJson(summary);
      print(
        `${flags.out}: ${summary.tensorsIn} tensors in, ${summary.tensorsOut} out, ${formatBytes(summary.bytes)} in ${summary.seconds.toFixed(2)} s, peak memory ${formatBytes(summary.peakRssBytes)}`,
      );
    });
}
