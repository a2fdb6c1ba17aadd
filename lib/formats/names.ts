import { loaderName, type ModelMap, type Role } from '../models';
import type { FormatContext, KeptModule } from './types';

/** A module under every name that some loader gives it, the file's first, and what the plan says about it. */
export interface NamedModule {
  names: string[];
  role: Role;
  /** null: stored dense */
  setting: string | null;
}

/** vLLM asks for the scheme of a fused expert block under these names, whatever the file calls the three matrices. */
const GENERIC_PROJECTION: Readonly<Record<string, string>> = {
  w1: 'gate_proj',
  w3: 'up_proj',
  w2: 'down_proj',
};

/** Linear layers that loaders merge into one; the merged one is asked for by name if all parts agree. */
const MERGED: readonly { parts: readonly string[]; name: string }[] = [
  { parts: ['q_proj', 'k_proj', 'v_proj'], name: 'qkv_proj' },
  { parts: ['gate_proj', 'up_proj'], name: 'gate_up_proj' },
];

const EXPERT_MODULE = /^(.*\bexperts)\.\d+\.[^.]+$/;

/** The names of a module: as in files, as in transformers v5's memory, and as vLLM asks for expert matrices. */
export function moduleNames(model: ModelMap, module: string): string[] {
  const names = new Set([module, loaderName(model, module)]);
  for (const name of [...names]) {
    const last = name.slice(name.lastIndexOf('.') + 1);
    const generic = EXPERT_MODULE.test(name) ? GENERIC_PROJECTION[last] : undefined;
    if (generic !== undefined) names.add(name.slice(0, -last.length) + generic);
  }
  return [...names];
}

/**
 * All modules that could be linear layers to a loader, with the setting of each: what configurations are derived from.
 * A merged name (`qkv_proj`, `mlp.experts`) is added to its parts where these agree, and only there.
 */
export function namedModules(
  context: FormatContext,
  settingOf: (module: FormatContext['quantized'][number]) => string,
): NamedModule[] {
  const modules: NamedModule[] = [
    ...context.quantized.map((entry) => ({
      names: moduleNames(context.model, entry.module),
      role: entry.linear.role,
      setting: settingOf(entry),
    })),
    ...context.kept.filter(mayBeLinear).map(({ name, role }) => ({
      names: moduleNames(context.model, moduleOf(name)),
      role,
      setting: null,
    })),
  ];
  // With tied embeddings the file has no head, but the loader does.
  if (!modules.some(({ names }) => names.some((name) => /(^|\.)lm_head$/.test(name)))) {
    modules.push({ names: ['lm_head'], role: 'lm-head', setting: null });
  }
  addMergedNames(modules);
  return modules;
}

export const moduleOf = (tensor: string): string => tensor.replace(/\.weight$/, '');

function mayBeLinear({ name, role, shape }: KeptModule): boolean {
  if (role === 'norm' || role === 'embedding' || /(^|[._])bias$/.test(name)) return false;
  return shape === undefined || shape.length >= 2;
}

function addMergedNames(modules: readonly NamedModule[]): void {
  const parents = new Map<string, Map<string, NamedModule>>();
  const blocks = new Map<string, NamedModule[]>();
  for (const module of modules) {
    for (const name of module.names) {
      const dot = name.lastIndexOf('.');
      const parent = name.slice(0, Math.max(dot, 0));
      const siblings = parents.get(parent) ?? new Map<string, NamedModule>();
      parents.set(parent, siblings.set(name.slice(dot + 1), module));
      const block = blockOf(name, module.role);
      if (block !== null) blocks.set(block, [...(blocks.get(block) ?? []), module]);
    }
  }
  for (const [parent, siblings] of parents) {
    if (/\bexperts\.\d+$/.test(parent)) continue;
    for (const { parts, name } of MERGED) {
      const members = parts.map((part) => siblings.get(part));
      if (members.every((member) => member !== undefined))
        addIfAgreed(members, `${parent}.${name}`, siblings.get(name));
    }
  }
  for (const [block, members] of blocks) addIfAgreed(members, block);
}

/** The fused block that holds a routed expert's matrix. */
function blockOf(name: string, role: Role): string | null {
  if (role !== 'expert') return null;
  const found = /^(.*\bexperts)(\.\d+)?\.[^.]+$/.exec(name);
  return found?.[1] ?? null;
}

function addIfAgreed(members: readonly NamedModule[], name: string, taken?: NamedModule): void {
  const setting = members[0]?.setting;
  if (taken !== undefined || members.some((member) => member.setting !== setting)) return;
  for (const member of new Set(members)) if (!member.names.includes(name)) member.names.push(name);
}
