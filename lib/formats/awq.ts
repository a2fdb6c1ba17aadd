import { QuantariaError } from '../errors';
import { offsetCodes, packBits, unpackBits } from '../ops/bits';
import { QuantizedTensor } from '../quantized';
import type { IntScheme, QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { groupSizeOf } from './gptq_read';
import { quantizationOf } from './json';
import { namedModules } from './names';
import { fitGroups, granularityOf, groupsOf, refused, requireFit, withScales } from './schemes';
import { skipList } from './skips';
import {
  asBytes,
  asWords,
  chain,
  consume,
  malformed,
  modulesWith,
  readAs,
  requireEntry,
  requireShape,
  tensorsOf,
} from './tensors';
import type {
  Fit,
  Format,
  FormatConfig,
  FormatContext,
  StoredCheckpoint,
  StoredModule,
  TensorEntry,
  TensorReader,
} from './types';

/** Nibble j of a word holds output channel 8c + ORDER[j]: the order in which AWQ's kernel unpacks pairs of halves. */
const ORDER = [0, 2, 4, 6, 1, 3, 5, 7];
const PER_WORD = 8;
const BITS = 4;
const KERNEL_GROUPS: readonly number[] = [16, 32, 64, 128];
const ENDINGS = ['.qweight', '.qzeros', '.scales'];

/** AWQ's gemm layout: 4 bits, codes and zero points packed along `out`. A symmetric grid is one whose zeros are 8. */
export const awq: Format = {
  name: 'awq',
  sidecars: [],
  fit,
  entries,
  settle: () => awq,
  encode: async (module, q, modelDtype) => {
    requireFit(awq, module, q.scheme, q.shape, modelDtype);
    return encode(module, q);
  },
  config,
  warnings,
  detect: (config) => quantizationOf(config)?.quant_method === 'awq',
  modules,
  decode,
};

function fit(scheme: QuantScheme, [rows, width]: readonly [number, number]): Fit {
  if (scheme.kind !== 'int' || scheme.bits !== BITS) return refused('awq holds 4-bit integers only');
  if (rows % PER_WORD !== 0)
    return refused(`awq packs 8 output features to a word, which ${rows} is no multiple of`);
  return withScales(fitGroups(scheme, width, 'awq'), 'float16', 'awq');
}

function entries(
  module: string,
  scheme: QuantScheme,
  [rows, width]: readonly [number, number],
): TensorEntry[] {
  const { groups } = groupsOf(scheme as IntScheme, width);
  return [
    { name: `${module}.qweight`, dtype: 'I32', shape: [width, rows / PER_WORD] },
    { name: `${module}.qzeros`, dtype: 'I32', shape: [groups, rows / PER_WORD] },
    { name: `${module}.scales`, dtype: 'F16', shape: [groups, rows] },
  ];
}

function encode(module: string, q: QuantizedTensor): Map<string, Tensor> {
  const [rows, width] = q.shape as [number, number];
  const { groups } = groupsOf(q.scheme as IntScheme, width);
  const { packed, scales, zeros, groupIndex } = q.stored as Record<string, Tensor>;
  if (groupIndex !== undefined) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `${module}: awq has no place for act-order's groups; static groups, or gptq, would do`,
    );
  }
  const zeroCodes =
    zeros === undefined
      ? Tensor.from(new Uint8Array(groups * rows).fill(2 ** (BITS - 1)), [groups, rows], {
          device: q.device,
        })
      : zeros.transpose();
  return new Map([
    [
      `${module}.qweight`,
      chain(
        packed as Tensor,
        (bytes) => unpackBits(bytes, width, BITS),
        (codes) => codes.transpose(),
        (codes) => packBits(codes, BITS, ORDER),
        asWords,
      ),
    ],
    [`${module}.qzeros`, consume(zeroCodes, (codes) => packBits(codes, BITS, ORDER), asWords)],
    [
      `${module}.scales`,
      chain(
        scales as Tensor,
        (tensor) => tensor.transpose(),
        (tensor) => tensor.cast('float16'),
      ),
    ],
  ]);
}

/** The group size of most modules; the format has no place for those of single ones, which shapes tell. */
function commonGroup({ quantized }: FormatContext): number {
  const counts = new Map<number, number>();
  for (const { scheme, linear } of quantized) {
    const { groups, size } = groupsOf(scheme as IntScheme, linear.shape[1]);
    const own = groups === 1 ? -1 : size;
    counts.set(own, (counts.get(own) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? -1;
}

function config(context: FormatContext): FormatConfig {
  return {
    quantizationConfig: {
      quant_method: 'awq',
      bits: BITS,
      group_size: commonGroup(context),
      zero_point: true,
      version: 'gemm',
      modules_to_not_convert: skipList(namedModules(context, () => 'awq')),
    },
    files: {},
  };
}

function warnings(context: FormatContext): string[] {
  const found: string[] = [];
  const sizes = new Set(
    context.quantized.map(({ scheme, linear }) => {
      const { groups, size } = groupsOf(scheme as IntScheme, linear.shape[1]);
      return groups === 1 ? -1 : size;
    }),
  );
  if (sizes.size > 1) {
    found.push(
      `awq: one group size for the whole checkpoint is all that its configuration has a place for, and here are ${sizes.size}; gptq and compressed-tensors have one per module`,
    );
  }
  if ([...sizes].some((size) => size !== -1 && !KERNEL_GROUPS.includes(size))) {
    found.push(
      'awq: kernels take groups of 16, 32, 64, 128 or whole rows; compressed-tensors takes any size that divides the width',
    );
  }
  if (context.quantized.some(({ linear }) => linear.role === 'expert')) {
    found.push(
      'awq: transformers v5 keeps routed experts as fused parameters and replaces linear layers only; experts load in vLLM. compressed-tensors loads in transformers',
    );
  }
  if (context.modelDtype !== 'float16') {
    found.push(
      `awq: its GPU kernels compute in float16, this model is ${context.modelDtype}; loaders convert`,
    );
  }
  return found;
}

async function modules(source: StoredCheckpoint): Promise<StoredModule[]> {
  const found = quantizationOf(source.config) ?? {};
  const version = typeof found.version === 'string' ? found.version.toLowerCase() : 'gemm';
  if (version !== 'gemm') {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `awq: version ${version} came, only the gemm layout can be read`,
    );
  }
  return modulesWith(source, '.qweight').map((module) => {
    const qweight = requireEntry(source, `${module}.qweight`, ['I32'], 2);
    const qzeros = requireEntry(source, `${module}.qzeros`, ['I32'], 2);
    const scales = requireEntry(source, `${module}.scales`, ['F16', 'BF16', 'F32'], 2);
    const [groups, rows] = scales.shape as [number, number];
    const width = qweight.shape[0] as number;
    if (rows % PER_WORD !== 0)
      malformed(`${module}.scales`, `${rows} output features, expected a multiple of 8`);
    requireShape(`${module}.qweight`, qweight, [width, rows / PER_WORD]);
    requireShape(`${module}.qzeros`, qzeros, [groups, rows / PER_WORD]);
    const size = groupSizeOf(
      { group_size: found.group_size ?? found.q_group_size },
      width,
      groups,
      `${module}.scales`,
    );
    return {
      module,
      scheme: {
        kind: 'int',
        bits: BITS,
        symmetric: false,
        ...granularityOf(width, size),
        scaleDtype: scales.dtype === 'F16' ? 'float16' : scales.dtype === 'BF16' ? 'bfloat16' : 'float32',
      },
      shape: [rows, width],
      tensors: tensorsOf(source, module, ENDINGS),
      detail: { groups },
    };
  });
}

async function decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const [rows, width] = module.shape;
  const groups = module.detail.groups as number;
  const scheme = module.scheme as IntScheme;
  const qweight = await readAs(read, `${module.module}.qweight`, 'int32', [width, rows / PER_WORD]);
  const qzeros = await readAs(read, `${module.module}.qzeros`, 'int32', [groups, rows / PER_WORD]);
  const scales = await readAs(read, `${module.module}.scales`, scheme.scaleDtype ?? 'float32', [
    groups,
    rows,
  ]);
  const codesOf = (words: Tensor) =>
    consume(
      words,
      asBytes,
      (bytes) => unpackBits(bytes, rows, BITS, ORDER),
      (codes) => codes.transpose(),
    );
  return QuantizedTensor.fromStored(scheme, [rows, width], {
    packed: consume(codesOf(qweight), (codes) => packBits(codes, BITS)),
    scales: consume(
      scales,
      (tensor) => tensor.transpose(),
      (tensor) => tensor.cast('float32'),
    ),
    zeros: consume(codesOf(qzeros), (codes) => offsetCodes(codes, 0, 'int32')),
  });
}
