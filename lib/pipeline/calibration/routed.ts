import type { Routing } from '../../ops/moe_route';

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
