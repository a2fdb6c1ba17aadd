import type { ModelMap } from '../models';
import type { Usage } from '../recipe';
import { type FreeWeight, sharesIn, type TargetContext, type WeightOption } from '../recipe/target_bits';
import type { QuantScheme } from '../scheme';
import { type Assignment, isMeasured, measureVariants, partOf, rowsOf } from './measured_sensitivity';
import { readRows } from './rows';
import type { RunOptions } from './usage';

/** Widths at which parts are measured: a power law through the two tells of the others. */
const MEASURED_BITS = [2, 4] as const;
/** That parts are measured on, at most. */
const IDS = 2048;
/** Errors that grow in squares have 1; where experts change, and where sums saturate, it is another. */
const EXPONENTS = [0.5, 2] as const;

type Quantized = WeightOption & { scheme: QuantScheme; stored: QuantScheme };

/** A part of a layer: its weights, and what errors in them cost the predictions. */
interface MeasuredPart {
  weights: FreeWeight[];
  /** Squared errors, weighted by the tokens that weights see, and divergence: at fewer bits and at more. */
  points: { error: number; divergence: number }[];
  /** The sum of the errors of an option over all weights, by its key. */
  sums: Map<string, number>;
}

/**
 * What options of weights cost the predictions, in nats an id: each part of a layer is rounded by itself at two widths. A weight
 * has the share of its part's cost that it has in the part's error.
 * @returns null without data, and where nothing can be measured
 */
export async function measuredCosts(
  directory: string,
  weights: readonly FreeWeight[],
  { model, usage, data }: { model: ModelMap; usage: Usage | null; data: RunOptions | null },
): Promise<{ of: NonNullable<TargetContext['cost']>; note: string } | null> {
  const parts = new Map<string, MeasuredPart>();
  for (const weight of weights) {
    if (!isMeasured(weight.linear, model) || quantizedOptions(weight).length === 0) continue;
    const name = partOf(weight.linear);
    const part: MeasuredPart = parts.get(name) ?? { weights: [], points: [], sums: new Map() };
    part.weights.push(weight);
    parts.set(name, part);
  }
  if (data === null || parts.size === 0) return null;
  const shareOf = sharesIn({ model, usage });
  const runs: { name: string; members: Assignment; part: MeasuredPart; error: number }[] = [];
  for (const [name, part] of parts) {
    for (const { linear, options } of part.weights) {
      for (const { key, error } of options) {
        part.sums.set(key, (part.sums.get(key) ?? 0) + shareOf(linear) * error);
      }
    }
    for (const bits of MEASURED_BITS) {
      const chosen = part.weights.map((weight) => ({ weight, option: nearestTo(bits, weight) }));
      runs.push({
        name: `${name} ${bits}`,
        members: new Map(chosen.map(({ weight, option }) => [weight.linear, option.stored])),
        part,
        error: chosen.reduce((sum, { weight, option }) => sum + shareOf(weight.linear) * option.error, 0),
      });
    }
  }
  const variants = new Map(runs.map(({ name, members }) => [name, members]));
  const all = await readRows(directory, data);
  const rows = rowsOf(all, 0, Math.max(1, Math.floor(IDS / all.length)));
  const request = { base: new Map(), variants, rows };
  const { variants: divergences } = await measureVariants(directory, request, data);
  let [divergence, error] = [0, 0];
  for (const { name, part, error: own } of runs) {
    const found = divergences.get(name) as number;
    part.points.push({ error: own, divergence: found });
    divergence += found;
    error += own;
  }
  // Weights of other places, which are few, cost what these do on average.
  const average = error > 0 ? divergence / error : 0;
  return {
    of: (linear, option) => {
      const own = shareOf(linear) * option.error;
      const part = isMeasured(linear, model) ? parts.get(partOf(linear)) : undefined;
      const sum = part?.sums.get(option.key) ?? 0;
      return part === undefined || sum === 0 ? average * own : (own / sum) * divergenceAt(sum, part.points);
    },
    note: `what errors cost was measured on the text, for ${parts.size} parts of layers`,
  };
}

const quantizedOptions = ({ options }: FreeWeight): Quantized[] =>
  options.filter((option): option is Quantized => option.scheme !== null);

function nearestTo(bits: number, weight: FreeWeight): Quantized {
  const distance = ({ scheme }: Quantized) => (scheme.kind === 'int' ? Math.abs(scheme.bits - bits) : 0);
  return quantizedOptions(weight).reduce((best, option) =>
    distance(option) < distance(best) ? option : best,
  );
}

/** The power law through two points, from the one that is nearer. */
function divergenceAt(error: number, points: MeasuredPart['points']): number {
  const [coarse, fine] = points as [MeasuredPart['points'][0], MeasuredPart['points'][0]];
  const measured = Math.log(coarse.divergence / fine.divergence) / Math.log(coarse.error / fine.error);
  const exponent = Number.isFinite(measured) ? Math.min(EXPONENTS[1], Math.max(EXPONENTS[0], measured)) : 1;
  const from =
    Math.abs(Math.log(error / coarse.error)) < Math.abs(Math.log(error / fine.error)) ? coarse : fine;
  return from.error > 0 ? from.divergence * (error / from.error) ** exponent : 0;
}
