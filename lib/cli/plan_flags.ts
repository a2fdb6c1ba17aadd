import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Activations } from '../formats';
import { METHODS, type QuantizePlanOptions } from '../pipeline/quantize_plan';
import {
  EXPERT_GROUPS,
  type ExpertGroups,
  FORMAT_NAMES,
  type FormatName,
  isPreset,
  PRESET_NAMES,
} from '../recipe';
import { groupSize, integer, number, positive } from './flags';
import { shareLogger } from './run_flags';

/** What decides a plan, the same for `plan` and `quantize`. */
export interface PlanFlags {
  recipe?: string;
  method?: string;
  bits?: string;
  groupSize?: number;
  format?: FormatName;
  usage?: string;
  targetBits?: number;
  expertGroups?: ExpertGroups;
  text?: string;
  tokens?: string;
  samples?: number;
  seqLen?: number;
  expertTemplate?: string;
  actOrder?: boolean;
  groupAware?: boolean;
  routingWeights?: boolean;
  staticGroups?: boolean;
  damping?: number;
  alpha?: number;
  activations?: Activations;
}

/** A word without a dot or a slash is meant as a preset, not as a file. */
function recipeName(text: string): string {
  if (isPreset(text) || /[./\\]/.test(text)) return text;
  throw new InvalidArgumentError(`Expected a file or one of ${PRESET_NAMES.join(', ')}.`);
}

export function addPlanFlags(command: Command): Command {
  return command
    .option('--recipe <preset|file>', `${PRESET_NAMES.join(', ')}, or a JSON file`, recipeName)
    .addOption(new Option('--method <name>', 'how codes are found').choices(METHODS))
    .addOption(
      new Option('--bits <n>', 'one integer scheme for all linear weights').choices([
        '2',
        '3',
        '4',
        '5',
        '6',
        '8',
        '16',
      ]),
    )
    .option('--group-size <n>', 'weights that share a scale; -1 for whole rows', groupSize)
    .addOption(new Option('--format <name>', 'output format').choices([...FORMAT_NAMES]))
    .option('--usage <file>', 'expert frequencies, as `usage --json` writes them')
    .option('--target-bits <b>', 'average bits to aim at: bits are chosen weight by weight', positive)
    .addOption(
      new Option(
        '--expert-groups <which>',
        'with --target-bits: routed experts that get the same bits (default: expert, each its own)',
      ).choices([...EXPERT_GROUPS]),
    )
    .option('--text <file>', 'a text, to count experts on and for methods that need calibration')
    .option('--tokens <file>', 'token ids instead of a text')
    .option('--samples <n>', 'rows of the text (default: 128)', integer(1))
    .option('--seq-len <n>', 'ids of a row (default: 256)', integer(2))
    .option('--no-act-order', 'gptq: quantize columns as they come, not by falling weight of their inputs')
    .option('--group-aware', 'gptq: sort whole groups, and columns within them; grids are fitted on the way')
    .option('--routing-weights', "gptq: tokens of an expert count by the router's weights")
    .option('--no-static-groups', 'gptq: fit the grids of groups on the way; act-order then moves groups')
    .option('--damping <share>', "gptq: of the Hessian's mean diagonal (default: 0.01)", number(0))
    .option('--alpha <share>', 'smoothquant: what the weights take over, 0 to 1 (default: 0.5)', number(0, 1))
    .addOption(
      new Option(
        '--activations <kind>',
        'store 8-bit weights for 8-bit activations: scaled row by row (dynamic), or by one scale from calibration',
      ).choices(['dynamic', 'static']),
    )
    .option('--expert-template <path>', 'name of an expert in the output, mlp.experts.{expert}.{projection}');
}

export function planOptions(flags: PlanFlags): QuantizePlanOptions {
  return { ...flags, bits: flags.bits === undefined ? undefined : Number(flags.bits) };
}

/** Planning that takes time says how far it is, each part with a line of its own. */
export function planningLogger(): (what: string, done: number, total: number) => void {
  const loggers = new Map<string, ReturnType<typeof shareLogger>>();
  return (what, done, total) => {
    const logger = loggers.get(what) ?? shareLogger(what);
    loggers.set(what, logger);
    logger(done, total);
  };
}
