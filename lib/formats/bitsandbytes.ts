import { packBits, swapNibbles, unpackBits } from '../ops/bits';
import { QuantizedTensor } from '../quantized';
import { type CodebookScheme, NESTED_BLOCK, type QuantScheme } from '../scheme';
import { type DType, Tensor } from '../tensor';
import { decodeFourBit, fourBitModule, quantStateBytes, quantStateLength, stateEndings } from './bnb_4bit';
import { dynamicMap, fp4Map, nf4Map } from './bnb_maps';
import { quantizationOf } from './json';
import { namedModules } from './names';
import { refused, requireFit } from './schemes';
import { skipList } from './skips';
import {
  chain,
  consume,
  malformed,
  modulesWith,
  readAs,
  requireEntry,
  requireShape,
  scaleDTypeOf,
  share,
  tensorsOf,
} from './tensors';
import type {
  Fit,
  Format,
  FormatConfig,
  FormatContext,
  JsonObject,
  StoredCheckpoint,
  StoredModule,
  TensorEntry,
  TensorReader,
} from './types';

const SMALLEST_BLOCK = 32;
const LARGEST_BLOCK = 4096;
const DEFAULT_THRESHOLD = 6;

/** bitsandbytes: NF4 and FP4 over flat blocks, and LLM.int8 with one absmax per row. */
export const bitsandbytes: Format = {
  name: 'bitsandbytes',
  sidecars: [],
  fit,
  entries,
  settle: () => bitsandbytes,
  encode,
  config,
  warnings,
  detect: (config) => quantizationOf(config)?.quant_method === 'bitsandbytes',
  modules,
  decode: (module, read) =>
    module.scheme.kind === 'llm.int8' ? decodeInt8(module, read) : decodeFourBit(module, read),
};

function fit(scheme: QuantScheme): Fit {
  switch (scheme.kind) {
    case 'nf4':
    case 'fp4':
      return fitBlocks(scheme);
    case 'llm.int8':
      return { scheme, notes: [] };
    case 'int':
      if (scheme.bits === 8 && scheme.symmetric && scheme.granularity === 'row') {
        return {
          scheme: { kind: 'llm.int8', threshold: DEFAULT_THRESHOLD },
          notes: [
            'bitsandbytes stores 8-bit rows as LLM.int8: the absmax of each row, and outliers of the activations in 16 bits',
          ],
        };
      }
      return refused(`bitsandbytes holds integers as 8-bit symmetric rows only (LLM.int8)`);
    default:
      return refused(`bitsandbytes holds nf4, fp4 and llm.int8, not ${scheme.kind}`);
  }
}

function fitBlocks(scheme: CodebookScheme): Fit {
  const { blockSize } = scheme;
  const power = 2 ** Math.floor(Math.log2(blockSize));
  const fitted = Math.min(Math.max(power, SMALLEST_BLOCK), LARGEST_BLOCK);
  if (fitted === blockSize) return { scheme, notes: [] };
  return {
    scheme: { ...scheme, blockSize: fitted },
    notes: [
      `bitsandbytes takes blocks of 32 to 4096, powers of two, not ${blockSize}: blocks of ${fitted} instead`,
    ],
  };
}

function entries(
  module: string,
  scheme: QuantScheme,
  [rows, width]: readonly [number, number],
  modelDtype: DType,
): TensorEntry[] {
  const weight = `${module}.weight`;
  if (scheme.kind === 'llm.int8') {
    return [
      { name: weight, dtype: 'I8', shape: [rows, width] },
      { name: `${module}.SCB`, dtype: 'F32', shape: [rows] },
      { name: `${module}.weight_format`, dtype: 'U8', shape: [] },
    ];
  }
  const { kind, blockSize, doubleQuant } = scheme as CodebookScheme;
  const blocks = Math.ceil((rows * width) / blockSize);
  const state = quantStateLength(scheme as CodebookScheme, [rows, width], scaleDTypeOf(modelDtype));
  return [
    { name: weight, dtype: 'U8', shape: [Math.ceil((rows * width) / 2), 1] },
    { name: `${weight}.absmax`, dtype: doubleQuant ? 'U8' : 'F32', shape: [blocks] },
    { name: `${weight}.quant_map`, dtype: 'F32', shape: [16] },
    ...(doubleQuant
      ? ([
          { name: `${weight}.nested_absmax`, dtype: 'F32', shape: [Math.ceil(blocks / NESTED_BLOCK)] },
          { name: `${weight}.nested_quant_map`, dtype: 'F32', shape: [256] },
        ] as TensorEntry[])
      : []),
    { name: `${weight}.quant_state.bitsandbytes__${kind}`, dtype: 'U8', shape: [state] },
  ];
}

async function encode(module: string, q: QuantizedTensor, modelDtype: DType): Promise<Map<string, Tensor>> {
  requireFit(bitsandbytes, module, q.scheme, q.shape, modelDtype);
  const [rows, width] = q.shape as [number, number];
  const weight = `${module}.weight`;
  const { packed, scales, absmax, absmaxCodes, absmaxScales, absmaxOffset } = q.stored as Record<
    string,
    Tensor
  >;
  if (q.scheme.kind === 'llm.int8') {
    return new Map([
      [weight, unpackBits(packed as Tensor, width, 8, undefined, { offset: 128, dtype: 'int8' })],
      [`${module}.SCB`, share(scales as Tensor)],
      // 0: rows as they are, not one of the layouts of old GPU kernels.
      [`${module}.weight_format`, Tensor.from(Uint8Array.of(0), [], { device: q.device })],
    ]);
  }
  const scheme = q.scheme as CodebookScheme;
  const bytes = Math.ceil((rows * width) / 2);
  const map = scheme.kind === 'nf4' ? nf4Map : fp4Map;
  // Before anything is waited for, as a product may follow.
  const codes = chain(
    packed as Tensor,
    (flat) => flat.slice(1, 0, bytes),
    swapNibbles,
    (flat) => flat.reshape([bytes, 1]),
  );
  const offset = absmaxOffset === undefined ? null : ((await absmaxOffset.read())[0] as number);
  const state = quantStateBytes(scheme, [rows, width], scaleDTypeOf(modelDtype), offset);
  return new Map([
    [weight, codes],
    [`${weight}.absmax`, share((absmaxCodes ?? absmax) as Tensor)],
    [`${weight}.quant_map`, Tensor.from(map, [16], { device: q.device })],
    ...(absmaxScales === undefined
      ? []
      : ([
          [`${weight}.nested_absmax`, share(absmaxScales)],
          [`${weight}.nested_quant_map`, Tensor.from(dynamicMap, [256], { device: q.device })],
        ] as const)),
    [
      `${weight}.quant_state.bitsandbytes__${scheme.kind}`,
      Tensor.from(state, [state.length], { device: q.device }),
    ],
  ]);
}

function config(context: FormatContext): FormatConfig {
  const fourBit = context.quantized.find(({ scheme }) => scheme.kind !== 'llm.int8')?.scheme as
    | CodebookScheme
    | undefined;
  const eightBit = context.quantized.find(({ scheme }) => scheme.kind === 'llm.int8')?.scheme as
    | { threshold?: number }
    | undefined;
  const load4 = fourBit !== undefined;
  return {
    quantizationConfig: {
      quant_method: 'bitsandbytes',
      load_in_4bit: load4,
      load_in_8bit: !load4,
      _load_in_4bit: load4,
      _load_in_8bit: !load4,
      bnb_4bit_quant_type: fourBit?.kind ?? 'fp4',
      bnb_4bit_use_double_quant: fourBit?.doubleQuant === true,
      bnb_4bit_compute_dtype: scaleDTypeOf(context.modelDtype),
      bnb_4bit_quant_storage: 'uint8',
      llm_int8_skip_modules: skipList(namedModules(context, () => 'bitsandbytes')),
      ...thresholdOf(eightBit?.threshold ?? DEFAULT_THRESHOLD),
      llm_int8_has_fp16_weight: false,
      llm_int8_enable_fp32_cpu_offload: false,
    },
    files: {},
  };
}

/**
 * transformers insists on a float, and JSON text made here writes whole numbers without a point: the default is left
 * out, and another whole number is the largest double below it, which no float32 activation tells from it.
 */
function thresholdOf(threshold: number): JsonObject {
  if (threshold === DEFAULT_THRESHOLD) return {};
  const float = Number.isInteger(threshold) ? threshold * (1 - Number.EPSILON / 2) : threshold;
  return { llm_int8_threshold: Math.max(float, Number.MIN_VALUE) };
}

function warnings({ quantized }: FormatContext): string[] {
  const found: string[] = [];
  const kinds = new Set(quantized.map(({ scheme }) => scheme.kind));
  if (quantized.some(({ linear }) => linear.role === 'expert')) {
    found.push(
      'bitsandbytes: transformers v5 keeps routed experts as fused parameters and fails at the first forward pass on 4-bit experts; compressed-tensors loads there, and a sequential expert layout with its own code takes bitsandbytes',
    );
    if (kinds.has('llm.int8'))
      found.push(
        'bitsandbytes: vLLM takes 4-bit experts in newer versions, but no 8-bit ones; compressed-tensors has 8-bit experts',
      );
  }
  if (kinds.has('llm.int8') && kinds.size > 1) {
    found.push(
      'bitsandbytes: 4-bit and 8-bit modules cannot be loaded from one checkpoint; compressed-tensors and gptq have several widths',
    );
  } else if (kinds.size > 1) {
    found.push(
      'bitsandbytes: nf4 and fp4 modules in one checkpoint: its configuration names one of them, though each tensor says which it is',
    );
  }
  return found;
}

async function modules(source: StoredCheckpoint): Promise<StoredModule[]> {
  const found: StoredModule[] = [];
  for (const ending of stateEndings) {
    for (const module of modulesWith(source, ending)) found.push(await fourBitModule(source, module, ending));
  }
  const threshold = quantizationOf(source.config)?.llm_int8_threshold;
  for (const module of modulesWith(source, '.SCB')) {
    const weight = requireEntry(source, `${module}.weight`, ['I8'], 2);
    const [rows, width] = weight.shape as [number, number];
    requireShape(`${module}.SCB`, requireEntry(source, `${module}.SCB`, ['F32'], 1), [rows]);
    const endings = ['.weight', '.SCB', '.weight_format'];
    found.push({
      module,
      scheme: {
        kind: 'llm.int8',
        threshold: typeof threshold === 'number' && threshold >= 0 ? threshold : 6,
      },
      shape: [rows, width],
      tensors: tensorsOf(source, module, endings),
      detail: { hasFormat: source.entries.has(`${module}.weight_format`) },
    });
  }
  return found;
}

async function decodeInt8(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const [rows, width] = module.shape;
  if (module.detail.hasFormat === true) {
    const name = `${module.module}.weight_format`;
    const layout = await read(name);
    const [value] = await layout.read();
    layout.dispose();
    if (Number(value) !== 0) malformed(name, `layout ${value} came, only rows (0) can be read`);
  }
  const weight = await readAs(read, `${module.module}.weight`, 'int8', [rows, width]);
  const scales = await readAs(read, `${module.module}.SCB`, 'float32', [rows]);
  return QuantizedTensor.fromStored(module.scheme, [rows, width], {
    packed: consume(weight, (codes) => packBits(codes, 8, undefined, 128)),
    scales,
  });
}
