import { QuantariaError } from '../errors';
import { type Architecture, architectureOf } from './architecture';
import {
  type ExpertBlock,
  expertLayouts,
  FUSED_NAMES,
  type FusedForm,
  fillTemplate,
  GROUPED_NAMES,
  PROJECTIONS,
  type Projection,
} from './layouts';
import { sortByName, splitLayer, toDiskName, toLoaderName } from './names';
import type { Layout, Linear, ModelMap, Piece, TargetTensor } from './types';

export interface LayoutOptions {
  /** Module of one expert's projection inside `layers.N.`, such as `mlp.experts.{expert}.{projection}`. */
  sequentialTemplate?: string;
}

/** The name that transformers v5 gives in memory to a module or tensor which files name so. */
export function loaderName(model: ModelMap, diskName: string): string {
  return toLoaderName(architectureOf(model.architecture).architecture, model.wrapped, diskName);
}

/** The name that files have for a module or tensor, given either spelling. */
export function diskName(model: ModelMap, name: string): string {
  return toDiskName(architectureOf(model.architecture).architecture, model.wrapped, name);
}

/**
 * What a checkpoint of this model holds when its routed experts are in the given layout. `sequential` and
 * `grouped` have the names of files, `fused` those of transformers v5's memory for all tensors. A tensor that
 * is the same in both layouts is a copy.
 * @returns tensors in natural order of their names
 * @throws QuantariaError `ERR_FORMAT` if a layer's experts cannot be stacked (dtypes, shapes);
 *   `ERR_UNSUPPORTED` if the layout has no place for them (biases, ungated experts, quantized weights) or its
 *   names are not known; `ERR_ARGUMENT` for a bad template
 */
export function layoutTensors(model: ModelMap, to: Layout, options: LayoutOptions = {}): TargetTensor[] {
  const { architecture, known } = architectureOf(model.architecture);
  const template = options.sequentialTemplate;
  if (template !== undefined) checkTemplate(template);
  if (to === 'fused' && !known && model.expertLayout !== 'fused') {
    throw new QuantariaError(
      'ERR_UNSUPPORTED',
      `the fused layout has transformers' in-memory names, which are not known for ${model.architecture}`,
    );
  }
  // Sequential experts that stay sequential are tensors like all others: they may be quantized, or not gated.
  const asTheyAre =
    model.experts === 0 || (to === 'sequential' && model.expertLayout === to && template === undefined);
  if (!asTheyAre) checkConvertible(model, to);

  const rename = (name: string) =>
    to === 'fused' ? loaderName(model, diskName(model, name)) : diskName(model, name);
  const targets: TargetTensor[] = [];
  const layers = new Map<string, Linear[]>();
  for (const linear of model.linears) {
    const at = asTheyAre || linear.role !== 'expert' ? null : splitLayer(linear.name);
    if (at === null) {
      const { dtype, shape, source } = linear;
      targets.push({ name: rename(source.tensor), dtype, shape: [...shape], from: { copy: source.tensor } });
      continue;
    }
    const own = layers.get(at.prefix);
    if (own === undefined) layers.set(at.prefix, [linear]);
    else own.push(linear);
  }
  for (const { name, dtype, shape } of model.others) {
    targets.push({ name: rename(name), dtype, shape: [...shape], from: { copy: name } });
  }
  for (const [prefix, linears] of layers) {
    const experts = new LayerTargets(model, architecture, known, prefix, linears);
    for (const target of experts.inLayout(to, template)) targets.push(target);
  }
  return checkNames(sortByName(targets, ({ name }) => name));
}

/** The routed experts of one layer on their way into a layout. */
class LayerTargets {
  private readonly byPlace = new Map<string, Linear>();
  private readonly block: Omit<ExpertBlock, 'tensorOf'>;
  private readonly path: string;

  constructor(
    private readonly model: ModelMap,
    private readonly architecture: Architecture,
    known: boolean,
    private readonly prefix: string,
    linears: readonly Linear[],
  ) {
    for (const linear of linears) this.byPlace.set(`${linear.expert} ${linear.projection}`, linear);
    const experts = linears.reduce((most, { expert }) => Math.max(most, (expert ?? 0) + 1), 0);
    const [width, hidden] = this.at(0, 'gate').shape;
    const fused = architecture.experts?.fused ?? { transposed: false, interleaved: false };
    this.block = { experts, hidden, width, fused: known ? fused : orientationOf(linears[0], fused) };
    this.path = known ? 'mlp.experts' : stackPath(prefix, linears[0]?.name ?? '');
  }

  inLayout(to: Layout, template: string | undefined): TargetTensor[] {
    const block: ExpertBlock = { ...this.block, tensorOf: this.tensorNames(to, template) };
    const layout = expertLayouts[to];
    const contents = new Map<string, { linear: Linear; piece: Piece }[]>();
    for (let expert = 0; expert < block.experts; ++expert) {
      for (const projection of PROJECTIONS) {
        const piece = layout.piece(block, expert, projection);
        const entry = { linear: this.at(expert, projection), piece };
        const own = contents.get(piece.tensor);
        if (own === undefined) contents.set(piece.tensor, [entry]);
        else own.push(entry);
      }
    }
    return layout.tensors(block).map(({ name, shape }) => {
      const pieces = contents.get(name) ?? [];
      const dtype = this.commonType(pieces.map(({ linear }) => linear));
      return { name, dtype, shape, from: asCopy(pieces) ?? { pieces } };
    });
  }

  private tensorNames(to: Layout, template: string | undefined): ExpertBlock['tensorOf'] {
    if (to === 'sequential') {
      if (template === undefined) return (expert, projection) => `${this.at(expert, projection).name}.weight`;
      const names = this.architecture.experts?.projections;
      return (expert, projection) =>
        `${this.prefix}${fillTemplate(template, expert, names?.[projection] ?? `${projection}_proj`)}.weight`;
    }
    const stacks = to === 'grouped' ? GROUPED_NAMES : FUSED_NAMES;
    return (_, projection) => {
      const name = `${this.prefix}${this.path}.${stacks[projection]}`;
      return to === 'fused' ? loaderName(this.model, name) : name;
    };
  }

  private at(expert: number, projection: Projection): Linear {
    const found = this.byPlace.get(`${expert} ${projection}`);
    if (found === undefined) {
      throw new QuantariaError(
        'ERR_FORMAT',
        `${this.prefix}mlp: expert ${expert} has no ${projection} projection`,
      );
    }
    return found;
  }

  private commonType(linears: readonly Linear[]): string {
    const first = linears[0];
    const other = linears.find(({ dtype }) => dtype !== first?.dtype);
    if (first !== undefined && other !== undefined) {
      throw new QuantariaError(
        'ERR_FORMAT',
        `${this.prefix}mlp: expert ${other.expert}'s ${other.projection} projection is ${other.dtype}, but expert ${first.expert}'s ${first.projection} ${first.dtype}; a stack has one type`,
      );
    }
    return first?.dtype ?? '';
  }
}

/** Stacks that turn out the same as they are stored need no taking apart. */
function asCopy(pieces: readonly { linear: Linear; piece: Piece }[]): { copy: string } | null {
  const source = pieces[0]?.linear.source.tensor;
  const same = pieces.every(
    ({ linear: { source: from }, piece }) =>
      from.tensor === source &&
      from.expert === piece.expert &&
      from.start === piece.start &&
      from.end === piece.end &&
      from.step === piece.step &&
      from.transposed === piece.transposed,
  );
  return source !== undefined && same ? { copy: source } : null;
}

/** Where the family is not known, fused stacks stay as they were found. */
function orientationOf(linear: Linear | undefined, otherwise: FusedForm): FusedForm {
  if (linear === undefined || linear.source.expert === null) return otherwise;
  return { transposed: linear.source.transposed, interleaved: linear.source.step === 2 };
}

/** `mlp.experts` from `model.layers.0.mlp.experts.7.gate_proj`. */
function stackPath(prefix: string, name: string): string {
  return name.slice(prefix.length).replace(/\.\d+\.[^.]+$/, '');
}

function checkTemplate(template: string): void {
  if (!/^[A-Za-z0-9_.]*experts\.\{expert\}\.\{projection\}$/.test(template)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `sequentialTemplate: ${JSON.stringify(template)} came, expected a module path that ends in experts.{expert}.{projection}`,
    );
  }
}

function checkConvertible(model: ModelMap, to: Layout): void {
  const refuse = (what: string): never => {
    throw new QuantariaError('ERR_UNSUPPORTED', `${what}, which the ${to} layout has no place for`);
  };
  if (model.expertLayout === null)
    refuse(`the experts of ${model.architecture} are stored in a form of their own`);
  const held = to === model.expertLayout ? undefined : model.others.find(({ role }) => role === 'expert');
  if (held !== undefined) refuse(`${held.name} is a bias or quantized`);
  const odd = model.linears.find(
    ({ role, projection }) => role === 'expert' && !(PROJECTIONS as readonly string[]).includes(projection),
  );
  if (odd !== undefined) refuse(`${odd.name} is neither gate, up nor down`);
}

function checkNames(targets: TargetTensor[]): TargetTensor[] {
  const seen = new Set<string>();
  for (const { name } of targets) {
    if (seen.has(name)) throw new QuantariaError('ERR_FORMAT', `two tensors would be named ${name}`);
    seen.add(name);
  }
  return targets;
}
