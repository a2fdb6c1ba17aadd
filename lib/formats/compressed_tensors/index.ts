import type { QuantScheme } from '../../scheme';
import type { DType } from '../../tensor';
import { quantizationOf } from '../json';
import { fitGroups, refused, requireFit, withScales } from '../schemes';
import { scaleDTypeOf } from '../tensors';
import type { Fit, Format } from '../types';
import { config, warnings } from './config';
import { type Layout, layoutOf, takesActivations, withoutPreScale } from './layouts';
import { decode, modules } from './read';

/** compressed-tensors: several layouts under one configuration, each group of modules with its own. */
export const compressedTensors: Format = {
  name: 'compressed-tensors',
  sidecars: [],
  fit,
  entries: (module, scheme, shape, modelDtype, options) =>
    (layoutOf(scheme, options?.activations) as Layout).entries(
      module,
      scheme,
      shape,
      modelDtype,
      options ?? {},
    ),
  settle: () => compressedTensors,
  encode: async (module, q, modelDtype, options = {}) => {
    requireFit(compressedTensors, module, q.scheme, q.shape, modelDtype);
    return (layoutOf(q.scheme, options.activations) as Layout).encode(module, q, modelDtype, options);
  },
  activations: (scheme) => (takesActivations(scheme) ? ['dynamic', 'static'] : []),
  config,
  warnings,
  detect: (config) => quantizationOf(config)?.quant_method === 'compressed-tensors',
  modules,
  decode,
};

function fit(scheme: QuantScheme, [, width]: readonly [number, number], modelDtype: DType): Fit {
  if (layoutOf(scheme) === null) return refused(reasonAgainst(scheme));
  switch (scheme.kind) {
    case 'int': {
      // One scale for the whole weight is there for symmetric grids only.
      const grouped =
        scheme.granularity === 'tensor' && scheme.symmetric
          ? { scheme, notes: [] }
          : fitGroups(scheme, width, 'compressed-tensors');
      return withScales(grouped, scaleDTypeOf(modelDtype), 'compressed-tensors');
    }
    case 'fp8':
      return withScales({ scheme, notes: [] }, scaleDTypeOf(modelDtype), 'compressed-tensors');
    case 'mx':
      if (width % 32 !== 0) return refused(`blocks of 32 must divide the ${width} input features`);
      return scheme.preScale
        ? {
            scheme: withoutPreScale(scheme),
            notes: ['compressed-tensors has no place for a pre-scale: left out'],
          }
        : { scheme, notes: [] };
    default:
      return { scheme, notes: [] };
  }
}

function reasonAgainst(scheme: QuantScheme): string {
  switch (scheme.kind) {
    case 'int':
      return `compressed-tensors holds up to 8 bits, not ${scheme.bits}`;
    case 'fp8':
      return 'compressed-tensors holds float8 as e4m3, not e5m2';
    case 'mx':
      return `compressed-tensors holds the MX elements e2m1 and e4m3, not ${scheme.element}`;
    case 'nf4':
    case 'fp4':
    case 'llm.int8':
      return `compressed-tensors has no ${scheme.kind}; bitsandbytes has`;
    default:
      return `compressed-tensors has no ${scheme.kind}`;
  }
}
