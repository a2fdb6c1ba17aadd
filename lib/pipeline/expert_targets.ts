import { type Linear, layoutTensors, type ModelMap, type TargetTensor } from '../models';

/**
 * What a checkpoint holds whose experts are quantized one by one: the sequential layout. Where the experts have biases in
 * stacks (gpt-oss), which that layout has no place for, their weights alone are taken out of their stacks, and the format
 * decides how they lie together.
 * @throws QuantariaError `ERR_UNSUPPORTED`, `ERR_ARGUMENT` as `layoutTensors`
 */
export function expertTargets(model: ModelMap, sequentialTemplate?: string): TargetTensor[] {
  const { expertLayout, linears, others } = model;
  const isPlain = expertLayout === 'sequential' || !others.some(({ role }) => role === 'expert');
  if (isPlain || expertLayout === null || sequentialTemplate !== undefined) {
    return layoutTensors(model, 'sequential', { sequentialTemplate });
  }
  const stacks = new Map<string, Linear[]>();
  for (const linear of linears) {
    if (linear.role !== 'expert') continue;
    const members = stacks.get(linear.source.tensor);
    if (members) members.push(linear);
    else stacks.set(linear.source.tensor, [linear]);
  }
  return layoutTensors(model, expertLayout).flatMap((target) => {
    const members = 'copy' in target.from ? stacks.get(target.from.copy) : undefined;
    return members?.map(matrixOf) ?? [target];
  });
}

function matrixOf(linear: Linear): TargetTensor {
  const { name, dtype, shape } = linear;
  const tensor = `${name}.weight`;
  const piece = { tensor, expert: null, start: 0, end: shape[0], step: 1, transposed: false };
  return { name: tensor, dtype, shape: [...shape], from: { pieces: [{ linear, piece }] } };
}
