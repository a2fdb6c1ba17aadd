import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError, isMissing } from '../checkpoint/json_file';

/** config.json as text, or null without one. */
export async function readConfigText(directory: string): Promise<string | null> {
  try {
    return await fs.readFile(path.join(directory, 'config.json'), 'utf8');
  } catch (error) {
    if (isMissing(error)) return null;
    throw ioError(directory, error);
  }
}

/**
 * Adds members to a JSON object's text and leaves the rest as it is written: parsed and written again, `10000.0` would
 * become an integer, which strict loaders refuse. Members that are there already do force that.
 */
export function withMembers(text: string | null, members: Readonly<Record<string, unknown>>): string {
  const object = text === null ? {} : (JSON.parse(text) as Record<string, unknown>);
  const added = Object.entries(members).filter(([, value]) => value !== undefined);
  if (text === null || added.some(([key]) => Object.hasOwn(object, key))) {
    return `${JSON.stringify({ ...object, ...Object.fromEntries(added) }, null, 2)}\n`;
  }
  if (added.length === 0) return text;
  const end = text.lastIndexOf('}');
  const lines = added.map(([key, value]) => {
    const json = JSON.stringify(value, null, 2).replaceAll('\n', '\n  ');
    return `  ${JSON.stringify(key)}: ${json}`;
  });
  const separator = Object.keys(object).length > 0 ? ',' : '';
  return `${text.slice(0, end).trimEnd()}${separator}\n${lines.join(',\n')}\n}\n`;
}
