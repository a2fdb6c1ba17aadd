import { QuantariaError } from '../errors';
import type { ModelMap } from '../models/types';
import type { IntScheme, QuantScheme } from '../scheme';
import {
  defaultPreset,
  isPreset,
  PRESET_NAMES,
  type PresetName,
  presetRecipe,
  uniformRecipe,
} from './presets';
import { parseRecipe } from './recipe';
import type { FormatName, Recipe } from './types';
import { readJson } from './usage';

/** What the command line says of the recipe. */
export interface RecipeOptions {
  /** A preset's name or a file. */
  recipe?: string;
  bits?: number;
  groupSize?: number;
  format?: FormatName;
}

/**
 * The recipe to follow: the named preset or file; else one scheme from bits and group size; else the model's
 * default preset. Bits and group size beside a recipe change a preset of one integer scheme, and are refused
 * beside any other.
 * @throws QuantariaError `ERR_ARGUMENT` for an unknown preset or flags that do not go together, `ERR_IO` and
 *   `ERR_FORMAT` for a file
 */
export async function resolveRecipe(
  options: RecipeOptions,
  model: ModelMap,
  hasUsage: boolean,
): Promise<Recipe> {
  const { recipe: source, bits, groupSize, format } = options;
  if (source === undefined) {
    if (bits !== undefined || groupSize !== undefined) return uniformRecipe({ bits, groupSize, format });
    return presetRecipe(defaultPreset(model), { model, hasUsage, format });
  }
  const changed = bits !== undefined || groupSize !== undefined;
  if (!isPreset(source)) {
    if (changed) refuseChange(source);
    const recipe = await recipeFromFile(source);
    return { ...recipe, format: format ?? recipe.format ?? defaultFormat(recipe) };
  }
  const recipe = presetRecipe(source, { model, hasUsage, format });
  if (!changed) return recipe;
  const base = singleIntScheme(recipe);
  if (base === null) return refuseChange(source);
  const asked = uniformRecipe({
    bits: bits ?? base.bits,
    groupSize: groupSize ?? base.groupSize,
    format: recipe.format,
  });
  return { ...asked, preset: source };
}

function singleIntScheme(recipe: Recipe): IntScheme | null {
  const schemes = recipe.rules
    .map(({ scheme }) => scheme)
    .filter((scheme): scheme is QuantScheme => scheme !== null);
  const [first] = schemes;
  const single = schemes.every((scheme) => JSON.stringify(scheme) === JSON.stringify(first));
  return first?.kind === 'int' && single ? first : null;
}

function refuseChange(source: PresetName | string): never {
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `recipe ${source} sets its own bits and group sizes; --bits and --group-size go with int4, int8 or no recipe`,
  );
}

/** The format that can hold all schemes of a recipe which names none. */
function defaultFormat({ rules }: Recipe): FormatName {
  const schemes = rules.map(({ scheme }) => scheme).filter((scheme) => scheme !== null);
  if (schemes.length === 0) return 'compressed-tensors';
  if (schemes.every(({ kind }) => kind === 'nf4' || kind === 'fp4' || kind === 'llm.int8'))
    return 'bitsandbytes';
  if (schemes.every((scheme) => scheme.kind === 'mx' && scheme.element === 'e2m1')) return 'mxfp4';
  return 'compressed-tensors';
}

async function recipeFromFile(file: string): Promise<Recipe> {
  if (!/[./\\]/.test(file)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `recipe: ${JSON.stringify(file)} came, expected a file or one of ${PRESET_NAMES.join(', ')}`,
    );
  }
  const content = await readJson(file);
  try {
    return parseRecipe(content);
  } catch (error) {
    if (!(error instanceof QuantariaError)) throw error;
    throw new QuantariaError('ERR_FORMAT', `${file}: ${error.message}`);
  }
}
