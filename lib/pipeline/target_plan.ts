import type { Checkpoint } from '../checkpoint/reader';
import { QuantariaError } from '../errors';
import type { Format } from '../formats';
import type { Linear, ModelMap } from '../models';
import { storedBytes } from '../models/dtypes';
import type { FormatName, LinearDecision, ModelPlan, Usage } from '../recipe';
import { matchText } from '../recipe/match';
import {
  averageRange,
  chooseBits,
  type ExpertGroups,
  type FreeWeight,
  type TargetChoice,
  type TargetContext,
} from '../recipe/target_bits';
import { type IntBits, type QuantScheme, schemeLabel, validateScheme } from '../scheme';
import { measuredCosts } from './measured_costs';
import { type MeasuredPlans, refineBits } from './refined_bits';
import { type MeasureOptions, measureWeights, type WeightMeasure } from './sensitivity';
import type { RunOptions } from './usage';

/** Of a plan whose bits were chosen for an average. */
export interface TargetSummary {
  bits: number;
  expertGroups: ExpertGroups;
  /**
   * Weighted relative error of rounding to nearest, or with a text the sum of measured costs in nats an id, by which plans of the
   * same model compare.
   */
  predictedError: number;
  /** With a text. */
  measured?: MeasuredPlans;
}

export interface TargetRequest {
  model: ModelMap;
  bits: number;
  expertGroups: ExpertGroups;
  /** The plan of the recipe as it is: it says which weights are quantized, and on what grids. */
  decided: ModelPlan;
  usage: Usage | null;
  format: Format;
  /** What the format makes of a scheme on a weight, and the bytes of it; null where it holds none. */
  stored: (linear: Linear, scheme: QuantScheme) => { scheme: QuantScheme; bytes: number } | null;
  /** Of the decoder's linear weights under `decided`. */
  parameters: number;
  /** By a method that rounds to nearest, which is what is measured. */
  isRounded: boolean;
  /** A text or ids to measure costs on; null: weights alone decide. */
  data: RunOptions | null;
  decoderBytes: number;
  bytesOf: (linear: Linear) => number;
}

export interface TargetPlan {
  decided: ModelPlan;
  target: TargetSummary;
  notes: string[];
  warnings: string[];
}

const WIDTHS: readonly IntBits[] = [2, 3, 4, 5, 6, 8];

/** The scheme at every width that it could have; those without a choice of widths stay as they are. */
function widthsOf(scheme: QuantScheme): QuantScheme[] {
  return scheme.kind === 'int' ? WIDTHS.map((bits) => validateScheme({ ...scheme, bits })) : [scheme];
}

/**
 * Chooses the bits of all weights that a recipe quantizes, from the error of rounding each to nearest.
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for a target out of reach, or NaN or infinity in a weight
 */
export async function planForTarget(
  source: Checkpoint,
  request: TargetRequest,
  options: MeasureOptions,
): Promise<TargetPlan> {
  const { model, decided, usage, format, bits, expertGroups, parameters } = request;
  const candidates = decided.linears.flatMap(({ linear, scheme }) => {
    const held = scheme === null ? [] : candidatesOf(linear, scheme, request);
    return held.length === 0 ? [] : [{ linear, held, schemes: held.map(({ stored }) => stored) }];
  });
  const measures = await measureWeights(source, candidates, options);
  const weights = candidates.map(({ linear, held }, i): FreeWeight => {
    const { energy, outlierScore, relativeErrors } = measures[i] as WeightMeasure;
    const rounded = held.map(({ key, asked, stored, bytes }, k) => ({
      key,
      scheme: asked,
      stored,
      bytes,
      error: (relativeErrors[k] as number) ** 2 * energy,
    }));
    const kept = {
      key: 'kept',
      scheme: null,
      stored: null,
      bytes: storedBytes(linear.dtype, linear.shape),
      error: 0,
    };
    return { linear, energy, outlierScore, options: [...rounded, kept] };
  });
  const { costs, note } = await costsOf(source.directory, weights, request);
  const freeBytes = weights.reduce((sum, { linear }) => sum + request.bytesOf(linear), 0);
  const context = {
    model,
    usage,
    targetBits: bits,
    parameters,
    fixedBytes: request.decoderBytes - freeBytes,
    ...(costs && { cost: costs.of }),
  };
  const first = chooseBits(weights, context, expertGroups);
  const refined =
    costs === null || request.data === null || !request.isRounded
      ? null
      : await refineBits(source.directory, first, context, request.data);
  const choice = refined?.choice ?? first;
  const notes = [note, refined && comparison(refined.measured)].filter((line) => line !== null);
  return {
    decided: withChoice(decided, choice, bits),
    target: {
      bits,
      expertGroups,
      predictedError: choice.predictedError,
      ...(refined && { measured: refined.measured }),
    },
    notes: notes.map((line) => `--target-bits: ${line}`),
    warnings: isAria(model)
      ? keptExpertsWarning(weights, context, choice)
      : mixWarnings(format, choice, (groups) => chooseBits(weights, context, groups)),
  };
}

function comparison({ chosen, uniform, rounds }: MeasuredPlans): string {
  const own = `all weights rounded together cost ${chosen.toFixed(4)} nats an id on the text`;
  return `${own}${uniform === null ? '' : `, uniform bits ${uniform.toFixed(4)}`}; ${rounds} rounds of steps`;
}

/** A model that cannot be run is planned by its weights alone, which is said. */
async function costsOf(
  directory: string,
  weights: readonly FreeWeight[],
  request: TargetRequest,
): Promise<{ costs: Awaited<ReturnType<typeof measuredCosts>>; note: string | null }> {
  try {
    const costs = await measuredCosts(directory, weights, request);
    return { costs, note: costs?.note ?? null };
  } catch (error) {
    if (!(error instanceof QuantariaError && error.code === 'ERR_UNSUPPORTED')) throw error;
    return { costs: null, note: `what errors cost cannot be measured: ${error.message}` };
  }
}

interface Candidate {
  key: string;
  asked: QuantScheme;
  stored: QuantScheme;
  bytes: number;
}

function candidatesOf(linear: Linear, scheme: QuantScheme, { stored }: TargetRequest): Candidate[] {
  return widthsOf(scheme).flatMap((asked) => {
    const held = stored(linear, asked);
    return held === null
      ? []
      : [{ key: JSON.stringify(asked), asked, stored: held.scheme, bytes: held.bytes }];
  });
}

function withChoice(decided: ModelPlan, { schemes }: TargetChoice, bits: number): ModelPlan {
  const linears = decided.linears.map((decision): LinearDecision => {
    const { linear, rule } = decision;
    const scheme = schemes.get(linear);
    if (scheme === undefined || rule === null) return decision;
    const match = decided.recipe.rules[rule]?.match ?? {};
    const what = scheme === null ? 'kept' : schemeLabel(scheme);
    const reason = `rule ${rule + 1}, ${matchText(match)}: ${what}, for ${bits} bits on average`;
    return { linear, scheme, rule, reason };
  });
  return { ...decided, linears };
}

/** How far routed experts must agree for a stock loader of the format, and which loader that is. */
const AGREEMENT: Partial<Record<FormatName, { groups: ExpertGroups; loader: string }>> = {
  'compressed-tensors': { groups: 'model', loader: 'transformers' },
  gptq: { groups: 'layer', loader: 'vLLM' },
};

const isAria = ({ architecture }: ModelMap): boolean => /aria/.test(architecture);

/** No stock loader has quantized experts of Aria; code that has them one by one takes any mix. */
function keptExpertsWarning(
  weights: readonly FreeWeight[],
  context: TargetContext,
  { schemes }: TargetChoice,
): string[] {
  const quantized = [...schemes].some(([{ role }, scheme]) => role === 'expert' && scheme !== null);
  if (!quantized) return [];
  const others = weights.map(({ linear, options, ...rest }) => ({
    ...rest,
    linear,
    options: linear.role === 'expert' ? options.filter(({ scheme }) => scheme === null) : options,
  }));
  const [least] = averageRange(others, context, 'expert');
  return [
    `the nearest plan that stock loaders take keeps the experts (a rule with role expert and scheme null): from ${least.toFixed(3)} bits on average`,
  ];
}

/** Where experts differ more than a stock loader takes: the nearest plan that it does take. */
function mixWarnings(
  { name }: Format,
  choice: TargetChoice,
  choose: (groups: ExpertGroups) => TargetChoice,
): string[] {
  const agreement = AGREEMENT[name];
  if (agreement === undefined) return [];
  const { groups, loader } = agreement;
  if (agree(choice.schemes, groups)) return [];
  const mix = `${name}: routed experts of ${groups === 'model' ? 'the model' : 'a layer'} have different bits, which ${loader} does not take`;
  try {
    const nearest = choose(groups);
    const cost = nearest.predictedError / choice.predictedError;
    return [
      `${mix}; the nearest plan that it does is \`--expert-groups ${groups}\`: ${nearest.averageBits.toFixed(3)} bits, ${cost.toFixed(2)} times the predicted error`,
    ];
  } catch (error) {
    if (!(error instanceof QuantariaError)) throw error;
    return [`${mix}; with \`--expert-groups ${groups}\`, ${error.message}`];
  }
}

function agree(schemes: Iterable<readonly [Linear, QuantScheme | null]>, groups: ExpertGroups): boolean {
  const found = new Map<number | null, string>();
  for (const [{ role, layer }, scheme] of schemes) {
    if (role !== 'expert') continue;
    const group = groups === 'model' ? null : layer;
    const own = JSON.stringify(scheme);
    if ((found.get(group) ?? own) !== own) return false;
    found.set(group, own);
  }
  return true;
}

/** For a plan of rules whose experts differ more than a stock loader takes: how to ask for the nearest that does not. */
export function mixHints(
  { name }: Format,
  model: ModelMap,
  { linears }: ModelPlan,
  averageBits: number,
): string[] {
  const agreement = AGREEMENT[name];
  const schemes = linears.map(({ linear, scheme }) => [linear, scheme] as const);
  if (agreement === undefined || isAria(model) || agree(schemes, agreement.groups)) return [];
  const { groups, loader } = agreement;
  return [
    `${name}: the nearest plan that ${loader} takes is \`--target-bits ${averageBits.toFixed(2)} --expert-groups ${groups}\``,
  ];
}
