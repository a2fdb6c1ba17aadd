import { type DecoderShape, type Fold, foldsOf, keyOf } from '../../models/decoder';
import { splitLayer } from '../../models/names';
import type { PlannedTensor, QuantizePlan } from '../quantize_plan';
import { isQuantized, type PlannedMatrix } from '../quantize_units';

/** What folding does to one decoder layer, as far as names and shapes tell. */
export interface LayerFolds {
  folds: Fold[];
  /** Weights that are quantized, by `keyOf`. */
  quantized: Map<string, PlannedMatrix>;
  /** Linear weights that are kept, and take factors: the router. */
  kept: Map<string, PlannedTensor>;
  /** Norms and biases that take factors, by their name inside the layer. */
  vectors: Map<string, PlannedTensor>;
}

/** The name of a planned tensor inside its layer. */
const restOf = (tensor: PlannedTensor): string | null => {
  const { from } = tensor.target;
  return 'copy' in from ? (splitLayer(from.copy)?.rest ?? null) : null;
};

/** Of a dtype that products take, in which factors are then stored. */
const isWritable = ({ target }: PlannedTensor): boolean => ['F32', 'F16', 'BF16'].includes(target.dtype);

/** The name of a linear layer's bias inside its layer. */
export const biasOf = (member: PlannedMatrix): string => `${splitLayer(member.linear.name)?.rest ?? ''}.bias`;

/**
 * The folds of a layer that can be had: all that take the factors are quantized or whole matrices that can be rewritten, at
 * least one is quantized, and so is the linear layer that gives them, or it is a norm.
 */
export function foldsOfLayer(plan: QuantizePlan, shape: DecoderShape, layer: number): LayerFolds {
  const own = plan.tensors.filter((tensor) => tensor.layer === layer);
  const quantized = new Map<string, PlannedMatrix>();
  const keptLinears = new Map<string, PlannedTensor>();
  for (const tensor of own) {
    if (isQuantized(tensor)) quantized.set(keyOf(tensor.linear), tensor);
    else if (tensor.linear !== null && isWritable(tensor)) keptLinears.set(keyOf(tensor.linear), tensor);
  }
  const others = new Map<string, PlannedTensor>();
  for (const tensor of own) {
    const rest = restOf(tensor);
    if (tensor.linear === null && rest !== null && isWritable(tensor)) others.set(rest, tensor);
  }
  const linears = plan.model.linears.filter((linear) => linear.layer === layer);
  const folds = foldsOf(linears, shape).filter(({ from, to }) => {
    const rewritable = to.every((key) => quantized.has(keyOf(key)) || keptLinears.has(keyOf(key)));
    const gains = to.some((key) => quantized.has(keyOf(key)));
    const gives = 'norm' in from ? others.has(from.norm) : quantized.has(keyOf(from.linear));
    return rewritable && gains && gives;
  });
  const found: LayerFolds = { folds, quantized, kept: new Map(), vectors: new Map() };
  for (const { from, to } of folds) {
    for (const key of to) {
      const kept = keptLinears.get(keyOf(key));
      if (kept !== undefined) found.kept.set(keyOf(key), kept);
    }
    const name = 'norm' in from ? from.norm : biasOf(quantized.get(keyOf(from.linear)) as PlannedMatrix);
    const vector = others.get(name);
    if (vector !== undefined) found.vectors.set(name, vector);
  }
  return found;
}

/** Kept tensors that folding rewrites. */
export const rewrittenOf = ({ kept, vectors }: LayerFolds): PlannedTensor[] => [
  ...kept.values(),
  ...vectors.values(),
];
