import { bitcast, offsetCodes, packBits, packPlanar, unpackBits, unpackPlanar } from '../ops/bits';
import { QuantizedTensor } from '../quantized';
import type { Fp8Scheme, IntScheme, QuantScheme } from '../scheme';
import { type DType, Tensor } from '../tensor';
import { parseObject } from './json';
import { moduleNames } from './names';
import { quantoGroup, quantoModules } from './quanto_read';
import { granularityOf, groupsOf, refused, requireFit, withScales } from './schemes';
import { chain, consume, readAs, scaleDTypeOf, storedDType } from './tensors';
import type {
  Fit,
  Format,
  FormatConfig,
  FormatContext,
  Json,
  StoredModule,
  TensorEntry,
  TensorReader,
} from './types';

const SIDECARS = ['quanto_qmap.json', 'quantization_map.json'];

/**
 * optimum-quanto. It stores no group size but recomputes it from the width, so `fit` settles on that one; zero points
 * are integers in `_shift`, which quanto reads as such, so that values are exact.
 */
export const quanto: Format = {
  name: 'quanto',
  sidecars: SIDECARS,
  fit,
  entries,
  settle: () => quanto,
  encode: async (module, q, modelDtype) => {
    requireFit(quanto, module, q.scheme, q.shape, modelDtype);
    return encode(module, q, modelDtype);
  },
  config,
  warnings,
  detect: (_config, names, files) =>
    SIDECARS.some((name) => files[name] !== undefined) ||
    [...names].some((name) => name.endsWith('.weight._data')),
  modules: (source) => quantoModules(source, qmap(source.files)),
  decode,
};

function qmap(files: Readonly<Record<string, string>>): Record<string, Json | undefined> {
  const name = SIDECARS.find((candidate) => files[candidate] !== undefined);
  return name === undefined ? {} : parseObject(files[name] as string, name);
}

function fit(scheme: QuantScheme, [, width]: readonly [number, number], modelDtype: DType): Fit {
  if (scheme.kind === 'fp8') {
    const notes = scheme.granularity === 'row' ? [] : ['quanto has one float8 scale per row'];
    return withScales(
      { scheme: { ...scheme, granularity: 'row' }, notes },
      scaleDTypeOf(modelDtype),
      'quanto',
    );
  }
  if (scheme.kind !== 'int') return refused(`quanto holds integers and float8, not ${scheme.kind}`);
  const { groupSize, ...rest } = scheme;
  if (scheme.granularity === 'column') return refused('quanto has no scales per column');
  if (scheme.bits === 8) {
    if (!scheme.symmetric) return refused('quanto holds 8-bit integers as symmetric rows only');
    const notes = scheme.granularity === 'row' ? [] : ['quanto has one 8-bit scale per row'];
    return withScales({ scheme: { ...rest, granularity: 'row' }, notes }, scaleDTypeOf(modelDtype), 'quanto');
  }
  if (scheme.bits !== 4 && scheme.bits !== 2)
    return refused(`quanto holds 2, 4 or 8 bits, not ${scheme.bits}`);
  const group = quantoGroup(width);
  const where = granularityOf(width, group ?? width);
  const same = scheme.granularity === where.granularity && groupSize === where.groupSize;
  const notes = same
    ? []
    : [`quanto recomputes its group size from ${width} input features: ${group ?? 'one group per row'}`];
  return withScales({ scheme: { ...rest, ...where }, notes }, scaleDTypeOf(modelDtype), 'quanto');
}

function entries(
  module: string,
  scheme: QuantScheme,
  [rows, width]: readonly [number, number],
  modelDtype: DType,
): TensorEntry[] {
  const weight = `${module}.weight`;
  const scale = storedDType[scaleDTypeOf(modelDtype)];
  const activations: TensorEntry[] = [
    { name: `${module}.input_scale`, dtype: scale, shape: [] },
    { name: `${module}.output_scale`, dtype: scale, shape: [] },
  ];
  // One row alone is quantized per tensor, which quanto scales by a scalar.
  const perRow = rows === 1 ? [] : [rows, 1];
  if (scheme.kind === 'fp8') {
    const dtype = scheme.format === 'e4m3' ? 'F8_E4M3' : 'F8_E5M2';
    return [
      { name: `${weight}._data`, dtype, shape: [rows, width] },
      { name: `${weight}._scale`, dtype: scale, shape: perRow },
      ...activations,
    ];
  }
  const int = scheme as IntScheme;
  if (int.bits === 8) {
    return [
      { name: `${weight}._data`, dtype: 'I8', shape: [rows, width] },
      { name: `${weight}._scale`, dtype: scale, shape: perRow },
      ...activations,
    ];
  }
  const { groups, size } = groupsOf(int, width);
  const planes = Math.ceil((rows * groups * int.bits) / 8);
  return [
    { name: `${weight}._data._data`, dtype: 'U8', shape: [planes, size] },
    { name: `${weight}._scale`, dtype: scale, shape: [rows * groups, 1] },
    { name: `${weight}._shift`, dtype: 'I8', shape: [rows * groups, 1] },
    ...activations,
  ];
}

function encode(module: string, q: QuantizedTensor, modelDtype: DType): Map<string, Tensor> {
  const weight = `${module}.weight`;
  const [rows, width] = q.shape as [number, number];
  const { packed, scales, zeros } = q.stored as Record<string, Tensor>;
  const dtype = scaleDTypeOf(modelDtype);
  const one = () => Tensor.from([1], [], { dtype, device: q.device });
  const activations = [
    [`${module}.input_scale`, one()],
    [`${module}.output_scale`, one()],
  ] as const;
  const perRow = rows === 1 ? [] : [rows, 1];
  if (q.scheme.kind === 'fp8') {
    const element = q.scheme.format === 'e4m3' ? 'float8_e4m3' : 'float8_e5m2';
    const codes = chain(
      packed as Tensor,
      (bytes) => unpackBits(bytes, width, 8),
      (bytes) => bitcast(bytes, element, [rows, width]),
    );
    return new Map([
      [`${weight}._data`, codes],
      [
        `${weight}._scale`,
        chain(
          scales as Tensor,
          (tensor) => tensor.cast(dtype),
          (tensor) => tensor.reshape(perRow),
        ),
      ],
      ...activations,
    ]);
  }
  const scheme = q.scheme as IntScheme;
  if (scheme.bits === 8) {
    return new Map([
      [
        `${weight}._data`,
        unpackBits(packed as Tensor, width, 8, undefined, { offset: 128, dtype: 'int8' }) as Tensor,
      ],
      [
        `${weight}._scale`,
        chain(
          scales as Tensor,
          (tensor) => tensor.cast(dtype),
          (tensor) => tensor.reshape(perRow),
        ),
      ],
      ...activations,
    ]);
  }
  const { groups, size } = groupsOf(scheme, width);
  const count = rows * groups;
  const shifts =
    zeros === undefined
      ? Tensor.from(new Int8Array(count).fill(2 ** (scheme.bits - 1)), [count, 1], { device: q.device })
      : chain(
          zeros,
          (tensor) => tensor.reshape([count, 1]),
          (tensor) => offsetCodes(tensor, 0, 'int8'),
        );
  return new Map([
    [
      `${weight}._data._data`,
      chain(
        packed as Tensor,
        (bytes) => unpackBits(bytes, width, scheme.bits),
        (codes) => codes.reshape([count, size]),
        (codes) => packPlanar(codes, scheme.bits),
      ),
    ],
    [
      `${weight}._scale`,
      chain(
        scales as Tensor,
        (tensor) => tensor.cast(dtype),
        (tensor) => tensor.reshape([count, 1]),
      ),
    ],
    [`${weight}._shift`, shifts],
    ...activations,
  ]);
}

function qtypeOf(scheme: QuantScheme): string {
  if (scheme.kind === 'fp8') return scheme.format === 'e4m3' ? 'qfloat8_e4m3fn' : 'qfloat8_e5m2';
  return `qint${(scheme as IntScheme).bits}`;
}

/**
 * quanto reads names as they are in memory, and entries of other names not at all: every name gets one. The shape, which
 * grouped weights do not keep, stands beside the keys that it reads.
 */
function config(context: FormatContext): FormatConfig {
  const map: Record<string, Json> = {};
  for (const { module, scheme, linear } of context.quantized) {
    const entry = { weights: qtypeOf(scheme), activations: 'none', shape: [...linear.shape] };
    for (const name of moduleNames(context.model, module)) map[name] = entry;
  }
  return { quantizationConfig: null, files: { 'quanto_qmap.json': `${JSON.stringify(map, null, 2)}\n` } };
}

function warnings({ quantized, model }: FormatContext): string[] {
  const found = [
    'quanto: load with optimum.quanto.requantize on a model built from config.json; AutoModel does not read quanto checkpoints. compressed-tensors loads with AutoModel',
  ];
  if (quantized.some(({ linear }) => linear.role === 'expert')) {
    found.push(
      'quanto: transformers v5 keeps routed experts as fused parameters, which quanto cannot replace; compressed-tensors loads there',
    );
  }
  if (quantized.some(({ module }) => moduleNames(model, module)[0] !== moduleNames(model, module).at(-1))) {
    found.push(
      "quanto: requantize takes names as they are in memory, and this architecture's differ from those in files: rename the state dict's keys first",
    );
  }
  return found;
}

async function decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const weight = `${module.module}.weight`;
  const [rows, width] = module.shape;
  const scaleType = module.detail.scaleType as DType;
  const perRow = module.detail.scalar === true ? [] : [rows, 1];
  if (module.scheme.kind === 'fp8') return decodeFloat8(module.scheme, module, read, scaleType, perRow);
  const scheme = module.scheme as IntScheme;
  if (scheme.bits === 8) {
    const data = await readAs(read, `${weight}._data`, 'int8', [rows, width]);
    const scale = await readAs(read, `${weight}._scale`, scaleType, perRow);
    return QuantizedTensor.fromStored(scheme, [rows, width], {
      packed: consume(data, (codes) => packBits(codes, 8, undefined, 128)),
      scales: consume(
        scale,
        (tensor) => tensor.cast('float32'),
        (tensor) => tensor.reshape([rows, 1]),
      ),
    });
  }
  const { groups, size } = groupsOf(scheme, width);
  const count = rows * groups;
  const data = await readAs(read, `${weight}._data._data`, 'uint8', [
    Math.ceil((count * scheme.bits) / 8),
    size,
  ]);
  const scale = await readAs(read, `${weight}._scale`, scaleType, [count, 1]);
  const shift = await readAs(read, `${weight}._shift`, module.detail.shiftType as DType, [count, 1]);
  const zeros = consume(
    shift,
    (tensor) => offsetCodes(tensor, 0, 'int32'),
    (tensor) => tensor.reshape([rows, groups]),
  );
  const middle = 2 ** (scheme.bits - 1);
  const symmetric = (await zeros.read()).every((zero) => zero === middle);
  if (symmetric) zeros.dispose();
  return QuantizedTensor.fromStored(
    symmetric ? { ...scheme, symmetric: true, range: 'full' } : scheme,
    [rows, width],
    {
      packed: consume(
        data,
        (bytes) => unpackPlanar(bytes, count, scheme.bits),
        (codes) => codes.reshape([rows, width]),
        (codes) => packBits(codes, scheme.bits),
      ),
      scales: consume(
        scale,
        (tensor) => tensor.cast('float32'),
        (tensor) => tensor.reshape([rows, groups]),
      ),
      ...(symmetric ? {} : { zeros }),
    },
  );
}

async function decodeFloat8(
  scheme: Fp8Scheme,
  module: StoredModule,
  read: TensorReader,
  scaleType: DType,
  perRow: readonly number[],
): Promise<QuantizedTensor> {
  const [rows, width] = module.shape;
  const weight = `${module.module}.weight`;
  const data = await readAs(
    read,
    `${weight}._data`,
    scheme.format === 'e4m3' ? 'float8_e4m3' : 'float8_e5m2',
    [rows, width],
  );
  const scale = await readAs(read, `${weight}._scale`, scaleType, perRow);
  return QuantizedTensor.fromStored(scheme, [rows, width], {
    packed: consume(
      data,
      (codes) => bitcast(codes, 'uint8', [rows, width]),
      (codes) => packBits(codes, 8),
    ),
    scales: consume(
      scale,
      (tensor) => tensor.cast('float32'),
      (tensor) => tensor.reshape([rows, 1]),
    ),
  });
}
