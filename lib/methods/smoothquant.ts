/** SmoothQuant (arXiv 2211.10438): factors that move the spread of activations into the weights. */

const SMALLEST = 1e-5;
export const DEFAULT_ALPHA = 0.5;

/**
 * The factor of each input feature: weights are multiplied by it, what makes the input is divided by it.
 * @param activations largest magnitude of each input feature
 * @param weights largest magnitude of each column over all weights that share the input
 * @param alpha how much of the spread the weights take over, 0 to 1
 */
export function smoothingFactors(
  activations: ArrayLike<number>,
  weights: ArrayLike<number>,
  alpha = DEFAULT_ALPHA,
): Float32Array {
  return Float32Array.from(activations, (activation, column) => {
    const weight = Math.max(weights[column] as number, SMALLEST);
    return Math.max(activation ** alpha / weight ** (1 - alpha), SMALLEST);
  });
}
