import * as path from 'node:path';
import { readJsonObject } from '../checkpoint/json_file';
import { type Entry, layoutShards } from '../checkpoint/layout';
import { type Checkpoint, openCheckpoint } from '../checkpoint/reader';
import { getDefaultDevice } from '../device';
import { QuantariaError } from '../errors';
import type { TargetTensor } from '../models';
import type { Usage } from '../recipe';
import { version } from '../version';
import { type LayerResult, type PreparedCalibration, prepareCalibration } from './calibration';
import { carriedFiles } from './carry';
import { isComplete } from './complete';
import { readConfigText, withMembers } from './config_file';
import { copyUnits, pieceUnits } from './copy_units';
import { fingerprintOf } from './fingerprint';
import { FOLDING_FILE, foldingText } from './folding';
import { isUnfinished, OutputDirectory, removeWork } from './output';
import {
  isCalibrated,
  type PlannedTensor,
  planQuantization,
  type QuantizePlan,
  type QuantizePlanOptions,
} from './quantize_plan';
import { isQuantized, type QuantizeResult, quantizeUnits } from './quantize_units';
import type { PlanningOptions } from './recipe_usage';
import { type MatrixCalibration, REPORT_FILE, type Report, type ReportTensor } from './report';
import { REPORT_PAGE, type RunFacts, reportPage } from './report_page';
import { PeakRss } from './rss';
import { type Progress, runUnits, type WorkUnit } from './run';

export interface QuantizeOptions extends QuantizePlanOptions, PlanningOptions {
  out: string;
  /** Calibration: an expert with fewer tokens is given those that enter its layer too. */
  minExpertTokens?: number;
  maxShardBytes?: number;
  maxMemoryBytes?: number;
  resume?: boolean;
  /** Called once, before any work: what is planned, and what loaders cannot take. */
  onPlan?: (plan: QuantizePlan) => void;
  onProgress?: (progress: Progress) => void;
}

export type QuantizeSummary = Report & { seconds: number; peakRssBytes: number };

/**
 * The main job: reads a checkpoint as a stream and writes a quantized one.
 * @throws QuantariaError (as a rejection); a failed or aborted run leaves nothing under a final name, and what it did can
 *   be gone on with by `resume`
 */
export async function quantizeCheckpoint(model: string, options: QuantizeOptions): Promise<QuantizeSummary> {
  const began = performance.now();
  const rss = new PeakRss();
  using source = await openCheckpoint(model);
  try {
    const plan = await planQuantization(source, options);
    using prepared = await prepareCalibration(source, plan, options);
    const shards = layoutShards(entryGroups(plan.tensors), options.maxShardBytes);
    const fingerprint = await fingerprintOf(source, {
      tensors: plan.tensors.map(({ name, scheme, entries, reason }) => [name, scheme, entries, reason]),
      recipe: plan.recipe,
      method: plan.method,
      format: plan.format.name,
      config: plan.formatConfig,
      shards: shards.map(({ file, bytes }) => [file, bytes]),
      ...deviceFacts(),
      ...(prepared && { calibration: prepared.identity }),
    });
    const factsSoFar = (): RunFacts => ({
      model: path.basename(path.resolve(model)),
      seconds: (performance.now() - began) / 1000,
      peakRssBytes: rss.peak,
    });
    const finished = options.resume ? await finishedReport(options.out, fingerprint, shards) : null;
    const report =
      finished ?? (await run(source, plan, prepared, shards, fingerprint, { ...options, facts: factsSoFar }));
    return { ...report, seconds: (performance.now() - began) / 1000, peakRssBytes: rss.stop() };
  } finally {
    rss.stop();
  }
}

async function run(
  source: Checkpoint,
  plan: QuantizePlan,
  prepared: PreparedCalibration | null,
  shards: ReturnType<typeof layoutShards>,
  fingerprint: string,
  options: QuantizeOptions & { facts: () => RunFacts },
): Promise<Report> {
  options.onPlan?.(plan);
  const members = plan.tensors.filter(isQuantized);
  const calibrated = prepared === null ? [] : members.filter((member) => isCalibrated(member, plan.model));
  const rounded = members.filter((member) => !calibrated.includes(member));
  const units = [
    ...quantizeUnits(source, plan, rounded),
    ...keepUnits(source, plan, prepared?.calibration.rewritten() ?? new Set()),
    ...(prepared?.calibration.units(calibrated) ?? []),
  ];
  const output = await OutputDirectory.open(options.out, shards, units, {
    fingerprint,
    resume: options.resume ?? false,
  });
  try {
    const results = await runUnits(units, output, {
      maxMemoryBytes: options.maxMemoryBytes,
      signal: options.signal,
      onProgress: options.onProgress,
    });
    const report = reportOf(source, plan, prepared, fingerprint, results as Map<string, QuantizeResult>);
    const { quantizationConfig, configPatch, files } = plan.formatConfig;
    const config = withMembers(await readConfigText(source.directory), {
      ...configPatch,
      quantization_config: quantizationConfig ?? undefined,
    });
    await output.finish({
      ...(await carriedFiles(source.directory)),
      ...files,
      ...foldingFile(results as Map<string, Partial<LayerResult>>),
      'config.json': config,
      [REPORT_FILE]: `${JSON.stringify(report, null, 2)}\n`,
      [REPORT_PAGE]: reportPage(report, options.facts()),
    });
    return report;
  } catch (error) {
    await output.abandon();
    throw error;
  }
}

/** Where the job runs, if that is worth a word. */
function deviceFacts(): Pick<Report, 'device'> {
  const device = getDefaultDevice();
  return device === 'cpu' ? {} : { device };
}

/** A module's tensors stay in one shard; tensors that several modules share are laid out once. */
function entryGroups(tensors: readonly PlannedTensor[]): Entry[][] {
  const seen = new Set<string>();
  return tensors.map(({ entries }) =>
    entries.filter(({ name }) => {
      if (seen.has(name)) return false;
      seen.add(name);
      return true;
    }),
  );
}

/** Units for what is kept: copied as it is, or taken out of a stack. */
function keepUnits(source: Checkpoint, plan: QuantizePlan, rewritten: ReadonlySet<string>): WorkUnit[] {
  return plan.tensors
    .filter(({ scheme, target }) => scheme === null && !rewritten.has(target.name))
    .flatMap(({ target }) =>
      'copy' in target.from
        ? copyUnits(source, target.from.copy, target.name, source.info(target.from.copy).bytes)
        : pieceUnits(source, target),
    );
}

function reportOf(
  source: Checkpoint,
  plan: QuantizePlan,
  prepared: PreparedCalibration | null,
  fingerprint: string,
  results: ReadonlyMap<string, QuantizeResult & Partial<LayerResult>>,
): Report {
  const errors = new Map<string, number>();
  const calibration = new Map<string, MatrixCalibration>();
  for (const result of results.values()) {
    for (const [name, error] of Object.entries(result.errors ?? {})) errors.set(name, error);
    for (const [name, own] of Object.entries(result.calibration ?? {})) calibration.set(name, own);
  }
  const isUnruled = unruledTargets(plan);
  const tensors = plan.tensors.map(
    ({ target, role, layer, linear, scheme, reason, bytes }): ReportTensor => ({
      name: target.name,
      role,
      ...(layer !== null && { layer }),
      ...(linear !== null && { projection: linear.projection }),
      ...(linear !== null && linear.expert !== null && { expert: linear.expert }),
      scheme,
      relativeError: errors.get(target.name) ?? 0,
      bytes,
      reason,
      ruled: !isUnruled(target),
      ...(calibration.has(target.name) && { calibration: calibration.get(target.name) }),
    }),
  );
  const quantized = tensors.filter(({ scheme }) => scheme !== null).length;
  return {
    version,
    fingerprint,
    architecture: plan.model.architecture,
    method: plan.method,
    format: plan.format.name,
    ...deviceFacts(),
    recipe: plan.recipe,
    averageBits: plan.averageBits,
    ...(plan.target && { target: plan.target }),
    bytesIn: source.entries().reduce((sum, { bytes }) => sum + bytes, 0),
    bytesOut: plan.bytes,
    quantized,
    kept: tensors.length - quantized,
    warnings: plan.warnings,
    notes: plan.notes,
    ...(plan.usage && { usage: plan.usage }),
    ...(prepared && {
      calibration: prepared.summary,
      usage: usageOf(prepared, results) ?? plan.usage ?? undefined,
    }),
    tensors,
  };
}

/** Of a method that moves factors between tensors. */
function foldingFile(results: ReadonlyMap<string, Partial<LayerResult>>): Record<string, string> {
  const factors = Object.assign({}, ...[...results.values()].map((result) => result.factors ?? {}));
  return Object.keys(factors).length === 0 ? {} : { [FOLDING_FILE]: foldingText(factors) };
}

/** Tokens of each expert, from the layers that were calibrated. */
function usageOf(
  { summary }: PreparedCalibration,
  results: ReadonlyMap<string, Partial<LayerResult>>,
): Usage | undefined {
  const layers = [...results].flatMap(([key, { counts }]) =>
    counts ? [{ layer: Number(key.split(' ').at(-1)), counts }] : [],
  );
  return layers.length > 0 ? { tokens: summary.tokens, layers } : undefined;
}

/** Tells the tensors that are, or hold, a weight that no rule matches. Norms, biases and the like are no recipe's business. */
function unruledTargets({ model, unmatched }: QuantizePlan): (target: TargetTensor) => boolean {
  const names = new Set(unmatched);
  const stored = new Set(unmatched);
  for (const { name, source } of model.linears) if (names.has(name)) stored.add(source.tensor);
  return ({ from }) =>
    'copy' in from ? stored.has(from.copy) : from.pieces.some(({ linear }) => names.has(linear.name));
}

/**
 * The report of a run that is complete, or null if there is still something to do.
 * @throws QuantariaError `ERR_ARGUMENT` if another job completed there, `ERR_FORMAT` if the output was damaged since
 */
async function finishedReport(
  out: string,
  fingerprint: string,
  shards: ReturnType<typeof layoutShards>,
): Promise<Report | null> {
  if (await isUnfinished(out)) return null;
  const found = (await readJsonObject(path.join(out, REPORT_FILE))) as Report | null;
  if (found === null) return null;
  if (found.fingerprint !== fingerprint) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `--resume: ${out} is complete, with other options or of another model`,
    );
  }
  (await openCheckpoint(out)).close();
  if (
    (await readJsonObject(path.join(out, 'config.json'))) === null ||
    !(await isComplete(out, shards, {}))
  ) {
    throw new QuantariaError('ERR_FORMAT', `--resume: ${out} was complete, but its files have changed since`);
  }
  await removeWork(out);
  return found;
}
