import { dtypeOfStored } from '../../dtype';
import { QuantariaError } from '../../errors';
import { bitcast, packBits, unpackBits } from '../../ops/bits';
import { QuantizedTensor } from '../../quantized';
import type { IntScheme, QuantScheme } from '../../scheme';
import type { DType, Tensor } from '../../tensor';
import { isObject, quantizationOf, stringList } from '../json';
import { granularityOf, groupsOf } from '../schemes';
import {
  asBytes,
  consume,
  malformed,
  modulesWith,
  readAs,
  requireEntry,
  requireShape,
  type ScaleDType,
  tensorsOf,
  wordsOf,
} from '../tensors';
import type { JsonObject, StoredCheckpoint, StoredModule, TensorReader } from '../types';

const SCALES = ['F32', 'F16', 'BF16'] as const;
const ENDINGS = [
  '.weight',
  '.weight_packed',
  '.weight_scale',
  '.weight_shape',
  '.weight_zero_point',
  '.weight_g_idx',
  '.input_scale',
];
const MX_BLOCK = 32;

export async function modules(source: StoredCheckpoint): Promise<StoredModule[]> {
  const found: StoredModule[] = [];
  for (const module of modulesWith(source, '.weight_scale')) {
    const packed = source.entries.get(`${module}.weight_packed`)?.dtype;
    if (source.entries.has(`${module}.weight_global_scale`)) {
      throw new QuantariaError(
        'ERR_UNSUPPORTED',
        `${module}.weight_global_scale: nvfp4-pack-quantized cannot be read`,
      );
    }
    if (packed === 'I32') found.push(await packQuantized(source, module));
    else if (packed !== undefined) found.push(mxfp4(source, module));
    else found.push(await plainQuantized(source, module));
  }
  return found;
}

/** `bits` from the shapes; where several fit (narrow matrices), from the module's config group. */
async function packQuantized(source: StoredCheckpoint, module: string): Promise<StoredModule> {
  const packed = requireEntry(source, `${module}.weight_packed`, ['I32'], 2);
  const shapeName = `${module}.weight_shape`;
  requireShape(shapeName, requireEntry(source, shapeName, ['I64', 'I32'], 1), [2]);
  const stored = await source.read(shapeName);
  const [rows, width] = Array.from((await stored.read()) as BigInt64Array | Int32Array, Number) as [
    number,
    number,
  ];
  stored.dispose();
  if (![rows, width].every((size) => Number.isSafeInteger(size) && size > 0))
    malformed(shapeName, `[${rows}, ${width}] is no shape`);
  const words = packed.shape[1] as number;
  if (packed.shape[0] !== rows)
    malformed(`${module}.weight_packed`, `${packed.shape[0]} rows, weight_shape says ${rows}`);
  const fits = [2, 3, 4, 5, 6, 7, 8].filter((bits) => wordsOf(width, bits) === words);
  const configured = fits.length > 1 ? weightsOf(source, module)?.num_bits : undefined;
  const bits = fits.length === 1 ? fits[0] : fits.find((candidate) => candidate === configured);
  if (bits === undefined)
    malformed(
      `${module}.weight_packed`,
      `${words} words for ${width} features: neither they nor the configuration say the bits`,
    );
  if (bits === 7)
    throw new QuantariaError('ERR_UNSUPPORTED', `${module}.weight_packed: 7-bit codes cannot be read`);
  const { scaleType, where, groups } = intScales(source, module, rows, width);
  const symmetric = !source.entries.has(`${module}.weight_zero_point`);
  if (!symmetric) {
    const zeros = requireEntry(source, `${module}.weight_zero_point`, ['I32'], 2);
    requireShape(`${module}.weight_zero_point`, zeros, [wordsOf(rows, bits), groups]);
  }
  const hasIndex = source.entries.has(`${module}.weight_g_idx`);
  if (hasIndex)
    requireShape(`${module}.weight_g_idx`, requireEntry(source, `${module}.weight_g_idx`, ['I32'], 1), [
      width,
    ]);
  return storedModule(
    source,
    module,
    [rows, width],
    intScheme(bits as IntScheme['bits'], symmetric, where, scaleType),
    {
      layout: 'pack',
      index: hasIndex,
      groups,
    },
  );
}

function intScheme(
  bits: IntScheme['bits'],
  symmetric: boolean,
  where: Where,
  scaleDtype: ScaleDType,
): IntScheme {
  return {
    kind: 'int',
    bits,
    symmetric,
    ...(symmetric ? { range: 'full' as const } : {}),
    ...where,
    scaleDtype,
  };
}

type Where = Pick<IntScheme, 'granularity' | 'groupSize'>;

/** Scales `[out, G]`, `[out, 1]` or one for all. */
function intScales(source: StoredCheckpoint, module: string, rows: number, width: number) {
  const name = `${module}.weight_scale`;
  const single = source.entries.get(name)?.shape.length !== 2;
  const scale = requireEntry(source, name, SCALES, single ? 1 : 2);
  requireShape(name, scale, single ? [1] : [rows, scale.shape[1] as number]);
  const groups = single ? 1 : (scale.shape[1] as number);
  if (groups === 0 || width % groups !== 0) malformed(name, `${groups} groups on ${width} input features`);
  const where: Where = single ? { granularity: 'tensor' } : granularityOf(width, width / groups);
  return { scaleType: dtypeOfStored(scale.dtype) as ScaleDType, where, groups };
}

function mxfp4(source: StoredCheckpoint, module: string): StoredModule {
  const packed = requireEntry(source, `${module}.weight_packed`, ['U8'], 2);
  const [rows, bytes] = packed.shape as [number, number];
  const width = bytes * 2;
  if (width % MX_BLOCK !== 0)
    malformed(`${module}.weight_packed`, `${width} input features, expected a multiple of 32`);
  requireShape(`${module}.weight_scale`, requireEntry(source, `${module}.weight_scale`, ['U8'], 2), [
    rows,
    width / MX_BLOCK,
  ]);
  return storedModule(source, module, [rows, width], { kind: 'mx', element: 'e2m1' }, { layout: 'mxfp4' });
}

/** `weight` in 8 bits under its own name: int-quantized, float-quantized, naive-quantized, mxfp8-quantized. */
async function plainQuantized(source: StoredCheckpoint, module: string): Promise<StoredModule> {
  const weight = requireEntry(source, `${module}.weight`, ['I8', 'F8_E4M3'], 2);
  const [rows, width] = weight.shape as [number, number];
  const scaleName = `${module}.weight_scale`;
  if (weight.dtype === 'I8') {
    const { scaleType, where, groups } = intScales(source, module, rows, width);
    const symmetric = !source.entries.has(`${module}.weight_zero_point`);
    if (!symmetric) {
      const zeros = requireEntry(
        source,
        `${module}.weight_zero_point`,
        ['I8'],
        where.granularity === 'tensor' ? 1 : 2,
      );
      requireShape(
        `${module}.weight_zero_point`,
        zeros,
        where.granularity === 'tensor' ? [1] : [rows, groups],
      );
    }
    const found = storedModule(source, module, [rows, width], intScheme(8, symmetric, where, scaleType), {
      layout: 'int',
      groups,
    });
    const activations = symmetric ? await activationsOf(source, module) : undefined;
    return activations === undefined ? found : { ...found, activations };
  }
  if (source.entries.get(scaleName)?.dtype === 'U8') {
    if (width % MX_BLOCK !== 0)
      malformed(`${module}.weight`, `${width} input features, expected a multiple of 32`);
    requireShape(scaleName, requireEntry(source, scaleName, ['U8'], 2), [rows, width / MX_BLOCK]);
    return storedModule(source, module, [rows, width], { kind: 'mx', element: 'e4m3' }, { layout: 'mxfp8' });
  }
  const single = source.entries.get(scaleName)?.shape.length !== 2;
  const scale = requireEntry(source, scaleName, SCALES, single ? 1 : 2);
  if (!single && (scale.shape[0] !== rows || scale.shape[1] !== 1)) {
    if (scale.shape[0] === Math.ceil(rows / 128) && scale.shape[1] === Math.ceil(width / 128)) {
      throw new QuantariaError(
        'ERR_UNSUPPORTED',
        `${scaleName}: float8 with scales per 128 x 128 block cannot be read`,
      );
    }
  }
  requireShape(scaleName, scale, single ? [1] : [rows, 1]);
  const scaleDtype = dtypeOfStored(scale.dtype) as ScaleDType;
  const scheme: QuantScheme = {
    kind: 'fp8',
    format: 'e4m3',
    granularity: single ? 'tensor' : 'row',
    scaleDtype,
  };
  return storedModule(source, module, [rows, width], scheme, { layout: 'fp8', scaleType: scaleDtype });
}

function storedModule(
  source: StoredCheckpoint,
  module: string,
  shape: [number, number],
  scheme: QuantScheme,
  detail: StoredModule['detail'],
): StoredModule {
  return { module, scheme, shape, tensors: tensorsOf(source, module, ENDINGS), detail };
}

/** 8-bit integers that one scale, or one for each row as it comes, makes of a module's input; of others products know nothing. */
async function activationsOf(source: StoredCheckpoint, module: string): Promise<StoredModule['activations']> {
  const scale = `${module}.input_scale`;
  const own = groupOf(source, module)?.input_activations;
  const { num_bits, type, symmetric, dynamic } = isObject(own) ? own : {};
  if (num_bits !== 8 || type !== 'int' || symmetric === false) return undefined;
  if (dynamic === true) return { kind: 'dynamic' };
  if (!source.entries.has(scale)) return undefined;
  const { shape } = requireEntry(
    source,
    scale,
    SCALES,
    source.entries.get(scale)?.shape.length === 0 ? 0 : 1,
  );
  if (shape.some((size) => size !== 1)) malformed(scale, `shape [${shape}], one scale expected`);
  using tensor = await source.read(scale);
  const value = (await tensor.toFloat32())[0] as number;
  if (!(value > 0) || !Number.isFinite(value)) malformed(scale, `${value}, a finite scale above 0 expected`);
  return { kind: 'static', scale: value };
}

/** The `weights` of the group that a module is in. */
function weightsOf(source: StoredCheckpoint, module: string): JsonObject | null {
  const weights = groupOf(source, module)?.weights;
  return isObject(weights) ? weights : null;
}

/** The group that a module is in: exact name first, then pattern, then class. */
function groupOf(source: StoredCheckpoint, module: string): JsonObject | null {
  const groups = quantizationOf(source.config)?.config_groups;
  const list = isObject(groups) ? Object.values(groups).filter((group) => isObject(group)) : [];
  const found =
    list.find(({ targets }) => stringList(targets).includes(module)) ??
    list.find(({ targets }) =>
      stringList(targets).some((target) => target.startsWith('re:') && matches(target, module)),
    ) ??
    list.find(({ targets }) => stringList(targets).includes('Linear'));
  return found ?? null;
}

function matches(target: string, module: string): boolean {
  try {
    return new RegExp(`^(?:${target.slice('re:'.length)})`).test(module);
  } catch {
    return malformed(
      'quantization_config.config_groups',
      `${JSON.stringify(target)} is not a regular expression`,
    );
  }
}

export async function decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const { scheme, shape } = module;
  const [rows, width] = shape;
  const name = (ending: string) => `${module.module}.${ending}`;
  switch (module.detail.layout) {
    case 'pack':
      return decodePacked(module, read);
    case 'int':
      return decodeInt8(module, read);
    case 'mxfp4':
      return QuantizedTensor.fromStored(scheme, shape, {
        packed: await readAs(read, name('weight_packed'), 'uint8', [rows, width / 2]),
        scales: await readAs(read, name('weight_scale'), 'uint8', [rows, width / MX_BLOCK]),
      });
    case 'mxfp8':
      return QuantizedTensor.fromStored(scheme, shape, {
        packed: await float8Rows(read, name('weight'), shape),
        scales: await readAs(read, name('weight_scale'), 'uint8', [rows, width / MX_BLOCK]),
      });
    default: {
      const single = scheme.kind === 'fp8' && scheme.granularity === 'tensor';
      const scale = await readAs(
        read,
        name('weight_scale'),
        module.detail.scaleType as DType,
        single ? [1] : [rows, 1],
      );
      return QuantizedTensor.fromStored(scheme, shape, {
        packed: await float8Rows(read, name('weight'), shape),
        scales: consume(
          scale,
          (tensor) => tensor.cast('float32'),
          (tensor) => tensor.reshape([single ? 1 : rows, 1]),
        ),
      });
    }
  }
}

async function float8Rows(
  read: TensorReader,
  name: string,
  shape: readonly [number, number],
): Promise<Tensor> {
  const weight = await readAs(read, name, 'float8_e4m3', shape);
  return consume(
    weight,
    (codes) => bitcast(codes, 'uint8', shape),
    (codes) => packBits(codes, 8),
  );
}

async function decodePacked(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const scheme = module.scheme as IntScheme;
  const { bits } = scheme;
  const [rows, width] = module.shape;
  const groups = module.detail.groups as number;
  const packed = await readAs(read, `${module.module}.weight_packed`, 'int32', [rows, wordsOf(width, bits)]);
  const scales = await readScales(module, read, scheme);
  const parts: Record<string, Tensor> = { packed: consume(packed, asBytes), scales };
  if (!scheme.symmetric) {
    const words = await readAs(read, `${module.module}.weight_zero_point`, 'int32', [
      wordsOf(rows, bits),
      groups,
    ]);
    parts.zeros = consume(
      words,
      (tensor) => tensor.transpose(),
      asBytes,
      (bytes) => unpackBits(bytes, rows, bits, undefined, { dtype: 'int32' }),
      (zeros) => zeros.transpose(),
    );
  }
  if (module.detail.index === true) {
    const index = await groupIndex(module, read, width, groups);
    if (index !== null) parts.groupIndex = index;
  }
  return QuantizedTensor.fromStored(scheme, module.shape, parts);
}

async function readScales(module: StoredModule, read: TensorReader, scheme: IntScheme): Promise<Tensor> {
  const [rows, width] = module.shape;
  const single = scheme.granularity === 'tensor';
  const shape = single ? [1] : [rows, groupsOf(scheme, width).groups];
  const scale = await readAs(read, `${module.module}.weight_scale`, scheme.scaleDtype as DType, shape);
  return consume(
    scale,
    (tensor) => tensor.cast('float32'),
    (tensor) => tensor.reshape(single ? [1, 1] : shape),
  );
}

async function decodeInt8(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const scheme = module.scheme as IntScheme;
  const [rows, width] = module.shape;
  const groups = module.detail.groups as number;
  const weight = await readAs(read, `${module.module}.weight`, 'int8', [rows, width]);
  const parts: Record<string, Tensor> = {
    packed: consume(weight, (codes) => packBits(codes, 8, undefined, 128)),
    scales: await readScales(module, read, scheme),
  };
  if (!scheme.symmetric) {
    const single = scheme.granularity === 'tensor';
    const zeros = await readAs(
      read,
      `${module.module}.weight_zero_point`,
      'int8',
      single ? [1] : [rows, groups],
    );
    parts.zeros = consume(
      zeros,
      (tensor) => tensor.reshape(single ? [1, 1] : [rows, groups]),
      (tensor) => packBits(tensor, 8, undefined, 128),
      (bytes) => unpackBits(bytes, groups, 8, undefined, { dtype: 'int32' }),
    );
  }
  return QuantizedTensor.fromStored(scheme, module.shape, parts);
}

/** The group of each column; null where it is the usual one (-1 all over: never set, or runs of columns). */
async function groupIndex(
  module: StoredModule,
  read: TensorReader,
  width: number,
  groups: number,
): Promise<Tensor | null> {
  const name = `${module.module}.weight_g_idx`;
  const tensor = await readAs(read, name, 'int32', [width]);
  const index = (await tensor.read()) as Int32Array;
  const unset = index.every((group) => group === -1);
  const bad = unset ? -1 : index.findIndex((group) => group < 0 || group >= groups);
  if (bad >= 0) malformed(name, `column ${bad} is in group ${index[bad]} of ${groups}`);
  if (!unset && !index.every((group, column) => group === Math.floor((column * groups) / width)))
    return tensor;
  tensor.dispose();
  return null;
}
