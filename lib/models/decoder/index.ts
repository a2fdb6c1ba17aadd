export {
  type Activations,
  attentionHalf,
  decoderBlock,
  type ExpertWeights,
  feedForwardInput,
  gated,
  type LayerWeights,
  type LinearWeight,
  type Matrix,
  routeTokens,
  type Span,
} from './block';
export { KeyValueCache } from './cache';
export { type Fold, foldsOf, keyOf, type LinearKey } from './folds';
export { rotaryAngles } from './rope';
export { type DecoderShape, decoderShape } from './shape';
