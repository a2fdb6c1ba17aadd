import type { Command } from 'commander';
import { type QuantizeSummary, quantizeCheckpoint } from '../pipeline/quantize';
import { addOutputFlags, integer, type OutputFlags, outputOptions, runOnDevice } from './flags';
import { abortOnInterrupt } from './interrupt';
import { formatBytes, log, print, printJson, progressPrinter } from './output';
import { planLine, printRemarks } from './plan';
import { addPlanFlags, type PlanFlags, planningLogger, planOptions } from './plan_flags';
import { summaryTable } from './summary_table';

interface Flags extends PlanFlags, OutputFlags {
  minExpertTokens?: number;
  json?: boolean;
}

/** `quantaria quantize <model> --out <dir>`: the main job. */
export function quantize(program: Command): void {
  const command = program
    .command('quantize')
    .description('quantize a checkpoint')
    .argument('<model>', 'a directory or a .safetensors file');
  addPlanFlags(command).option(
    '--min-expert-tokens <n>',
    'experts with fewer calibration tokens are given those of their layer too (default: 256)',
    integer(0),
  );
  addOutputFlags(command).action(async (model: string, flags: Flags) => {
    runOnDevice(flags);
    const { signal, done } = abortOnInterrupt();
    const { minExpertTokens } = flags;
    const summary = await quantizeCheckpoint(model, {
      ...planOptions(flags),
      ...outputOptions(flags),
      minExpertTokens,
      signal,
      onPlanning: planningLogger(),
      onPlan: (plan) => {
        printRemarks(plan);
        log(planLine(plan));
      },
      onProgress: progressPrinter('quantizing'),
    }).finally(done);
    if (flags.json) return printJson(summary);
    printSummary(flags.out, summary);
  });
}

function printSummary(out: string, summary: QuantizeSummary): void {
  print(
    ...summaryTable(summary.tensors),
    '',
    `${out}: ${summary.format}, ${formatBytes(summary.bytesIn)} to ${formatBytes(summary.bytesOut)}, ${summary.averageBits.toFixed(3)} bits a weight; ` +
      `${summary.quantized} tensors quantized, ${summary.kept} kept; ${summary.seconds.toFixed(2)} s, peak memory ${formatBytes(summary.peakRssBytes)}`,
  );
}
