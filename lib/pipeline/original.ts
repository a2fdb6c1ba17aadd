import { type Checkpoint, openCheckpoint } from '../checkpoint/reader';
import { QuantariaError } from '../errors';
import {
  describeModel,
  diskName,
  LAYOUTS,
  type Layout,
  layoutTensors,
  type ModelMap,
  type TargetTensor,
} from '../models';
import type { NativeTensor } from '../native';
import { assembleStack, linearView } from './copy_units';
import { expertTargets } from './expert_targets';

/** A tensor of an original under the name that another layout gives it. */
export interface OriginalTensor {
  /** As safetensors spells it. */
  dtype: string;
  shape: readonly number[];
  /** Bytes from `start` to `end`, of a tensor that is stored as it is; else null. */
  bytes: ((start: number, end: number) => NativeTensor) | null;
  /** As it lies in the file, maybe strided; of a whole stored tensor also a range of its first dimension. */
  view(range?: readonly [number, number]): NativeTensor;
}

/** One expert's matrix whatever path leads to it: templates differ in what stands between layer and expert. */
export function canonicalName(name: string): string {
  return name.replace(/^(.*\blayers\.\d+\.).*?\bexperts\.(\d+)\.([^.]+)(\.weight)?$/, '$1experts.$2.$3$4');
}

type Targets = ReadonlyMap<string, TargetTensor>;

/** An original checkpoint, looked up by the names that a converted or quantized one has. */
export class Original {
  readonly #checkpoint: Checkpoint;
  readonly #model: ModelMap;
  /** Its tensors in each layout that they can have, by canonical name. */
  readonly #layouts: readonly Targets[];

  private constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint;
    this.#model = describeModel(checkpoint.config, checkpoint.entries());
    this.#layouts = LAYOUTS.flatMap((layout) => this.#targets(layout) ?? []);
  }

  static async open(directory: string): Promise<Original> {
    const checkpoint = await openCheckpoint(directory);
    try {
      return new Original(checkpoint);
    } catch (error) {
      checkpoint.close();
      throw error;
    }
  }

  find(name: string): OriginalTensor | null {
    const key = this.#key(name);
    for (const layout of this.#layouts) {
      const target = layout.get(key);
      if (target !== undefined) return this.#tensorOf(target);
    }
    return null;
  }

  /** What is missing among `present`, in the layout that it follows best. */
  missing(present: Iterable<string>): string[] {
    const keys = new Set([...present].map((name) => this.#key(name)));
    const lists = this.#layouts.map((layout) =>
      [...layout].filter(([key]) => !keys.has(key)).map(([, { name }]) => name),
    );
    return lists.reduce((best, list) => (list.length < best.length ? list : best));
  }

  close(): void {
    this.#checkpoint.close();
  }

  #tensorOf({ from, shape, ...rest }: TargetTensor): OriginalTensor {
    const { dtype } = rest;
    if ('copy' in from) {
      const { copy } = from;
      return {
        dtype,
        shape,
        bytes: (start, end) => this.#checkpoint.bytes(copy, start, end),
        view: (range) => this.#checkpoint.view(copy, range),
      };
    }
    const [first] = from.pieces;
    const single = first !== undefined && first.piece.expert === null;
    return {
      dtype,
      shape,
      bytes: null,
      view: (range) =>
        single
          ? linearView(this.#checkpoint, first.linear)
          : assembleStack(this.#checkpoint, { ...rest, from, shape }, range ?? [0, shape[0] as number]),
    };
  }

  /** Null for a layout that this model cannot have; its own it always has. */
  #targets(layout: Layout): Targets | null {
    try {
      const targets =
        layout === 'sequential' ? expertTargets(this.#model) : layoutTensors(this.#model, layout);
      return new Map(targets.map((target) => [this.#key(target.name), target]));
    } catch (error) {
      const own = this.#model.expertLayout ?? 'sequential';
      if (layout !== own && error instanceof QuantariaError && error.code === 'ERR_UNSUPPORTED') return null;
      throw error;
    }
  }

  #key(name: string): string {
    return canonicalName(diskName(this.#model, name));
  }
}
