import type { Command } from 'commander';
import { expertUsage } from '../pipeline/usage';
import { runOnDevice } from './flags';
import { abortOnInterrupt } from './interrupt';
import { print, printJson, table } from './output';
import { addRunFlags, type RunFlags, runOptions, shareLogger } from './run_flags';

/** `quantaria usage <model> --text <file>`: how often each expert is chosen. */
export function usage(program: Command): void {
  const command = program
    .command('usage')
    .description('count how often each expert is chosen over a text')
    .argument('<model>', 'a directory or a .safetensors file');
  addRunFlags(command).action(async (model: string, flags: RunFlags) => {
    runOnDevice(flags);
    const { signal, done } = abortOnInterrupt();
    const onProgress = shareLogger('running');
    const found = await expertUsage(model, { ...runOptions(flags), signal, onProgress }).finally(done);
    if (flags.json) return printJson(found);
    const experts = Math.max(0, ...found.layers.map(({ counts }) => counts.length));
    const share = (count: number, all: number) => ((100 * count) / all).toFixed(1);
    print(
      `${found.tokens} ids; per cent of the choices of each layer`,
      ...table(
        ['layer', ...Array.from({ length: experts }, (_, e) => String(e))],
        found.layers.map(({ layer, counts }) => {
          const all = counts.reduce((a, b) => a + b, 0);
          return [String(layer), ...counts.map((count) => share(count, all))];
        }),
      ),
    );
  });
}
