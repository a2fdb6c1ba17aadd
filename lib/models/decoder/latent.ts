import { native } from '../../native';
import { rmsNorm, rotate } from '../../ops/decoder';
import { scoped } from '../../ops/pieces';
import { Tensor } from '../../tensor';
import { type LayerWeights, project, type QueriesKeysValues, rotaryOf, type Span } from './block';
import type { DecoderShape, LatentShape } from './shape';

/** The norms of the low-rank vectors have this epsilon, whatever config.json says of the others. */
const LATENT_EPS = 1e-6;

/**
 * Multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434), expanded: keys and values of every head from one vector a
 * token, and one rotary key for all heads. Pairs are neighbours in the stored order.
 */
export function latentQueriesKeysValues(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  latent: LatentShape,
  span: Span,
): QueriesKeysValues {
  using compressed = project(x, weights, 'attention', 'kv_a');
  using shared = compressed.slice(1, 0, latent.rank);
  using normed = rmsNorm(shared, weights.norm('self_attn.kv_a_layernorm.weight'), LATENT_EPS);
  using expanded = project(normed, weights, 'attention', 'kv_b');
  using rotaryKey = compressed.slice(1, latent.rank, latent.rank + latent.rotary);
  using turned = rotate(rotaryKey, span.table, {
    ...rotaryOf(span),
    heads: 1,
    headDim: latent.rotary,
    offset: 0,
    dims: latent.rotary,
    interleaved: true,
  });
  return { q: queries(x, weights, shape, latent, span), ...keysAndValues(expanded, turned, shape, latent) };
}

function queries(
  x: Tensor,
  weights: LayerWeights,
  shape: DecoderShape,
  latent: LatentShape,
  span: Span,
): Tensor {
  using projected = weights.has('attention', 'q_a')
    ? lowRankQueries(x, weights)
    : project(x, weights, 'attention', 'q');
  return rotate(projected, span.table, {
    ...rotaryOf(span),
    heads: shape.heads,
    headDim: shape.headDim,
    offset: latent.plain,
    dims: latent.rotary,
    interleaved: true,
  });
}

function lowRankQueries(x: Tensor, weights: LayerWeights): Tensor {
  using low = project(x, weights, 'attention', 'q_a');
  using normed = rmsNorm(low, weights.norm('self_attn.q_a_layernorm.weight'), LATENT_EPS);
  return project(normed, weights, 'attention', 'q_b');
}

/** Of `[T, heads * (plain + value)]` and the rotary key `[T, rotary]`: keys `[T, heads * (plain + rotary)]`, and values. */
function keysAndValues(
  expanded: Tensor,
  rotaryKey: Tensor,
  { heads, headDim }: DecoderShape,
  { plain, rotary, value }: LatentShape,
): Pick<QueriesKeysValues, 'k' | 'v'> {
  const tokens = expanded.shape[0] as number;
  using perHead = expanded.reshape([tokens, heads, plain + value]);
  using values = perHead.slice(2, plain, plain + value);
  using key = rotaryKey.reshape([tokens, 1, rotary]);
  const k = native.tensorEmpty(expanded.dtype, [tokens, heads, headDim], expanded.device);
  return scoped((own) => {
    const stored = Tensor.native(perHead, 'expanded');
    native.tensorCopyInto(
      own(native.tensorSlice(stored, 2, 0, plain, 1)),
      own(native.tensorSlice(own(k), 2, 0, plain, 1)),
    );
    const places = own(native.tensorSlice(k, 2, plain, headDim, 1));
    for (let head = 0; head < heads; ++head) {
      native.tensorCopyInto(Tensor.native(key, 'key'), own(native.tensorSlice(places, 1, head, head + 1, 1)));
    }
    return {
      k: Tensor.wrap(native.tensorReshape(k, [tokens, heads * headDim])),
      v: values.reshape([tokens, heads * value]),
    };
  });
}
