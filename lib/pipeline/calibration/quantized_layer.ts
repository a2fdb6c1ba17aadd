import type { ExpertWeights, LayerWeights, LinearKey, Matrix } from '../../models/decoder';
import type { Role } from '../../models/types';
import type { QuantizedTensor } from '../../quantized';
import type { Tensor } from '../../tensor';

const PROJECTIONS = ['gate', 'up', 'down'] as const;
type Projection = (typeof PROJECTIONS)[number];

/** A layer whose weights are replaced one by one by what they were quantized to. */
export class QuantizedLayer implements Disposable {
  readonly #linears = new Map<string, QuantizedTensor>();
  readonly #kept = new Map<string, Tensor>();
  /** Norms and biases, by name inside the layer. */
  readonly #vectors = new Map<string, Tensor>();
  readonly #experts: Partial<Record<Projection, QuantizedTensor>>[] = [];

  constructor(private readonly original: LayerWeights) {}

  /** Takes the weight over. */
  replace({ role, projection, expert }: LinearKey, weight: QuantizedTensor): void {
    if (expert === null) this.#linears.set(`${role} ${projection}`, weight);
    else this.#experts[expert] = { ...this.#experts[expert], [projection as Projection]: weight };
  }

  /** A weight that is kept, but has taken factors. Takes it over. */
  replaceKept({ role, projection }: LinearKey, weight: Tensor): void {
    this.#kept.set(`${role} ${projection}`, weight);
  }

  /** A norm by its name inside the layer. Takes it over. */
  replaceNorm(name: string, gain: Tensor): void {
    this.#vectors.set(name, gain);
  }

  /** float32. Takes it over. */
  replaceBias({ role, projection }: LinearKey, bias: Tensor): void {
    this.#vectors.set(`${role} ${projection}`, bias);
  }

  /** The original's weight of a linear layer. */
  originalOf({ role, projection, expert }: LinearKey): Matrix {
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
        const key = `${role} ${projection}`;
        const weight = this.#linears.get(key) ?? this.#kept.get(key) ?? found.weight;
        return { weight, bias: this.#vectors.get(key) ?? found.bias };
      },
      vector: (name: string) => this.#vectors.get(name) ?? original.vector(name),
      norm: (name: string) => this.#vectors.get(name) ?? original.norm(name),
    };
  }

  [Symbol.dispose](): void {
    for (const own of [this.#linears, this.#kept, this.#vectors]) {
      for (const tensor of own.values()) tensor.dispose();
    }
    for (const expert of this.#experts) {
      for (const projection of PROJECTIONS) expert?.[projection]?.dispose();
    }
  }
}
