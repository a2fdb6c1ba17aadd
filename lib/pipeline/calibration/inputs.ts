import type { LayerWeights } from '../../models/decoder';
import type { Role } from '../../models/types';
import { Hessian } from '../../ops/gptq';
import type { Tensor } from '../../tensor';

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

/** Hessians of what enters the linear layers of one decoder layer, gathered batch by batch. */
export class InputHessians implements Disposable {
  readonly #hessians = new Map<string, Hessian>();
  /** Inputs of the batch under way that were looked at. */
  readonly #seen = new Set<string>();

  /** @param wanted inputs; others are passed over */
  constructor(private readonly wanted: ReadonlySet<string>) {}

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
    const [rows, width] = x.shape as [number, number];
    const hessian = this.#hessians.get(input) ?? new Hessian(width);
    this.#hessians.set(input, hessian);
    addRows(hessian, x, rows, width);
  }

  get(input: string): Hessian | null {
    return this.#hessians.get(input) ?? null;
  }

  /** Gives up those that nothing needs any more. */
  keep(inputs: readonly string[]): void {
    for (const [input, hessian] of this.#hessians) {
      if (inputs.includes(input)) continue;
      hessian.dispose();
      this.#hessians.delete(input);
    }
  }

  [Symbol.dispose](): void {
    this.keep([]);
  }
}

/** Every row is a sample: experts see different numbers of them, which are to count the same. */
export function addRows(hessian: Hessian, x: Tensor, rows: number, width: number): void {
  using samples = x.reshape([rows, 1, width]);
  hessian.update(samples);
}
