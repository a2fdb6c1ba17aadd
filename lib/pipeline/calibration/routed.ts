import { synchronize } from '../../device';
import type { ExpertWeights } from '../../models/decoder';
import { embed, swiglu } from '../../ops/decoder';
import type { Hessian } from '../../ops/gptq';
import { linear } from '../../ops/linear';
import type { Routing } from '../../ops/moe_route';
import { Tensor } from '../../tensor';
import { InputStatistics } from './inputs';
import { STATE_DTYPE, type States } from './states';

/** Tokens of each expert, batch by batch. */
export class RoutedTokens {
  readonly #batches: { tokens: Int32Array; offsets: Int32Array; weights: Float32Array | null }[] = [];
  readonly counts: number[];
  /** Sums of the router's weights of each expert's tokens. */
  readonly #sums: number[];

  /** @param weighted whether the router's weights are kept too */
  constructor(
    experts: number,
    private readonly weighted: boolean,
  ) {
    this.counts = new Array<number>(experts).fill(0);
    this.#sums = new Array<number>(experts).fill(0);
  }

  async add(routing: Required<Routing>): Promise<void> {
    const perToken = routing.indices.shape[1] as number;
    const [order, offsets] = (await Promise.all([routing.order.read(), routing.offsets.read()])) as [
      Int32Array,
      Int32Array,
    ];
    const all = this.weighted ? await routing.weights.toFloat32() : null;
    const weights = all && Float32Array.from(order, (slot) => all[slot] as number);
    this.#batches.push({ tokens: order.map((slot) => Math.floor(slot / perToken)), offsets, weights });
    for (const e of this.counts.keys()) {
      this.counts[e] = (this.counts[e] as number) + (offsets[e + 1] as number) - (offsets[e] as number);
      for (let at = offsets[e] as number; weights !== null && at < (offsets[e + 1] as number); ++at) {
        this.#sums[e] = (this.#sums[e] as number) + (weights[at] as number);
      }
    }
  }

  get batches(): number {
    return this.#batches.length;
  }

  /** Rows of a batch that go to an expert. */
  of(batch: number, expert: number): Int32Array {
    const { tokens, offsets } = this.#batches[batch] as { tokens: Int32Array; offsets: Int32Array };
    return tokens.subarray(offsets[expert], offsets[expert + 1]);
  }

  /**
   * What those rows count, 1 on average over all of the expert's; null where all count the same. A router that gives an expert no
   * weight at all leaves it as it is.
   */
  sharesOf(batch: number, expert: number): Float32Array | null {
    const { weights, offsets } = this.#batches[batch] as {
      weights: Float32Array | null;
      offsets: Int32Array;
    };
    const sum = this.#sums[expert] as number;
    if (weights === null || !(sum > 0)) return null;
    const factor = (this.counts[expert] as number) / sum;
    return weights.subarray(offsets[expert], offsets[expert + 1]).map((weight) => factor * weight);
  }
}

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
  for (const { index, weights } of experts)
    made.set(index, emptyInputs(weights, routed.counts[index] as number));
  try {
    for (let batch = 0; batch < inputs.batches; ++batch) {
      using x = inputs.batch(batch);
      for (const { index, weights } of experts) {
        const tokens = routed.of(batch, index);
        if (tokens.length === 0) continue;
        addTokens(made.get(index) as ExpertInputs, x, tokens, routed.sharesOf(batch, index), weights);
      }
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
  }
}

function emptyInputs({ gate, down }: ExpertWeights, tokens: number): ExpertInputs {
  const entering = new InputStatistics(gate.shape[1] as number);
  const inner = new InputStatistics(down.shape[1] as number);
  return {
    entering,
    down: inner,
    source: 'own',
    tokens,
    [Symbol.dispose]() {
      entering[Symbol.dispose]();
      inner[Symbol.dispose]();
    },
  };
}

function addTokens(
  { entering, down }: ExpertInputs,
  x: Tensor,
  tokens: Int32Array,
  shares: Float32Array | null,
  weights: ExpertWeights,
): void {
  using ids = Tensor.from(tokens, [tokens.length], { dtype: 'int32' });
  using rows = embed(x, ids, STATE_DTYPE);
  entering.add(rows, shares);
  addInner(down, rows, weights, shares);
}

/** What enters `down` of an expert whose gate and up see these rows. */
function addInner(
  down: InputStatistics,
  rows: Tensor,
  { gate, up }: ExpertWeights,
  shares: Float32Array | null = null,
): void {
  using gated = linear(rows, gate);
  using raised = linear(rows, up);
  using inner = swiglu(gated, raised);
  down.add(inner, shares);
}

async function downOfAll(weights: ExpertWeights, inputs: States): Promise<InputStatistics> {
  const all = new InputStatistics(weights.down.shape[1] as number);
  let tokens = 0;
  for (let batch = 0; batch < inputs.batches && tokens < FILL_TOKENS; ++batch) {
    using x = inputs.batch(batch);
    addInner(all, x, weights);
    tokens += x.shape[0] as number;
    await synchronize();
  }
  return all;
}
