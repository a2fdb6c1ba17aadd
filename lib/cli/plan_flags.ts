import { type Command, InvalidArgumentError, Option } from 'commander';
import { METHODS, type QuantizePlanOptions } from '../pipeline/quantize_plan';
import { FORMAT_NAMES, type FormatName, isPreset, PRESET_NAMES } from '../recipe';
import { groupSize, number, positive } from './flags';

/** What decides a plan, the same for `plan` and `quantize`. */
export interface PlanFlags {
  recipe?: string;
  method?: string;
  bits?: string;
  groupSize?: number;
  format?: FormatName;
  usage?: string;
  targetBits?: number;
  expertTemplate?: string;
  actOrder?: boolean;
  staticGroups?: boolean;
  damping?: number;
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
    .option('--target-bits <b>', 'average bits to aim at', positive)
    .option('--act-order', 'gptq: quantize columns by falling weight of their inputs')
    .option('--static-groups', 'gptq: fit the grids of groups on the original weight')
    .option('--damping <share>', "gptq: of the Hessian's mean diagonal (default: 0.01)", number(0))
    .option('--expert-template <path>', 'name of an expert in the output, mlp.experts.{expert}.{projection}');
}

export function planOptions(flags: PlanFlags): QuantizePlanOptions {
  return { ...flags, bits: flags.bits === undefined ? undefined : Number(flags.bits) };
}
