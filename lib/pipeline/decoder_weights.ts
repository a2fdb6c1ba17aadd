import { getDefaultDevice } from '../device';
import { QuantariaError } from '../errors';
import type { StoredModule } from '../formats';
import { describeModel, type Linear, type ModelMap, type Role } from '../models';
import {
  type Activations,
  type DecoderShape,
  decoderShape,
  type LayerWeights,
  type LinearWeight,
  type Matrix,
} from '../models/decoder';
import { splitLayer } from '../models/names';
import { ACTIVATION_DTYPES } from '../ops/decoder';
import { Tensor } from '../tensor';
import { linearView } from './copy_units';
import { placed } from './placement';
import { openModel, type StoredModel } from './stored_model';

const PROJECTIONS = ['gate', 'up', 'down'] as const;

/** What is neither in a layer nor in the vision part. */
export interface OuterWeights {
  /** `[V, hidden]` */
  embedding: Tensor;
  norm: Tensor;
  /** The embedding itself where the two are tied. */
  head: LinearWeight;
}

/** The decoder of a checkpoint, plain or quantized: its shape, and its weights a layer at a time. */
export class DecoderWeights implements Disposable {
  readonly shape: DecoderShape;
  readonly experts: number;
  readonly #opened: StoredModel;
  readonly #modules: ReadonlyMap<string, StoredModule>;
  /** Linear weights of each layer; those outside of layers under -1. */
  readonly #linears = new Map<number, Linear[]>();
  /** Names of the other tensors, by layer and name inside it. */
  readonly #vectors = new Map<string, string>();
  readonly #map: ModelMap;
  /** Of the layers' products. */
  compute?: 'int8';

  private constructor(opened: StoredModel) {
    this.#opened = opened;
    this.#modules = new Map(opened.modules.map((module) => [`${module.module}.weight`, module]));
    this.#map = describeWhole(opened);
    this.shape = decoderShape(opened.checkpoint.config, this.#map.layers);
    this.experts = this.#map.experts;
    for (const linear of this.#map.linears) {
      const layer = linear.layer ?? -1;
      const list = this.#linears.get(layer);
      if (list) list.push(linear);
      else this.#linears.set(layer, [linear]);
    }
    for (const { name, layer } of this.#map.others) {
      const at = layer === null ? null : splitLayer(name);
      this.#vectors.set(at ? `${at.layer} ${at.rest}` : name, name);
    }
  }

  /** @throws QuantariaError (as a rejection) `ERR_IO`, `ERR_FORMAT`, `ERR_UNSUPPORTED` if there is no forward pass for it */
  static async open(directory: string): Promise<DecoderWeights> {
    const opened = await openModel(directory);
    try {
      return new DecoderWeights(opened);
    } catch (error) {
      opened.checkpoint.close();
      throw error;
    }
  }

  get directory(): string {
    return this.#opened.checkpoint.directory;
  }

  /** @throws QuantariaError (as a rejection) `ERR_FORMAT` for what is missing */
  async outer(): Promise<OuterWeights> {
    const embedding = this.#read(
      this.#outerName('embedding', /(^|\.)embed_tokens\.weight$/, 'token embedding'),
    );
    const norm = this.#read(this.#outerName('norm', /(^|\.)norm\.weight$/, 'final norm'));
    const stored = this.#linears.get(-1)?.find(({ role }) => role === 'lm-head');
    // Where config.json ties the two, a stored head is a copy.
    const head = stored === undefined || this.shape.tied ? embedding : await this.#matrix(stored);
    const bias = stored === undefined ? undefined : this.#bias(stored);
    return { embedding, norm, head: { weight: head, bias } };
  }

  /**
   * Memory that a layer's weights take, about: quantized ones are put into the order of products, while others are read where
   * they lie in the file.
   */
  layerBytes(layer: number): number {
    const modules = (this.#linears.get(layer) ?? []).flatMap(({ source }) => {
      const module = this.#modules.get(source.tensor);
      return module === undefined ? [] : [module];
    });
    const names = new Set(modules.flatMap(({ tensors }) => tensors));
    return [...names].reduce((sum, name) => sum + this.#opened.checkpoint.info(name).bytes, 0);
  }

  /** The weights of one layer; the caller disposes them. */
  async layer(layer: number): Promise<LayerWeights> {
    const owned: Disposable[] = [];
    const own = <T extends Disposable>(item: T): T => {
      owned.push(item);
      return item;
    };
    const linears = new Map<string, LinearWeight>();
    const routed: Partial<Record<(typeof PROJECTIONS)[number], Matrix>>[] = [];
    const ofExperts: (Activations | undefined)[] = [];
    for (const linear of this.#linears.get(layer) ?? []) {
      const weight = own(await this.#matrix(linear));
      const activations = this.#activations(linear);
      if (linear.role === 'expert') ofExperts.push(activations);
      if (linear.role === 'expert' && linear.expert !== null) {
        routed[linear.expert] = { ...routed[linear.expert], [linear.projection]: weight };
        continue;
      }
      const bias = this.#bias(linear);
      if (bias) own(bias);
      linears.set(`${linear.role} ${linear.projection}`, { weight, bias, activations });
    }
    const missing = (what: string) =>
      new QuantariaError('ERR_FORMAT', `${this.directory}: layer ${layer} has no ${what}`);
    const experts = Array.from(routed, (expert, e) => {
      const { gate, up, down } = expert ?? {};
      if (!gate || !up || !down) throw missing(`whole expert ${e}`);
      return { gate, up, down };
    });
    if (experts.length > 0 && this.shape.router === null) {
      throw new QuantariaError(
        'ERR_UNSUPPORTED',
        `${this.directory}: config.json does not say how many experts a token has`,
      );
    }
    const vectors = new Map<string, Tensor>();
    const vector = (name: string): Tensor | null => {
      const stored = this.#vectors.get(`${layer} ${name}`);
      if (stored === undefined) return null;
      const tensor = vectors.get(name) ?? own(this.#read(stored));
      vectors.set(name, tensor);
      return tensor;
    };
    return {
      layer,
      experts,
      compute: this.compute,
      expertActivations: this.#expertActivations(layer, ofExperts),
      has: (role: Role, projection: string) => linears.has(`${role} ${projection}`),
      linear(role, projection) {
        const found = linears.get(`${role} ${projection}`);
        if (!found) throw missing(`${role} projection ${projection}`);
        return found;
      },
      vector,
      norm(name) {
        const found = vector(name);
        if (!found) throw missing(name);
        return found;
      },
      dispose() {
        for (const item of owned) item[Symbol.dispose]();
      },
    };
  }

  [Symbol.dispose](): void {
    this.#opened.checkpoint.close();
  }

  async #matrix(linear: Linear): Promise<Matrix> {
    const { format, stored, checkpoint } = this.#opened;
    const module = this.#modules.get(linear.source.tensor);
    if (module !== undefined && format !== null) {
      using decoded = await format.decode(module, stored.read);
      return decoded.to(getDefaultDevice());
    }
    return placed(computable(Tensor.wrap(linearView(checkpoint, linear))));
  }

  #read(name: string): Tensor {
    return placed(computable(Tensor.wrap(this.#opened.checkpoint.view(name))));
  }

  /** What the checkpoint says of a linear layer's input. */
  #activations({ source }: Linear): Activations | undefined {
    const stored = this.#modules.get(source.tensor)?.activations;
    return stored?.scale === undefined ? stored?.kind : { scale: stored.scale };
  }

  /** Those of a layer are one product. */
  #expertActivations(layer: number, all: readonly (Activations | undefined)[]): 'dynamic' | undefined {
    if (all.every((own) => own === undefined)) return undefined;
    if (all.every((own) => own === 'dynamic')) return 'dynamic';
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `${this.directory}: layer ${layer} has routed experts whose activations have stored scales, or some with 8-bit activations and some without`,
    );
  }

  /** As float32, which products take beside any activations. */
  #bias(linear: Linear): Tensor | undefined {
    const at = linear.layer === null ? null : splitLayer(linear.name);
    const name = this.#vectors.get(at ? `${at.layer} ${at.rest}.bias` : `${linear.name}.bias`);
    if (name === undefined) return undefined;
    using stored = Tensor.wrap(this.#opened.checkpoint.view(name));
    return placed(stored.cast('float32'));
  }

  #outerName(role: Role, pattern: RegExp, what: string): string {
    const found = this.#map.others.find(
      (tensor) => tensor.role === role && tensor.layer === null && pattern.test(tensor.name),
    );
    if (found) return found.name;
    throw new QuantariaError('ERR_FORMAT', `${this.directory}: there is no ${what}`);
  }
}

/** The model as if nothing in it were quantized: each quantized module is a weight of its logical shape. */
function describeWhole({ checkpoint, model, modules }: StoredModel): ModelMap {
  if (modules.length === 0) return model;
  const parts = new Set(modules.flatMap(({ tensors }) => tensors));
  const kept = checkpoint.entries().filter(({ name }) => !parts.has(name));
  const whole = modules.map(({ module, shape }) => ({ name: `${module}.weight`, dtype: 'F32', shape }));
  return describeModel(checkpoint.config, [...kept, ...whole]);
}

/** Products take three dtypes; others hold values that float32 holds too. */
function computable(tensor: Tensor): Tensor {
  if ((ACTIVATION_DTYPES as readonly string[]).includes(tensor.dtype)) return tensor;
  using stored = tensor;
  return stored.cast('float32');
}
