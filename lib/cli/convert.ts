import { type Command, Option } from 'commander';
import { LAYOUTS, type Layout } from '../models';
import { convertCheckpoint } from '../pipeline/convert';
import { addOutputFlags, type OutputFlags, outputOptions, runOnCpu } from './flags';
import { abortOnInterrupt } from './interrupt';
import { formatBytes, print, printJson, progressPrinter } from './output';

interface Flags extends OutputFlags {
  to: Layout;
  expertTemplate?: string;
  json?: boolean;
}

/** `quantaria convert <model> --to <layout> --out <dir>`: expert layouts, byte for byte. */
export function convert(program: Command): void {
  const command = program
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
    .option(
      '--expert-template <path>',
      'name of an expert in the sequential layout, mlp.experts.{expert}.{projection}',
    );
  addOutputFlags(command).action(async (model: string, flags: Flags) => {
    runOnCpu(flags);
    const { signal, done } = abortOnInterrupt();
    const summary = await convertCheckpoint(model, {
      to: flags.to,
      ...outputOptions(flags),
      expertTemplate: flags.expertTemplate,
      signal,
      onProgress: progressPrinter('converting'),
    }).finally(done);
    if (flags.json) return printJson(summary);
    print(
      `${flags.out}: ${summary.tensorsIn} tensors in, ${summary.tensorsOut} out, ${formatBytes(summary.bytes)} in ${summary.seconds.toFixed(2)} s, peak memory ${formatBytes(summary.peakRssBytes)}`,
    );
  });
}
