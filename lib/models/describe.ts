import { QuantariaError } from '../errors';
import { type Architecture, architectureOf } from './architecture';
import { type Config, count, type DecoderFacts, decoderFacts, modelTypes, textConfig } from './config';
import { ExpertCollector } from './experts';
import { isWrapped, type LayerName, sortByName, splitLayer, toDiskName } from './names';
import { plainExperts } from './qwen3_moe';
import { OTHER_TOWERS, projectionOf, roleClassifier } from './roles';
import { readStack } from './stacks';
import type { Linear, ModelMap, PlainTensor, Role, StoredTensor } from './types';

/** Types that hold plain numbers; float8 does too unless scales stand beside it. */
const FLOATS = new Set(['F64', 'F32', 'F16', 'BF16']);
const FLOAT8S = new Set(['F8_E4M3', 'F8_E5M2']);
const SCALE_NAMES = ['weight_scale', 'weight_scale_inv', 'scale', 'scales', 'weight_scale_2'];

/** Called as a function on the raw tensor, not as a layer, so that a replaced layer would never be asked. */
const notALayer = /(^|\.)multihead_attn\./;

/**
 * Reads a checkpoint's tensor names and shapes as a model: every linear weight with its role and its place in
 * the stored tensors, and every other tensor with its role. Names are accepted as in files and as in
 * transformers v5's memory; which layers are dense or sparse, how many experts there are and how wide they
 * are is read off the tensors.
 * @param config config.json, or null
 * @param tensors the headers of all files, in any order
 * @returns linears and others in natural order of their names in files
 * @throws QuantariaError `ERR_FORMAT` for incomplete or inconsistent experts, or a tensor under two spellings
 */
export function describeModel(config: object | null, tensors: readonly StoredTensor[]): ModelMap {
  const types = modelTypes(config);
  const modelType = types.find((type) => architectureOf(type).known) ?? types[0] ?? null;
  const { architecture, known } = architectureOf(modelType);
  const notes: string[] = [];
  if (!known) {
    notes.push(
      modelType === null
        ? 'no model type in config.json: roles are read off names and shapes'
        : `model type ${modelType} is not known: roles are read off names and shapes`,
    );
  }
  const wrapped = known && isWrapped(architecture, tensors);
  const facts = decoderFacts(config);
  const reader = new Reader(architecture, known, facts, new Set(tensors.map(({ name }) => name)));
  for (const tensor of tensors) reader.read(toDiskName(architecture, wrapped, tensor.name), tensor);
  const { linears, others, layout, experts, width } = reader.finish(notes);
  const layers = decoderLayers(reader.highestLayer + 1, facts, notes);
  noteWidths(textConfig(config), facts, experts, width, notes);
  return {
    architecture: modelType ?? 'unknown',
    known,
    layers,
    experts,
    topK: facts.topK,
    expertLayout: layout,
    wrapped,
    linears: sortByName(linears, ({ name }) => name),
    others: sortByName(others, ({ name }) => toDiskName(architecture, wrapped, name)),
    notes,
  };
}

/** Goes through the tensors one by one and sorts them into linear weights, experts and others. */
class Reader {
  highestLayer = -1;
  private readonly linears: Linear[] = [];
  private readonly others: PlainTensor[] = [];
  private readonly experts = new ExpertCollector();
  private readonly routerRows = new Map<string, number>();
  private readonly seen = new Map<string, string>();
  private readonly roleOf: (name: string) => Role;
  private quantized = 0;
  private unread: string[] = [];

  constructor(
    private readonly architecture: Architecture,
    private readonly known: boolean,
    private readonly facts: DecoderFacts,
    private readonly names: ReadonlySet<string>,
  ) {
    this.roleOf = roleClassifier(architecture.roles);
  }

  /** @param name the tensor's name as in files */
  read(name: string, tensor: StoredTensor): void {
    const twin = this.seen.get(name);
    if (twin !== undefined) {
      throw new QuantariaError('ERR_FORMAT', `${tensor.name} and ${twin} are the same tensor, ${name}`);
    }
    this.seen.set(name, tensor.name);
    const role = this.roleOf(name);
    const inDecoder = role !== 'vision' && role !== 'projector' && !OTHER_TOWERS.test(name);
    const at = inDecoder ? splitLayer(name) : null;
    if (at !== null) this.highestLayer = Math.max(this.highestLayer, at.layer);
    if (role === 'expert' && this.readExpert(name, at, tensor)) return;
    if (this.isLinear(name, role, tensor)) {
      const linear = wholeLinear(name, role, at, tensor);
      if (role === 'router' && at !== null && linear.projection === 'router') {
        this.routerRows.set(at.prefix, linear.shape[0]);
      }
      this.linears.push(linear);
    } else {
      this.keep(role, at, tensor);
    }
  }

  finish(notes: string[]) {
    const collected = this.experts.resolve({
      naming: this.architecture.experts ?? plainExperts,
      known: this.known && this.architecture.experts !== null,
      routerRows: this.routerRows,
      configExperts: this.facts.experts,
      note: (text) => notes.push(text),
    });
    for (const linear of collected.linears) this.linears.push(linear);
    for (const tensor of collected.rest) this.keep('expert', splitLayer(tensor.name), tensor);
    if (this.unread.length > 0) {
      notes.push(
        `${this.unread.length} stacks of experts are kept, as their orientation cannot be told: ${this.unread.slice(0, 3).join(', ')}${this.unread.length > 3 ? ', ...' : ''}`,
      );
    }
    if (this.quantized > 0) notes.push(`${this.quantized} weights are stored quantized already`);
    const { layout, width } = collected;
    const experts = this.linears.reduce(
      (most, { expert }) => Math.max(most, expert === null ? 0 : expert + 1),
      collected.experts,
    );
    // Experts that are stored quantized in stacks have no shapes to count by.
    const unread = experts === 0 && this.others.some(({ role }) => role === 'expert');
    return {
      linears: this.linears,
      others: this.others,
      layout,
      experts: unread ? (this.facts.experts ?? 0) : experts,
      width,
    };
  }

  private readExpert(name: string, at: LayerName | null, tensor: StoredTensor): boolean {
    const readable = this.isReadable(tensor);
    if (at !== null && this.experts.accept(at, tensor, readable)) return true;
    if (this.known || !readable || tensor.shape.length !== 3) return false;
    const stack = readStack(name, at, tensor, this.facts.hidden);
    if (stack === null) {
      this.unread.push(name);
      return false;
    }
    for (const linear of stack) this.linears.push(linear);
    return true;
  }

  private isLinear(name: string, role: Role, tensor: StoredTensor): boolean {
    return (
      tensor.shape.length === 2 &&
      tensor.shape.every((size) => size > 0) &&
      name.endsWith('.weight') &&
      role !== 'norm' &&
      role !== 'embedding' &&
      !/embed/.test(name) &&
      !notALayer.test(name) &&
      !this.architecture.notLinear?.test(name) &&
      this.isReadable(tensor)
    );
  }

  private isReadable({ name, dtype }: StoredTensor): boolean {
    if (FLOATS.has(dtype)) return true;
    if (!FLOAT8S.has(dtype)) return false;
    const module = name.replace(/\.weight$/, '');
    return !SCALE_NAMES.some((scale) => this.names.has(`${module}.${scale}`));
  }

  private keep(role: Role, at: LayerName | null, { name, dtype, shape }: StoredTensor): void {
    if (isQuantizedWeight(name, dtype)) ++this.quantized;
    this.others.push({ name, role, layer: at?.layer ?? null, dtype, shape: [...shape] });
  }
}

/** Of the tensors of a quantized weight, the one that holds the codes. */
function isQuantizedWeight(name: string, dtype: string): boolean {
  return (
    /\.(weight_packed|qweight|[a-z_]+_blocks)$/.test(name) ||
    /\.weight\._data(\._data)?$/.test(name) ||
    (name.endsWith('.weight') && !FLOATS.has(dtype))
  );
}

function wholeLinear(name: string, role: Role, at: LayerName | null, tensor: StoredTensor): Linear {
  const module = name.slice(0, -'.weight'.length);
  const [out = 0, width = 0] = tensor.shape;
  const expert = role === 'expert' ? /(?:^|\.)[a-z_]*experts?[._](\d{1,6})\./.exec(module) : null;
  return {
    name: module,
    role,
    layer: at?.layer ?? null,
    expert: expert === null ? null : Number(expert[1]),
    projection: projectionOf(module, role),
    shape: [out, width],
    dtype: tensor.dtype,
    source: { tensor: tensor.name, expert: null, start: 0, end: out, step: 1, transposed: false },
  };
}

/** The decoder's layers; files may hold further ones for multi-token prediction. */
function decoderLayers(stored: number, facts: DecoderFacts, notes: string[]): number {
  const configured = facts.layers ?? stored;
  if (configured > stored) notes.push(`config.json has ${configured} layers, the tensors ${stored}`);
  if (configured < stored) {
    notes.push(`layers from ${configured} on are beyond the decoder's (num_hidden_layers is ${configured})`);
  }
  return Math.min(configured, stored);
}

function noteWidths(
  text: Config,
  facts: DecoderFacts,
  experts: number,
  width: number | null,
  notes: string[],
): void {
  if (facts.experts !== null && experts > 0 && facts.experts !== experts) {
    notes.push(`config.json has ${facts.experts} experts, the tensors ${experts}; the tensors are followed`);
  }
  if (width === null) return;
  if (facts.expertWidth !== null && facts.expertWidth !== width) {
    notes.push(
      `config.json has experts of width ${facts.expertWidth}, the tensors ${width}; the tensors are followed`,
    );
  }
  const intermediate = count(text, 'intermediate_size');
  const ariaText = text.model_type === 'aria_moe_lm' || text.model_type === 'aria_text';
  if (ariaText && intermediate !== null && intermediate !== width) {
    notes.push(
      `intermediate_size is ${intermediate} but experts are ${width} wide: transformers' Aria reads only intermediate_size and would build other shapes`,
    );
  }
}
