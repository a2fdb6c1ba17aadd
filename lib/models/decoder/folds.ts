import type { Linear, Role } from '../types';
import type { DecoderShape } from './shape';

/** A linear layer of a decoder layer. */
export type LinearKey = Pick<Linear, 'role' | 'projection' | 'expert'>;

/**
 * A place where a factor for each feature can be moved: what makes the features is divided by it, and the weights of all
 * linear layers that take them are multiplied by it. The output stays what it was.
 */
export interface Fold {
  /** The gain of a norm, by its name inside the layer; or a linear layer's rows. */
  from: { norm: string } | { linear: LinearKey };
  to: LinearKey[];
  /** The producer's row that makes a feature of the input; one row may make several (grouped-query attention). */
  rowOf: (feature: number) => number;
}

const same = (feature: number) => feature;

/** Where factors can be moved within one decoder layer, whatever its architecture. */
export function foldsOf(linears: readonly LinearKey[], shape: DecoderShape): Fold[] {
  const find = (role: Role, projections: readonly string[]): LinearKey[] =>
    linears.filter((linear) => linear.role === role && projections.includes(linear.projection));
  const norm = (name: string, to: LinearKey[]): Fold => ({ from: { norm: name }, to, rowOf: same });
  const folds = [
    norm('input_layernorm.weight', find('attention', ['q', 'k', 'v', 'q_a', 'kv_a'])),
    norm('self_attn.q_a_layernorm.weight', find('attention', ['q_b'])),
    norm('self_attn.kv_a_layernorm.weight', find('attention', ['kv_b'])),
    norm('post_attention_layernorm.weight', [
      ...find('router', ['router', 'shared_expert_gate']),
      ...(['dense-ffn', 'shared-expert', 'expert'] as const).flatMap((role) => find(role, ['gate', 'up'])),
    ]),
  ];
  const [value] = find('attention', [shape.latent === null ? 'v' : 'kv_b']);
  if (value !== undefined) {
    folds.push({ from: { linear: value }, to: find('attention', ['o']), rowOf: valueRow(shape) });
  }
  for (const role of ['dense-ffn', 'shared-expert', 'expert'] as const) {
    for (const up of find(role, ['up'])) {
      const to = find(role, ['down']).filter(({ expert }) => expert === up.expert);
      folds.push({ from: { linear: up }, to, rowOf: same });
    }
  }
  return folds.filter(({ to }) => to.length > 0);
}

/** The row of the values' projection that makes a feature of what enters `o`. */
function valueRow({ heads, kvHeads, valueDim, latent }: DecoderShape): (feature: number) => number {
  const perValue = heads / kvHeads;
  return (feature) => {
    const head = Math.floor(Math.floor(feature / valueDim) / perValue);
    const within = feature % valueDim;
    return latent === null
      ? head * valueDim + within
      : head * (latent.plain + latent.value) + latent.plain + within;
  };
}

export const keyOf = ({ role, projection, expert }: LinearKey): string =>
  `${role} ${projection}${expert === null ? '' : ` ${expert}`}`;
