import { native } from '../native';
import { Tensor } from '../tensor';
import { Hessian } from './gptq';

/**
 * Hessians of one width that are updated together, as the experts of a layer want it: on CUDA devices in one launch. The same
 * bits as one by one. Internal: what comes has been checked.
 */
export class HessianStack implements Disposable {
  /** Each has its part of the memory until it is disposed itself. */
  readonly each: readonly Hessian[];
  /** `[count, in, in]` */
  readonly #products: Tensor<'float32'>;

  constructor(count: number, inFeatures: number) {
    this.#products = Tensor.zeros([count, inFeatures, inFeatures]);
    this.each = Hessian.parts(this.#products);
  }

  /**
   * @param x `[rows, in]`, those of the first Hessian first; every row is a sample
   * @param counts rows of each
   */
  update(x: Tensor, counts: readonly number[]): void {
    using rows = Tensor.from(Int32Array.from(counts), [counts.length], { device: x.device });
    native.hessianUpdateEach(
      Tensor.native(this.#products, 'products'),
      Tensor.native(x, 'x'),
      Tensor.native(rows, 'counts'),
    );
    for (const [i, count] of counts.entries()) this.each[i]?.count(count);
  }

  /** No more updates. */
  [Symbol.dispose](): void {
    this.#products.dispose();
  }
}
