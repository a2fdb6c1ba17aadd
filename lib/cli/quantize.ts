import type { Command } from 'commander';
import { type QuantizeSummary, quantizeCheckpoint } from '../pipeline/quantize';
import { bytes, type DeviceFlags, deviceOption, integer, threadsOption, useDevice } from './flags';
import { abortOnInterrupt } from './interrupt';
import { formatBytes, log, print, printJson, progressPrinter } from './output';
import { planLine, printRemarks } from './plan';
import { addPlanFlags, type PlanFlags, planOptions } from './plan_flags';
import { summaryTable } from './summary_table';

interface Flags extends PlanFlags, DeviceFlags {
  out: string;
  maxShardSize?: number;
  maxMemory?: number;
  resume?: boolean;
  json?: boolean;
}

/** `quantaria quantize <model> --out <dir>`: the main job. */
export function quantize(program: Command): void {
  addPlanFlags(
    program
      .command('quantize')
      .description('quantize a checkpoint')
      .argument('<model>', 'a directory or a .safetensors file')
      .requiredOption('--out <dir>', 'where to write'),
  )
    .option('--text <file>', 'calibration text, for methods that need one')
    .option('--tokens <file>', 'calibration token ids instead of a text')
    .option('--samples <n>', 'calibration rows (default: 128)', integer(1))
    .option('--seq-len <n>', 'ids of a calibration row (default: 256)', integer(2))
    .option('--max-shard-size <size>', 'tensors of one output file (default: 5GB)', bytes)
    .option('--max-memory <size>', 'memory for weights under way (default: 512MB)', bytes)
    .option('--resume', 'go on with an interrupted run')
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(async (model: string, flags: Flags) => {
      useDevice(flags);
      const { signal, done } = abortOnInterrupt();
      const summary = await quantizeCheckpoint(model, {
        ...planOptions(flags),
        out: flags.out,
        maxShardBytes: flags.maxShardSize,
        maxMemoryBytes: flags.maxMemory,
        resume: flags.resume,
        signal,
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
