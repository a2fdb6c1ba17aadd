import type { NamedModule } from './names';
import { coverRoles } from './patterns';

/**
 * The modules kept dense, as entries of a skip list that its readers match in different ways: transformers takes an
 * entry as a regular expression at the start of the name or as the end of it, vLLM as a substring (awq), or as a
 * component or dotted prefix (bitsandbytes). Every kept module matches in transformers under each of its names; no
 * quantized one matches under any reading.
 */
export function skipList(modules: readonly NamedModule[]): string[] {
  const quantized = modules.filter(({ setting }) => setting !== null).flatMap(({ names }) => names);
  const safe = memo((entry: string) => {
    const start = new RegExp(`^(?:${entry})`);
    return !quantized.some((name) => name.includes(entry) || start.test(name));
  });
  const entries = new Set<string>();
  const covered: string[] = [];
  const remaining = coverRoles(modules, (word) => covered.push(word)).filter(
    ({ setting }) => setting === null,
  );
  for (const word of covered) {
    entries.add(word);
    for (const { names } of modules) {
      for (const name of names) {
        const end = name.split('.').indexOf(word) + 1;
        if (end > 0) entries.add(name.split('.').slice(0, end).join('.'));
      }
    }
  }
  // A stack of experts is kept whole or module by module; the loader that has it as one asks for the stack's name.
  const wholeExperts = !modules.some(({ role, setting }) => role === 'expert' && setting !== null);
  for (const { names, role } of remaining) {
    for (const name of names) {
      if (role === 'expert' && wholeExperts && /\bexperts(\.|$)/.test(name)) {
        const stack = /([^.]+\.experts)(?:\.|$)/.exec(name)?.[1] ?? 'experts';
        entries.add(stack);
        entries.add(`.*${stack.replaceAll('.', '\\.')}(?:\\..*)?$`);
      } else {
        entries.add(shortestSuffix(name, safe));
      }
    }
  }
  return [...entries];
}

function shortestSuffix(name: string, safe: (entry: string) => boolean): string {
  const parts = name.split('.');
  for (let length = 1; length < parts.length; ++length) {
    const suffix = parts.slice(-length).join('.');
    if (!/^\d/.test(suffix) && safe(suffix)) return suffix;
  }
  return name;
}

function memo<K, V>(compute: (key: K) => V): (key: K) => V {
  const known = new Map<K, V>();
  return (key) => {
    if (!known.has(key)) known.set(key, compute(key));
    return known.get(key) as V;
  };
}
