import { QuantariaError } from '../errors';
import type { Activations, Format } from '../formats';
import type { PlannedTensor } from './quantize_plan';

/** A decoder's weight that the format can store beside activations like these. No loader takes routed experts with one scale. */
export function activationsFor(
  { linear, scheme }: Pick<PlannedTensor, 'linear' | 'scheme'>,
  format: Format,
  asked: Activations | undefined,
): Activations | undefined {
  if (asked === undefined || scheme === null) return undefined;
  const own = linear?.role === 'expert' ? 'dynamic' : asked;
  return format.activations?.(scheme).includes(own) ? own : undefined;
}

/** @throws QuantariaError `ERR_ARGUMENT` if what was asked comes to nothing */
export function checkActivations(
  drafts: readonly Pick<PlannedTensor, 'activations'>[],
  { name }: Format,
  asked: Activations | undefined,
): void {
  if (asked === undefined || drafts.some(({ activations }) => activations !== undefined)) return;
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `--activations ${asked}: ${name} stores none beside these weights; compressed-tensors does beside symmetric 8-bit weights without groups (--bits 8)`,
  );
}
