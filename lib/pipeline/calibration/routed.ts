import { synchronize } from '../../device';
import type { ExpertWeights } from '../../models/decoder';
import { embed, swiglu } from '../../ops/decoder';
import { Hessian } from '../../ops/gptq';
import { linear } from '../../ops/linear';
import type { Routing } from '../../ops/moe_route';
import { Tensor } from '../../tensor';
import { addRows } from './inputs';
import { STATE_DTYPE, type States } from './states';

/** Tokens of each expert, batch by batch. */
export class RoutedTokens {
  readonly #batches: { tokens: Int32Array; offsets: Int32Array }[] = [];
  readonly counts: number[];

  constructor(experts: number) {
    this.counts = new Array<number>(experts).fill(0);
  }

  async add(routing: Required<Routing>): Promise<void> {
    const perToken = routing.indices.shape[1] as number;
    const [order, offsets] = (await Promise.all([routing.order.read(), routing.offsets.read()])) as [
      Int32Array,
      Int32Array,
    ];
    this.#batches.push({ tokens: order.map((slot) => Math.floor(slot / perToken)), offsets });
    for (const e of this.counts.keys()) {
      this.counts[e] = (this.counts[e] as number) + (offsets[e + 1] as number) - (offsets[e] as number);
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
}

/** How an expert's Hessians came about. */
export type ExpertSource = 'own' | 'blended' | 'layer';

export interface ExpertHessians extends Disposable {
  /** Of gate and up. */
  entering: Hessian;
  down: Hessian;
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
 * The Hessians of some experts of a layer. An expert with fewer tokens than `minTokens` is given as many average tokens of
 * those that enter the layer as are missing; one without any has theirs alone.
 * @param inputs what enters the feed-forward part
 * @param layer its Hessian
 */
export async function expertHessians(
  experts: readonly { index: number; weights: ExpertWeights }[],
  inputs: States,
  routed: RoutedTokens,
  layer: Hessian,
  minTokens: number,
): Promise<Map<number, ExpertHessians>> {
  const made = new Map<number, ExpertHessians>();
  for (const { index, weights } of experts)
    made.set(index, emptyHessians(weights, routed.counts[index] as number));
  try {
    for (let batch = 0; batch < inputs.batches; ++batch) {
      using x = inputs.batch(batch);
      for (const { index, weights } of experts) {
        const tokens = routed.of(batch, index);
        if (tokens.length > 0) addTokens(made.get(index) as ExpertHessians, x, tokens, weights);
      }
      // Memory is taken when work is queued.
      await synchronize();
    }
    for (const { index, weights } of experts) {
      const own = made.get(index) as ExpertHessians;
      const missing = minTokens - own.tokens;
      if (missing <= 0) continue;
      own.source = own.tokens === 0 ? 'layer' : 'blended';
      own.entering.fill(layer, missing);
      using all = await downOfAll(weights, inputs);
      own.down.fill(all, missing);
    }
    return made;
  } catch (error) {
    for (const hessians of made.values()) hessians[Symbol.dispose]();
    throw error;
  }
}

function emptyHessians({ gate, down }: ExpertWeights, tokens: number): ExpertHessians {
  const entering = new Hessian(gate.shape[1] as number);
  const inner = new Hessian(down.shape[1] as number);
  return {
    entering,
    down: inner,
    source: 'own',
    tokens,
    [Symbol.dispose]() {
      entering.dispose();
      inner.dispose();
    },
  };
}

function addTokens(
  { entering, down }: ExpertHessians,
  x: Tensor,
  tokens: Int32Array,
  weights: ExpertWeights,
): void {
  using ids = Tensor.from(tokens, [tokens.length], { dtype: 'int32' });
  using rows = embed(x, ids, STATE_DTYPE);
  addRows(entering, rows, tokens.length, x.shape[1] as number);
  addInner(down, rows, weights);
}

/** What enters `down` of an expert whose gate and up see these rows. */
function addInner(down: Hessian, rows: Tensor, { gate, up }: ExpertWeights): void {
  using gated = linear(rows, gate);
  using raised = linear(rows, up);
  using inner = swiglu(gated, raised);
  addRows(down, inner, inner.shape[0] as number, inner.shape[1] as number);
}

async function downOfAll(weights: ExpertWeights, inputs: States): Promise<Hessian> {
  const hessian = new Hessian(weights.down.shape[1] as number);
  let tokens = 0;
  for (let batch = 0; batch < inputs.batches && tokens < FILL_TOKENS; ++batch) {
    using x = inputs.batch(batch);
    addInner(hessian, x, weights);
    tokens += x.shape[0] as number;
    await synchronize();
  }
  return hessian;
}
