import { offsetCodes, unpackBits } from '../ops/bits';
import { QuantizedTensor } from '../quantized';
import type { IntScheme } from '../scheme';
import type { DType, Tensor } from '../tensor';
import type { Version } from './gptq_config';
import { isObject, parseObject, positiveInteger, quantizationOf } from './json';
import { granularityOf } from './schemes';
import {
  asBytes,
  consume,
  malformed,
  modulesWith,
  readAs,
  requireEntry,
  requireShape,
  tensorsOf,
  wordsOf,
} from './tensors';
import type { JsonObject, StoredCheckpoint, StoredModule, TensorReader } from './types';

export const gptqBits: readonly number[] = [2, 3, 4, 8];
const ENDINGS = ['.qweight', '.qzeros', '.scales', '.g_idx'];

/** quantize_config.json, unless another format's. */
export function sidecarOf(files: Readonly<Record<string, string>>): JsonObject | null {
  const text = files['quantize_config.json'];
  if (text === undefined) return null;
  const parsed = parseObject(text, 'quantize_config.json');
  // AWQ and others use the same file name and say so in `quant_method`.
  return parsed.quant_method === undefined || parsed.quant_method === 'gptq' ? parsed : null;
}

export async function modules(source: StoredCheckpoint): Promise<StoredModule[]> {
  const found = quantizationOf(source.config) ?? sidecarOf(source.files) ?? {};
  const version = found.checkpoint_format === 'gptq_v2' || found.format === 'gptq_v2' ? 2 : 1;
  const overrides = dynamicOverrides(found);
  return modulesWith(source, '.qweight').map((module) =>
    storedModule(source, module, overrides(module), version),
  );
}

type Overrides = (module: string) => JsonObject;

/** First match wins; `-:` patterns concern modules that are not quantized. */
function dynamicOverrides(found: JsonObject): Overrides {
  const { dynamic } = found;
  if (!isObject(dynamic)) return () => found;
  const rules = Object.entries(dynamic).map(([key, change]) => ({
    pattern: compile(key.replace(/^[+-]:/, '')),
    change: isObject(change) ? change : {},
  }));
  return (module) => ({ ...found, ...rules.find(({ pattern }) => pattern.test(module))?.change });
}

function compile(pattern: string): RegExp {
  try {
    return new RegExp(`^(?:${pattern})`);
  } catch {
    return malformed('quantization_config.dynamic', `${JSON.stringify(pattern)} is not a regular expression`);
  }
}

function storedModule(
  source: StoredCheckpoint,
  module: string,
  settings: JsonObject,
  version: Version,
): StoredModule {
  const qweight = requireEntry(source, `${module}.qweight`, ['I32'], 2);
  const qzeros = requireEntry(source, `${module}.qzeros`, ['I32'], 2);
  const scales = requireEntry(source, `${module}.scales`, ['F16', 'BF16', 'F32'], 2);
  const [groups, rows] = scales.shape as [number, number];
  const hasIndex = source.entries.has(`${module}.g_idx`);
  const index = hasIndex ? requireEntry(source, `${module}.g_idx`, ['I32'], 1) : null;
  const words = qweight.shape[0] as number;
  // The shapes say how many bits there are; the configuration only where g_idx is left out.
  const bits =
    index === null
      ? positiveInteger(settings.bits, 'quantization_config.bits')
      : (words * 32) / (index.shape[0] as number);
  if (!gptqBits.includes(bits))
    malformed(`${module}.qweight`, `${bits} bits a weight, expected 2, 3, 4 or 8`);
  const width = index === null ? (words * 32) / bits : (index.shape[0] as number);
  if (!Number.isInteger(width))
    malformed(`${module}.qweight`, `${words} words do not hold whole runs of ${bits}-bit codes`);
  requireShape(`${module}.qweight`, qweight, [wordsOf(width, bits), rows]);
  requireShape(`${module}.qzeros`, qzeros, [groups, wordsOf(rows, bits)]);
  const size = groupSizeOf(settings, width, groups, `${module}.scales`);
  return {
    module,
    scheme: {
      kind: 'int',
      bits: bits as IntScheme['bits'],
      symmetric: settings.sym === true,
      ...(settings.sym === true ? { range: 'full' as const } : {}),
      ...granularityOf(width, size),
      scaleDtype: scales.dtype === 'F16' ? 'float16' : scales.dtype === 'BF16' ? 'bfloat16' : 'float32',
    },
    shape: [rows, width],
    tensors: tensorsOf(source, module, ENDINGS),
    detail: { version, groups, size, index: hasIndex },
  };
}

/** The group size that gives this many groups: the configured one if it does, else the even split. */
export function groupSizeOf(settings: JsonObject, width: number, groups: number, name: string): number {
  if (groups === 1) return width;
  const configured = settings.group_size;
  if (typeof configured === 'number' && configured > 0 && Math.ceil(width / configured) === groups)
    return configured;
  if (groups === 0 || width % groups !== 0) malformed(name, `${groups} groups on ${width} input features`);
  return width / groups;
}

export async function decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const { bits, ...scheme } = module.scheme as IntScheme;
  const [rows, width] = module.shape;
  const groups = module.detail.groups as number;
  const scaleType = scheme.scaleDtype as DType;
  const qweight = await readAs(read, `${module.module}.qweight`, 'int32', [wordsOf(width, bits), rows]);
  const qzeros = await readAs(read, `${module.module}.qzeros`, 'int32', [groups, wordsOf(rows, bits)]);
  const scales = await readAs(read, `${module.module}.scales`, scaleType, [groups, rows]);
  const groupIndex = await movingGroups(module, read, width, groups);
  const zeroCodes = consume(qzeros, asBytes, (bytes) => unpackBits(bytes, rows, bits));
  const shift = module.detail.version === 1 ? 1 : 0;
  const zeros = consume(
    zeroCodes,
    (codes) => codes.transpose(),
    (codes) => offsetCodes(codes, shift, 'int32'),
  );
  const middle = 2 ** (bits - 1);
  // A configuration that says symmetric is believed only if every zero point is the middle.
  const symmetric = scheme.symmetric && (await zeros.read()).every((zero) => zero === middle);
  if (symmetric) zeros.dispose();
  const { range: _, ...affine } = scheme;
  return QuantizedTensor.fromStored(
    symmetric ? { bits, ...scheme } : { bits, ...affine, symmetric: false },
    [rows, width],
    {
      packed: consume(qweight, (words) => words.transpose(), asBytes),
      scales: consume(
        scales,
        (tensor) => tensor.transpose(),
        (tensor) => tensor.cast('float32'),
      ),
      ...(symmetric ? {} : { zeros }),
      ...(groupIndex === null ? {} : { groupIndex }),
    },
  );
}

/** The group of each column, where groups are not runs of columns (act-order). */
async function movingGroups(
  module: StoredModule,
  read: TensorReader,
  width: number,
  groups: number,
): Promise<Tensor | null> {
  if (module.detail.index !== true) return null;
  const name = `${module.module}.g_idx`;
  const tensor = await readAs(read, name, 'int32', [width]);
  const index = (await tensor.read()) as Int32Array;
  const bad = index.findIndex((group) => group < 0 || group >= groups);
  if (bad >= 0) malformed(name, `column ${bad} is in group ${index[bad]} of ${groups}`);
  if (!index.every((group, column) => group === Math.floor(column / (module.detail.size as number))))
    return tensor;
  tensor.dispose();
  return null;
}
