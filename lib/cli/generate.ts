import type { Command } from 'commander';
import { type GenerateOptions, generateText } from '../pipeline/generate';
import { bytes, type DeviceFlags, deviceOption, integer, number, runOnDevice, threadsOption } from './flags';
import { abortOnInterrupt } from './interrupt';
import { log, printJson } from './output';
import { dtypeOption } from './run_flags';

interface Flags extends DeviceFlags, Omit<GenerateOptions, 'onText' | 'signal' | 'maxMemoryBytes'> {
  maxMemory?: number;
  json?: boolean;
}

/** `quantaria generate <model> --prompt <text>`: text as it comes. */
export function generate(program: Command): void {
  program
    .command('generate')
    .description('continue a prompt')
    .argument('<model>', 'a directory or a .safetensors file')
    .requiredOption('--prompt <text>', 'what to continue')
    .option('--max-tokens <n>', 'new ids at most (default: 128)', integer(1))
    .option('--temperature <t>', '0 takes the likeliest id (default: 0)', number(0))
    .option('--top-k <n>', 'choose among the N likeliest', integer(1))
    .option('--top-p <p>', 'choose among the likeliest with this probability together', number(0, 1))
    .option('--seed <n>', 'of the choices (default: 0)', integer(0))
    .option(
      '--max-memory <size>',
      'for weights: layers beyond it are read for every id (default: all stay)',
      bytes,
    )
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(async (model: string, { json, device, threads, maxMemory, ...options }: Flags) => {
      runOnDevice({ device, threads });
      const { signal, done } = abortOnInterrupt();
      if (!json) process.stdout.write(options.prompt);
      const onText = json ? undefined : (text: string) => void process.stdout.write(text);
      const found = await generateText(model, {
        ...options,
        maxMemoryBytes: maxMemory,
        signal,
        onText,
      }).finally(done);
      if (json) return printJson(found);
      process.stdout.write('\n');
      log(`${found.tokens} ids, ${found.tokensPerSecond.toFixed(1)} a second`);
    });
}
