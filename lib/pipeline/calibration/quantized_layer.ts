import type { ExpertWeights, LayerWeights, Matrix } from '../../models/decoder';
import type { Linear, Role } from '../../models/types';
import type { QuantizedTensor } from '../../quantized';

const PROJECTIONS = ['gate', 'up', 'down'] as const;
type Projection = (typeof PROJECTIONS)[number];

/** A layer whose weights are replaced one by one by what they were quantized to. */
export class QuantizedLayer implements Disposable {
  readonly #linears = new Map<string, QuantizedTensor>();
  readonly #experts: Partial<Record<Projection, QuantizedTensor>>[] = [];

  constructor(private readonly original: LayerWeights) {}

  /** Takes the weight over. */
  replace({ role, projection, expert }: Linear, weight: QuantizedTensor): void {
    if (expert === null) this.#linears.set(`${role} ${projection}`, weight);
    else this.#experts[expert] = { ...this.#experts[expert], [projection as Projection]: weight };
  }

  /** The original's weight of a linear layer. */
  originalOf({ role, projection, expert }: Linear): Matrix {
    if (expert === null) return this.original.linear(role, projection).weight;
    return (this.original.experts[expert] as ExpertWeights)[projection as Projection];
  }

  /** Good until this or the original is disposed. */
  weights(): LayerWeights {
    const { original } = this;
    const experts = original.experts.map((expert, e) => ({ ...expert, ...this.#experts[e] }));
    return {
      ...original,
      experts,
      linear: (role: Role, projection: string) => {
        const found = original.linear(role, projection);
        return { ...found, weight: this.#linears.get(`${role} ${projection}`) ?? found.weight };
      },
    };
  }

  [Symbol.dispose](): void {
    for (const weight of this.#linears.values()) weight.dispose();
    for (const expert of this.#experts) {
      for (const projection of PROJECTIONS) expert?.[projection]?.dispose();
    }
  }
}
