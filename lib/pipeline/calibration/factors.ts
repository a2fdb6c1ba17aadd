import { vector } from '../../methods/awq';
import type { Fold, LinearKey } from '../../models/decoder';
import { keyOf } from '../../models/decoder';
import { scaleMatrix } from '../../ops/scaling';
import type { Tensor } from '../../tensor';

/** The factors of one decoder layer: what its weights, norms and biases are multiplied by. */
export class LayerFactors {
  /** By linear layer: of its output features, and of its input features. */
  readonly rows = new Map<string, Float32Array>();
  readonly columns = new Map<string, Float32Array>();
  /** Norms as they are stored afterwards, by name inside the layer. */
  readonly gains = new Map<string, Tensor>();

  /** Factors of features that one row makes become one: their geometric mean. */
  static settle({ from, rowOf }: Fold): (factors: Float32Array) => Float32Array {
    if ('norm' in from) return (factors) => factors;
    return (factors) => {
      const sums = new Map<number, { sum: number; count: number }>();
      for (const [feature, factor] of factors.entries()) {
        const { sum, count } = sums.get(rowOf(feature)) ?? { sum: 0, count: 0 };
        sums.set(rowOf(feature), { sum: sum + Math.log(factor), count: count + 1 });
      }
      return factors.map((_, feature) => {
        const { sum, count } = sums.get(rowOf(feature)) as { sum: number; count: number };
        return Math.exp(sum / count);
      });
    };
  }

  /**
   * Moves the factors of a norm's output into the linear layers behind it. The gain is rounded as it is stored, and the
   * factors are made to fit, so that together they are what the gain was.
   */
  async foldNorm(name: string, gain: Tensor, to: readonly LinearKey[], factors: Float32Array): Promise<void> {
    const before = await gain.toFloat32();
    using wanted = vector(before.map((value, i) => value / (factors[i] as number)));
    const stored = wanted.cast(gain.dtype);
    const after = await stored.toFloat32();
    const usable = (i: number) => after[i] !== 0 && Number.isFinite(after[i]) && before[i] !== 0;
    const fitted = before.map((value, i) => (usable(i) ? value / (after[i] as number) : 1));
    if (after.some((_, i) => !usable(i) && before[i] !== 0)) {
      // A gain that cannot hold its factor stays as it is, and all others with it.
      stored.dispose();
      return;
    }
    this.gains.set(name, stored);
    for (const key of to) this.columns.set(keyOf(key), fitted);
  }

  foldLinear(from: LinearKey, rows: number, fold: Fold, factors: Float32Array): void {
    const inverse = new Float32Array(rows).fill(1);
    for (const [feature, factor] of factors.entries()) inverse[fold.rowOf(feature)] = 1 / factor;
    this.rows.set(keyOf(from), inverse);
    for (const key of fold.to) this.columns.set(keyOf(key), factors);
  }

  /** float32; the caller disposes it. */
  weight(key: LinearKey, weight: Tensor): Tensor {
    const [rows, columns] = [this.rows.get(keyOf(key)), this.columns.get(keyOf(key))];
    using ofRows = rows ? vector(rows) : null;
    using ofColumns = columns ? vector(columns) : null;
    return scaleMatrix(weight, ofRows, ofColumns);
  }

  /** What a scaled weight stands for in the original's features; the caller disposes it. */
  unscaled(key: LinearKey, weight: Tensor): Tensor {
    const inverse = (factors: Float32Array | undefined) =>
      factors && vector(factors.map((factor) => 1 / factor));
    const ofRows = inverse(this.rows.get(keyOf(key)));
    const ofColumns = inverse(this.columns.get(keyOf(key)));
    try {
      return scaleMatrix(weight, ofRows ?? null, ofColumns ?? null);
    } finally {
      ofRows?.dispose();
      ofColumns?.dispose();
    }
  }

  /** Sums of products of an input as they are when it is divided by the factors. */
  products(key: LinearKey, products: Tensor): Tensor {
    const columns = this.columns.get(keyOf(key));
    if (columns === undefined) return products.to(products.device);
    using inverse = vector(columns.map((factor) => 1 / factor));
    return scaleMatrix(products, inverse, inverse);
  }

  bias(key: LinearKey, bias: Tensor): Tensor {
    const rows = this.rows.get(keyOf(key));
    if (rows === undefined) return bias.to(bias.device);
    using matrix = bias.reshape([1, bias.size]);
    using ofColumns = vector(rows);
    using scaled = scaleMatrix(matrix, null, ofColumns);
    return scaled.reshape([bias.size]);
  }

  dispose(): void {
    for (const gain of this.gains.values()) gain.dispose();
  }
}
