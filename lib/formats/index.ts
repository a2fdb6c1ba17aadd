import { QuantariaError } from '../errors';
import type { ModelMap } from '../models/types';
import { awq } from './awq';
import { bitsandbytes } from './bitsandbytes';
import { compressedTensors } from './compressed_tensors';
import { gptq } from './gptq';
import { mxfp4 } from './mxfp4';
import { quanto } from './quanto';
import type { Format, FormatName, JsonObject } from './types';

export type * from './types';

/** A format may depend on the model: mxfp4 has a layout of its own for gpt-oss. */
const registry: Record<FormatName, (model: ModelMap | null) => Format> = {
  gptq: () => gptq,
  awq: () => awq,
  'compressed-tensors': () => compressedTensors,
  bitsandbytes: () => bitsandbytes,
  quanto: () => quanto,
  mxfp4,
};

export const formatNames = Object.keys(registry) as FormatName[];

export function isFormatName(name: string): name is FormatName {
  return Object.hasOwn(registry, name);
}

/**
 * The format of that name, for that model (null: no particular one).
 * @throws QuantariaError `ERR_ARGUMENT` for a name that is none
 */
export function getFormat(name: string, model: ModelMap | null = null): Format {
  if (!isFormatName(name)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `format ${JSON.stringify(name)}: expected one of ${formatNames.join(', ')}`,
    );
  }
  return registry[name](model);
}

/** The format that an opened checkpoint is in, or null if nothing in it is quantized. */
export function detectFormat(
  config: JsonObject | null,
  names: ReadonlySet<string>,
  files: Readonly<Record<string, string>>,
  model: ModelMap | null = null,
): Format | null {
  return (
    formatNames.map((name) => getFormat(name, model)).find((format) => format.detect(config, names, files)) ??
    null
  );
}
