import type { Command } from 'commander';
import { openCheckpoint } from '../checkpoint/reader';
import { planQuantization, type QuantizePlan } from '../pipeline/quantize_plan';
import { type DeviceFlags, deviceOption, runOnDevice, threadsOption } from './flags';
import { formatBytes, log, print, printJson } from './output';
import { addPlanFlags, type PlanFlags, planningLogger, planOptions } from './plan_flags';
import { summaryTable } from './summary_table';

/** `quantaria plan <model>`: which tensor gets which bits; nothing is written. */
export function plan(program: Command): void {
  addPlanFlags(
    program
      .command('plan')
      .description('which tensor would get which bits, and the size; writes nothing')
      .argument('<model>', 'a directory or a .safetensors file')
      .addOption(deviceOption())
      .addOption(threadsOption()),
  ).action(async (model: string, flags: PlanFlags & DeviceFlags & { json?: boolean }) => {
    runOnDevice(flags);
    using source = await openCheckpoint(model);
    const planned = await planQuantization(source, {
      ...planOptions(flags),
      onPlanning: planningLogger(),
    });
    printRemarks(planned);
    const { averageBits, bytes, method, format, target, warnings, notes } = planned;
    if (flags.json) {
      const tensors = planned.tensors.map(({ target, role, scheme, reason }) => ({
        name: target.name,
        role,
        scheme,
        reason,
      }));
      const targeted = target === null ? {} : { target };
      return printJson({
        averageBits,
        bytes,
        method,
        format: format.name,
        ...targeted,
        warnings,
        notes,
        tensors,
      });
    }
    print(...summaryTable(planned.tensors), '', planLine(planned));
  });
}

/** What a user should know before anything is done. */
export function printRemarks({ warnings, notes }: QuantizePlan): void {
  for (const note of notes) log(`note: ${note}`);
  for (const warning of warnings) log(`warning: ${warning}`);
}

export const planLine = ({ averageBits, bytes, format }: QuantizePlan): string =>
  `${averageBits.toFixed(3)} bits a weight, ${formatBytes(bytes)} as ${format.name}`;
