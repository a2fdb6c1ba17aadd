import { readFile } from 'node:fs/promises';
import { QuantariaError } from '../errors';
import type { Usage } from './types';

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const bad = (what: string): never => {
  throw new QuantariaError('ERR_FORMAT', `usage: ${what}`);
};

/**
 * Checks what `quantaria usage --json` writes; further keys are ignored.
 * @throws QuantariaError `ERR_FORMAT` naming the entry
 */
export function parseUsage(value: unknown): Usage {
  if (typeof value !== 'object' || value === null)
    return bad('expected an object with `tokens` and `layers`');
  const { tokens, layers } = value as Record<string, unknown>;
  if (!isCount(tokens)) return bad(`tokens: ${JSON.stringify(tokens)} came, expected a count`);
  if (!Array.isArray(layers)) return bad('layers: expected a list of {layer, counts}');
  const seen = new Set<number>();
  return {
    tokens,
    layers: layers.map((entry: unknown, index) => {
      if (typeof entry !== 'object' || entry === null)
        return bad(`layers[${index}]: expected {layer, counts}`);
      const { layer, counts } = entry as Record<string, unknown>;
      if (!isCount(layer))
        return bad(`layers[${index}].layer: ${JSON.stringify(layer)} came, expected an index`);
      if (seen.has(layer)) return bad(`layers[${index}]: layer ${layer} is there twice`);
      seen.add(layer);
      if (!Array.isArray(counts) || counts.length === 0 || !counts.every(isCount)) {
        return bad(`layers[${index}].counts: expected a list of counts, one for each expert`);
      }
      return { layer, counts: [...counts] };
    }),
  };
}

/** @throws QuantariaError `ERR_IO` if the file cannot be read, `ERR_FORMAT` if it is not a usage report */
export async function readUsage(file: string): Promise<Usage> {
  return parseUsage(await readJson(file));
}

/** Experts by how often they were chosen, most first; ties go to the lower index. */
export function rankExperts(counts: readonly number[]): number[] {
  return counts.map((_, expert) => expert).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b);
}

/** @throws QuantariaError `ERR_IO` if the file cannot be read, `ERR_FORMAT` if it is not JSON */
export async function readJson(file: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw new QuantariaError('ERR_IO', `${file}: ${(error as Error).message}`);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new QuantariaError('ERR_FORMAT', `${file}: not JSON: ${(error as Error).message}`);
  }
}
