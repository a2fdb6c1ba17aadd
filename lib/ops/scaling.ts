/** Factors of features and clipping of groups (csrc/ops/scaling). Internal: the addon checks shapes and dtypes. */
import { native } from '../native';
import { Tensor } from '../tensor';

/** `w * rows[r] * columns[c]`, float32; factors left out are 1. */
export function scaleMatrix(w: Tensor, rows: Tensor | null, columns: Tensor | null): Tensor<'float32'> {
  return Tensor.wrap(
    native.scaleMatrix(
      Tensor.native(w, 'w'),
      rows && Tensor.native(rows, 'rows'),
      columns && Tensor.native(columns, 'columns'),
    ),
  );
}

/** Each group of columns of a row clamped to plus and minus its largest magnitude times its ratio; float32. */
export function clampGroups(w: Tensor, group: number, ratios: Tensor): Tensor<'float32'> {
  return Tensor.wrap(native.clampGroups(Tensor.native(w, 'w'), group, Tensor.native(ratios, 'ratios')));
}

/** x `[T, in]` as integers of -128 to 127 times `scale` hold it, in x's dtype. */
export function roundToScale(x: Tensor, scale: number): Tensor {
  const rounded = Tensor.wrap(native.roundToScale(Tensor.native(x, 'x'), scale));
  if (x.dtype === 'float32') return rounded;
  using floats = rounded;
  return floats.cast(x.dtype);
}

/** What each group of weights that are `v` instead of `w` costs the layer's output by itself: float32 `[out, groups]`. */
export function groupErrors(w: Tensor, v: Tensor, products: Tensor, group: number): Tensor<'float32'> {
  return Tensor.wrap(
    native.groupErrors(
      Tensor.native(w, 'w'),
      Tensor.native(v, 'v'),
      Tensor.native(products, 'products'),
      group,
    ),
  );
}

interface Magnitudes {
  maxima: Tensor<'float32'>;
  sums: Tensor<'float32'>;
}

/** The largest and the mean magnitude of each input feature over all rows; on the device of the first ones. */
export class ColumnMagnitudes implements Disposable {
  #held: Magnitudes | null = null;
  #rows = 0;

  constructor(readonly columns: number) {}

  /** @param x `[rows, columns]` */
  update(x: Tensor): void {
    const zeros = () =>
      Tensor.zeros([this.columns], { dtype: 'float32', device: x.device }) as Tensor<'float32'>;
    this.#held ??= { maxima: zeros(), sums: zeros() };
    native.columnMagnitudes(
      Tensor.native(x, 'x'),
      Tensor.native(this.#held.maxima, 'maxima'),
      Tensor.native(this.#held.sums, 'sums'),
    );
    this.#rows += x.shape[0] as number;
  }

  /** Becomes what another is, whose sums it shares: neither takes further rows. */
  replace(from: ColumnMagnitudes): void {
    this[Symbol.dispose]();
    const shared = ({ maxima, sums }: Magnitudes) => ({
      maxima: maxima.to(maxima.device),
      sums: sums.to(sums.device),
    });
    this.#held = from.#held && shared(from.#held);
    this.#rows = from.#rows;
  }

  get rows(): number {
    return this.#rows;
  }

  async maxima(): Promise<Float32Array> {
    return this.#held ? this.#held.maxima.toFloat32() : new Float32Array(this.columns);
  }

  async means(): Promise<Float32Array> {
    if (!this.#held) return new Float32Array(this.columns);
    const rows = Math.max(1, this.#rows);
    return (await this.#held.sums.toFloat32()).map((sum) => sum / rows);
  }

  [Symbol.dispose](): void {
    this.#held?.maxima.dispose();
    this.#held?.sums.dispose();
    this.#held = null;
  }
}
