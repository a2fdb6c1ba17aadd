import type { Role } from '../models/types';
import type { RuleMatch, Usage } from './types';
import { rankExperts } from './usage';

/** What a rule can see of a tensor. */
export interface Candidate {
  role: Role;
  layer: number | null;
  expert: number | null;
  /** Every name that a glob may mean: of the module, of the tensor, and of the stored tensor. */
  names: readonly string[];
}

/** First and last decoder layer of a range, both included. */
export type LayerRange = readonly [first: number, last: number];

/** Reads `0-3,27`; null if it is not of that form. */
export function parseLayers(text: string): LayerRange[] | null {
  const ranges: LayerRange[] = [];
  for (const part of text.split(',')) {
    const found = /^\s*(\d{1,6})(?:-(\d{1,6}))?\s*$/.exec(part);
    if (found === null) return null;
    const first = Number(found[1]);
    const last = Number(found[2] ?? found[1]);
    if (last < first) return null;
    ranges.push([first, last]);
  }
  return ranges;
}

/** Writes rising layers as ranges, the inverse of `parseLayers`: 0, 1, 2, 5 are `0-2,5`. */
export function formatLayers(layers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const layer of layers) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] + 1 === layer) last[1] = layer;
    else ranges.push([layer, layer]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(',');
}

/** Reads `top:16`; null if it is not of that form. */
export function parseTop(text: string): number | null {
  const found = /^top:(\d{1,9})$/.exec(text);
  return found === null ? null : Number(found[1]);
}

/**
 * Whether a glob covers the whole name: `*` any characters, dots too, `?` exactly one. Takes at most |glob| x
 * |name| steps.
 */
export function matchesGlob(glob: string, name: string): boolean {
  let at = 0;
  let position = 0;
  let star = -1;
  let resume = 0;
  while (position < name.length) {
    if (glob[at] === '*') {
      star = at++;
      resume = position;
    } else if (at < glob.length && (glob[at] === '?' || glob[at] === name[position])) {
      ++at;
      ++position;
    } else if (star >= 0) {
      at = star + 1;
      position = ++resume;
    } else {
      return false;
    }
  }
  while (glob[at] === '*') ++at;
  return at === glob.length;
}

/** The experts of each layer that are among its `top` most used. */
class TopExperts {
  private readonly byLayer = new Map<number, ReadonlySet<number>>();

  constructor(usage: Usage | null, top: number) {
    for (const { layer, counts } of usage?.layers ?? []) {
      this.byLayer.set(layer, new Set(rankExperts(counts).slice(0, top)));
    }
  }

  has({ layer, expert }: Candidate): boolean {
    return layer !== null && expert !== null && (this.byLayer.get(layer)?.has(expert) ?? false);
  }
}

/** Turns a checked match into a test. Without usage, a `usage` field matches nothing. */
export function compileMatch(match: RuleMatch, usage: Usage | null): (candidate: Candidate) => boolean {
  const { role, layers, name } = match;
  const ranges = layers === undefined ? null : (parseLayers(layers) ?? []);
  const top = match.usage === undefined ? null : new TopExperts(usage, parseTop(match.usage) ?? 0);
  return (candidate) => {
    if (role !== undefined && candidate.role !== role) return false;
    if (ranges !== null) {
      const { layer } = candidate;
      if (layer === null || !ranges.some(([first, last]) => first <= layer && layer <= last)) return false;
    }
    if (name !== undefined && !candidate.names.some((own) => matchesGlob(name, own))) return false;
    return top === null || top.has(candidate);
  };
}

/** A match in words: `role expert, layers 0-3`. */
export function matchText(match: RuleMatch): string {
  const parts = [
    match.role === undefined ? null : `role ${match.role}`,
    match.layers === undefined ? null : `layers ${match.layers}`,
    match.name === undefined ? null : `name ${match.name}`,
    match.usage === undefined ? null : `usage ${match.usage}`,
    match.outliers === undefined ? null : `outliers ${match.outliers}`,
  ].filter((part) => part !== null);
  return parts.length === 0 ? 'everything' : parts.join(', ');
}
