import { malformed } from './tensors';
import type { Json, JsonObject } from './types';

export const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** @throws QuantariaError `ERR_FORMAT` unless `text` is a JSON object; `name` is what the error says it was */
export function parseObject(text: string, name: string): JsonObject {
  let parsed: Json;
  try {
    parsed = JSON.parse(text) as Json;
  } catch (error) {
    malformed(name, `not JSON (${error instanceof Error ? error.message : String(error)})`);
  }
  return isObject(parsed) ? parsed : malformed(name, 'not a JSON object');
}

export function positiveInteger(value: Json | undefined, name: string): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value > 0) return value;
  return malformed(name, `${JSON.stringify(value) ?? 'nothing'} came, expected a positive integer`);
}

export function stringList(value: Json | undefined): string[] {
  return Array.isArray(value) ? value.filter((item): item is string => typeof item === 'string') : [];
}

/** The `quantization_config` of config.json, if it is there. */
export function quantizationOf(config: JsonObject | null): JsonObject | null {
  const found = config?.quantization_config;
  return isObject(found) ? found : null;
}
