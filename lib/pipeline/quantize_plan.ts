import { bytesOfEntry, type Entry } from '../checkpoint/layout';
import type { Checkpoint } from '../checkpoint/reader';
import { type DType, dtypeOfStored } from '../dtype';
import { QuantariaError } from '../errors';
import {
  type Activations,
  detectFormat,
  type Fit,
  type Format,
  type FormatConfig,
  type FormatContext,
  getFormat,
} from '../formats';
import { DEFAULT_ALPHA } from '../methods/smoothquant';
import {
  DECODER_LINEAR_ROLES,
  describeModel,
  type Linear,
  layoutTensors,
  type ModelMap,
  type Role,
  type TargetTensor,
} from '../models';
import { type ExpertGroups, type FormatName, type ModelPlan, planModel, type Usage } from '../recipe';
import { type QuantScheme, schemeLabel } from '../scheme';
import { expertTargets } from './expert_targets';
import { activationsFor, checkActivations } from './planned_activations';
import { type PlanningOptions, recipeAndUsage } from './recipe_usage';
import { DEFAULT_SAMPLES, type RowOptions } from './rows';
import { spreadsFor } from './sensitivity';
import { readSidecars } from './stored_model';
import { mixHints, planForTarget, type TargetSummary } from './target_plan';
import type { RunOptions } from './usage';

/** What the command line or a program asks for. */
export interface QuantizePlanOptions extends RowOptions {
  /** A preset's name or a file. */
  recipe?: string;
  method?: string;
  bits?: number;
  groupSize?: number;
  format?: FormatName;
  /** A file that `quantaria usage --json` wrote. */
  usage?: string;
  /** Average over the decoder's linear weights, as `averageBits` counts it: bits are chosen weight by weight. */
  targetBits?: number;
  /** Under `targetBits`, routed experts that get the same bits; default `expert`, each its own. */
  expertGroups?: ExpertGroups;
  /** Module of one expert's projection: `mlp.experts.{expert}.{projection}`. */
  expertTemplate?: string;
  /** GPTQ: columns by falling diagonal of the Hessian; default true. */
  actOrder?: boolean;
  /** GPTQ: groups are sorted whole, and columns within them, so that grids are fitted on the way and stay where they are. */
  groupAware?: boolean;
  /** GPTQ: tokens of an expert count by the weight that the router gives them. */
  routingWeights?: boolean;
  /**
   * GPTQ: grids of groups are fitted on the original weight, so that groups stay where they are whatever the order; default true.
   */
  staticGroups?: boolean;
  /** GPTQ: added to the Hessian's diagonal, times its mean; default 0.01. */
  damping?: number;
  /**
   * What 8-bit weights without groups are stored for: products with 8-bit activations, each row by its own scale, or with one scale
   * that calibration finds. Routed experts take the former in any case.
   */
  activations?: Activations;
  /** SmoothQuant: how much of the spread of activations the weights take over, 0 to 1; default 0.5. */
  alpha?: number;
}

/** What becomes of one tensor of the output: quantized into `entries`, or kept as the one in `entries`. */
export interface PlannedTensor {
  /** Name without the endings that formats add: a module for weights of linear layers, else the tensor. */
  name: string;
  role: Role;
  layer: number | null;
  /** The weight of a linear layer, if it is one. */
  linear: Linear | null;
  target: TargetTensor;
  scheme: QuantScheme | null;
  /** It is stored with the group of each column. */
  groupIndex?: boolean;
  activations?: Activations;
  entries: (Entry & { region?: { index: number; start: number; step: number; count: number } })[];
  /** Index of the recipe's rule that decided; null if none did. */
  rule: number | null;
  reason: string;
  /** Bytes that are written for it. */
  bytes: number;
}

export interface QuantizePlan {
  model: ModelMap;
  method: Method;
  /** Settings of GPTQ, as the format can hold what comes of them. */
  gptq: { actOrder: boolean; groupAware?: true; staticGroups: boolean; damping: number };
  routingWeights: boolean;
  alpha: number;
  format: Format;
  modelDtype: DType;
  recipe: ModelPlan['recipe'];
  tensors: PlannedTensor[];
  /** Decoder weights that no rule matched. */
  unmatched: string[];
  averageBits: number;
  bytes: number;
  /** If bits were chosen for an average. */
  target: TargetSummary | null;
  /** What the plan knows of experts, if anything. */
  usage: Usage | null;
  formatConfig: FormatConfig;
  /** What stock loaders cannot take of it; said before the run. */
  warnings: string[];
  notes: string[];
}

/** Those after `rtn` need calibration rows. */
export const METHODS = ['rtn', 'gptq', 'awq', 'smoothquant'] as const;
export type Method = (typeof METHODS)[number];

/** Formats with a place for the group of each column, which act-order needs unless groups are static. */
const INDEXED_FORMATS: readonly FormatName[] = ['gptq', 'compressed-tensors'];

/**
 * Decides what becomes of every tensor, and which tensors the output will hold, from names and shapes alone.
 * @throws QuantariaError `ERR_ARGUMENT`, `ERR_FORMAT`, `ERR_UNSUPPORTED`
 */
export async function planQuantization(
  source: Checkpoint,
  options: QuantizePlanOptions & PlanningOptions,
): Promise<QuantizePlan> {
  const model = describeModel(source.config, source.entries());
  await refuseQuantized(source, model);
  const { recipe, usage } = await recipeAndUsage(source, model, options);
  const measuring = {
    signal: options.signal,
    onProgress: (done: number, total: number) => options.onPlanning?.('measuring weights', done, total),
  };
  const spreads = await spreadsFor(source, model, recipe, measuring);
  const spreadOf = spreads && ((linear: Linear) => spreads.get(linear) ?? 0);
  const decided = planModel(model, recipe, { usage: usage ?? undefined, spreadOf });
  const draft = layOut(source, model, decided, options);
  const { targetBits } = options;
  if (targetBits === undefined) {
    const hints = mixHints(draft.format, model, decided, draft.averageBits);
    return { ...draft, usage, warnings: [...draft.warnings, ...hints] };
  }
  const { decoderBytes, parameters } = decoderSize(draft.tensors);
  const sizes = new Map(draft.tensors.map(({ linear, bytes }) => [linear, bytes]));
  const chosen = await planForTarget(
    source,
    {
      model,
      bits: targetBits,
      expertGroups: options.expertGroups ?? 'expert',
      decided,
      usage,
      format: draft.format,
      stored: (linear, scheme) => storedForm(draft, linear, scheme),
      parameters,
      isRounded: draft.method === 'rtn',
      data: dataOf(options),
      decoderBytes,
      bytesOf: (linear) => sizes.get(linear) ?? 0,
    },
    measuring,
  );
  const planned = layOut(source, model, chosen.decided, options);
  return {
    ...planned,
    usage,
    target: chosen.target,
    warnings: [...planned.warnings, ...chosen.warnings],
    notes: [...planned.notes, ...chosen.notes],
  };
}

/** What the model can be run on while it is planned; null without any. */
function dataOf(options: QuantizePlanOptions & PlanningOptions): RunOptions | null {
  const { text, tokens, seqLen, samples = DEFAULT_SAMPLES, signal, onPlanning } = options;
  if (text === undefined && tokens === undefined) return null;
  const onProgress = (done: number, total: number) => onPlanning?.('measuring costs', done, total);
  return { text, tokens, seqLen, samples, signal, onProgress };
}

/** What a weight becomes in the plan's format under some scheme, and its bytes; null if the format cannot hold it. */
function storedForm(
  { model, method, gptq, format, modelDtype }: QuantizePlan,
  linear: Linear,
  asked: QuantScheme,
): { scheme: QuantScheme; bytes: number } | null {
  const { scheme } = format.fit(asked, linear.shape, modelDtype, linear);
  if (scheme === null) return null;
  const { name, layer } = linear;
  const groupIndex = isIndexed(method, gptq) && hasMovingGroups({ layer, linear, scheme }, model);
  const entries = format.entries(name, scheme, linear.shape, modelDtype, { groupIndex });
  return { scheme, bytes: entries.reduce((sum, entry) => sum + bytesOfPart(entry), 0) };
}

/** Everything that follows from which weight gets which scheme. */
function layOut(
  source: Checkpoint,
  model: ModelMap,
  decided: ModelPlan,
  options: QuantizePlanOptions,
): QuantizePlan {
  const { recipe } = decided;
  const method = methodOf(options.method ?? recipe.method ?? 'rtn');
  const modelDtype = dtypeOfModel(model);
  const asked = getFormat(options.format ?? recipe.format ?? 'compressed-tensors', model);
  const fits = fitAll(decided, asked, modelDtype);
  const { gptq, notes } = gptqSettings(options, asked.name);
  const indexed = isIndexed(method, gptq);

  const quantizedExperts = [...fits].some(([linear, fit]) => linear.role === 'expert' && fit.scheme !== null);
  const targets = quantizedExperts
    ? expertTargets(model, options.expertTemplate)
    : layoutTensors(model, model.expertLayout ?? 'sequential');
  const decisions = indexDecisions(decided);
  const drafts = targets
    .map((target) => draft(target, decisions, fits))
    .map((tensor) => (indexed && hasMovingGroups(tensor, model) ? { ...tensor, groupIndex: true } : tensor))
    .map((tensor) =>
      isCalibrated(tensor, model)
        ? { ...tensor, activations: activationsFor(tensor, asked, options.activations) }
        : tensor,
    );
  checkActivations(drafts, asked, options.activations);
  const format = asked.settle(quantizedOf(drafts));
  const tensors = drafts.map((tensor): PlannedTensor => {
    const entries = entriesOf(tensor, format, modelDtype);
    return { ...tensor, entries, bytes: entries.reduce((sum, entry) => sum + bytesOfPart(entry), 0) };
  });
  const context = { ...formatContext(model, modelDtype, tensors, source, method), options: gptq };
  const isPlain = context.quantized.length === 0;
  return {
    model,
    method,
    gptq,
    routingWeights: options.routingWeights ?? false,
    alpha: options.alpha ?? DEFAULT_ALPHA,
    format,
    modelDtype,
    recipe: decided.recipe,
    tensors,
    unmatched: decided.unmatched,
    ...sizesOf(tensors),
    target: null,
    usage: null,
    // Where nothing is quantized, the output is the plain model that it was.
    formatConfig: isPlain ? { quantizationConfig: null, files: {} } : format.config(context),
    warnings: isPlain ? [] : format.warnings(context),
    notes: [...model.notes, ...decided.notes, ...(method === 'gptq' ? notes : [])],
  };
}

function methodOf(name: string): Method {
  if ((METHODS as readonly string[]).includes(name)) return name as Method;
  throw new QuantariaError('ERR_UNSUPPORTED', `method ${name}: this version has ${METHODS.join(', ')}`);
}

const DEFAULT_DAMPING = 0.01;

function gptqSettings(
  { actOrder = true, groupAware, staticGroups = true, damping = DEFAULT_DAMPING }: QuantizePlanOptions,
  format: FormatName,
): Pick<QuantizePlan, 'gptq' | 'notes'> {
  if (actOrder && groupAware) {
    return { gptq: { actOrder, groupAware, staticGroups: false, damping }, notes: [] };
  }
  if (!actOrder || staticGroups || INDEXED_FORMATS.includes(format)) {
    return { gptq: { actOrder, staticGroups, damping }, notes: [] };
  }
  const note = `act-order: ${format} has no place for the group of each column; groups are static`;
  return { gptq: { actOrder, staticGroups: true, damping }, notes: [note] };
}

/** Whether the weight is one of the decoder's, which calibration reaches. */
export const isCalibrated = ({ layer, linear }: Pick<Draft, 'layer' | 'linear'>, model: ModelMap): boolean =>
  linear !== null && layer !== null && layer < model.layers && linear.role !== 'vision';

const isIndexed = (method: Method, { actOrder, groupAware, staticGroups }: QuantizePlan['gptq']): boolean =>
  method === 'gptq' && actOrder && !groupAware && !staticGroups;

const hasMovingGroups = (tensor: Pick<Draft, 'layer' | 'linear' | 'scheme'>, model: ModelMap): boolean =>
  tensor.scheme?.kind === 'int' &&
  tensor.scheme.bits !== 16 &&
  tensor.scheme.granularity === 'group' &&
  isCalibrated(tensor, model);

/** Quantizing what is quantized already would lose twice. */
async function refuseQuantized(source: Checkpoint, model: ModelMap): Promise<void> {
  const config = source.config as FormatContext['config'];
  const named = config?.quantization_config as { quant_method?: unknown } | null | undefined;
  const format = detectFormat(config, new Set(source.names()), await readSidecars(source.directory), model);
  if (!named && format === null) return;
  const how = named ? `quant_method ${JSON.stringify(named.quant_method ?? 'unknown')}` : format?.name;
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `${source.directory}: already quantized (${how}); quantize the original`,
  );
}

/** The dtype that most of the linear weights have. */
function dtypeOfModel(model: ModelMap): DType {
  const sizes = new Map<DType, number>();
  for (const { dtype: stored, shape } of model.linears) {
    const dtype = dtypeOfStored(stored);
    if (dtype !== 'float32' && dtype !== 'float16' && dtype !== 'bfloat16') continue;
    sizes.set(dtype, (sizes.get(dtype) ?? 0) + shape[0] * shape[1]);
  }
  return [...sizes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? 'bfloat16';
}

/**
 * What the format makes of each asked scheme.
 * @throws QuantariaError `ERR_ARGUMENT` if it can hold a scheme nowhere: that was not what the user meant
 */
function fitAll(decided: ModelPlan, format: Format, modelDtype: DType): Map<Linear, Fit> {
  const fits = new Map<Linear, Fit>();
  const outcomes = new Map<string, { scheme: QuantScheme; held: boolean; reason: string }>();
  for (const { linear, scheme } of decided.linears) {
    if (scheme === null) continue;
    const fit = format.fit(scheme, linear.shape, modelDtype, linear);
    fits.set(linear, fit);
    const key = JSON.stringify(scheme);
    const outcome = outcomes.get(key) ?? { scheme, held: false, reason: '' };
    if (fit.scheme === null) outcome.reason = fit.reason;
    else outcome.held = true;
    outcomes.set(key, outcome);
  }
  for (const { scheme, held, reason } of outcomes.values()) {
    if (held) continue;
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `--format ${format.name} cannot hold ${schemeLabel(scheme)}: ${reason}; another --format or --recipe would do`,
    );
  }
  return fits;
}

/** The linear weight that a target tensor is, if it is exactly one. */
function linearOf(target: TargetTensor, whole: ReadonlyMap<string, Linear>): Linear | null {
  if ('copy' in target.from) return whole.get(target.from.copy) ?? null;
  const [only, ...others] = target.from.pieces;
  return only !== undefined && others.length === 0 && only.piece.expert === null ? only.linear : null;
}

type Draft = Omit<PlannedTensor, 'entries' | 'bytes'>;
type Decisions = ReturnType<typeof indexDecisions>;

function indexDecisions(decided: ModelPlan) {
  const linears = new Map(decided.linears.map((decision) => [decision.linear, decision]));
  const whole = new Map<string, Linear>();
  const stacks = new Map<string, ModelPlan['linears'][number]>();
  for (const decision of decided.linears) {
    const { source } = decision.linear;
    if (source.expert === null) whole.set(source.tensor, decision.linear);
    else if (stacks.get(source.tensor)?.rule !== null) stacks.set(source.tensor, decision); // one without a rule must show
  }
  const others = new Map(decided.others.map((decision) => [decision.tensor.name, decision]));
  return { linears, whole, stacks, others };
}

function draft(target: TargetTensor, decisions: Decisions, fits: ReadonlyMap<Linear, Fit>): Draft {
  const linear = linearOf(target, decisions.whole);
  if (linear === null) return draftOther(target, decisions, fits);
  const decision = decisions.linears.get(linear);
  const fit = fits.get(linear);
  return {
    name: target.name.replace(/\.weight$/, ''),
    role: linear.role,
    layer: linear.layer,
    linear,
    target,
    scheme: fit?.scheme ?? null,
    rule: decision?.rule ?? null,
    reason: reasonOf(decision?.reason, fit),
  };
}

/** Why a rule decided so, and what the format changed about it. */
function reasonOf(reason = 'kept: no rule matches', fit?: Fit): string {
  const notes = fit === undefined ? [] : fit.scheme === null ? [`kept: ${fit.reason}`] : fit.notes;
  return [reason, ...notes].join('; ');
}

/** A tensor that is not one linear weight: a norm, a bias, or a stack of experts that all stay as they are. */
function draftOther(target: TargetTensor, decisions: Decisions, fits: ReadonlyMap<Linear, Fit>): Draft {
  const source =
    'copy' in target.from ? target.from.copy : (target.from.pieces[0]?.linear.source.tensor ?? '');
  const stack = decisions.stacks.get(source);
  const other = decisions.others.get(source);
  return {
    name: target.name,
    role: stack?.linear.role ?? other?.tensor.role ?? 'other',
    layer: stack?.linear.layer ?? other?.tensor.layer ?? null,
    linear: null,
    target,
    scheme: null,
    rule: stack?.rule ?? other?.rule ?? null,
    reason: stack === undefined ? reasonOf(other?.reason) : reasonOf(stack.reason, fits.get(stack.linear)),
  };
}

function quantizedOf(tensors: readonly Draft[]): FormatContext['quantized'] {
  return tensors.flatMap(({ name: module, linear, scheme, groupIndex, activations }) =>
    linear !== null && scheme !== null ? [{ module, linear, scheme, groupIndex, activations }] : [],
  );
}

function entriesOf(tensor: Draft, format: Format, modelDtype: DType): PlannedTensor['entries'] {
  const { name, dtype, shape } = tensor.target;
  if (tensor.scheme === null || tensor.linear === null) return [{ name, dtype, shape }];
  const { scheme, linear, groupIndex, activations } = tensor;
  return format.entries(tensor.name, scheme, linear.shape, modelDtype, { groupIndex, activations });
}

function formatContext(
  model: ModelMap,
  modelDtype: DType,
  tensors: readonly PlannedTensor[],
  source: Checkpoint,
  method: string,
): FormatContext {
  const kept = tensors.flatMap(({ scheme, target, role }) =>
    scheme === null ? [{ name: target.name, role, shape: target.shape }] : [],
  );
  const config = source.config as FormatContext['config'];
  return { model, modelDtype, quantized: quantizedOf(tensors), kept, config, method };
}

/** Bytes of all tensors, and bits per weight over the decoder's linear weights, kept ones included. */
function sizesOf(tensors: readonly PlannedTensor[]): { averageBits: number; bytes: number } {
  const bytes = tensors.reduce((sum, { bytes: own }) => sum + own, 0);
  const { decoderBytes, parameters } = decoderSize(tensors);
  return { averageBits: parameters === 0 ? 0 : (8 * decoderBytes) / parameters, bytes };
}

/** The decoder's linear weights, kept ones included. */
function decoderSize(tensors: readonly PlannedTensor[]): { decoderBytes: number; parameters: number } {
  let decoderBytes = 0;
  let parameters = 0;
  for (const { role, target, linear, bytes: own } of tensors) {
    const isWeight = linear !== null || (role === 'expert' && target.shape.length === 3);
    if (!DECODER_LINEAR_ROLES.includes(role) || !isWeight) continue;
    decoderBytes += own;
    parameters += target.shape.reduce((a, b) => a * b, 1);
  }
  return { decoderBytes, parameters };
}

/** Of a tensor that several modules share, only this module's rows. */
function bytesOfPart(entry: PlannedTensor['entries'][number]): number {
  const { region, name, dtype, shape } = entry;
  return bytesOfEntry(
    region === undefined ? entry : { name, dtype, shape: [region.count, ...shape.slice(2)] },
  );
}
