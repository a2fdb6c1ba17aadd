import { QuantariaError } from '../errors';
import { storedBytes } from '../models/dtypes';
import { diskName } from '../models/relayout';
import { DECODER_LINEAR_ROLES, type Linear, type ModelMap, type PlainTensor } from '../models/types';
import { bitsPerWeight, type QuantScheme, schemeLabel } from '../scheme';
import { type Candidate, compileMatch, matchText, parseTop } from './match';
import { defaultPreset, presetRecipe, uniformRecipe } from './presets';
import type { LinearDecision, ModelPlan, Recipe, RuleMatch, TensorDecision, Usage } from './types';

/** Stored dtypes that quantization reads. */
export const QUANTIZABLE: readonly string[] = ['F32', 'F16', 'BF16'];

export interface PlanOptions {
  usage?: Usage;
  /** How far a weight's input features spread, for rules that ask it: the outlier score. */
  spreadOf?: (linear: Linear) => number;
  /** Of the one scheme to use where there is no recipe. */
  bits?: number;
  groupSize?: number;
  /** Bytes that the chosen format writes for a weight; without it, `bitsPerWeight` predicts them. */
  bytesOf?: (linear: Linear, scheme: QuantScheme) => number;
}

/**
 * Decides for every tensor of a model what becomes of it: the first rule that matches.
 * @param recipe null for the scheme of `bits` and `groupSize`, or without those the model's default preset
 * @returns decisions in the model's order; `averageBits` is 8 x the bytes of the decoder's linear weights,
 *   kept ones included, / their number
 * @throws QuantariaError `ERR_ARGUMENT` if a rule asks for usage that was not given, `ERR_FORMAT` if the
 *   usage is of another model
 */
export function planModel(model: ModelMap, recipe: Recipe | null, options: PlanOptions = {}): ModelPlan {
  const chosen = recipe ?? implicitRecipe(model, options);
  const usage = options.usage ?? null;
  checkUsage(model, chosen, usage);
  const rules = chosen.rules.map(({ match, scheme }, index) => ({
    matches: withOutliers(compileMatch(match, usage), match, index, model, options),
    scheme,
    text: `${matchText(match)}: ${scheme === null ? 'kept' : schemeLabel(scheme)}`,
  }));
  const first = (candidate: Candidate) => rules.findIndex(({ matches }) => matches(candidate));

  const unmatched: string[] = [];
  const refused: string[] = [];
  const linears = model.linears.map((linear): LinearDecision => {
    const index = first(linearCandidate(linear));
    const rule = rules[index];
    if (rule === undefined) {
      unmatched.push(linear.name);
      return { linear, scheme: null, rule: null, reason: 'kept: no rule matches' };
    }
    if (rule.scheme !== null && !QUANTIZABLE.includes(linear.dtype)) {
      refused.push(linear.name);
      return {
        linear,
        scheme: null,
        rule: index,
        reason: `kept: weights of type ${linear.dtype} are not quantized`,
      };
    }
    return { linear, scheme: rule.scheme, rule: index, reason: `rule ${index + 1}, ${rule.text}` };
  });
  const others = model.others.map((tensor): TensorDecision => {
    const index = first(tensorCandidate(model, tensor));
    const rule = rules[index];
    // Norms and biases are never a recipe's business; whatever has two dimensions could have been meant.
    const couldBeMeant = tensor.shape.length >= 2 && !isBias(tensor.name);
    if (rule === undefined) {
      if (couldBeMeant) unmatched.push(tensor.name);
      return {
        tensor,
        rule: null,
        reason: couldBeMeant ? 'kept: no rule matches' : 'kept: not a linear weight',
      };
    }
    if (rule.scheme === null) return { tensor, rule: index, reason: `rule ${index + 1}, ${rule.text}` };
    if (couldBeMeant) refused.push(tensor.name);
    return { tensor, rule: index, reason: 'kept: not a linear weight that can be read' };
  });
  return {
    recipe: chosen,
    linears,
    others,
    unmatched,
    refused,
    ...sizes(linears, others, options),
    notes: [...chosen.notes],
  };
}

function implicitRecipe(model: ModelMap, { bits, groupSize, usage }: PlanOptions): Recipe {
  if (bits !== undefined || groupSize !== undefined) return uniformRecipe({ bits, groupSize });
  return presetRecipe(defaultPreset(model), { model, hasUsage: usage !== undefined });
}

const isBias = (name: string) => /(^|[._])bias$/.test(name);

/** What rules see of a weight. */
export function linearCandidate({ name, role, layer, expert, source }: Linear): Candidate {
  return { role, layer, expert, names: [name, `${name}.weight`, source.tensor] };
}

function tensorCandidate(model: ModelMap, { name, role, layer }: PlainTensor): Candidate {
  return { role, layer, expert: null, names: [name, diskName(model, name)] };
}

/** Narrows a match to the weights of widest spread among those that it covers. */
function withOutliers(
  matches: (candidate: Candidate) => boolean,
  { outliers }: RuleMatch,
  index: number,
  { linears }: ModelMap,
  { spreadOf }: PlanOptions,
): (candidate: Candidate) => boolean {
  if (outliers === undefined) return matches;
  if (spreadOf === undefined) {
    throw new QuantariaError('ERR_ARGUMENT', `rule ${index + 1} matches by outliers, which are not known`);
  }
  const covered = linears.filter((linear) => matches(linearCandidate(linear)));
  const spreads = new Map(covered.map((linear) => [linear, spreadOf(linear)]));
  const ranked = covered.sort((a, b) => (spreads.get(b) ?? 0) - (spreads.get(a) ?? 0));
  const top = new Set(ranked.slice(0, parseTop(outliers) ?? 0).map(({ name }) => name));
  return ({ names }) => top.has(names[0] ?? '');
}

function checkUsage(model: ModelMap, { rules }: Recipe, usage: Usage | null): void {
  const asking = rules.findIndex(({ match }) => match.usage !== undefined);
  if (asking < 0) return;
  if (usage === null) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `rule ${asking + 1} matches by usage, but none is given: count it with \`quantaria usage\`, or give a text`,
    );
  }
  const experts = new Map<number, number>();
  for (const { role, layer, expert } of model.linears) {
    if (role !== 'expert' || layer === null || expert === null) continue;
    experts.set(layer, Math.max(experts.get(layer) ?? 0, expert + 1));
  }
  const counted = new Map(usage.layers.map(({ layer, counts }) => [layer, counts.length]));
  for (const [layer, count] of experts) {
    // Layers for multi-token prediction see no tokens in a plain forward pass.
    if (layer >= model.layers) continue;
    const own = counted.get(layer);
    if (own !== count) {
      throw new QuantariaError(
        'ERR_FORMAT',
        `usage: layer ${layer} has ${own ?? 'no'} counts, but the model has ${count} experts there`,
      );
    }
  }
}

function sizes(linears: readonly LinearDecision[], others: readonly TensorDecision[], options: PlanOptions) {
  const bytesOf =
    options.bytesOf ??
    ((linear: Linear, scheme: QuantScheme) =>
      Math.ceil((bitsPerWeight(scheme, linear.shape) * linear.shape[0] * linear.shape[1]) / 8));
  let bytes = 0;
  let decoderBytes = 0;
  let parameters = 0;
  for (const { linear, scheme } of linears) {
    const own = scheme === null ? storedBytes(linear.dtype, linear.shape) : bytesOf(linear, scheme);
    bytes += own;
    if (!DECODER_LINEAR_ROLES.includes(linear.role)) continue;
    decoderBytes += own;
    parameters += linear.shape[0] * linear.shape[1];
  }
  for (const { tensor } of others) {
    const own = storedBytes(tensor.dtype, tensor.shape);
    bytes += own;
    if (!isUnreadWeight(tensor)) continue;
    decoderBytes += own;
    parameters += tensor.shape.reduce((size, extent) => size * extent, 1);
  }
  return { averageBits: parameters === 0 ? 0 : (8 * decoderBytes) / parameters, bytes };
}

/** A weight of the decoder that could not be read as linear: it is kept, and the average must say so. */
function isUnreadWeight({ name, role, dtype, shape }: PlainTensor): boolean {
  const matrix = shape.length === 2 || (role === 'expert' && shape.length === 3);
  return matrix && /^B?F(16|32|64)$/.test(dtype) && DECODER_LINEAR_ROLES.includes(role) && !isBias(name);
}
