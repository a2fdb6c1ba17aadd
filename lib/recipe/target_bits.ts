import { QuantariaError } from '../errors';
import type { Linear, ModelMap, Role } from '../models/types';
import type { QuantScheme } from '../scheme';
import { type BitOption, type BitUnit, chooseOptions, sizeRange } from './bit_plan';
import { firstExpertLayers } from './presets';
import type { Usage } from './types';

/** Routed experts that must have the same bits: none but the parts of one, those of a layer, or all of the model. */
export const EXPERT_GROUPS = ['expert', 'layer', 'model'] as const;
export type ExpertGroups = (typeof EXPERT_GROUPS)[number];

/** A way to store one weight. */
export interface WeightOption extends BitOption {
  /** The same for weights that may share a choice. */
  key: string;
  /** As it is asked of the format; null: kept as it is. */
  scheme: QuantScheme | null;
  /** What the format makes of it. */
  stored: QuantScheme | null;
}

/** A weight whose bits are to be chosen; the errors of its options are squared and absolute. */
export interface FreeWeight {
  linear: Linear;
  options: readonly WeightOption[];
  energy: number;
  outlierScore: number;
}

export interface TargetContext {
  model: ModelMap;
  usage: Usage | null;
  targetBits: number;
  /** Of the decoder's linear weights: all of them, and bytes of those that are not free. */
  parameters: number;
  fixedBytes: number;
  /** What an option of a weight costs the model's predictions, in any unit, where that was measured. */
  cost?: (linear: Linear, option: WeightOption) => number;
}

export interface TargetChoice {
  units: readonly WeightUnit[];
  /** Of each unit. */
  chosen: readonly UnitOption[];
  schemes: Map<Linear, QuantScheme | null>;
  averageBits: number;
  /**
   * Root of the squared errors over the squared weights, both weighted by how much each weight matters; where costs were measured
   * their sum.
   */
  predictedError: number;
}

/** Layers that are counted as first, whose errors go through all others, weigh so much more than the last. */
const FIRST_LAYERS_WEIGHT = 2;
/** Beside routed experts, errors of attention weigh so much more than those of the feed-forward part. */
const ATTENTION_WEIGHT = 2;
/** An expert that a text never reached may be used by another one: it counts as this share of an average expert. */
const UNSEEN_SHARE = 0.1;

/** Where nothing was measured: attention does not stand fewer bits. */
const FEWEST_BITS: Partial<Record<Role, number>> = { attention: 3 };
/** Beside routed experts, dense layers are a small part of the model, and errors in them cost most. */
const FEWEST_BITS_BESIDE_EXPERTS: Partial<Record<Role, number>> = { ...FEWEST_BITS, 'dense-ffn': 4 };

/** A way to store all weights of a unit. */
export interface UnitOption extends BitOption {
  key: string;
}

/** Weights that share a choice, and what they can choose. */
export interface WeightUnit extends BitUnit<UnitOption> {
  members: readonly FreeWeight[];
}

/**
 * The bits of each weight for an average over the decoder's linear weights: the least sum of squared errors of rounding,
 * weighted by how many tokens a weight sees, for that many bytes. Weights that loaders merge (q, k and v; gate and up) share
 * a choice.
 * @throws QuantariaError `ERR_ARGUMENT` if the target is out of reach, with the averages that are not
 */
export function chooseBits(
  weights: readonly FreeWeight[],
  context: TargetContext,
  groups: ExpertGroups,
): TargetChoice {
  const units = unitsOf(weights, context, groups);
  const chosen = chooseOptions(units, bytesFor(context));
  const { targetBits } = context;
  const [least, most] = sizeRange(units).map((bytes) => averageOf(bytes, context)) as [number, number];
  if (chosen === null || targetBits > most) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `--target-bits ${targetBits} is out of reach: this model, recipe and format allow ${roundedUp(least)} to ${roundedDown(most)} bits on average`,
    );
  }
  return choiceOf(units, chosen, context);
}

/** What a chosen option for each unit means for the weights. */
export function choiceOf(
  units: readonly WeightUnit[],
  chosen: readonly UnitOption[],
  context: TargetContext,
): TargetChoice {
  const schemes = new Map<Linear, QuantScheme | null>();
  for (const [unit, { members }] of units.entries()) {
    const { key } = chosen[unit] as UnitOption;
    for (const member of members) schemes.set(member.linear, optionOf(member, key).scheme);
  }
  const error = chosen.reduce((sum, option) => sum + option.error, 0);
  const importance = importanceIn(context);
  const energy = units
    .flatMap(({ members }) => members)
    .reduce((sum, weight) => sum + importance(weight.linear) * weight.energy, 0);
  return {
    units,
    chosen,
    schemes,
    averageBits: averageOf(
      chosen.reduce((sum, { bytes }) => sum + bytes, 0),
      context,
    ),
    predictedError: context.cost ? error : energy === 0 ? 0 : Math.sqrt(error / energy),
  };
}

/** Bytes that free weights may take for the average. */
export const bytesFor = ({ targetBits, parameters, fixedBytes }: TargetContext): number =>
  (targetBits * parameters) / 8 - fixedBytes;

function averageOf(bytes: number, { parameters, fixedBytes }: TargetContext): number {
  return parameters === 0 ? 0 : (8 * (bytes + fixedBytes)) / parameters;
}

/** The option that a weight has under a key of its unit. */
export const optionOf = ({ options }: FreeWeight, key: string): WeightOption =>
  options.find((option) => option.key === key) as WeightOption;

/** The averages that can be reached. */
export function averageRange(
  weights: readonly FreeWeight[],
  context: TargetContext,
  groups: ExpertGroups,
): [least: number, most: number] {
  const [least, most] = sizeRange(unitsOf(weights, context, groups));
  return [averageOf(least, context), averageOf(most, context)];
}

function unitsOf(weights: readonly FreeWeight[], context: TargetContext, groups: ExpertGroups): WeightUnit[] {
  const cost = costIn(context);
  const members = new Map<string, FreeWeight[]>();
  for (const weight of weights) {
    const key = unitKey(weight.linear, groups);
    const own = members.get(key);
    if (own) own.push(weight);
    else members.set(key, [weight]);
  }
  return [...members.values()].map((own) => unitOf(own, cost, context));
}

/** Bounds that hold when they are typed in. */
const roundedUp = (bits: number) => (Math.ceil(bits * 1000) / 1000).toFixed(3);
const roundedDown = (bits: number) => (Math.floor(bits * 1000) / 1000).toFixed(3);

/** What loaders merge into one linear layer. */
const MERGED: Readonly<Record<string, string>> = {
  q: 'qkv',
  k: 'qkv',
  v: 'qkv',
  gate: 'gate-up',
  up: 'gate-up',
};

function unitKey({ name, role, layer, expert, projection }: Linear, groups: ExpertGroups): string {
  if (role === 'expert' && groups === 'model') return 'experts';
  if (layer === null) return name;
  if (role === 'expert' && groups === 'layer') return `${layer} experts`;
  return `${layer} ${role} ${expert ?? ''} ${MERGED[projection] ?? name}`;
}

function unitOf(
  members: readonly FreeWeight[],
  cost: NonNullable<TargetContext['cost']>,
  { model, cost: measured }: TargetContext,
): WeightUnit {
  const [first, ...others] = members as [FreeWeight, ...FreeWeight[]];
  const shared = first.options.filter(({ key }) =>
    others.every(({ options }) => options.some((option) => option.key === key)),
  );
  const fewest = (model.experts > 0 ? FEWEST_BITS_BESIDE_EXPERTS : FEWEST_BITS)[first.linear.role] ?? 0;
  const isFree = measured !== undefined;
  const enough = shared.filter(
    ({ scheme }) => isFree || scheme === null || scheme.kind !== 'int' || scheme.bits >= fewest,
  );
  // Where the format has no more bits than too few, these are better than none.
  const options = enough.some(({ scheme }) => scheme !== null) ? enough : shared;
  return {
    members,
    priority: Math.max(...members.map(({ outlierScore }) => outlierScore)),
    options: options.map(({ key }) => {
      let bytes = 0;
      let error = 0;
      for (const member of members) {
        const own = optionOf(member, key);
        bytes += own.bytes;
        error += cost(member.linear, own);
      }
      return { key, bytes, error };
    }),
  };
}

/** How much an error in a weight matters: the share of the tokens that it sees, more in attention and in the first layers. */
function importanceIn(context: TargetContext): (linear: Linear) => number {
  const shareOf = sharesIn(context);
  const placeOf = placesIn(context);
  return (linear) => shareOf(linear) * placeOf(linear);
}

/** What an option costs: as it was measured, else its error by how much it matters. */
function costIn(context: TargetContext): NonNullable<TargetContext['cost']> {
  const importance = importanceIn(context);
  return context.cost ?? ((linear, { error }) => importance(linear) * error);
}

/** What is known of layers and roles where nothing was measured. */
function placesIn({ model }: TargetContext): (linear: Linear) => number {
  const first = new Set(firstExpertLayers(model));
  return ({ role, layer }) => {
    const depth = layer !== null && first.has(layer) ? FIRST_LAYERS_WEIGHT : 1;
    return role === 'attention' && model.experts > 0 ? depth * ATTENTION_WEIGHT : depth;
  };
}

/** The share of the tokens that a weight sees. */
export function sharesIn({
  model,
  usage,
}: Pick<TargetContext, 'model' | 'usage'>): (linear: Linear) => number {
  const average = model.experts > 0 ? (model.topK ?? 1) / model.experts : 1;
  const counts = new Map(usage?.layers.map(({ layer, counts: own }) => [layer, own]));
  return ({ role, layer, expert }) => {
    if (role !== 'expert') return 1;
    const count = layer === null || expert === null ? undefined : counts.get(layer)?.[expert];
    const seen = count === undefined || usage === null || usage.tokens === 0 ? average : count / usage.tokens;
    return Math.max(seen, UNSEEN_SHARE * average);
  };
}
