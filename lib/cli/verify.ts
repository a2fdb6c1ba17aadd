import type { Command } from 'commander';
import { QuantariaError } from '../errors';
import { verifyModel } from '../pipeline/verify';
import { type DeviceFlags, deviceOption, runOnDevice, threadsOption } from './flags';
import { log, print, printJson } from './output';

interface Flags extends DeviceFlags {
  against?: string;
  json?: boolean;
}

/** `quantaria verify <model>`: every tensor decodes, and is as near to the original as its scheme explains. */
export function verify(program: Command): void {
  program
    .command('verify')
    .description('check that every tensor decodes, and how far it is from the original')
    .argument('<model>', 'a directory or a .safetensors file')
    .option('--against <original>', 'the checkpoint that it was made of')
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(async (model: string, flags: Flags) => {
      runOnDevice(flags);
      const result = await verifyModel(model, flags.against ?? null);
      if (flags.json) printJson(result);
      for (const problem of result.problems) log(`problem: ${problem}`);
      if (!result.ok) {
        const count = result.problems.length;
        throw new QuantariaError(
          'ERR_FORMAT',
          `${model}: ${count} problem${count === 1 ? '' : 's'} found, the first: ${result.problems[0]}`,
        );
      }
      if (flags.json) return;
      const quantized = result.tensors.filter(({ scheme }) => scheme !== null).length;
      const worst = Math.max(0, ...result.tensors.map(({ relativeError }) => relativeError ?? 0));
      const distance = flags.against === undefined ? '' : `; largest relative error ${worst.toFixed(5)}`;
      print(`${model}: ok, ${result.tensors.length} tensors, ${quantized} of them quantized${distance}`);
    });
}
