import type { Linear, ModelMap, Role } from '../models/types';
import type { QuantizedTensor } from '../quantized';
import type { FormatName } from '../recipe/types';
import type { QuantScheme } from '../scheme';
import type { DType, Tensor } from '../tensor';

export type { FormatName };

/** The safetensors names of the dtypes that quantized formats write. */
export type StoredDType =
  | 'F32'
  | 'F16'
  | 'BF16'
  | 'F8_E4M3'
  | 'F8_E5M2'
  | 'I8'
  | 'U8'
  | 'I16'
  | 'I32'
  | 'I64'
  | 'BOOL';

export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: Json | undefined;
}

/** Where a module's rows lie inside a tensor that several modules share (gpt-oss experts). */
export interface Region {
  /** index along the first dimension of the shared tensor */
  index: number;
  /** rows `start, start + step, ...` of the second dimension, `count` of them */
  start: number;
  step: number;
  count: number;
}

/**
 * A tensor of the output checkpoint. With `region`, `shape` is that of the whole shared tensor, every module that
 * shares it names it with the same shape, and what `encode` returns under that name are this module's rows only:
 * `[count, ...shape.slice(2)]`. The regions of one tensor cover it exactly once.
 */
export interface TensorEntry {
  name: string;
  dtype: StoredDType;
  shape: number[];
  region?: Region;
}

/** What this format stores for what was asked: a scheme and what was changed, or the reason why it holds none. */
export type Fit = { scheme: QuantScheme; notes: string[] } | { scheme: null; reason: string };

/**
 * How the activations that enter a module become 8-bit integers: each row by its largest magnitude as it comes, or all by one scale
 * that calibration has found.
 */
export type Activations = 'dynamic' | 'static';

export interface EntryOptions {
  /** the tensor carries a group index per column (GPTQ with act-order and groups that move with it) */
  groupIndex?: boolean;
  activations?: Activations;
}

export interface EncodeOptions {
  activations?: Activations;
  /** of static activations */
  inputScale?: number;
}

export interface QuantizedModule {
  linear: Linear;
  /** the name written, without `.weight` */
  module: string;
  scheme: QuantScheme;
  groupIndex?: boolean;
  activations?: Activations;
}

export interface KeptModule {
  /** tensor name as written, with `.weight` or `.bias` where it has one */
  name: string;
  role: Role;
  shape?: readonly number[];
}

/** All that was planned for one checkpoint: what `config` and `warnings` are derived from. */
export interface FormatContext {
  model: ModelMap;
  modelDtype: DType;
  quantized: readonly QuantizedModule[];
  kept: readonly KeptModule[];
  /** config.json of the source */
  config: JsonObject | null;
  method: string;
  options?: { damping?: number; actOrder?: boolean; staticGroups?: boolean };
}

export interface FormatConfig {
  /** `quantization_config` of config.json; null where the format keeps none there */
  quantizationConfig: JsonObject | null;
  /** further files beside the weights, by name */
  files: Record<string, string>;
  /** other keys of config.json that have to change */
  configPatch?: JsonObject;
}

/** Reads a stored tensor, or the part `[start, end)` of its first dimension. */
export type TensorReader = (name: string, range?: readonly [number, number]) => Promise<Tensor>;

/** An opened checkpoint as far as a format looks at it. `files` holds the sidecars that are there. */
export interface StoredCheckpoint {
  config: JsonObject | null;
  entries: ReadonlyMap<string, Omit<TensorEntry, 'dtype'> & { dtype: string }>;
  files: Readonly<Record<string, string>>;
  read: TensorReader;
}

/** One quantized linear layer found in a checkpoint. */
export interface StoredModule {
  module: string;
  scheme: QuantScheme;
  shape: [number, number];
  /** every stored tensor that belongs to it (several modules may share one) */
  tensors: string[];
  /** how its input is quantized */
  activations?: { kind: 'dynamic'; scale?: undefined } | { kind: 'static'; scale: number };
  /** what the format needs to decode it and the scheme does not say */
  detail: Readonly<Record<string, string | number | boolean>>;
}

/** One on-disk format: quantized linear layers to and from named tensors and a quantization_config. */
export interface Format {
  readonly name: FormatName;
  /** the files beside the weights that hold (a part of) this format's configuration */
  readonly sidecars: readonly string[];
  /** `linear` tells a format that holds some roles only (gpt-oss experts); without it the role is taken to be right. */
  fit(scheme: QuantScheme, shape: readonly [number, number], modelDtype: DType, linear?: Linear): Fit;
  /** The tensors that `encode` will return, known before any data is read; `scheme` is one that `fit` returned. */
  entries(
    module: string,
    scheme: QuantScheme,
    shape: readonly [number, number],
    modelDtype: DType,
    options?: EntryOptions,
  ): TensorEntry[];
  /**
   * The format settled on a whole plan: what all modules of one checkpoint must agree on (GPTQ: one affine module makes
   * every zero point v2). `entries`, `encode` and `config` are those of the settled format.
   */
  settle(quantized: readonly QuantizedModule[]): Format;
  /**
   * The caller disposes of the tensors. A promise because bitsandbytes writes one device value as decimal text.
   * @throws QuantariaError `ERR_ARGUMENT` if `q`'s scheme is not one that the format holds as it is
   */
  encode(
    module: string,
    q: QuantizedTensor,
    modelDtype: DType,
    options?: EncodeOptions,
  ): Promise<Map<string, Tensor>>;
  /** What activations the format can say beside a weight of such a scheme; none if left out. */
  activations?(scheme: QuantScheme): readonly Activations[];
  config(context: FormatContext): FormatConfig;
  /** What stock loaders cannot take of this, and what they can; one sentence each. */
  warnings(context: FormatContext): string[];
  detect(
    config: JsonObject | null,
    names: ReadonlySet<string>,
    files: Readonly<Record<string, string>>,
  ): boolean;
  /** @throws QuantariaError `ERR_FORMAT` naming the tensor that is missing or ill-formed */
  modules(source: StoredCheckpoint): Promise<StoredModule[]>;
  /** @throws QuantariaError `ERR_FORMAT` naming the tensor whose content is not this format's */
  decode(module: StoredModule, read: TensorReader): Promise<QuantizedTensor>;
}
