import { getDefaultDevice, synchronize } from '../../device';
import type { ExpertWeights } from '../../models/decoder';
import { native } from '../../native';
import { embed, swiglu } from '../../ops/decoder';
import type { Hessian } from '../../ops/gptq';
import { linear } from '../../ops/linear';
import { Tensor } from '../../tensor';
import { ExpertStatistics, InputStatistics, runsOf } from './inputs';
import type { RoutedTokens } from './routed';
import { STATE_DTYPE, type States } from './states';

/** Of whose tokens an expert's Hessians are. */
export type ExpertSource = 'own' | 'blended' | 'layer';

export interface ExpertInputs extends Disposable {
  /** Of gate and up. */
  entering: InputStatistics;
  down: InputStatistics;
  source: ExpertSource;
  /** That were routed to the expert. */
  tokens: number;
}

/** For `down` of an expert that is hardly reached, so many tokens of those that enter the layer go through it. */
const FILL_TOKENS = 4096;

/** Bytes of the sums of one expert's Hessians. */
export function hessianBytes({ gate, down }: ExpertWeights): number {
  const [into, inner] = [gate.shape[1] as number, down.shape[1] as number];
  return 4 * (into ** 2 + inner ** 2);
}

/**
 * Bytes that GPTQ of an expert's gate and up takes on a device beside the sums, at most: a Hessian each; for each weight three
 * float32 and a code; 4 KiB for each row. Of `down` it takes about half.
 */
export function solvingBytes({ gate }: ExpertWeights): number {
  const [rows, width] = gate.shape as [number, number];
  return 2 * (4 * width ** 2 + 13 * rows * width + 4096 * rows);
}

/**
 * What enters some experts of a layer. An expert with fewer tokens than `minTokens` is given as many average tokens of
 * those that enter the layer as are missing; one without any has theirs alone.
 * @param inputs what enters the feed-forward part
 * @param layer its Hessian
 */
export async function expertInputs(
  experts: readonly { index: number; weights: ExpertWeights }[],
  inputs: States,
  routed: RoutedTokens,
  layer: Hessian,
  minTokens: number,
): Promise<Map<number, ExpertInputs>> {
  const made = new Map<number, ExpertInputs>();
  const sets: ExpertSet[] = [];
  try {
    for (const together of parted(experts, sideBySide())) {
      const set = new ExpertSet(together, routed);
      sets.push(set);
      for (const [index, own] of set.each()) made.set(index, own);
    }
    for (let batch = 0; batch < inputs.batches; ++batch) {
      using x = inputs.batch(batch);
      for (const set of sets) set.add(x, batch);
      // Memory is taken when work is queued.
      await synchronize();
    }
    for (const { index, weights } of experts) {
      const own = made.get(index) as ExpertInputs;
      const missing = minTokens - own.tokens;
      if (missing <= 0) continue;
      own.source = own.tokens === 0 ? 'layer' : 'blended';
      own.entering.hessian.fill(layer, missing);
      const all = await downOfAll(weights, inputs);
      own.down.hessian.fill(all.hessian, missing);
      if (own.source === 'layer') own.down.magnitudes.replace(all.magnitudes);
      all[Symbol.dispose]();
    }
    return made;
  } catch (error) {
    for (const hessians of made.values()) hessians[Symbol.dispose]();
    throw error;
  } finally {
    for (const set of sets) set[Symbol.dispose]();
  }
}

/**
 * How many experts are worked on together. One keeps all threads of a CPU busy, and takes the least memory for rows and sums
 * under way; a device is kept busy by all.
 */
export const sideBySide = (): number => (getDefaultDevice() === 'cpu' ? 1 : Number.POSITIVE_INFINITY);

/** Lists of at most `size` items, in order. */
export function parted<T>(items: readonly T[], size: number): T[][] {
  const parts: T[][] = [];
  for (const item of items) {
    const last = parts.at(-1);
    if (last !== undefined && last.length < size) last.push(item);
    else parts.push([item]);
  }
  return parts;
}

/** Experts whose tokens are gathered together. */
class ExpertSet implements Disposable {
  readonly #entering: ExpertStatistics;
  readonly #down: ExpertStatistics;

  constructor(
    private readonly experts: readonly { index: number; weights: ExpertWeights }[],
    private readonly routed: RoutedTokens,
  ) {
    const [{ weights }] = experts as [(typeof experts)[0]];
    this.#entering = new ExpertStatistics(experts.length, weights.gate.shape[1] as number);
    this.#down = new ExpertStatistics(experts.length, weights.down.shape[1] as number);
  }

  /** What is found of each, by its index; the caller disposes it. */
  each(): [number, ExpertInputs][] {
    return this.experts.map(({ index }, i) => {
      const entering = this.#entering.each[i] as InputStatistics;
      const down = this.#down.each[i] as InputStatistics;
      const tokens = this.routed.counts[index] as number;
      const dispose = () => {
        entering[Symbol.dispose]();
        down[Symbol.dispose]();
      };
      return [index, { entering, down, source: 'own', tokens, [Symbol.dispose]: dispose }];
    });
  }

  /** @param x what enters the layer in that batch */
  add(x: Tensor, batch: number): void {
    const tokens = this.experts.map(({ index }) => this.routed.of(batch, index));
    const counts = tokens.map(({ length }) => length);
    const ids = joinedArrays(tokens, Int32Array);
    if (ids.length === 0) return;
    const shares = this.#shares(batch, counts);
    using places = Tensor.from(ids, [ids.length], { dtype: 'int32' });
    using rows = embed(x, places, STATE_DTYPE);
    this.#entering.add(rows, counts, shares);
    using inner = joinedRows(
      runsOf(counts).map(({ expert, first, end }) => {
        using own = rows.slice(0, first, end);
        return innerOf(own, (this.experts[expert] as { weights: ExpertWeights }).weights);
      }),
    );
    this.#down.add(inner, counts, shares);
  }

  /** Null where all rows count the same. */
  #shares(batch: number, counts: readonly number[]): Float32Array | null {
    const each = this.experts.map(({ index }) => this.routed.sharesOf(batch, index));
    if (each.every((own) => own === null)) return null;
    return joinedArrays(
      each.map((own, i) => own ?? new Float32Array(counts[i] as number).fill(1)),
      Float32Array,
    );
  }

  [Symbol.dispose](): void {
    this.#entering[Symbol.dispose]();
    this.#down[Symbol.dispose]();
  }
}

function joinedArrays<T extends Int32Array | Float32Array>(
  parts: readonly T[],
  Made: new (n: number) => T,
): T {
  const all = new Made(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The rows of one after those of the other, of which there is at least one. Takes them over. */
function joinedRows(parts: readonly Tensor[]): Tensor {
  const [first] = parts as [Tensor];
  if (parts.length === 1) return first;
  const rows = parts.map(({ shape }) => shape[0] as number);
  const count = rows.reduce((sum, own) => sum + own, 0);
  const all = native.tensorEmpty(first.dtype, [count, first.shape[1] as number], first.device);
  for (const { expert: part, first: begin, end } of runsOf(rows)) {
    using own = parts[part] as Tensor;
    const place = native.tensorSlice(all, 0, begin, end, 1);
    native.tensorCopyInto(Tensor.native(own, 'rows'), place);
    native.tensorDispose(place);
  }
  return Tensor.wrap(all);
}

/** What enters `down` of an expert whose gate and up see these rows. */
function innerOf(rows: Tensor, { gate, up }: ExpertWeights): Tensor {
  using gated = linear(rows, gate);
  using raised = linear(rows, up);
  return swiglu(gated, raised);
}

async function downOfAll(weights: ExpertWeights, inputs: States): Promise<InputStatistics> {
  const all = new InputStatistics(weights.down.shape[1] as number);
  let tokens = 0;
  for (let batch = 0; batch < inputs.batches && tokens < FILL_TOKENS; ++batch) {
    using x = inputs.batch(batch);
    using inner = innerOf(x, weights);
    all.add(inner);
    tokens += x.shape[0] as number;
    await synchronize();
  }
  return all;
}
