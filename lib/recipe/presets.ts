import { QuantariaError } from '../errors';
import { DECODER_LINEAR_ROLES, type ModelMap } from '../models/types';
import { type IntBits, type IntScheme, type QuantScheme, validateScheme } from '../scheme';
import { formatLayers } from './match';
import type { FormatName, Recipe, RecipeRule } from './types';

export const PRESET_NAMES = [
  'int4',
  'int8',
  'nf4',
  'nf4-dq',
  'mxfp4',
  'mxfp8',
  'llm.int8',
  'moe-mixed',
  'moe-mixed-2bit',
] as const;
export type PresetName = (typeof PRESET_NAMES)[number];

export const isPreset = (name: string): name is PresetName =>
  (PRESET_NAMES as readonly string[]).includes(name);

/** What decides details of a preset. */
export interface PresetContext {
  model: ModelMap;
  /** Usage is known, or will be counted on a text. */
  hasUsage: boolean;
  /** The format that was asked for, if any. */
  format?: FormatName;
}

/** Models with routed experts default to `moe-mixed`, others to `int4`. */
export const defaultPreset = (model: ModelMap): PresetName => (model.experts > 0 ? 'moe-mixed' : 'int4');

/** One scheme for the decoder's linear weights; everything else is kept, and that is a rule too. */
export function uniformRules(scheme: QuantScheme): RecipeRule[] {
  return [...DECODER_LINEAR_ROLES.map((role) => ({ match: { role }, scheme })), { match: {}, scheme: null }];
}

/**
 * Integers with scales for each group of `groupSize` along `in`, on the symmetric grid that uses all codes.
 */
export function groupedInt(bits: IntBits, groupSize: number, symmetric = true): IntScheme {
  const range = symmetric ? { range: 'full' } : {};
  return validateScheme({
    kind: 'int',
    bits,
    symmetric,
    ...range,
    granularity: 'group',
    groupSize,
  }) as IntScheme;
}

/** The rules of a preset for this model. */
export function presetRecipe(name: PresetName, context: PresetContext): Recipe {
  const uniform = (scheme: QuantScheme, format: FormatName = 'compressed-tensors'): Recipe => ({
    preset: name,
    format: context.format ?? format,
    rules: uniformRules(validateScheme(scheme)),
    notes: [],
  });
  switch (name) {
    case 'int4':
      // AWQ's search and its kernels want a zero point.
      return uniform(groupedInt(4, 128, context.format !== 'awq'));
    case 'int8':
      return uniform({ kind: 'int', bits: 8, symmetric: true, granularity: 'row' });
    case 'nf4':
    case 'nf4-dq':
      return uniform({ kind: 'nf4', blockSize: 64, doubleQuant: name === 'nf4-dq' }, 'bitsandbytes');
    case 'mxfp4':
      return uniform({ kind: 'mx', element: 'e2m1' }, 'mxfp4');
    case 'mxfp8':
      return uniform({ kind: 'mx', element: 'e4m3' });
    case 'llm.int8':
      return uniform({ kind: 'llm.int8', threshold: 6 }, 'bitsandbytes');
    case 'moe-mixed':
      return mixed(name, context, {
        first: groupedInt(8, 128),
        most: groupedInt(4, 128),
        rest: groupedInt(3, 128),
        mostUsed: Math.max(1, Math.round(context.model.experts / 4)),
      });
    case 'moe-mixed-2bit':
      return mixed(name, context, {
        first: groupedInt(4, 128),
        most: groupedInt(4, 128),
        rest: groupedInt(2, 32),
        mostUsed: 16,
      });
  }
}

/**
 * Schemes of the routed experts: of the first layers, of those used most in the other layers, of the rest.
 */
interface ExpertSchemes {
  first: IntScheme;
  most: IntScheme;
  rest: IntScheme;
  mostUsed: number;
}

/** Part of the layers, counted from the first one with experts, whose experts get more bits. */
const FIRST_LAYERS_SHARE = 1 / 8;

function mixed(name: PresetName, { model, hasUsage, format }: PresetContext, schemes: ExpertSchemes): Recipe {
  const eightBits = groupedInt(8, 128);
  const notes: string[] = [];
  const rules: RecipeRule[] = [
    { match: { role: 'attention' }, scheme: eightBits },
    { match: { role: 'shared-expert' }, scheme: eightBits },
    { match: { role: 'dense-ffn' }, scheme: eightBits },
  ];
  const first = firstExpertLayers(model);
  if (first.length > 0)
    rules.push({ match: { role: 'expert', layers: formatLayers(first) }, scheme: schemes.first });
  if (hasUsage) {
    rules.push({ match: { role: 'expert', usage: `top:${schemes.mostUsed}` }, scheme: schemes.most });
    rules.push({ match: { role: 'expert' }, scheme: schemes.rest });
    if (model.experts > 0 && schemes.mostUsed >= model.experts) {
      notes.push(
        `${name}: all ${model.experts} experts of a layer are among the ${schemes.mostUsed} used most`,
      );
    }
  } else {
    rules.push({ match: { role: 'expert' }, scheme: schemes.most });
    if (model.experts > 0) {
      notes.push(
        `${name}: without usage or a text, all experts of the other layers get ${schemes.most.bits} bits, none ${schemes.rest.bits}`,
      );
    }
  }
  rules.push({ match: {}, scheme: null });
  return { preset: name, format: format ?? 'compressed-tensors', rules, notes };
}

/** The first eighth of the layers, at least one, of those with routed experts. */
export function firstExpertLayers({ linears, layers }: ModelMap): number[] {
  const sparse = new Set<number>();
  for (const { role, layer } of linears) if (role === 'expert' && layer !== null) sparse.add(layer);
  const wanted = Math.max(1, Math.round(layers * FIRST_LAYERS_SHARE));
  return [...sparse].sort((a, b) => a - b).slice(0, wanted);
}

const DEFAULT_GROUP_SIZE = 128;
/** From here on the scale's share is small enough for one a row; this is what the preset `int8` does. */
const ROW_BITS = 8;

/**
 * The recipe of `--bits` and `--group-size` alone: one integer scheme over the decoder's linear weights. 8
 * and 16 bits without a group size are per row, like the preset `int8`; fewer are in groups of 128. A group
 * size of -1 asks for rows.
 * @throws QuantariaError `ERR_ARGUMENT` for bits or group sizes that do not exist
 */
export function uniformRecipe(options: { bits?: number; groupSize?: number; format?: FormatName }): Recipe {
  const { bits = 4, groupSize = bits < ROW_BITS ? DEFAULT_GROUP_SIZE : -1, format } = options;
  const symmetric = format !== 'awq';
  if (groupSize !== -1 && !(Number.isSafeInteger(groupSize) && groupSize > 0)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `group size: ${groupSize} came, expected a positive integer, or -1 for rows`,
    );
  }
  const range = symmetric && (groupSize !== -1 || bits < ROW_BITS) ? { range: 'full' } : {};
  const groups = groupSize === -1 ? { granularity: 'row' } : { granularity: 'group', groupSize };
  const scheme = validateScheme({ kind: 'int', bits, symmetric, ...range, ...groups });
  return { preset: null, format: format ?? 'compressed-tensors', rules: uniformRules(scheme), notes: [] };
}
