import { dtypeOfStored } from '../dtype';
import { QuantariaError } from '../errors';
import type { IntScheme } from '../scheme';
import { isObject } from './json';
import { granularityOf } from './schemes';
import { malformed, modulesWith, requireEntry, requireShape, type ScaleDType, tensorsOf } from './tensors';
import type { Json, JsonObject, StoredCheckpoint, StoredModule } from './types';

type QuantizationMap = Readonly<Record<string, Json | undefined>>;

const SCALES = ['F32', 'F16', 'BF16'] as const;
const ENDINGS = [
  '.weight._data',
  '.weight._data._data',
  '.weight._scale',
  '.weight._shift',
  '.input_scale',
  '.output_scale',
];

/**
 * The group size that quanto recomputes from the width of a layer; null: one group per row.
 * Source: optimum-quanto, `QModuleMixin`: from 128 down in steps of 32 until it divides.
 */
export function quantoGroup(width: number): number | null {
  if (width <= 128) return null;
  for (let size = 128; size >= 32; size -= 32) if (width % size === 0) return size;
  return null;
}

export async function quantoModules(source: StoredCheckpoint, map: QuantizationMap): Promise<StoredModule[]> {
  const packed = modulesWith(source, '.weight._data._data').map((module) =>
    packedModule(source, module, map),
  );
  const bytes = modulesWith(source, '.weight._data').map((module) => byteModule(source, module));
  return [...packed, ...bytes];
}

function byteModule(source: StoredCheckpoint, module: string): StoredModule {
  const data = requireEntry(source, `${module}.weight._data`, ['I8', 'F8_E4M3', 'F8_E5M2'], 2);
  const [rows, width] = data.shape as [number, number];
  const scaleName = `${module}.weight._scale`;
  const scalar = rows === 1 && source.entries.get(scaleName)?.shape.length === 0;
  const scale = requireEntry(source, scaleName, SCALES, scalar ? 0 : 2);
  requireShape(scaleName, scale, scalar ? [] : [rows, 1]);
  const scaleType = dtypeOfStored(scale.dtype) as ScaleDType;
  return {
    module,
    scheme:
      data.dtype === 'I8'
        ? { kind: 'int', bits: 8, symmetric: true, range: 'full', granularity: 'row', scaleDtype: scaleType }
        : {
            kind: 'fp8',
            format: data.dtype === 'F8_E4M3' ? 'e4m3' : 'e5m2',
            granularity: 'row',
            scaleDtype: scaleType,
          },
    shape: [rows, width],
    tensors: tensorsOf(source, module, ENDINGS),
    detail: { scaleType, scalar },
  };
}

function packedModule(source: StoredCheckpoint, module: string, map: QuantizationMap): StoredModule {
  const dataName = `${module}.weight._data._data`;
  const shiftName = `${module}.weight._shift`;
  const data = requireEntry(source, dataName, ['U8'], 2);
  const scale = requireEntry(source, `${module}.weight._scale`, SCALES, 2);
  const shift = requireEntry(source, shiftName, ['I8', 'U8', 'I32', ...SCALES], 2);
  if ((SCALES as readonly string[]).includes(shift.dtype)) {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `${shiftName}: a float shift came; only integer zero points can be read, which quanto writes with \`zeropoint=True\``,
    );
  }
  const [planes, size] = data.shape as [number, number];
  const count = scale.shape[0] as number;
  requireShape(`${module}.weight._scale`, scale, [count, 1]);
  requireShape(shiftName, shift, [count, 1]);
  const own = map[module];
  const bits = bitsOf(isObject(own) ? own : {}, planes, count);
  if (bits === null)
    malformed(dataName, `${planes} rows of bytes for ${count} groups, expected half or a quarter of them`);
  const [rows, width] = shapeOf(source, module, isObject(own) ? own : {}, count, size);
  const scheme: IntScheme = {
    kind: 'int',
    bits,
    symmetric: false,
    ...granularityOf(width, size),
    scaleDtype: dtypeOfStored(scale.dtype) as ScaleDType,
  };
  return {
    module,
    scheme,
    shape: [rows, width],
    tensors: tensorsOf(source, module, ENDINGS),
    detail: { scaleType: scheme.scaleDtype as string, shiftType: dtypeOfStored(shift.dtype) as string },
  };
}

function bitsOf(entry: JsonObject, planes: number, count: number): 2 | 4 | null {
  const fits = ([4, 2] as const).filter((bits) => Math.ceil((count * bits) / 8) === planes);
  return fits.find((bits) => entry.weights === `qint${bits}`) ?? fits[0] ?? null;
}

/** `[out, in]` of a grouped weight: as the map says it, else as the hidden size of the model lets it be. */
function shapeOf(
  source: StoredCheckpoint,
  module: string,
  entry: JsonObject,
  count: number,
  size: number,
): [number, number] {
  const possible = (rows: number, width: number) =>
    Number.isSafeInteger(rows) &&
    rows > 0 &&
    rows * width === count * size &&
    (quantoGroup(width) ?? width) === size;
  const { shape } = entry;
  if (Array.isArray(shape)) {
    const [rows, width] = shape as Json[];
    if (typeof rows === 'number' && typeof width === 'number' && possible(rows, width)) return [rows, width];
    malformed(`${module}.weight._data._data`, `${count} groups of ${size} cannot be [${shape.join(', ')}]`);
  }
  const text = source.config?.text_config;
  const hidden = (isObject(text) ? text : source.config)?.hidden_size;
  if (typeof hidden === 'number' && hidden > 0) {
    const fromHidden = !/\.(o_proj|out_proj|down_proj|w2|fc2)$/.test(module);
    const [rows, width] = fromHidden ? [(count * size) / hidden, hidden] : [hidden, (count * size) / hidden];
    if (possible(rows, width)) return [rows, width];
  }
  if (quantoGroup(size) === null && size !== 128) return [count, size];
  return malformed(
    `${module}.weight._data._data`,
    'quanto keeps no shape, and neither quanto_qmap.json nor config.json tells it',
  );
}
