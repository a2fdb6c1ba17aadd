import { type Command, Option } from 'commander';
import { type Evaluation, evaluateModel } from '../pipeline/evaluate';
import { addToReport } from '../pipeline/evaluation_report';
import { bytes, integer, runOnDevice } from './flags';
import { abortOnInterrupt } from './interrupt';
import { print, printJson } from './output';
import { addRunFlags, type RunFlags, runOptions, shareLogger } from './run_flags';

interface Flags extends RunFlags {
  baseline?: string;
  compute?: 'auto' | 'int8';
  report?: boolean;
  stride?: number;
  maxMemory?: number;
}

/** `quantaria evaluate <model> --text <file>`: perplexity, and the distance from a baseline. */
export function evaluate(program: Command): void {
  const command = program
    .command('evaluate')
    .description('perplexity over a text, and how far the predictions are from a baseline')
    .argument('<model>', 'a directory or a .safetensors file')
    .option('--baseline <model>', 'a checkpoint to compare with, usually the original')
    .addOption(
      new Option(
        '--compute <kind>',
        'int8: quantize activations where weights are integers; auto: where the checkpoint says so (default)',
      ).choices(['auto', 'int8']),
    )
    .option(
      '--stride <n>',
      'new ids of each row: rows are windows that overlap (default: none does)',
      integer(1),
    )
    .option('--max-memory <size>', 'beside the weights of a layer (default: 2GB)', bytes)
    .option('--report', "put the result into the report.html of the model's directory");
  addRunFlags(command).action(async (model: string, flags: Flags) => {
    runOnDevice(flags);
    const { signal, done } = abortOnInterrupt();
    const found = await evaluateModel(model, {
      ...runOptions(flags),
      stride: flags.stride,
      maxMemoryBytes: flags.maxMemory,
      baseline: flags.baseline,
      compute: flags.compute === 'int8' ? 'int8' : undefined,
      signal,
      onProgress: shareLogger('evaluating'),
    }).finally(done);
    if (flags.report) await addToReport(model, found, flags.text ?? flags.tokens ?? '');
    if (flags.json) return printJson(found);
    printEvaluation(found);
  });
}

function printEvaluation({ perplexity, loss, tokens, rows, seqLen, tokensPerSecond, baseline }: Evaluation) {
  print(
    `perplexity ${perplexity.toFixed(4)} (${(loss / Math.LN2).toFixed(4)} bits an id) over ${tokens} ids in ${rows} rows of ${seqLen}`,
    `${tokensPerSecond.toFixed(0)} ids a second`,
  );
  if (!baseline) return;
  print(
    `baseline   ${baseline.perplexity.toFixed(4)}`,
    `KL         ${baseline.klDivergence.toExponential(4)} nats from the baseline`,
    `top-1      ${(100 * baseline.top1Agreement).toFixed(2)} % the same first choice`,
    `logits     ${baseline.logitError.toExponential(4)} relative error`,
  );
}
