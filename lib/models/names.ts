import type { Architecture } from './architecture';
import type { StoredTensor } from './types';

/** Prefixes of multimodal models, in files and in transformers v5's memory. */
const wrapperPrefixes: readonly (readonly [disk: string, loader: string])[] = [
  ['language_model.lm_head', 'lm_head'],
  ['language_model.model', 'model.language_model'],
  ['vision_tower', 'model.vision_tower'],
  ['multi_modal_projector', 'model.multi_modal_projector'],
];

const under = (name: string, prefix: string) =>
  name.startsWith(prefix) && (name.length === prefix.length || name[prefix.length] === '.');

function replacePrefix(name: string, from: 0 | 1): string {
  for (const pair of wrapperPrefixes) {
    if (under(name, pair[from])) return pair[1 - from] + name.slice(pair[from].length);
  }
  return name;
}

/** Names as files have them, for a tensor or a module under either spelling. */
export function toDiskName(architecture: Architecture, wrapped: boolean, name: string): string {
  const inner = architecture.toDisk?.(name) ?? name;
  return wrapped ? replacePrefix(inner, 1) : inner;
}

/** Names as transformers v5 has them in memory, from those of files. */
export function toLoaderName(architecture: Architecture, wrapped: boolean, name: string): string {
  const inner = architecture.toLoader?.(name) ?? name;
  if (!wrapped) return inner;
  const renamed = replacePrefix(inner, 0);
  // Some early multimodal files have the decoder right under `language_model.`.
  return renamed === inner && under(inner, 'language_model') ? `model.${inner}` : renamed;
}

/**
 * Whether the decoder sits inside a multimodal model. `model.language_model.` is a loader's prefix in some
 * families and what files have in others; there only experts in the loader's form tell.
 */
export function isWrapped(architecture: Architecture, tensors: readonly StoredTensor[]): boolean {
  let loader = false;
  let fused = false;
  for (const { name } of tensors) {
    if (wrapperPrefixes.some(([disk], index) => index !== 0 && under(name, disk))) return true;
    loader ||= wrapperPrefixes.some(([, prefix], index) => index !== 0 && under(name, prefix));
    fused ||= name.endsWith('.experts.gate_up_proj');
  }
  return loader && (architecture.wrapper === true || fused);
}

/** A name inside a decoder layer, cut after `layers.N.`. */
export interface LayerName {
  prefix: string;
  layer: number;
  rest: string;
}

const layerPattern = /^((?:.*?\.)?(?:layers|blocks|block|h)\.(\d{1,6})\.)(.+)$/;

export function splitLayer(name: string): LayerName | null {
  const found = layerPattern.exec(name);
  return found === null ? null : { prefix: found[1] ?? '', layer: Number(found[2]), rest: found[3] ?? '' };
}

/** A key that sorts `layers.2` before `layers.10`: every number padded to ten digits. */
export const naturalKey = (name: string): string =>
  name.replace(/\d+/g, (digits) => digits.padStart(10, '0'));

/** Sorts by name, numbers by value; the result does not depend on the order given, nor on the locale. */
export function sortByName<T>(items: readonly T[], nameOf: (item: T) => string): T[] {
  const keyed = items.map((item) => ({ item, key: naturalKey(nameOf(item)), name: nameOf(item) }));
  keyed.sort((a, b) => compare(a.key, b.key) || compare(a.name, b.name));
  return keyed.map(({ item }) => item);
}

const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
