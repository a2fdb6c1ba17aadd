export { decoderBlock, type LayerWeights, type LinearWeight, type Matrix, type Span } from './block';
export { KeyValueCache } from './cache';
export { rotaryAngles } from './rope';
export { type DecoderShape, decoderShape } from './shape';
