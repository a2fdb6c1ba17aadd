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
  /** Null: kept as it is. */
  scheme: QuantScheme | null;
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

type Option = BitOption & { key: string };

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
  const { targetBits, parameters, fixedBytes } = context;
  const { units, unitMembers } = unitsOf(weights, context, groups);
  const chosen = chooseOptions(units, (targetBits * parameters) / 8 - fixedBytes);
  const averageOf = (bytes: number) => (parameters === 0 ? 0 : (8 * (bytes + fixedBytes)) / parameters);
  const [least, most] = sizeRange(units);
  if (chosen === null || targetBits > averageOf(most)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `--target-bits ${targetBits} is out of reach: this model, recipe and format allow ${roundedUp(averageOf(least))} to ${roundedDown(averageOf(most))} bits on average`,
    );
  }
  const schemes = new Map<Linear, QuantScheme | null>();
  for (const [unit, own] of unitMembers.entries()) {
    const { key } = chosen[unit] as Option;
    for (const { linear, options } of own) {
      schemes.set(linear, options.find((option) => option.key === key)?.scheme ?? null);
    }
  }
  const error = chosen.reduce((sum, option) => sum + option.error, 0);
  const importance = importanceIn(context);
  const energy = weights.reduce((sum, weight) => sum + importance(weight.linear) * weight.energy, 0);
  const predictedError = context.cost ? error : energy === 0 ? 0 : Math.sqrt(error / energy);
  return {
    schemes,
    averageBits: averageOf(chosen.reduce((sum, { bytes }) => sum + bytes, 0)),
    predictedError,
  };
}

/** The averages that can be reached. */
export function averageRange(
  weights: readonly FreeWeight[],
  context: TargetContext,
  groups: ExpertGroups,
): [least: number, most: number] {
  const { parameters, fixedBytes } = context;
  const [least, most] = sizeRange(unitsOf(weights, context, groups).units);
  return [(8 * (least + fixedBytes)) / parameters, (8 * (most + fixedBytes)) / parameters];
}

/** Weights that share a choice, and what they can choose. */
function unitsOf(weights: readonly FreeWeight[], context: TargetContext, groups: ExpertGroups) {
  const cost = costIn(context);
  const members = new Map<string, FreeWeight[]>();
  for (const weight of weights) {
    const key = unitKey(weight.linear, groups);
    const own = members.get(key);
    if (own) own.push(weight);
    else members.set(key, [weight]);
  }
  const unitMembers = [...members.values()];
  return { units: unitMembers.map((own) => unitOf(own, cost, context)), unitMembers };
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
): BitUnit<Option> {
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
    priority: Math.max(...members.map(({ outlierScore }) => outlierScore)),
    options: options.map(({ key }) => {
      let bytes = 0;
      let error = 0;
      for (const member of members) {
        const own = member.options.find((option) => option.key === key) as WeightOption;
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
