import type { Checkpoint } from '../checkpoint/reader';
import { QuantariaError } from '../errors';
import type { ModelMap } from '../models';
import { type Recipe, readUsage, resolveRecipe, type Usage } from '../recipe';
import type { QuantizePlanOptions } from './quantize_plan';
import { DEFAULT_SAMPLES, type RowOptions } from './rows';
import { expertUsage } from './usage';

/** What planning may read beside the model, and how it goes. */
export interface PlanningOptions extends RowOptions {
  signal?: AbortSignal;
  /** Told while the text is run and while weights are measured. */
  onPlanning?: (what: string, done: number, total: number) => void;
}

/**
 * The recipe, and how often each expert is used: from a file, or counted on the text if the recipe or a target asks for it.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for flags that do not go together, and whatever reading the recipe,
 *   the usage and the text throws
 */
export async function recipeAndUsage(
  source: Checkpoint,
  model: ModelMap,
  options: QuantizePlanOptions & PlanningOptions,
): Promise<{ recipe: Recipe; usage: Usage | null }> {
  const resolve = async (hasUsage: boolean): Promise<Recipe> => {
    const recipe = await resolveRecipe(gridOptions(options), model, hasUsage);
    // What a preset says of its bits does not hold where a target decides them.
    return options.targetBits === undefined
      ? recipe
      : { ...recipe, notes: hasUsage ? [] : alikeNotes(model) };
  };
  if (options.usage !== undefined) {
    const usage = await readUsage(options.usage);
    return { recipe: await resolve(true), usage };
  }
  const hasText = (options.text ?? options.tokens) !== undefined && model.experts > 0;
  const recipe = await resolve(hasText);
  const asks =
    options.targetBits !== undefined || recipe.rules.some(({ match }) => match.usage !== undefined);
  if (!hasText || !asks) return { recipe, usage: null };
  const { text, tokens, seqLen, samples = DEFAULT_SAMPLES, signal, onPlanning } = options;
  const onProgress = (done: number, total: number) => onPlanning?.('counting experts', done, total);
  try {
    const run = { text, tokens, seqLen, samples, signal, onProgress };
    const usage = await expertUsage(source.directory, run);
    const note = `usage of experts counted over ${usage.tokens} calibration ids`;
    return { recipe: { ...recipe, notes: [...recipe.notes, note] }, usage };
  } catch (error) {
    const canRun = !(error instanceof QuantariaError && error.code === 'ERR_UNSUPPORTED');
    if (canRun || (recipe.preset === null && options.targetBits === undefined)) throw error;
    const without = await resolve(false);
    const note = `usage of experts cannot be counted: ${error.message}`;
    return { recipe: { ...without, notes: [...without.notes, note] }, usage: null };
  }
}

/** Under a target the widths are free, and without a recipe the grid is the format's own. */
function gridOptions(options: QuantizePlanOptions): QuantizePlanOptions {
  const { targetBits, recipe, bits, groupSize, format } = options;
  if (targetBits === undefined) return options;
  if (bits !== undefined) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      '--bits and --target-bits contradict each other: give one of them',
    );
  }
  if (recipe !== undefined) return options;
  if (format === 'bitsandbytes') return { ...options, recipe: 'nf4' };
  if (format === 'mxfp4') return { ...options, recipe: 'mxfp4' };
  return { ...options, groupSize: groupSize ?? 128 };
}

const alikeNotes = ({ experts }: ModelMap): string[] =>
  experts > 0 ? ['--target-bits: without usage or a text, all experts count as equally used'] : [];
