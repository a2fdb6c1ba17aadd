import { vector } from '../../methods/awq';
import type { LayerWeights } from '../../models/decoder';
import type { Role } from '../../models/types';
import { native } from '../../native';
import { Hessian } from '../../ops/gptq';
import { HessianStack } from '../../ops/hessian_stack';
import { ColumnMagnitudes, scaleMatrix } from '../../ops/scaling';
import { Tensor } from '../../tensor';

/** What enters the feed-forward part of a layer: its router, shared experts and routed experts, or dense gate and up. */
export const FEED_FORWARD = 'feed-forward input';

/** Linear layers with the same input share its statistics. */
export function inputOf(role: Role, projection: string): string {
  if (role === 'attention') {
    return ['q', 'k', 'v', 'q_a', 'kv_a'].includes(projection)
      ? 'attention input'
      : `attention ${projection}`;
  }
  return projection === 'down' ? `${role} down` : FEED_FORWARD;
}

/** What is known of the states that enter a linear layer. */
export class InputStatistics implements Disposable {
  readonly magnitudes: ColumnMagnitudes;
  /** Some rows of each batch, float32. */
  readonly #rows: Tensor[] = [];

  /** @param hessian taken over */
  constructor(
    width: number,
    readonly hessian = new Hessian(width),
  ) {
    this.magnitudes = new ColumnMagnitudes(width);
  }

  /**
   * @param x `[rows, in]`; every row is a sample, so that experts, which see different numbers of them, count the same
   * @param shares what each row counts in the Hessian; all the same if left out
   */
  add(x: Tensor, shares: Float32Array | null = null): void {
    const [rows, width] = x.shape as [number, number];
    using weighted = shares && scaledRows(x, shares);
    using samples = (weighted ?? x).reshape([rows, 1, width]);
    this.hessian.update(samples);
    this.magnitudes.update(x);
  }

  /** Keeps so many rows, evenly taken. @param x `[rows, in]` */
  keepRows(x: Tensor, count: number): void {
    const rows = x.shape[0] as number;
    const step = Math.max(1, Math.floor(rows / count));
    const some = native.tensorSlice(Tensor.native(x, 'x'), 0, 0, rows, step);
    this.#rows.push(Tensor.wrap(native.tensorCopy(some, 'float32')));
    native.tensorDispose(some);
  }

  /** The rows that were kept, one after the other. */
  async sample(): Promise<Float32Array> {
    const parts = await Promise.all(this.#rows.map((rows) => rows.toFloat32()));
    const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }

  [Symbol.dispose](): void {
    for (const rows of this.#rows) rows.dispose();
    this.hessian.dispose();
    this.magnitudes[Symbol.dispose]();
  }
}

/** What enters the same linear layer of several experts, whose rows come sorted by expert. */
export class ExpertStatistics implements Disposable {
  /** Of each; they stay good, and are the caller's. */
  readonly each: readonly InputStatistics[];
  readonly #hessians: HessianStack;

  constructor(experts: number, width: number) {
    this.#hessians = new HessianStack(experts, width);
    this.each = this.#hessians.each.map((hessian) => new InputStatistics(width, hessian));
  }

  /**
   * @param x `[rows, in]`, those of the first expert first; every row is a sample
   * @param counts rows of each
   * @param shares as for one
   */
  add(x: Tensor, counts: readonly number[], shares: Float32Array | null): void {
    using weighted = shares && scaledRows(x, shares);
    this.#hessians.update(weighted ?? x, counts);
    for (const { expert, first, end } of runsOf(counts)) {
      using rows = x.slice(0, first, end);
      this.each[expert]?.magnitudes.update(rows);
    }
  }

  /** Nothing comes any more. */
  [Symbol.dispose](): void {
    this.#hessians[Symbol.dispose]();
  }
}

/** Where the rows of each expert lie that has any, if they are sorted by expert. */
export function runsOf(counts: readonly number[]): { expert: number; first: number; end: number }[] {
  let end = 0;
  return counts
    .map((count, expert) => {
      const first = end;
      end += count;
      return { expert, first, end };
    })
    .filter((run) => run.end > run.first);
}

/** Rows whose outer products are those of x times the shares. */
function scaledRows(x: Tensor, shares: Float32Array): Tensor {
  using roots = vector(shares.map(Math.sqrt));
  using scaled = scaleMatrix(x, roots, null);
  return scaled.cast(x.dtype);
}

/** Statistics of what enters the linear layers of one decoder layer, gathered batch by batch. */
export class LayerInputs implements Disposable {
  readonly #inputs = new Map<string, InputStatistics>();
  /** Inputs of the batch under way that were looked at. */
  readonly #seen = new Set<string>();

  /**
   * @param wanted inputs; others are passed over
   * @param sampled rows of each batch that are kept
   */
  constructor(
    private readonly wanted: ReadonlySet<string>,
    private readonly sampled = 0,
  ) {}

  /** The layer's weights, with every input looked at on its way. */
  watch(weights: LayerWeights): LayerWeights {
    return { ...weights, onInput: (role, projection, x) => this.add(inputOf(role, projection), x) };
  }

  nextBatch(): void {
    this.#seen.clear();
  }

  /** @param x `[rows, in]`, each row a sample */
  add(input: string, x: Tensor): void {
    if (!this.wanted.has(input) || this.#seen.has(input)) return;
    this.#seen.add(input);
    const own = this.#inputs.get(input) ?? new InputStatistics(x.shape[1] as number);
    this.#inputs.set(input, own);
    own.add(x);
    if (this.sampled > 0) own.keepRows(x, this.sampled);
  }

  get(input: string): InputStatistics | null {
    return this.#inputs.get(input) ?? null;
  }

  /** Gives up those that nothing needs any more. */
  keep(inputs: readonly string[]): void {
    for (const [input, own] of this.#inputs) {
      if (inputs.includes(input)) continue;
      own[Symbol.dispose]();
      this.#inputs.delete(input);
    }
  }

  [Symbol.dispose](): void {
    this.keep([]);
  }
}
