import { namedModules } from '../names';
import { settingPatterns } from '../patterns';
import type { FormatConfig, FormatContext, JsonObject, QuantizedModule } from '../types';
import { inputActivations, type Layout, layoutOf } from './layouts';

/** What a config group says besides its targets; modules with equal settings share a group. */
function settingOf({ scheme, groupIndex, activations }: QuantizedModule): string {
  const layout = layoutOf(scheme, activations) as Layout;
  return JSON.stringify({
    format: layout.format,
    weights: layout.weights(scheme, groupIndex === true),
    input_activations: activations === undefined ? null : inputActivations(activations),
  });
}

/**
 * One group per setting. A single setting is targeted by class, as loaders expect it most; several by patterns, which
 * exclude each other, since loaders differ in which of two matches they take. What is kept is in `ignore` either way.
 */
export function config(context: FormatContext): FormatConfig {
  const patterns = settingPatterns(namedModules(context, settingOf));
  const settings = [...new Set(context.quantized.map(settingOf))];
  // transformers takes the first group whose patterns mention experts for all routed experts.
  const routed = new Set(context.quantized.filter(({ linear }) => linear.role === 'expert').map(settingOf));
  const ordered = [
    ...settings.filter((own) => routed.has(own)),
    ...settings.filter((own) => !routed.has(own)),
  ];
  const expressions = (setting: string | null) =>
    (patterns.get(setting) ?? []).map((pattern) => `re:${pattern}`);
  const groups = ordered.map((setting, index) => {
    const { format, ...schemes } = JSON.parse(setting) as { format: string; weights: JsonObject };
    const targets = ordered.length === 1 ? ['Linear'] : expressions(setting);
    return [`group_${index}`, { targets, format, ...schemes, output_activations: null }] as const;
  });
  const formats = new Set(groups.map(([, { format }]) => format));
  const [only, ...others] = formats;
  return {
    quantizationConfig: {
      quant_method: 'compressed-tensors',
      format: others.length === 0 ? (only ?? 'dense') : 'mixed-precision',
      quantization_status: 'compressed',
      global_compression_ratio: null,
      kv_cache_scheme: null,
      ignore: expressions(null),
      config_groups: Object.fromEntries(groups),
    },
    files: {},
  };
}

const SPLIT_BITS: readonly number[] = [3, 5, 6, 7];

export function warnings(context: FormatContext): string[] {
  const { quantized } = context;
  const found = expertWarnings(context);
  const bits = new Set(quantized.map(({ scheme }) => (scheme.kind === 'int' ? scheme.bits : 0)));
  const split = SPLIT_BITS.filter((width) => bits.has(width as 3));
  if (split.length > 0) {
    found.push(
      `compressed-tensors: ${split.join(', ')} bits are packed as a dense stream, as compressed-tensors does from 0.16 on; older versions read them wrong and vLLM takes 4 and 8 bits only. gptq has 3 bits for GPTQModel`,
    );
  } else if (bits.has(2)) {
    found.push(
      'compressed-tensors: vLLM takes 4 and 8 bits only; 2 bits load in transformers, and as gptq in GPTQModel',
    );
  }
  if (quantized.some(({ groupIndex }) => groupIndex === true)) {
    found.push(
      'compressed-tensors: groups by activation order (weight_g_idx) are to be dropped by newer versions; static groups, or gptq, keep loading',
    );
  }
  if (context.modelDtype !== 'bfloat16' && quantized.some(({ scheme }) => scheme.kind === 'mx')) {
    found.push(
      `compressed-tensors: MX weights become bfloat16 when they are loaded; load this ${context.modelDtype} model with dtype=bfloat16`,
    );
  }
  if (mergedDiffer(context)) {
    found.push(
      'compressed-tensors: vLLM merges q, k and v, and gate and up, and wants one scheme for the parts; transformers takes them as they are',
    );
  }
  return found;
}

/** Routed experts are where loaders take least: each sentence is one thing that fails or goes wrong. */
function expertWarnings(context: FormatContext): string[] {
  const { quantized, kept, model } = context;
  const experts = quantized.filter(({ linear }) => linear.role === 'expert');
  const keptExperts = kept.some(({ role }) => role === 'expert');
  const found: string[] = [];
  if (experts.length === 0) {
    const converted = keptExperts && model.expertLayout === 'sequential' && !/aria/.test(model.architecture);
    if (converted && !quantized.every(({ scheme }) => scheme.kind === 'fp8')) {
      found.push(
        'compressed-tensors: transformers v5 looks for quantized experts as soon as the checkpoint is compressed, and finds none of these dense ones; quantize the experts too, or use bitsandbytes',
      );
    }
    return found;
  }
  if (/aria/.test(model.architecture)) {
    found.push(
      "compressed-tensors: stock transformers and vLLM load Aria's routed experts in their grouped form only, which no format quantizes; quantized ones need the sequential-expert code",
    );
    return found;
  }
  if (experts.some(({ scheme }) => scheme.kind === 'int' && !scheme.symmetric)) {
    found.push(
      'compressed-tensors: transformers v5 fails on affine experts (it does not collect their zero points), and so does vLLM; symmetric ones load',
    );
  }
  if (experts.some(({ activations }) => activations !== undefined)) {
    found.push(
      'compressed-tensors: transformers v5 fails on experts with integer activations; vLLM takes them, and weights alone load in both',
    );
  }
  if (experts.some(({ scheme }) => scheme.kind === 'mx' && scheme.element === 'e4m3')) {
    found.push(
      'compressed-tensors: transformers v5 fails on MXFP8 experts (it takes their block scales for one factor a row); mxfp4, fp8 and int8 experts load',
    );
  }
  if (keptExperts || new Set(experts.map(settingOf)).size > 1) {
    found.push(
      'compressed-tensors: transformers v5 decodes all routed experts by one scheme, and vLLM those of a layer; experts of several widths load in neither. One width for all does, and gptq with GPTQModel takes any',
    );
  }
  return found;
}

function mergedDiffer({ quantized, kept }: FormatContext): boolean {
  const merged = (module: string) =>
    module
      .replace(/\.(q|k|v)_proj$/, '.qkv')
      .replace(/\.(gate|up)_proj$/, '.gate_up')
      .replace(/\.(w1|w3)$/, '.w13');
  const settings = new Map<string, Set<string>>();
  const add = (module: string, setting: string) => {
    const name = merged(module);
    settings.set(name, (settings.get(name) ?? new Set()).add(setting));
  };
  for (const module of quantized) add(module.module, settingOf(module));
  for (const { name } of kept) if (name.endsWith('.weight')) add(name.slice(0, -'.weight'.length), 'kept');
  return [...settings.values()].some((own) => own.size > 1);
}
