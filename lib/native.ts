import * as path from 'node:path';
import type { DType } from './dtype';
import { type ErrorCode, QuantariaError } from './errors';

/** A native tensor: opaque, a reference to a storage with a view of it. */
export interface NativeTensor {
  readonly __tensor: never;
}
/** A mapped safetensors file. */
export interface NativeMappedFile {
  readonly __mappedFile: never;
}
/** A file that is written at given positions. */
export interface NativeOutputFile {
  readonly __outputFile: never;
}

export interface NativeHeader {
  file: NativeMappedFile;
  tensors: { name: string; dtype: string; shape: number[]; begin: number; end: number }[];
}

/** A quantized weight as products take it: opaque, with references to the tensors of its stored form. */
export interface NativeWeight {
  readonly __weight: never;
}

/** The addon's functions: csrc/addon, a file per group. They check, queue and return; decisions are made in TypeScript. */
export interface Native {
  /** See `tensorInfo` of tensor_info.ts. */
  tensorFacts(tensor: NativeTensor, into: Float64Array): void;
  dtypes(): DType[];
  tensorSlice(tensor: NativeTensor, dim: number, start: number, end: number, step: number): NativeTensor;
  tensorSelect(tensor: NativeTensor, dim: number, index: number): NativeTensor;
  tensorTransposed(tensor: NativeTensor): NativeTensor;
  tensorReshape(tensor: NativeTensor, shape: readonly number[]): NativeTensor;
  tensorBitcast(tensor: NativeTensor, dtype: DType, shape: readonly number[]): NativeTensor;
  tensorDispose(tensor: NativeTensor): void;

  tensorFromBytes(bytes: ArrayBufferView, dtype: DType, shape: readonly number[]): NativeTensor;
  /** Undefined contents, for a caller that writes all of it. */
  tensorEmpty(dtype: DType, shape: readonly number[], device: string): NativeTensor;
  tensorZeros(dtype: DType, shape: readonly number[], device: string): NativeTensor;
  /** On another device; contiguous tensors only. */
  tensorTo(tensor: NativeTensor, device: string): NativeTensor;
  tensorCopy(tensor: NativeTensor, dtype: DType): NativeTensor;
  tensorCopyInto(source: NativeTensor, target: NativeTensor): void;
  tensorRead(tensor: NativeTensor, buffer: ArrayBuffer): Promise<void>;
  synchronize(device: string): Promise<void>;

  packBits(codes: NativeTensor, bits: number, offset: number, order?: readonly number[]): NativeTensor;
  unpackBits(
    packed: NativeTensor,
    columns: number,
    bits: number,
    offset: number,
    dtype: DType,
    order?: readonly number[],
  ): NativeTensor;
  swapNibbles(bytes: NativeTensor): NativeTensor;
  packPlanar(codes: NativeTensor, bits: number): NativeTensor;
  unpackPlanar(packed: NativeTensor, rows: number, bits: number): NativeTensor;
  offsetCodes(codes: NativeTensor, delta: number, dtype: DType, low?: number, high?: number): NativeTensor;

  quantize(weight: NativeTensor, scheme: object): Record<string, NativeTensor>;
  hadamardQuantize(x: NativeTensor, scale: number, scheme: object): Record<string, NativeTensor>;
  dequantize(
    scheme: object,
    stored: Readonly<Record<string, NativeTensor>>,
    shape: readonly number[],
    dtype: DType,
  ): NativeTensor;
  nestedAbsmax(codes: NativeTensor, scales: NativeTensor, offset: NativeTensor): NativeTensor;

  ownsStorage(tensor: NativeTensor): boolean;
  weight(
    scheme: object,
    stored: Readonly<Record<string, NativeTensor>>,
    shape: readonly number[],
  ): NativeWeight;
  weightDispose(weight: NativeWeight): void;
  /** Brings the codes into the order of products, or back into that of rows. */
  arrange(weight: NativeWeight, tiled: boolean): void;
  matmul(
    x: NativeTensor,
    weight: NativeTensor,
    transposed: boolean,
    bias: NativeTensor | null,
    outDtype: DType,
    compute: string,
  ): NativeTensor;
  linear(
    x: NativeTensor,
    weight: NativeWeight,
    bias: NativeTensor | null,
    outDtype: DType,
    compute: string,
  ): NativeTensor;
  llmInt8Linear(
    x: NativeTensor,
    weight: NativeWeight,
    bias: NativeTensor | null,
    outDtype: DType,
    threshold: number,
  ): NativeTensor;
  moeGroupedMatmul(x: NativeTensor, w: NativeTensor, counts: NativeTensor, compute: string): NativeTensor;
  moeExperts(x: NativeTensor, experts: object, routing: object, compute: string): NativeTensor;
  hessianUpdate(products: NativeTensor, x: NativeTensor): void;
  hessianUpdateEach(products: NativeTensor, x: NativeTensor, counts: NativeTensor): void;
  hessianValue(products: NativeTensor, samples: number): NativeTensor;
  hessianAdd(products: NativeTensor, from: NativeTensor, factor: number): void;
  outputError(weight: NativeTensor, values: NativeTensor | null, products: NativeTensor): Promise<number>;
  /** In order; all of one device, at least one. */
  gptqQuantize(
    problems: {
      weight: NativeTensor;
      products: NativeTensor;
      samples: number;
      beside: NativeTensor | null;
    }[],
    scheme: object,
    options: {
      actOrder: boolean;
      groupAware: boolean;
      staticGroups: boolean;
      damping: number;
      blockSize: number;
    },
  ): Promise<
    {
      stored: Record<string, NativeTensor>;
      error: number;
      weight: number;
      beside: number;
      damping: number;
      attempts: number;
      deadColumns: number;
    }[]
  >;
  columnMagnitudes(x: NativeTensor, maxima: NativeTensor, sums: NativeTensor): void;
  scaleMatrix(w: NativeTensor, rows: NativeTensor | null, columns: NativeTensor | null): NativeTensor;
  clampGroups(w: NativeTensor, group: number, ratios: NativeTensor): NativeTensor;
  roundToScale(x: NativeTensor, scale: number): NativeTensor;
  groupErrors(w: NativeTensor, v: NativeTensor, products: NativeTensor, group: number): NativeTensor;
  hadamard(x: NativeTensor, scale: number): NativeTensor;
  decoderRmsNorm(x: NativeTensor, gain: NativeTensor, eps: number): NativeTensor;
  decoderRotate(x: NativeTensor, cosines: NativeTensor, sines: NativeTensor, rotary: object): NativeTensor;
  decoderAttend(q: NativeTensor, k: NativeTensor, v: NativeTensor, attention: object): NativeTensor;
  decoderEmbed(table: NativeTensor, ids: NativeTensor, dtype: DType): NativeTensor;
  decoderAdd(a: NativeTensor, b: NativeTensor, gates: NativeTensor | null): NativeTensor;
  decoderSwiglu(gate: NativeTensor, up: NativeTensor): NativeTensor;
  decoderScoreTokens(
    logits: NativeTensor,
    baseline: NativeTensor | null,
    targets: NativeTensor,
  ): NativeTensor;

  /** Sums of squares of values - reference and of reference, and how many values are not finite. */
  compare(
    values: NativeTensor,
    reference: NativeTensor | null,
  ): Promise<{ error: number; reference: number; nonFinite: number }>;

  moeRoute(
    logits: NativeTensor,
    topK: number,
    softmaxFirst: boolean,
    normalize: boolean,
    scale: number,
    groups: number,
    topGroups: number,
  ): Record<'indices' | 'weights' | 'counts' | 'offsets' | 'order', NativeTensor>;
  moeSortSlots(indices: NativeTensor, experts: number): Record<'counts' | 'offsets' | 'order', NativeTensor>;

  llmInt8OutlierColumns(x: NativeTensor, threshold: number): Promise<number[]>;
  llmInt8Split(
    x: NativeTensor,
    threshold: number,
  ): Promise<{ columns: number[]; outliers: NativeTensor; codes: NativeTensor; scales: NativeTensor }>;

  openSafetensors(path: string): Promise<NativeHeader>;
  mappedTensor(file: NativeMappedFile, begin: number, dtype: DType, shape: readonly number[]): NativeTensor;
  mappedClose(file: NativeMappedFile): void;
  checkJson(text: ArrayBufferView, what: string): void;
  outputOpen(path: string, bytes: number): NativeOutputFile;
  outputWrite(
    file: NativeOutputFile,
    offset: number,
    tensor: NativeTensor,
    rowBytes?: number,
    stride?: number,
  ): Promise<void>;
  outputSync(file: NativeOutputFile): Promise<void>;
  outputClose(file: NativeOutputFile): void;

  buildId(): string;
  cpuInfo(): { threads: number; isa: string; memoryBytes: number };
  memory(device: string): { liveBytes: number; liveBlocks: number; cachedBytes: number };
  startTimer(device: string): Promise<void>;
  stopTimer(device: string): Promise<number>;
  captureStart(device: string): void;
  captureEnd(device: string): Promise<number>;
  graphLaunch(graph: number): void;
  graphDispose(graph: number): void;
  setThreads(threads: number): void;
  selectIsa(isa: string): void;
  /** The devices beside the CPU that this build and machine have. */
  cudaDevices(): {
    id: string;
    kind: string;
    name: string;
    memoryBytes: number;
    computeCapability: string;
  }[];
  cudaStatus(): {
    available: boolean;
    reason: string | null;
    driver?: string;
    runtime: string | null;
    refused?: Record<string, string>;
    cublasLt: { used: boolean; reason: string | null; version?: string; path?: string };
  };
}

/** An error of the addon as the library's own. What is not supported is told with the operation. Anything else passes through. */
export function translate(error: unknown, operation?: string): unknown {
  if (error instanceof Error && !(error instanceof QuantariaError)) {
    const code = (error as Error & { code?: unknown }).code;
    if (typeof code === 'string' && code.startsWith('ERR_')) {
      const named = code === 'ERR_UNSUPPORTED' && operation !== undefined;
      return new QuantariaError(code as ErrorCode, named ? `${operation}: ${error.message}` : error.message);
    }
  }
  return error;
}

/** The addon, with each function's errors, thrown or as rejections, made into `QuantariaError`s. */
function translated(addon: Native): Native {
  const wrapped: Record<string, unknown> = {};
  for (const [name, member] of Object.entries(addon)) {
    const call = member as (...args: unknown[]) => unknown;
    wrapped[name] = (...args: unknown[]) => {
      try {
        const result = call(...args);
        return result instanceof Promise
          ? result.catch((error: unknown) => {
              throw translate(error, name);
            })
          : result;
      } catch (error) {
        throw translate(error, name);
      }
    };
  }
  return wrapped as unknown as Native;
}

function load(): Native {
  const root = path.join(__dirname, '..');
  try {
    const build = process.env.QUANTARIA_BUILD;
    if (build !== undefined && build !== '')
      return translated(require(path.join(root, 'build', build, 'quantaria.node')));
    const find = require('node-gyp-build') as (directory: string) => Native;
    return translated(find(root));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new QuantariaError(
      'ERR_NATIVE_LOAD',
      [
        `the native addon could not be loaded: ${reason}`,
        `looked for: build/${process.env.QUANTARIA_BUILD || 'Release'} and prebuilds/${process.platform}-${process.arch} in ${root}`,
        'possible solutions:',
        '  - npm rebuild quantaria   (builds from source; needs CMake 3.22 or newer and a C++20 compiler)',
        '  - npm install quantaria without --ignore-scripts, on a platform without a prebuilt binary',
      ].join('\n'),
    );
  }
}

export const native: Native = load();
