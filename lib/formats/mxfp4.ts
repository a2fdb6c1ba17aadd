import { QuantariaError } from '../errors';
import type { Linear, ModelMap } from '../models/types';
import { QuantizedTensor } from '../quantized';
import type { MxScheme, QuantScheme } from '../scheme';
import type { Tensor } from '../tensor';
import { compressedTensors } from './compressed_tensors';
import { quantizationOf } from './json';
import { refused, requireFit } from './schemes';
import { consume, malformed, modulesWith, requireEntry, requireShape } from './tensors';
import type {
  Fit,
  Format,
  QuantizedModule,
  StoredCheckpoint,
  StoredModule,
  TensorEntry,
  TensorReader,
} from './types';

const BLOCK = 32;
const BLOCK_BYTES = 16;
const NAME = 'mxfp4';

/** gpt-oss keeps the experts of a layer as stacks `[E, out, in]`; gate and up rows take turns in one of them. */
const STACKS: Readonly<Record<string, { stack: string; start: number; step: number }>> = {
  gate: { stack: 'gate_up_proj', start: 0, step: 2 },
  up: { stack: 'gate_up_proj', start: 1, step: 2 },
  down: { stack: 'down_proj', start: 0, step: 1 },
};

/**
 * OCP MXFP4 weights. gpt-oss has a layout of its own for its experts; other architectures get compressed-tensors'
 * `mxfp4-pack-quantized`. Reading is always that of the gpt-oss layout: the other says compressed-tensors in its config.
 */
export function mxfp4(model: ModelMap | null): Format {
  const reading = {
    name: NAME,
    detect: (config) => quantizationOf(config)?.quant_method === NAME,
    modules,
    decode,
  } satisfies Partial<Format>;
  return model?.architecture === 'gpt_oss' ? { ...gptOss(model), ...reading } : { ...delegate(), ...reading };
}

/** `mxfp4-pack-quantized`, for MXFP4 alone. */
function delegate(): Format {
  const fit: Format['fit'] = (scheme, shape, modelDtype) =>
    isMxfp4(scheme) ? compressedTensors.fit(scheme, shape, modelDtype) : refused(`mxfp4 holds mx e2m1 only`);
  const format: Format = {
    ...compressedTensors,
    name: NAME,
    fit,
    settle: () => format,
    encode: async (module, q, modelDtype) => {
      requireFit({ name: NAME, fit }, module, q.scheme, q.shape, modelDtype);
      return compressedTensors.encode(module, q, modelDtype);
    },
  };
  return format;
}

const isMxfp4 = (scheme: QuantScheme): scheme is MxScheme =>
  scheme.kind === 'mx' && scheme.element === 'e2m1';

function gptOss(model: ModelMap): Format {
  const linears = new Map(model.linears.map((linear) => [linear.name, linear]));
  const fit = (
    scheme: QuantScheme,
    [, width]: readonly [number, number],
    _dtype: unknown,
    linear?: Linear,
  ): Fit => {
    if (!isMxfp4(scheme)) return refused('mxfp4 holds mx e2m1 only');
    if (linear !== undefined && linear.role !== 'expert')
      return refused("gpt-oss's mxfp4 holds experts only");
    if (width % BLOCK !== 0) return refused(`blocks of 32 must divide the ${width} input features`);
    if (scheme.preScale) {
      return {
        scheme: { ...scheme, preScale: false },
        notes: ['mxfp4 has no place for a pre-scale: left out'],
      };
    }
    return { scheme, notes: [] };
  };
  const expertOf = (module: string) => {
    const linear = linears.get(module);
    const stack = STACKS[linear?.projection ?? ''];
    const base = /^(.*\.experts)\.\d+\.[^.]+$/.exec(module)?.[1];
    if (linear === undefined || linear.expert === null || stack === undefined || base === undefined) {
      throw new QuantariaError('ERR_ARGUMENT', `${module}: mxfp4 holds gpt-oss experts only`);
    }
    return { linear, stack, name: `${base}.${stack.stack}` };
  };
  const format: Format = {
    name: NAME,
    sidecars: [],
    fit,
    settle: (quantized) => {
      requireWholeStacks(quantized, (module) => expertOf(module).name, model.experts);
      return format;
    },
    entries: (module) => {
      const { linear, stack, name } = expertOf(module);
      const [rows, width] = linear.shape;
      const region = { index: linear.expert as number, start: stack.start, step: stack.step, count: rows };
      const outer = [model.experts, rows * stack.step, width / BLOCK];
      return [
        { name: `${name}_blocks`, dtype: 'U8', shape: [...outer, BLOCK_BYTES], region },
        { name: `${name}_scales`, dtype: 'U8', shape: outer, region },
      ] satisfies TensorEntry[];
    },
    encode: async (module, q, modelDtype) => {
      requireFit({ name: NAME, fit }, module, q.scheme, q.shape, modelDtype);
      const { name } = expertOf(module);
      const [rows, width] = q.shape as [number, number];
      return new Map([
        [`${name}_blocks`, (q.stored.packed as Tensor).reshape([rows, width / BLOCK, BLOCK_BYTES])],
        [`${name}_scales`, (q.stored.scales as Tensor).reshape([rows, width / BLOCK])],
      ]);
    },
    config: () => ({
      quantizationConfig: {
        quant_method: NAME,
        modules_to_not_convert: [
          'model.layers.*.self_attn',
          'model.layers.*.mlp.router',
          'model.embed_tokens',
          'lm_head',
        ],
      },
      files: {},
    }),
    warnings: () => [],
    detect: () => false,
    modules,
    decode,
  };
  return format;
}

/** A stack is written whole: experts that are left out would be rows of zeros to a loader. */
function requireWholeStacks(
  quantized: readonly QuantizedModule[],
  stackOf: (module: string) => string,
  experts: number,
): void {
  const counts = new Map<string, number>();
  for (const { module } of quantized) counts.set(stackOf(module), (counts.get(stackOf(module)) ?? 0) + 1);
  for (const [stack, count] of counts) {
    const whole = experts * (stack.endsWith('gate_up_proj') ? 2 : 1);
    if (count !== whole) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `${stack}: ${count} of its ${whole} expert matrices are to be mxfp4; gpt-oss has all or none of a layer's`,
      );
    }
  }
}

async function modules(source: StoredCheckpoint): Promise<StoredModule[]> {
  return modulesWith(source, '_blocks').flatMap((stack) => {
    const blocks = requireEntry(source, `${stack}_blocks`, ['U8'], 4);
    const scales = requireEntry(source, `${stack}_scales`, ['U8'], 3);
    const [experts, rows, groups] = blocks.shape as [number, number, number, number];
    requireShape(`${stack}_blocks`, blocks, [experts, rows, groups, BLOCK_BYTES]);
    requireShape(`${stack}_scales`, scales, [experts, rows, groups]);
    const found = /^(.*)\.(gate_up_proj|down_proj)$/.exec(stack);
    if (found === null) malformed(`${stack}_blocks`, 'neither gate_up_proj nor down_proj');
    if (found[2] === 'gate_up_proj' && rows % 2 !== 0)
      malformed(`${stack}_blocks`, `${rows} rows do not split into gate and up`);
    const parts = Object.entries(STACKS).filter(([, { stack: name }]) => name === found[2]);
    return Array.from({ length: experts }).flatMap((_, expert) =>
      parts.map(
        ([projection, { start, step }]): StoredModule => ({
          module: `${found[1]}.${expert}.${projection}_proj`,
          scheme: { kind: 'mx', element: 'e2m1' },
          shape: [rows / step, groups * BLOCK],
          tensors: [`${stack}_blocks`, `${stack}_scales`],
          detail: { stack, expert, start, step },
        }),
      ),
    );
  });
}

async function decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const [rows, width] = module.shape;
  const { stack, expert, start, step } = module.detail as {
    stack: string;
    expert: number;
    start: number;
    step: number;
  };
  const rowsOf = async (ending: string, bytes: number) => {
    const name = `${stack}_${ending}`;
    const one = await read(name, [expert, expert + 1]);
    if (one.dtype !== 'uint8' || one.size !== rows * step * bytes) {
      malformed(
        name,
        `${one.dtype} [${one.shape.join(', ')}] for expert ${expert}, expected ${rows * step * bytes} bytes`,
      );
    }
    return consume(
      one,
      (tensor) => tensor.reshape([rows, step, bytes]),
      (tensor) => tensor.slice(1, start, start + 1),
      (tensor) => tensor.reshape([rows, bytes]),
    );
  };
  return QuantizedTensor.fromStored(module.scheme, [rows, width], {
    packed: await rowsOf('blocks', width / 2),
    scales: await rowsOf('scales', width / BLOCK),
  });
}
