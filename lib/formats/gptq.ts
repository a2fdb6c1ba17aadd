import { QuantariaError } from '../errors';
import { offsetCodes, packBits } from '../ops/bits';
import type { QuantizedTensor } from '../quantized';
import type { IntScheme, QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { commonVersion, config, isAffine, type Version, warnings } from './gptq_config';
import { decode, gptqBits, modules, sidecarOf } from './gptq_read';
import { quantizationOf } from './json';
import { fitGroups, groupsOf, refused, requireFit, withScales } from './schemes';
import { asWords, chain, consume, wordsOf } from './tensors';
import type { Fit, Format, TensorEntry } from './types';

/** GPTQ: unsigned codes packed along `in`, zero points along `out`. */
export const gptq: Format = makeGptq(null);

/** @param version null: decided by each module alone, right as long as all agree */
function makeGptq(version: Version | null): Format {
  const versionOf = (scheme: QuantScheme): Version => version ?? (isAffine(scheme) ? 2 : 1);
  return {
    name: 'gptq',
    sidecars: ['quantize_config.json'],
    fit,
    entries,
    settle: (quantized) => makeGptq(commonVersion(quantized)),
    encode: async (module, q, modelDtype) => {
      requireFit({ name: 'gptq', fit }, module, q.scheme, q.shape, modelDtype);
      return encode(module, q, versionOf(q.scheme));
    },
    config: (context) => {
      const common = commonVersion(context.quantized);
      const mixed = new Set(context.quantized.map(({ scheme }) => versionOf(scheme))).size > 1;
      if (mixed || (version !== null && version !== common)) {
        throw new QuantariaError(
          'ERR_ARGUMENT',
          'gptq: symmetric and affine modules in one checkpoint: settle the format on all of them first',
        );
      }
      return config(context, common);
    },
    warnings,
    detect: (config, _names, files) =>
      quantizationOf(config)?.quant_method === 'gptq' ||
      (quantizationOf(config) === null && sidecarOf(files) !== null),
    modules,
    decode,
  };
}

function fit(scheme: QuantScheme, [rows, width]: readonly [number, number]): Fit {
  if (scheme.kind !== 'int') return refused(`gptq holds integers only, not ${scheme.kind}`);
  if (!gptqBits.includes(scheme.bits)) return refused(`gptq holds 2, 3, 4 or 8 bits, not ${scheme.bits}`);
  if (width % 32 !== 0)
    return refused(`gptq packs 32 input features at a time, which ${width} is no multiple of`);
  if (rows % 32 !== 0)
    return refused(`gptq packs 32 output features at a time, which ${rows} is no multiple of`);
  return withScales(fitGroups(scheme, width, 'gptq'), 'float16', 'gptq');
}

function entries(
  module: string,
  scheme: QuantScheme,
  [rows, width]: readonly [number, number],
): TensorEntry[] {
  const int = scheme as IntScheme;
  const { groups } = groupsOf(int, width);
  return [
    { name: `${module}.qweight`, dtype: 'I32', shape: [wordsOf(width, int.bits), rows] },
    { name: `${module}.qzeros`, dtype: 'I32', shape: [groups, wordsOf(rows, int.bits)] },
    { name: `${module}.scales`, dtype: 'F16', shape: [groups, rows] },
    { name: `${module}.g_idx`, dtype: 'I32', shape: [width] },
  ];
}

function encode(module: string, q: QuantizedTensor, version: Version): Map<string, Tensor> {
  const scheme = q.scheme as IntScheme;
  const [rows, width] = q.shape as [number, number];
  const { groups, size } = groupsOf(scheme, width);
  const { packed, scales, zeros, groupIndex } = q.stored as Record<string, Tensor>;
  const shift = version === 1 ? -1 : 0;
  const middle = 2 ** (scheme.bits - 1);
  const zeroCodes =
    zeros === undefined
      ? Tensor.from(new Uint8Array(groups * rows).fill(middle + shift), [groups, rows], { device: q.device })
      : chain(
          zeros,
          (tensor) => tensor.transpose(),
          (tensor) => offsetCodes(tensor, shift, 'uint8'),
        );
  return new Map([
    [`${module}.qweight`, chain(packed as Tensor, asWords, (words) => words.transpose())],
    [`${module}.qzeros`, consume(zeroCodes, (codes) => packBits(codes, scheme.bits), asWords)],
    [
      `${module}.scales`,
      chain(
        scales as Tensor,
        (tensor) => tensor.transpose(),
        (tensor) => tensor.cast('float16'),
      ),
    ],
    [
      `${module}.g_idx`,
      groupIndex === undefined
        ? Tensor.from(
            Int32Array.from({ length: width }, (_, column) => Math.floor(column / size)),
            [width],
            { device: q.device },
          )
        : groupIndex.reshape([width]),
    ],
  ]);
}
