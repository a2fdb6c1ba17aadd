import type { FormatContext, JsonObject, KeptModule, QuantizedModule } from '../../lib/formats';
import { getFormat } from '../../lib/formats';
import { describeModel, type Linear, type ModelMap } from '../../lib/models';
import type { QuantScheme } from '../../lib/scheme';
import { aria, type Checkpoint, deepseek, llama, mixtral, qwen2Moe, qwen3Moe } from '../models/checkpoints';

/** Families with what tells their names in transformers v5's memory from those in files, as formats.md lists them. */
export const families: Readonly<
  Record<string, { checkpoint: () => Checkpoint; inMemory: (name: string) => string }>
> = {
  llama: { checkpoint: () => llama(), inMemory: (name) => name },
  mixtral: { checkpoint: () => mixtral(), inMemory: (name) => name.replace('.block_sparse_moe.', '.mlp.') },
  'qwen2-moe': { checkpoint: () => qwen2Moe(), inMemory: (name) => name },
  'qwen3-moe': { checkpoint: () => qwen3Moe(), inMemory: (name) => name },
  'deepseek-v2': { checkpoint: () => deepseek(), inMemory: (name) => name },
  'aria, sequential': { checkpoint: () => aria({ form: 'sequential' }), inMemory: ariaInMemory },
  'aria, grouped': { checkpoint: () => aria({ form: 'grouped' }), inMemory: ariaInMemory },
  'aria text': { checkpoint: () => aria({ form: 'sequential', spelling: 'text' }), inMemory: (name) => name },
};

function ariaInMemory(name: string): string {
  return name
    .replace(/^language_model\.lm_head/, 'lm_head')
    .replace(/^language_model\.model/, 'model.language_model')
    .replace(/^vision_tower/, 'model.vision_tower')
    .replace(/^multi_modal_projector/, 'model.multi_modal_projector');
}

const wide: QuantScheme = { kind: 'int', bits: 8, symmetric: true, range: 'full', granularity: 'row' };
const narrow: QuantScheme = { kind: 'int', bits: 4, symmetric: true, range: 'full', granularity: 'row' };
const two: QuantScheme = { ...narrow, bits: 2 };
const decoder = ['expert', 'shared-expert', 'dense-ffn', 'attention'];

/** What each plan asks for a layer; null keeps it. Every way in which settings can differ inside a model occurs. */
export const plans: Readonly<Record<string, (linear: Linear) => QuantScheme | null>> = {
  uniform: ({ role }) => (decoder.includes(role) ? narrow : null),
  'experts kept': ({ role }) => (decoder.includes(role) && role !== 'expert' ? narrow : null),
  'head and vision too': ({ role }) => (['embedding', 'router'].includes(role) ? null : narrow),
  'by role': ({ role }) => (role === 'expert' ? narrow : decoder.includes(role) ? wide : null),
  'by layer': ({ role, layer }) => (decoder.includes(role) ? (layer === 1 ? wide : narrow) : null),
  'by projection': ({ role, projection }) =>
    !decoder.includes(role) ? null : projection === 'down' ? wide : projection === 'k' ? null : narrow,
  'one layer kept': ({ role, layer }) => (decoder.includes(role) && layer !== 1 ? narrow : null),
  'by expert': ({ role, layer, expert }) =>
    !decoder.includes(role)
      ? null
      : expert === null
        ? wide
        : layer === 0
          ? wide
          : expert % 3 === 0
            ? narrow
            : two,
  'some experts kept': ({ role, layer, expert }) =>
    !decoder.includes(role) || (expert !== null && (expert + (layer ?? 0)) % 2 === 1) ? null : narrow,
  'one module alone': ({ name }) =>
    /layers\.1\..*q_proj$/.test(name) && !/vision/.test(name) ? narrow : null,
};

export interface Planned {
  context: FormatContext;
  /** every linear layer of the model in the sequential layout, or as kept */
  modules: { module: string; scheme: QuantScheme | null; linear: Linear | null }[];
}

/** The context that a job hands to a format, where a layer that the format cannot hold as asked is kept. */
export function planned(
  formatName: string,
  checkpoint: Checkpoint,
  choose: (linear: Linear) => QuantScheme | null,
): Planned {
  const model: ModelMap = describeModel(checkpoint.config, checkpoint.tensors);
  const format = getFormat(formatName, model);
  const quantized: QuantizedModule[] = [];
  const kept = new Map<string, KeptModule>();
  const modules: Planned['modules'] = [];
  for (const linear of model.linears) {
    const asked = choose(linear);
    const fit =
      asked === null
        ? null
        : format.fit(asked, [linear.shape[0] * 32, linear.shape[1] * 32], 'bfloat16', linear);
    if (fit !== null && fit.scheme !== null) {
      quantized.push({ linear, module: linear.name, scheme: fit.scheme });
      modules.push({ module: linear.name, scheme: fit.scheme, linear });
    } else if (
      linear.source.expert !== null &&
      !model.linears.some((other) => inOneStack(other, linear) && choose(other))
    ) {
      // A stack of which nothing is quantized is copied as it is; else its experts are written one by one.
      kept.set(linear.source.tensor, { name: linear.source.tensor, role: linear.role });
    } else if (linear.source.expert !== null) {
      kept.set(linear.name, { name: `${linear.name}.weight`, role: linear.role, shape: linear.shape });
      modules.push({ module: linear.name, scheme: null, linear });
    } else {
      kept.set(linear.source.tensor, { name: linear.source.tensor, role: linear.role, shape: linear.shape });
      modules.push({ module: linear.name, scheme: null, linear });
    }
  }
  for (const { name, role, shape } of model.others) kept.set(name, { name, role, shape });
  const context: FormatContext = {
    model,
    modelDtype: 'bfloat16',
    quantized,
    kept: [...kept.values()],
    config: checkpoint.config as JsonObject,
    method: 'rtn',
  };
  return { context, modules };
}

const inOneStack = (a: Linear, b: Linear) => a.role === 'expert' && a.layer === b.layer;

/** Python's `re.match`. */
export const reMatch = (pattern: string, name: string): boolean => new RegExp(`^(?:${pattern})`).test(name);
