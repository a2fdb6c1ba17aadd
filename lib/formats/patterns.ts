import type { NamedModule } from './names';

/**
 * Regular expressions, for `re.match` of Python, that tell the settings of modules apart by name: each module matches a
 * pattern of its own setting under every name it has, and none of another's. Numbers of layers and experts are written
 * out only where settings differ, and the prefix is `.*` where that is enough, so that loaders with prefixes of their
 * own still match.
 */
export function settingPatterns(modules: readonly NamedModule[]): Map<string | null, string[]> {
  const patterns = new Map<string | null, string[]>();
  const emit = (setting: string | null, pattern: string) =>
    patterns.set(setting, [...(patterns.get(setting) ?? []), pattern]);

  const remaining = coverRoles(modules, (word) => emit(null, `.*${quote(word)}.*`));
  const families = familiesOf(remaining);
  for (const bucket of bucketsOf(families)) emit(bucket.setting, patternOf(bucket, families));
  return patterns;
}

/** Roles that are kept as a whole and whose names share a word that no other module has. */
export function coverRoles(modules: readonly NamedModule[], emit: (word: string) => void): NamedModule[] {
  let remaining = [...modules];
  for (const role of ['vision', 'projector'] as const) {
    const inside = remaining.filter((module) => module.role === role);
    const first = inside[0];
    if (first === undefined || inside.some(({ setting }) => setting !== null)) continue;
    const names = inside.flatMap((module) => module.names);
    const outside = modules.filter((module) => module.role !== role).flatMap((module) => module.names);
    const word = (first.names[0] ?? '')
      .split('.')
      .find(
        (part) =>
          !/^\d+$/.test(part) &&
          names.every((name) => name.split('.').includes(part)) &&
          !outside.some((name) => name.includes(part)),
      );
    if (word === undefined) continue;
    emit(word);
    remaining = remaining.filter((module) => module.role !== role);
  }
  return remaining;
}

/** A name with its layer and expert numbers taken out. */
interface Shape {
  /** up to the layer number, `model.layers.`; empty outside of layers */
  prefix: string;
  layer: number | null;
  /** after the layer number, `{E}` in place of the expert's */
  rest: string;
  expert: number | null;
}

const LAYER = /^((?:.*?\.)?(?:layers|blocks|block|h)\.)(\d+)\.(.+)$/;
const EXPERT = /^((?:.*\.)?experts\.)(\d+)(\..+)$/;

function shapeOf(name: string): Shape {
  const inLayer = LAYER.exec(name);
  const rest = inLayer?.[3] ?? name;
  const inExperts = EXPERT.exec(rest);
  return {
    prefix: inLayer?.[1] ?? '',
    layer: inLayer === null ? null : Number(inLayer[2]),
    rest: inExperts === null ? rest : `${inExperts[1]}{E}${inExperts[3]}`,
    expert: inExperts === null ? null : Number(inExperts[2]),
  };
}

interface Member {
  module: NamedModule;
  own: Shape;
  shapes: Shape[];
}

/** Modules whose names in the file differ by numbers only. */
interface Family {
  members: Member[];
  settings: Set<string | null>;
}

function familiesOf(modules: readonly NamedModule[]): Family[] {
  const families = new Map<string, Family>();
  for (const module of modules) {
    const shapes = module.names.map(shapeOf);
    const own = shapes[0] as Shape;
    const key = `${own.prefix} ${own.rest}`;
    const family = families.get(key) ?? { members: [], settings: new Set() };
    family.members.push({ module, own, shapes });
    family.settings.add(module.setting);
    families.set(key, family);
  }
  return [...families.values()];
}

/** What one pattern covers: the same setting, experts and names in each of its layers. `null` numbers mean all. */
interface Bucket {
  setting: string | null;
  layers: number[] | null;
  experts: number[] | null;
  prefixes: string[];
  rests: string[];
  families: Set<Family>;
}

function bucketsOf(families: readonly Family[]): Bucket[] {
  const merged = new Map<string, Bucket>();
  for (const family of families) {
    for (const bucket of bucketsOfFamily(family)) {
      const parent = parentOf(bucket.rests[0] as string);
      const { setting, layers, experts, prefixes } = bucket;
      // Outside of layers nothing is merged: there the names have nothing in common.
      const key = JSON.stringify([
        setting,
        layers,
        experts,
        prefixes,
        parent,
        prefixes[0] === '' ? bucket.rests : null,
      ]);
      const known = merged.get(key);
      if (known === undefined) {
        merged.set(key, bucket);
      } else {
        known.rests = [...new Set([...known.rests, ...bucket.rests])];
        known.families.add(family);
      }
    }
  }
  return [...merged.values()];
}

function bucketsOfFamily(family: Family): Bucket[] {
  const perLayer = new Map<string, { setting: string | null; layer: number | null; members: Member[] }>();
  const expertsOfLayer = new Map<number | null, number>();
  for (const member of family.members) {
    const { layer } = member.own;
    expertsOfLayer.set(layer, (expertsOfLayer.get(layer) ?? 0) + 1);
    const names = member.shapes.map(({ prefix, rest }) => `${prefix} ${rest}`);
    const key = JSON.stringify([member.module.setting, layer, names]);
    const slot = perLayer.get(key) ?? { setting: member.module.setting, layer, members: [] };
    slot.members.push(member);
    perLayer.set(key, slot);
  }
  const buckets = new Map<string, Bucket>();
  for (const { setting, layer, members } of perLayer.values()) {
    const shapes = (members[0] as Member).shapes;
    const whole = members.length === expertsOfLayer.get(layer);
    const experts = whole ? null : members.map((member) => member.own.expert as number);
    const prefixes = [...new Set(shapes.map((shape) => shape.prefix))];
    const rests = [...new Set(shapes.map((shape) => shape.rest))];
    const key = JSON.stringify([setting, experts, prefixes, rests]);
    const bucket = buckets.get(key) ?? {
      setting,
      layers: [],
      experts,
      prefixes,
      rests,
      families: new Set([family]),
    };
    if (layer !== null) bucket.layers?.push(layer);
    buckets.set(key, bucket);
  }
  const [only, ...others] = buckets.values();
  if (only !== undefined && others.length === 0) only.layers = null;
  return [...buckets.values()];
}

const parentOf = (rest: string) => rest.slice(0, Math.max(rest.lastIndexOf('.'), 0));

function patternOf(bucket: Bucket, families: readonly Family[]): string {
  const rivals = families
    .filter(
      (family) =>
        [...family.settings].some((setting) => setting !== bucket.setting) && !bucket.families.has(family),
    )
    .flatMap(representatives);
  const choices = bucket.prefixes[0] === '' ? rootChoices(bucket) : layerChoices(bucket);
  // The last choice spells the names out, and no two modules share a name.
  const chosen =
    choices.find(({ anyNumber }) => !rivals.some((name) => anyNumber.test(name))) ?? choices.at(-1);
  return (chosen as Choice).pattern;
}

/** Names of a family, one for every structure that occurs in it. */
function representatives(family: Family): string[] {
  const names = new Map<string, string>();
  for (const { module, shapes } of family.members) {
    for (const [index, { prefix, rest }] of shapes.entries()) {
      names.set(`${prefix} ${rest}`, module.names[index] as string);
    }
  }
  return [...names.values()];
}

interface Choice {
  pattern: string;
  /** the pattern with any numbers in it: what else of this structure could it match */
  anyNumber: RegExp;
}

function layerChoices({ prefixes, rests, layers, experts }: Bucket): Choice[] {
  const parts = prefixes.map((prefix) => prefix.split('.').filter((part) => part !== ''));
  const word = parts[0]?.at(-1) as string;
  const shared = (parts[0] as string[])
    .slice(0, -1)
    .filter((part) => parts.every((other) => other.includes(part)));
  const starts = [
    `.*${quote(word)}\\.`,
    ...shared.map((part) => `.*${quote(part)}\\..*${quote(word)}\\.`),
    alternatives(prefixes.map(quote)),
  ];
  return starts.map((start) => ({
    pattern: `${start}${numbers(layers)}\\.${restPattern(rests, numbers(experts))}$`,
    anyNumber: new RegExp(`^(?:${start}\\d+\\.${restPattern(rests, '\\d+')}$)`),
  }));
}

function rootChoices({ rests }: Bucket): Choice[] {
  const depth = Math.max(...rests.map((rest) => rest.split('.').length));
  const choices: Choice[] = [];
  for (let length = 1; length <= depth; ++length) {
    const tails = [...new Set(rests.map((rest) => rest.split('.').slice(-length).join('.')))];
    const pattern = `.*${alternatives(tails.map(quote))}$`;
    choices.push({ pattern, anyNumber: new RegExp(`^(?:${pattern})`) });
  }
  const pattern = `${alternatives(rests.map(quote))}$`;
  choices.push({ pattern, anyNumber: new RegExp(`^(?:${pattern})`) });
  return choices;
}

/** The parts of a layer, last components gathered under their parent. */
function restPattern(rests: readonly string[], expert: string): string {
  const parents = new Map<string, string[]>();
  for (const rest of rests) {
    const parent = parentOf(rest);
    parents.set(parent, [...(parents.get(parent) ?? []), rest.slice(parent === '' ? 0 : parent.length + 1)]);
  }
  return alternatives(
    [...parents].map(([parent, lasts]) => {
      const last = alternatives(lasts.map(quote));
      // A function as replacement: `$` in the numbers must not be read as a reference.
      return (parent === '' ? last : `${quote(parent)}\\.${last}`).replace('\\{E\\}', () => expert);
    }),
  );
}

const quote = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
const alternatives = (items: readonly string[]) =>
  items.length === 1 ? (items[0] as string) : `(?:${items.join('|')})`;

function numbers(list: readonly number[] | null): string {
  return list === null ? '\\d+' : alternatives([...list].sort((a, b) => a - b).map(String));
}
