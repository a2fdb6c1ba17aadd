import type { Linear, ModelMap } from '../models';
import { type BitStep, swapSets, swapsOf } from '../recipe/bit_swaps';
import {
  bytesFor,
  choiceOf,
  optionOf,
  sharesIn,
  type TargetChoice,
  type TargetContext,
  type UnitOption,
  type WeightUnit,
} from '../recipe/target_bits';
import type { QuantScheme } from '../scheme';
import type { IdRows } from './decoder';
import { type Assignment, isMeasured, measureVariants, partOf, rowsOf } from './measured_sensitivity';
import { readRows } from './rows';
import type { RunOptions } from './usage';

/** What plans do to the predictions, in nats an id from the original, on rows that chose nothing. */
export interface MeasuredPlans {
  chosen: number;
  /** Of the widest bits that all weights could have alike; null where even the fewest take too much. */
  uniform: number | null;
  /** Rounds of steps that made the plan better. */
  rounds: number;
}

/** Multiplications that a search may take beside its first measures: some minutes of a few cores. */
const SEARCH_PRODUCTS = 2e12;
const MOST_ROUNDS = 8;
const [FEWEST_IDS, MOST_IDS] = [2048, 8192];

/** The chosen option of each unit. */
type Plan = readonly UnitOption[];

/**
 * For a method that rounds to nearest: goes on from a plan whose costs were measured one part at a time, around the original: all weights of the plan are rounded
 * together, and each part a step up and a step down from there. Steps that pay are taken as far as the whole plan's measured
 * divergence falls; plans of one width for all are among those that it starts from.
 * @returns the plan of least divergence, never one that does worse than uniform bits on the rows that it is held against them on
 */
export async function refineBits(
  directory: string,
  choice: TargetChoice,
  context: TargetContext,
  data: RunOptions,
): Promise<{ choice: TargetChoice; measured: MeasuredPlans }> {
  const search = new PlanSearch(directory, choice, context, await readRows(directory, data), data);
  const uniform = search.uniform();
  const starts = uniform === null ? [choice.chosen] : [choice.chosen, uniform];
  let best = least(await search.measure(starts));
  let rounds = 0;
  for (; rounds < search.rounds; ++rounds) {
    const found = await search.step(best.plan);
    if (found === null || found.divergence >= best.divergence) break;
    best = found;
  }
  if (best.plan === uniform || uniform === null) {
    const [own] = await search.measure([best.plan], { held: true });
    const chosen = (own as Measured).divergence;
    const measured = { chosen, uniform: uniform && chosen, rounds };
    return { choice: choiceOf(choice.units, best.plan, context), measured };
  }
  const [own, other] = (await search.measure([best.plan, uniform], { held: true })) as [Measured, Measured];
  const winner = own.divergence < other.divergence ? own : other;
  return {
    choice: choiceOf(choice.units, winner.plan, context),
    measured: { chosen: winner.divergence, uniform: other.divergence, rounds },
  };
}

interface Measured {
  plan: Plan;
  divergence: number;
}

const least = (plans: readonly Measured[]): Measured =>
  plans.reduce((best, plan) => (plan.divergence < best.divergence ? plan : best));

class PlanSearch {
  /** That the work of one round leaves room for. */
  readonly rounds: number;
  readonly #rows: IdRows;
  /** Behind those. */
  readonly #heldRows: IdRows;
  readonly #units: readonly WeightUnit[];
  /** Units that are measured together, by what they are part of. */
  readonly #groups = new Map<string, number[]>();
  readonly #shareOf: (linear: Linear) => number;
  readonly #budget: number;

  constructor(
    private readonly directory: string,
    private readonly start: TargetChoice,
    context: TargetContext,
    rows: IdRows,
    private readonly options: Pick<RunOptions, 'signal' | 'onProgress'>,
  ) {
    this.#units = start.units;
    this.#shareOf = sharesIn(context);
    this.#budget = bytesFor(context);
    const { model } = context;
    for (const [unit, { members }] of this.#units.entries()) {
      if (!members.every(({ linear }) => isMeasured(linear, model))) continue;
      const group = [...new Set(members.map(({ linear }) => partOf(linear)))].sort().join(', ');
      this.#groups.set(group, [...(this.#groups.get(group) ?? []), unit]);
    }
    // On the average half of the layers lie behind a part.
    const perId = activeWeights(model) * (this.#groups.size + CANDIDATES);
    const rounds = SEARCH_PRODUCTS / (perId * FEWEST_IDS);
    this.rounds = Math.floor(Math.min(MOST_ROUNDS, rounds));
    const ids = Math.floor(SEARCH_PRODUCTS / (perId * MOST_ROUNDS));
    const most = Math.min(MOST_IDS, Math.max(FEWEST_IDS, ids)) / rows.length;
    const available = rows.ids.length / rows.length;
    const searched = Math.max(1, Math.floor(Math.min(most, available / 2)));
    this.#rows = rowsOf(rows, 0, searched);
    this.#heldRows = available > 1 ? rowsOf(rows, searched, 2 * searched) : this.#rows;
  }

  /** The widest bits that all units can have alike within the size; those without a choice of widths stay as they are. */
  uniform(): Plan | null {
    const widths = new Set(
      this.#units.flatMap(({ members: [first] }) =>
        (first?.options ?? []).flatMap(({ scheme }) => (scheme?.kind === 'int' ? [scheme.bits] : [])),
      ),
    );
    for (const bits of [...widths].sort((a, b) => b - a)) {
      const plan = this.#units.map((unit, index) => {
        const own = unit.options.find(({ key }) => {
          const scheme = schemeOf(unit, key);
          return scheme?.kind === 'int' && scheme.bits === bits;
        });
        return own ?? (this.start.chosen[index] as UnitOption);
      });
      if (bytesOf(plan) <= this.#budget) return plan;
    }
    return null;
  }

  /** @param options.held on rows behind those that steps are chosen on, if there is more than one */
  async measure(plans: readonly Plan[], { held = false } = {}): Promise<Measured[]> {
    const variants = new Map(plans.map((plan, i) => [String(i), this.#assignment(plan)]));
    const found = await this.#run(new Map(), variants, held);
    return plans.map((plan, i) => ({ plan, divergence: found.variants.get(String(i)) as number }));
  }

  /** The best of the plans that some steps from this one make; null if no step pays. */
  async step(plan: Plan): Promise<Measured | null> {
    const moves = [...this.#groups].flatMap(([group, units]) =>
      [1, -1].map((by) => ({ name: `${group} ${by}`, to: this.#moved(plan, units, by) })),
    );
    const changing = moves.filter(({ to }) => to.size > 0);
    const base = this.#assignment(plan);
    const variants = new Map(
      changing.map(({ name, to }) => [
        name,
        this.#assignment(plan.map((option, unit) => to.get(unit) ?? option)),
      ]),
    );
    const found = await this.#run(base, variants);
    const steps = changing.flatMap(({ name, to }) =>
      this.#stepsOf(plan, to, (found.variants.get(name) as number) - found.base),
    );
    const room = this.#budget - bytesOf(plan);
    const sets = swapSets(swapsOf(steps, room), room, CANDIDATES);
    if (sets.length === 0) return null;
    const candidates = sets.map((set) => {
      const taken = new Map(set.steps.map((step) => [step.unit, step.to]));
      return plan.map((option, unit) => taken.get(unit) ?? option);
    });
    return least(await this.measure(candidates));
  }

  #run(base: Assignment, variants: ReadonlyMap<string, Assignment>, held = false) {
    const rows = held ? this.#heldRows : this.#rows;
    return measureVariants(this.directory, { base, variants, rows }, this.options);
  }

  #assignment(plan: Plan): Assignment {
    const schemes = new Map<Linear, QuantScheme>();
    for (const unit of [...this.#groups.values()].flat()) {
      const { members } = this.#units[unit] as WeightUnit;
      for (const member of members) {
        const { stored } = optionOf(member, (plan[unit] as UnitOption).key);
        if (stored !== null) schemes.set(member.linear, stored);
      }
    }
    return schemes;
  }

  /** Units that have such a neighbour among their options, which are taken by their size. */
  #moved(plan: Plan, units: readonly number[], by: number): Map<number, UnitOption> {
    const moved = new Map<number, UnitOption>();
    for (const unit of units) {
      const options = [...(this.#units[unit] as WeightUnit).options].sort((a, b) => a.bytes - b.bytes);
      const to = options[options.indexOf(plan[unit] as UnitOption) + by];
      if (to !== undefined && to.bytes !== plan[unit]?.bytes) moved.set(unit, to);
    }
    return moved;
  }

  /** Each unit has the share of the loss that it has in the change of the squared errors. */
  #stepsOf(plan: Plan, to: ReadonlyMap<number, UnitOption>, loss: number): (BitStep & { to: UnitOption })[] {
    const steps = [...to].map(([unit, option]) => {
      const from = plan[unit] as UnitOption;
      const change = (this.#units[unit] as WeightUnit).members.reduce((sum, member) => {
        const [now, then] = [optionOf(member, from.key), optionOf(member, option.key)];
        return sum + this.#shareOf(member.linear) * Math.abs(then.error - now.error);
      }, 0);
      return { unit, to: option, bytes: option.bytes - from.bytes, change };
    });
    const all = steps.reduce((sum, { change }) => sum + change, 0);
    return steps.map(({ change, ...step }) => ({
      ...step,
      loss: all > 0 ? (loss * change) / all : loss / steps.length,
    }));
  }
}

/** Plans that are measured in a round. */
const CANDIDATES = 12;

const bytesOf = (plan: Plan): number => plan.reduce((sum, { bytes }) => sum + bytes, 0);

const schemeOf = ({ members }: WeightUnit, key: string): QuantScheme | null =>
  members[0] === undefined ? null : optionOf(members[0], key).scheme;

/** Of the decoder, for one id. */
function activeWeights(model: ModelMap): number {
  const shareOf = sharesIn({ model, usage: null });
  return model.linears
    .filter((linear) => isMeasured(linear, model))
    .reduce((sum, linear) => sum + shareOf(linear) * linear.shape[0] * linear.shape[1], 0);
}
