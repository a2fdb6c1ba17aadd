import type { IntScheme, QuantScheme } from '../scheme';
import { namedModules } from './names';
import { settingPatterns } from './patterns';
import { groupsOf } from './schemes';
import type { FormatConfig, FormatContext, JsonObject, QuantizedModule } from './types';

/**
 * In version 1 of the format zero points are stored less one, and readers add the one to whole words, so that a zero
 * point of 0 would carry into its neighbour: one affine module and the whole checkpoint is version 2, which stores
 * them as they are.
 */
export type Version = 1 | 2;

/** What the format's torch kernel takes; -1 is one group per row. */
const KERNEL_GROUPS: readonly number[] = [16, 32, 64, 128, 256, 512, 1024];

export const isAffine = (scheme: QuantScheme) => scheme.kind === 'int' && !scheme.symmetric;
export const commonVersion = (quantized: readonly QuantizedModule[]): Version =>
  quantized.some(({ scheme }) => isAffine(scheme)) ? 2 : 1;

/** What the configuration says about a module; equal settings share a pattern. */
interface Setting {
  bits: number;
  group_size: number;
  desc_act: boolean;
  sym: boolean;
}

function settingOf({ scheme, linear, groupIndex }: QuantizedModule): Setting {
  const int = scheme as IntScheme;
  const { groups, size } = groupsOf(int, linear.shape[1]);
  return {
    bits: int.bits,
    group_size: groups === 1 ? -1 : size,
    desc_act: groupIndex === true,
    sym: int.symmetric,
  };
}

export function config(context: FormatContext, version: Version): FormatConfig {
  const modules = namedModules(context, (module) => JSON.stringify(settingOf(module)));
  const patterns = settingPatterns(modules);
  const counts = new Map<string, number>();
  for (const { setting } of modules)
    if (setting !== null) counts.set(setting, (counts.get(setting) ?? 0) + 1);
  const [base] = [...counts].sort((a, b) => b[1] - a[1])[0] ?? [
    JSON.stringify({ bits: 4, group_size: -1, desc_act: false, sym: true }),
  ];
  const main = JSON.parse(base) as Setting;
  const dynamic: Record<string, JsonObject> = {};
  for (const pattern of patterns.get(null) ?? []) dynamic[`-:${pattern}`] = {};
  for (const [setting, list] of patterns) {
    if (setting === null || setting === base) continue;
    const own = JSON.parse(setting) as Setting;
    const changed = Object.fromEntries(
      Object.entries(own).filter(([key, value]) => main[key as keyof Setting] !== value),
    );
    for (const pattern of list) dynamic[`+:${pattern}`] = changed;
  }
  const name = version === 1 ? 'gptq' : 'gptq_v2';
  const quantizationConfig: JsonObject = {
    quant_method: 'gptq',
    bits: main.bits,
    group_size: main.group_size,
    desc_act: main.desc_act,
    sym: main.sym,
    lm_head: context.quantized.some(({ linear }) => linear.role === 'lm-head'),
    true_sequential: true,
    damp_percent: context.options?.damping ?? 0.01,
    checkpoint_format: name,
    format: name,
    pack_dtype: 'int32',
    meta: { quantizer: ['quantaria'] },
    dynamic,
  };
  return {
    quantizationConfig,
    files: { 'quantize_config.json': `${JSON.stringify(quantizationConfig, null, 2)}\n` },
  };
}

export function warnings(context: FormatContext): string[] {
  const { quantized, model } = context;
  const found: string[] = [];
  const some = (test: (entry: QuantizedModule, setting: Setting) => boolean) =>
    quantized.some((entry) => test(entry, settingOf(entry)));
  if (quantized.some(({ linear }) => linear.role === 'expert')) {
    found.push(
      'gptq: transformers v5 keeps routed experts as fused parameters and replaces linear layers only; experts load in GPTQModel and vLLM. compressed-tensors loads in transformers',
    );
  }
  if (model.wrapped) {
    found.push(
      'gptq: transformers takes gptq for text-only models; this multimodal one loads in GPTQModel. compressed-tensors loads in transformers',
    );
  }
  if (some((_, { bits }) => bits === 2 || bits === 3)) {
    found.push('gptq: newer vLLM versions take 4 and 8 bits only; 2 and 3 bits load in GPTQModel');
  }
  if (some((_, { sym }) => !sym)) {
    found.push(
      "gptq: affine modules are written as checkpoint_format gptq_v2, which vLLM's Marlin kernels do not take; symmetric ones are",
    );
  }
  if (some((_, { group_size: size }) => size !== -1 && !KERNEL_GROUPS.includes(size))) {
    found.push(
      'gptq: group sizes other than 16, 32, 64, ..., 1024 need a loader without fixed kernels; vLLM takes 32, 64, 128 or one group per row',
    );
  }
  if (expertsDiffer(context)) {
    found.push('gptq: vLLM wants one setting for all experts of a layer; mixed ones load in GPTQModel only');
  }
  return found;
}

/** Whether the experts of one layer have more than one setting, kept ones included. */
export function expertsDiffer({ quantized, kept }: FormatContext): boolean {
  const perLayer = new Map<number | null, Set<string>>();
  for (const { linear, scheme } of quantized) {
    if (linear.role !== 'expert') continue;
    perLayer.set(linear.layer, (perLayer.get(linear.layer) ?? new Set()).add(JSON.stringify(scheme)));
  }
  for (const { name, role } of kept) {
    const layer = role === 'expert' ? /\.layers\.(\d+)\./.exec(`.${name}`)?.[1] : undefined;
    if (layer !== undefined) perLayer.get(Number(layer))?.add('kept');
  }
  return [...perLayer.values()].some((settings) => settings.size > 1);
}
