import { bitcast, packBits, unpackBits } from '../../ops/bits';
import type { QuantizedTensor } from '../../quantized';
import type { Fp8Scheme, IntScheme, MxScheme, QuantScheme } from '../../scheme';
import { type DType, Tensor } from '../../tensor';
import { groupsOf } from '../schemes';
import { asWords, chain, scaleDTypeOf, share, storedDType, wordsOf } from '../tensors';
import type { Activations, EncodeOptions, EntryOptions, JsonObject, TensorEntry } from '../types';

/** One of the formats that compressed-tensors has under its name: how it stores a weight, and what its group says. */
export interface Layout {
  readonly format:
    | 'pack-quantized'
    | 'int-quantized'
    | 'naive-quantized'
    | 'mxfp4-pack-quantized'
    | 'mxfp8-quantized';
  weights(scheme: QuantScheme, groupIndex: boolean): JsonObject;
  entries(
    module: string,
    scheme: QuantScheme,
    shape: readonly [number, number],
    modelDtype: DType,
    options: EntryOptions,
  ): TensorEntry[];
  encode(module: string, q: QuantizedTensor, modelDtype: DType, options: EncodeOptions): Map<string, Tensor>;
}

const MX_BLOCK = 32;

export function layoutOf(scheme: QuantScheme, activations?: Activations): Layout | null {
  if (activations !== undefined) return takesActivations(scheme) ? intQuantized : null;
  switch (scheme.kind) {
    case 'int':
      return scheme.bits <= 8 ? packQuantized : null;
    case 'fp8':
      return scheme.format === 'e4m3' ? naiveQuantized : null;
    case 'mx':
      return scheme.element === 'e2m1' ? mxfp4 : scheme.element === 'e4m3' ? mxfp8 : null;
    default:
      return null;
  }
}

/** Products of integers want constants on outer dimensions alone. */
export const takesActivations = (scheme: QuantScheme): boolean =>
  scheme.kind === 'int' &&
  scheme.bits === 8 &&
  scheme.symmetric &&
  (scheme.granularity === 'row' || scheme.granularity === 'tensor');

const common = { dynamic: false, block_structure: null, observer: 'minmax', observer_kwargs: {} } as const;

/** Integers, a dense stream of unsigned codes along `in`; zero points the same way along `out`. */
const packQuantized: Layout = {
  format: 'pack-quantized',
  weights(scheme, groupIndex) {
    const { bits, symmetric, granularity, groupSize } = scheme as IntScheme;
    const strategy = granularity === 'row' ? 'channel' : granularity;
    return {
      num_bits: bits,
      type: 'int',
      symmetric,
      strategy,
      group_size: granularity === 'group' ? groupSize : null,
      actorder: groupIndex ? 'group' : null,
      ...common,
    };
  },
  entries(module, scheme, [rows, width], modelDtype, { groupIndex }) {
    const { bits, symmetric, granularity } = scheme as IntScheme;
    const { groups } = groupsOf(scheme as IntScheme, width);
    const found: TensorEntry[] = [
      { name: `${module}.weight_packed`, dtype: 'I32', shape: [rows, wordsOf(width, bits)] },
      {
        name: `${module}.weight_scale`,
        dtype: storedDType[scaleDTypeOf(modelDtype)],
        shape: granularity === 'tensor' ? [1] : [rows, groups],
      },
      { name: `${module}.weight_shape`, dtype: 'I64', shape: [2] },
    ];
    if (!symmetric)
      found.push({ name: `${module}.weight_zero_point`, dtype: 'I32', shape: [wordsOf(rows, bits), groups] });
    if (groupIndex) found.push({ name: `${module}.weight_g_idx`, dtype: 'I32', shape: [width] });
    return found;
  },
  encode(module, q, modelDtype) {
    const [rows, width] = q.shape as [number, number];
    const { bits, granularity } = q.scheme as IntScheme;
    const { packed, scales, zeros, groupIndex } = q.stored as Record<string, Tensor>;
    const scaleShape = granularity === 'tensor' ? [1] : [...(scales as Tensor).shape];
    const tensors = new Map<string, Tensor>([
      [`${module}.weight_packed`, asWords(packed as Tensor)],
      [
        `${module}.weight_scale`,
        chain(
          scales as Tensor,
          (tensor) => tensor.cast(scaleDTypeOf(modelDtype)),
          (tensor) => tensor.reshape(scaleShape),
        ),
      ],
      [
        `${module}.weight_shape`,
        Tensor.from(BigInt64Array.of(BigInt(rows), BigInt(width)), [2], { device: q.device }),
      ],
    ]);
    if (zeros !== undefined) {
      // [out, G] -> along `out`: packed as the rows of its transpose, then turned back.
      const steps = [
        (tensor: Tensor) => tensor.transpose(),
        (tensor: Tensor) => packBits(tensor, bits) as Tensor,
        asWords,
        (tensor: Tensor) => tensor.transpose(),
      ];
      tensors.set(`${module}.weight_zero_point`, chain(zeros, ...steps));
    }
    if (groupIndex !== undefined) tensors.set(`${module}.weight_g_idx`, share(groupIndex));
    return tensors;
  },
};

export const inputActivations = (activations: Activations): JsonObject => ({
  num_bits: 8,
  type: 'int',
  symmetric: true,
  strategy: activations === 'dynamic' ? 'token' : 'tensor',
  group_size: null,
  actorder: null,
  ...common,
  dynamic: activations === 'dynamic',
  observer: activations === 'dynamic' ? null : 'mse',
});

/** 8-bit integers as they are, for products with activations of 8 bits. */
const intQuantized: Layout = {
  format: 'int-quantized',
  weights: packQuantized.weights,
  entries: (module, scheme, [rows, width], modelDtype, { activations }) => {
    const dtype = storedDType[scaleDTypeOf(modelDtype)];
    const single = (scheme as IntScheme).granularity === 'tensor';
    const found: TensorEntry[] = [
      { name: `${module}.weight`, dtype: 'I8', shape: [rows, width] },
      { name: `${module}.weight_scale`, dtype, shape: single ? [1] : [rows, 1] },
    ];
    if (activations === 'static') found.push({ name: `${module}.input_scale`, dtype, shape: [1] });
    return found;
  },
  encode(module, q, modelDtype, { inputScale }) {
    const [rows, width] = q.shape as [number, number];
    const { packed, scales } = q.stored as Record<string, Tensor>;
    const single = (q.scheme as IntScheme).granularity === 'tensor';
    const dtype = scaleDTypeOf(modelDtype);
    const tensors = new Map<string, Tensor>([
      [`${module}.weight`, unpackBits(packed as Tensor, width, 8, undefined, { offset: 128, dtype: 'int8' })],
      [
        `${module}.weight_scale`,
        chain(
          scales as Tensor,
          (tensor) => tensor.cast(dtype),
          (tensor) => tensor.reshape(single ? [1] : [rows, 1]),
        ),
      ],
    ]);
    if (inputScale !== undefined) {
      using scale = Tensor.from([inputScale], [1], { dtype: 'float32', device: q.device });
      tensors.set(`${module}.input_scale`, scale.cast(dtype));
    }
    return tensors;
  },
};

/** float8 codes of a weight, unpadded. */
const float8Codes = (q: QuantizedTensor): Tensor => {
  const [rows, width] = q.shape as [number, number];
  return chain(
    (q.stored as Record<string, Tensor>).packed as Tensor,
    (bytes) => unpackBits(bytes, width, 8),
    (bytes) => bitcast(bytes, 'float8_e4m3', [rows, width]),
  );
};

/** FP8 weights alone. transformers computes in the dtype of the scales, which has to be the model's. */
const naiveQuantized: Layout = {
  format: 'naive-quantized',
  weights: (scheme) => ({
    num_bits: 8,
    type: 'float',
    symmetric: true,
    strategy: (scheme as Fp8Scheme).granularity === 'row' ? 'channel' : 'tensor',
    group_size: null,
    actorder: null,
    ...common,
  }),
  entries: (module, scheme, [rows, width], modelDtype) => [
    { name: `${module}.weight`, dtype: 'F8_E4M3', shape: [rows, width] },
    {
      name: `${module}.weight_scale`,
      dtype: storedDType[scaleDTypeOf(modelDtype)],
      shape: (scheme as Fp8Scheme).granularity === 'row' ? [rows, 1] : [1],
    },
  ],
  encode(module, q, modelDtype) {
    const scales = q.stored.scales as Tensor;
    const shape = (q.scheme as Fp8Scheme).granularity === 'row' ? [q.shape[0] as number, 1] : [1];
    return new Map([
      [`${module}.weight`, float8Codes(q)],
      [
        `${module}.weight_scale`,
        chain(
          scales,
          (tensor) => tensor.cast(scaleDTypeOf(modelDtype)),
          (tensor) => tensor.reshape(shape),
        ),
      ],
    ]);
  },
};

const mxWeights = (bits: number): JsonObject => ({
  num_bits: bits,
  type: 'float',
  symmetric: true,
  strategy: 'group',
  group_size: MX_BLOCK,
  actorder: null,
  scale_dtype: 'torch.uint8',
  zp_dtype: 'torch.uint8',
  ...common,
});

/** E2M1 pairs, the even column in the low nibble, which is how bit rows lie; E8M0 scales. */
const mxfp4: Layout = {
  format: 'mxfp4-pack-quantized',
  weights: () => mxWeights(4),
  entries: (module, _scheme, [rows, width]) => [
    { name: `${module}.weight_packed`, dtype: 'U8', shape: [rows, width / 2] },
    { name: `${module}.weight_scale`, dtype: 'U8', shape: [rows, width / MX_BLOCK] },
  ],
  encode: (module, q) =>
    new Map([
      [`${module}.weight_packed`, share(q.stored.packed as Tensor)],
      [`${module}.weight_scale`, share(q.stored.scales as Tensor)],
    ]),
};

const mxfp8: Layout = {
  format: 'mxfp8-quantized',
  weights: () => mxWeights(8),
  entries: (module, _scheme, [rows, width]) => [
    { name: `${module}.weight`, dtype: 'F8_E4M3', shape: [rows, width] },
    { name: `${module}.weight_scale`, dtype: 'U8', shape: [rows, width / MX_BLOCK] },
  ],
  encode: (module, q) =>
    new Map([
      [`${module}.weight`, float8Codes(q)],
      [`${module}.weight_scale`, share(q.stored.scales as Tensor)],
    ]),
};

/** What an MX scheme is once it is stored: the form of its rounding stays, a pre-scale has no place. */
export const withoutPreScale = ({ preScale: _, ...scheme }: MxScheme): MxScheme => ({
  ...scheme,
  preScale: false,
});
