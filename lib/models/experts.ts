import { QuantariaError } from '../errors';
import {
  type ExpertBlock,
  type ExpertNaming,
  expertLayouts,
  type FusedForm,
  fillTemplate,
  PROJECTIONS,
  type Projection,
} from './layouts';
import type { LayerName } from './names';
import { projectionOf } from './roles';
import type { Layout, Linear, StoredTensor } from './types';

/** What the collector must know of the model around the experts. */
export interface ExpertContext {
  naming: ExpertNaming;
  /** Names and projections are the family's; else they are taken as they come. */
  known: boolean;
  /** Rows of each layer's router, by layer prefix. */
  routerRows: ReadonlyMap<string, number>;
  configExperts: number | null;
  note: (text: string) => void;
}

export interface CollectedExperts {
  linears: Linear[];
  /** Tensors that were taken for experts and turned out not to be readable as such. */
  rest: StoredTensor[];
  layout: Layout | null;
  /** Most experts of any layer. */
  experts: number;
  /** Width of the first layer's experts, where they are gated. */
  width: number | null;
}

/**
 * A projection of one expert in the sequential layout; a quantized one has no weight to read but is not
 * missing.
 */
interface Member {
  module: string;
  weight: StoredTensor | null;
}

interface LayerExperts {
  prefix: string;
  layer: number;
  path: string;
  members: Map<number, Map<string, Member>>;
  stacks: Map<string, StoredTensor>;
}

const memberPattern = /^((?:.*\.)?experts)\.(\d{1,6})\.([^.]+)\.(.+)$/;
const stackPattern = /^((?:.*\.)?experts)\.(?:(fc1|fc2)\.weight|(gate_up_proj|down_proj)(?:\.weight)?)$/;

const STACKS: readonly { layout: Layout; first: string; second: string }[] = [
  { layout: 'grouped', first: 'fc1', second: 'fc2' },
  { layout: 'fused', first: 'gate_up_proj', second: 'down_proj' },
];

const broken = (where: string, what: string): never => {
  throw new QuantariaError('ERR_FORMAT', `${where}: ${what}`);
};
const shapeText = (shape: readonly number[]) => `[${shape.join(', ')}]`;
const sameShape = (a: readonly number[], b: readonly number[]) =>
  a.length === b.length && a.every((size, axis) => size === b[axis]);

/**
 * Gathers the routed experts of all layers, whatever layout they are in, then turns them into linear weights.
 */
export class ExpertCollector {
  private readonly layers = new Map<string, LayerExperts>();

  /**
   * Takes a tensor of a decoder layer if it holds routed experts' weights.
   * @param at the tensor's name as in files, cut after the layer
   * @param readable the tensor holds plain numbers rather than a quantized form
   */
  accept(at: LayerName, tensor: StoredTensor, readable: boolean): boolean {
    const stack = stackPattern.exec(at.rest);
    if (stack !== null && tensor.shape.length === 3) {
      if (!readable) return false;
      this.layerOf(at, stack[1] ?? '').stacks.set(stack[2] ?? stack[3] ?? '', tensor);
      return true;
    }
    const member = memberPattern.exec(at.rest);
    if (member === null) return false;
    const [, path = '', expertText = '', moduleEnd = '', leaf = ''] = member;
    const members = this.layerOf(at, path).members;
    const expert = Number(expertText);
    let projections = members.get(expert);
    if (projections === undefined) {
      projections = new Map();
      members.set(expert, projections);
    }
    const projection = projectionOf(moduleEnd, 'expert');
    const isWeight = leaf === 'weight' && readable && tensor.shape.length === 2;
    if (isWeight || !projections.has(projection)) {
      projections.set(projection, {
        module: `${at.prefix}${path}.${expertText}.${moduleEnd}`,
        weight: isWeight ? tensor : null,
      });
    }
    return isWeight;
  }

  /**
   * @throws QuantariaError `ERR_FORMAT` naming the layer and expert if a set is incomplete or its shapes do
   *   not agree
   */
  resolve(context: ExpertContext): CollectedExperts {
    const result: CollectedExperts = { linears: [], rest: [], layout: null, experts: 0, width: null };
    let first: LayerExperts | null = null;
    for (const layer of [...this.layers.values()].sort((a, b) => a.layer - b.layer)) {
      const resolved = resolveLayer(layer, context);
      if (resolved === null) {
        result.rest.push(...layer.stacks.values());
        continue;
      }
      first ??= layer;
      result.layout ??= resolved.layout;
      result.width ??= resolved.width;
      if (result.layout !== resolved.layout) {
        broken(
          `${layer.prefix}${layer.path}`,
          `experts are stored ${resolved.layout}, but those of layer ${first.layer} ${result.layout}`,
        );
      }
      result.experts = Math.max(result.experts, resolved.experts);
      for (const linear of resolved.linears) result.linears.push(linear);
    }
    return result;
  }

  private layerOf(at: LayerName, path: string): LayerExperts {
    let found = this.layers.get(at.prefix);
    if (found === undefined) {
      found = { prefix: at.prefix, layer: at.layer, path, members: new Map(), stacks: new Map() };
      this.layers.set(at.prefix, found);
    }
    return found;
  }
}

interface ResolvedLayer {
  layout: Layout;
  experts: number;
  width: number | null;
  linears: Linear[];
}

function resolveLayer(layer: LayerExperts, context: ExpertContext): ResolvedLayer | null {
  const where = `${layer.prefix}${layer.path}`;
  const form = STACKS.filter(({ first, second }) => layer.stacks.has(first) || layer.stacks.has(second));
  if (form.length + (layer.members.size > 0 ? 1 : 0) > 1) {
    broken(where, 'experts are stored in more than one layout');
  }
  const stack = form[0];
  if (stack === undefined) return resolveMembers(layer, where, context);
  const first = layer.stacks.get(stack.first);
  const second = layer.stacks.get(stack.second);
  if (first === undefined || second === undefined) {
    return broken(
      where,
      `${first === undefined ? stack.first : stack.second} is missing, its counterpart is there`,
    );
  }
  return resolveStacks(layer, where, stack.layout, first, second, context);
}

function resolveStacks(
  layer: LayerExperts,
  where: string,
  layout: Layout,
  first: StoredTensor,
  second: StoredTensor,
  context: ExpertContext,
): ResolvedLayer {
  const { transposed, experts, hidden, width } = stackSizes(where, layout, first, second);
  const rows = context.known ? context.routerRows.get(layer.prefix) : undefined;
  if (rows !== undefined && rows !== experts)
    broken(where, `${experts} experts, but the router has ${rows} rows`);
  const expected = context.naming.fused;
  if (context.known && layout === 'fused' && transposed !== expected.transposed) {
    context.note(
      `${where}: the stacks are ${transposed ? '[E, in, out]' : '[E, out, in]'}, unlike transformers'`,
    );
  }
  const fused: FusedForm = { transposed, interleaved: layout === 'fused' && expected.interleaved };
  const tensorOf = (_: number, projection: Projection) => (projection === 'down' ? second.name : first.name);
  const block: ExpertBlock = { experts, hidden, width, fused, tensorOf };
  const template = context.known ? context.naming.sequential : `${layer.path}.{expert}.{projection}`;
  const linears: Linear[] = [];
  for (let expert = 0; expert < experts; ++expert) {
    for (const projection of PROJECTIONS) {
      const down = projection === 'down';
      linears.push({
        name: layer.prefix + fillTemplate(template, expert, context.naming.projections[projection]),
        role: 'expert',
        layer: layer.layer,
        expert,
        projection,
        shape: down ? [hidden, width] : [width, hidden],
        dtype: (down ? second : first).dtype,
        source: expertLayouts[layout].piece(block, expert, projection),
      });
    }
  }
  return { layout, experts, width, linears };
}

/**
 * Reads the orientation off the pair of shapes: `[E, 2I, H]` with `[E, H, I]`, or `[E, H, 2I]` with `[E, I,
 * H]`. No pair fits both, since that would need I = H = 2I.
 */
function stackSizes(where: string, layout: Layout, first: StoredTensor, second: StoredTensor) {
  const [experts = 0, a = 0, b = 0] = first.shape;
  const [experts2 = 0, c = 0, d = 0] = second.shape;
  const full = experts > 0 && a > 0 && b > 0;
  if (full && experts === experts2) {
    if (a === d && b === 2 * c) return { transposed: true, experts, hidden: a, width: c };
    if (layout === 'fused' && b === c && a === 2 * d)
      return { transposed: false, experts, hidden: b, width: d };
  }
  const expected =
    layout === 'grouped'
      ? '[E, H, 2I] and [E, I, H]'
      : '[E, 2I, H] and [E, H, I], or [E, H, 2I] and [E, I, H]';
  return broken(
    where,
    `shapes ${shapeText(first.shape)} and ${shapeText(second.shape)} came, expected ${expected}`,
  );
}

function resolveMembers(layer: LayerExperts, where: string, context: ExpertContext): ResolvedLayer | null {
  const { members } = layer;
  if (members.size === 0) return null;
  let highest = 0;
  const projections = new Set<string>(context.known ? PROJECTIONS : []);
  for (const [expert, own] of members) {
    highest = Math.max(highest, expert);
    for (const projection of own.keys()) projections.add(projection);
  }
  const rows = context.known ? context.routerRows.get(layer.prefix) : undefined;
  const experts = rows ?? Math.max(highest + 1, context.known ? (context.configExperts ?? 0) : 0);
  if (highest >= experts) broken(where, `expert ${highest} is there, but the router has ${experts} rows`);

  const references = new Map<string, StoredTensor>();
  const linears: Linear[] = [];
  for (let expert = 0; expert < experts; ++expert) {
    const own = members.get(expert);
    if (own === undefined) return broken(where, `expert ${expert} of ${experts} is missing`);
    for (const projection of projections) {
      const member = own.get(projection);
      if (member === undefined) return broken(where, `expert ${expert} has no ${projection} projection`);
      const { module, weight } = member;
      if (weight === null) continue;
      const reference = references.get(projection) ?? weight;
      references.set(projection, reference);
      if (!sameShape(weight.shape, reference.shape)) {
        broken(
          where,
          `expert ${expert}: ${weight.name} is ${shapeText(weight.shape)}, but ${reference.name} ${shapeText(reference.shape)}`,
        );
      }
      const [out = 0, width = 0] = weight.shape;
      linears.push({
        name: module,
        role: 'expert',
        layer: layer.layer,
        expert,
        projection,
        shape: [out, width],
        dtype: weight.dtype,
        source: { tensor: weight.name, expert: null, start: 0, end: out, step: 1, transposed: false },
      });
    }
  }
  return { layout: 'sequential', experts, width: gatedWidth(where, references), linears };
}

/**
 * The width that gate, up and down agree on; null if the experts are not gated or none of one kind can be
 * read.
 */
function gatedWidth(where: string, references: ReadonlyMap<string, StoredTensor>): number | null {
  const [gate, up, down] = PROJECTIONS.map((projection) => references.get(projection));
  if (gate !== undefined && up !== undefined && !sameShape(gate.shape, up.shape)) {
    broken(where, `gate is ${shapeText(gate.shape)} but up ${shapeText(up.shape)}`);
  }
  const into = gate ?? up;
  if (into === undefined || down === undefined) return null;
  if (!sameShape(into.shape, [...down.shape].reverse())) {
    broken(where, `gate and up are ${shapeText(into.shape)} but down ${shapeText(down.shape)}`);
  }
  return into.shape[0] ?? null;
}
