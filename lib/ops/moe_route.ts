import { QuantariaError } from '../errors';
import { type NativeTensor, native } from '../native';
import { checkInteger, checkOptions, show, Tensor } from '../tensor';
import { checkNumber, checkTensor } from './checks';

/** Which experts each token goes to, and how much each counts. */
export interface Routing {
  /** `[T, K]`, experts of each token by falling logit */
  indices: Tensor<'int32'>;
  /** `[T, K]` */
  weights: Tensor<'float32'>;
  /** `[E]`, slots of each expert */
  counts: Tensor<'int32'>;
  /** `[T K]`, the slots `t K + k` sorted by expert, those of one expert rising */
  order?: Tensor<'int32'>;
  /** `[E + 1]`: expert e has the slots `order[offsets[e]]` to `order[offsets[e + 1] - 1]` */
  offsets?: Tensor<'int32'>;
}

export interface RouteOptions {
  /** 1 to E */
  topK: number;
  /** softmax over the chosen logits, or over all and then the choice */
  order: 'topk-softmax' | 'softmax-topk';
  /** divide the weights of a token by their sum; default false. Those of `topk-softmax` have the sum 1 anyway */
  normalize?: boolean;
  /** factor of the weights, after that; default 1 */
  scale?: number;
  /** experts are in so many groups of equal size, up to 64, that follow each other; default 1 */
  groups?: number;
  /** only experts of so many groups are chosen, those whose largest logits are largest; default all */
  topGroups?: number;
}

const MAX_GROUPS = 64;

/** Routings whose order and offsets were made here, and are frozen. */
const complete = new WeakSet<Routing>();

/**
 * The top-k choice of a mixture-of-experts router, `topK` up to the number of experts in the chosen groups
 * (DeepSeek-V2, arXiv 2405.04434, 2.1.2).
 *
 * A NaN logit ranks above infinity. A token with a NaN, or whose largest logit is infinite, has NaN weights; minus
 * infinity below a finite logit has weight 0. Indices are distinct and in range whatever the logits.
 * @param logits `[T, E]`, float32, float16 or bfloat16
 * @returns frozen, with `order` and `offsets`; indices by falling logit, ties to the lower one
 * @throws QuantariaError `ERR_ARGUMENT`, `ERR_SHAPE`, `ERR_DTYPE`
 */
export function route(logits: Tensor, opts: RouteOptions): Required<Routing> {
  const handle = checkTensor('logits', logits, ['float32', 'float16', 'bfloat16'], 2);
  const options = checkOptions(opts);
  const experts = logits.shape[1] as number;
  const topK = checkInteger('topK', options.topK, 1, experts);
  const { order, normalize = false, scale = 1 } = options;
  const groups = checkInteger('groups', options.groups ?? 1, 1, MAX_GROUPS);
  const topGroups = checkInteger('topGroups', options.topGroups ?? groups, 1, groups);
  if (order !== 'topk-softmax' && order !== 'softmax-topk') {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `order: ${show(order)} came, expected topk-softmax or softmax-topk`,
    );
  }
  if (typeof normalize !== 'boolean') {
    throw new QuantariaError('ERR_ARGUMENT', `normalize: ${show(normalize)} came, expected a boolean`);
  }
  const made = native.moeRoute(
    handle,
    topK,
    order === 'softmax-topk',
    normalize,
    checkNumber('scale', scale),
    groups,
    topGroups,
  );
  const routing = Object.freeze({
    indices: Tensor.wrap<'int32'>(made.indices),
    weights: Tensor.wrap<'float32'>(made.weights),
    counts: Tensor.wrap<'int32'>(made.counts),
    order: Tensor.wrap<'int32'>(made.order),
    offsets: Tensor.wrap<'int32'>(made.offsets),
  });
  complete.add(routing);
  return routing;
}

/** @internal A routing as kernels take it. */
export interface NativeRouting {
  indices: NativeTensor;
  weights: NativeTensor;
  counts: NativeTensor;
  order: NativeTensor;
  offsets: NativeTensor;
}

/**
 * @internal Calls `body` with a routing's tensors. `route`'s own order and offsets are taken as they are; for any other
 * routing they are made from its indices, whatever it has there, and an index out of range fails on the queue.
 * @throws QuantariaError `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, also if it does not route `tokens` tokens to `experts`
 */
export function withRouting<T>(
  routing: Routing,
  tokens: number,
  experts: number,
  body: (tensors: NativeRouting) => T,
): T {
  if (typeof routing !== 'object' || routing === null) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `routing: ${show(routing)} came, expected {indices, weights, counts}`,
    );
  }
  const { indices, weights, counts } = routing;
  const own = {
    indices: checkTensor('routing.indices', indices, ['int32'], 2),
    weights: checkTensor('routing.weights', weights, ['float32'], 2),
    counts: checkTensor('routing.counts', counts, ['int32'], 1),
  };
  const expected: [string, readonly number[], readonly number[]][] = [
    ['indices', indices.shape, [tokens, indices.shape[1] as number]],
    ['weights', weights.shape, indices.shape],
    ['counts', counts.shape, [experts]],
  ];
  for (const [name, came, wanted] of expected) {
    if (came.join() !== wanted.join())
      throw new QuantariaError('ERR_SHAPE', `routing.${name}: [${came}] came, expected [${wanted}]`);
  }
  if (complete.has(routing)) {
    const { order, offsets } = routing as Required<Routing>;
    return body({
      ...own,
      order: Tensor.native(order, 'routing.order'),
      offsets: Tensor.native(offsets, 'routing.offsets'),
    });
  }
  const made = native.moeSortSlots(own.indices, experts);
  try {
    return body({ ...own, ...made });
  } finally {
    for (const tensor of Object.values(made)) native.tensorDispose(tensor);
  }
}
