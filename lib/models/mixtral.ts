import type { Architecture } from './architecture';

/**
 * Mixtral: files say `block_sparse_moe` and w1 (gate), w3 (up), w2 (down); transformers v5 says `mlp` in
 * memory. The grouped stacks fc1 and fc2 are under `mlp` in every family. Source: transformers
 * `models/mixtral`.
 */
export const mixtral: Architecture = {
  modelTypes: ['mixtral'],
  experts: {
    sequential: 'block_sparse_moe.experts.{expert}.{projection}',
    projections: { gate: 'w1', up: 'w3', down: 'w2' },
    fused: { transposed: false, interleaved: false },
  },
  // It says softmax, top-k, normalise, which is the softmax over the chosen ones.
  decoder: { router: () => ({ order: 'topk-softmax' }), theta: 1e6, slides: () => true },
  toLoader: (name) => name.replace(/(layers\.\d+\.)block_sparse_moe(?=\.|$)/, '$1mlp'),
  toDisk: (name) => name.replace(/(layers\.\d+\.)mlp(?!\.experts\.fc[12]\.)(?=\.|$)/, '$1block_sparse_moe'),
};
