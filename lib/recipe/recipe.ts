import { QuantariaError } from '../errors';
import { ROLES, type Role } from '../models/types';
import { validateScheme } from '../scheme';
import { parseLayers, parseTop } from './match';
import { FORMAT_NAMES, type FormatName, type Recipe, type RecipeRule, type RuleMatch } from './types';

function refuse(field: string, came: unknown, expected: string): never {
  const shown = came === undefined ? 'nothing' : JSON.stringify(came);
  throw new QuantariaError('ERR_ARGUMENT', `recipe: ${field}: ${shown} came, expected ${expected}`);
}

function asFields(field: string, value: unknown, allowed: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return refuse(field, value, `an object with ${allowed.join(', ')}`);
  }
  for (const key of Object.keys(value)) {
    if (!allowed.includes(key)) {
      refuse(`${field}.${key}`, (value as Record<string, unknown>)[key], `only ${allowed.join(', ')}`);
    }
  }
  return value as Record<string, unknown>;
}

function text(
  field: string,
  value: unknown,
  accepts: (value: string) => boolean,
  expected: string,
): string | undefined {
  if (value === undefined) return undefined;
  return typeof value === 'string' && accepts(value) ? value : refuse(field, value, expected);
}

/**
 * Checks a recipe as read from JSON and fills its schemes' defaults.
 * @throws QuantariaError `ERR_ARGUMENT` naming the field, what came and what was expected; unknown fields are
 *   refused
 */
export function parseRecipe(value: unknown): Recipe {
  const { method, format, rules } = asFields('recipe', value, ['method', 'format', 'rules']);
  if (!Array.isArray(rules)) return refuse('rules', rules, 'a list of rules');
  return {
    preset: null,
    method: text('method', method, (name) => name !== '', "a method's name"),
    format: text(
      'format',
      format,
      (name) => (FORMAT_NAMES as readonly string[]).includes(name),
      FORMAT_NAMES.join(', '),
    ) as FormatName | undefined,
    rules: rules.map((rule: unknown, index) => parseRule(rule, `rules[${index}]`)),
    notes: [],
  };
}

function parseRule(value: unknown, field: string): RecipeRule {
  const rule = asFields(field, value, ['match', 'scheme']);
  const match = parseMatch(rule.match, `${field}.match`);
  if (rule.scheme === null) return { match, scheme: null };
  if (rule.scheme === undefined)
    return refuse(`${field}.scheme`, rule.scheme, 'a scheme, or null to keep the tensor');
  try {
    return { match, scheme: validateScheme(rule.scheme) };
  } catch (error) {
    if (!(error instanceof QuantariaError)) throw error;
    throw new QuantariaError(error.code, `recipe: ${field}.${error.message}`);
  }
}

function parseMatch(value: unknown, field: string): RuleMatch {
  const given = asFields(field, value, ['role', 'layers', 'name', 'usage', 'outliers']);
  const isRole = (name: string) => (ROLES as readonly string[]).includes(name);
  const match: RuleMatch = {
    role: text(`${field}.role`, given.role, isRole, ROLES.join(', ')) as Role | undefined,
    layers: text(
      `${field}.layers`,
      given.layers,
      (layers) => parseLayers(layers) !== null,
      'layers and rising ranges, such as "0-3,27"',
    ),
    name: text(
      `${field}.name`,
      given.name,
      (glob) => glob !== '' && !/[[\]{}]/.test(glob),
      'a glob of *, ? and plain characters',
    ),
    usage: text(
      `${field}.usage`,
      given.usage,
      (usage) => (parseTop(usage) ?? 0) > 0,
      '"top:N" with N of 1 or more',
    ),
    outliers: text(
      `${field}.outliers`,
      given.outliers,
      (outliers) => (parseTop(outliers) ?? 0) > 0,
      '"top:N" with N of 1 or more',
    ),
  };
  for (const key of Object.keys(match) as (keyof RuleMatch)[])
    if (match[key] === undefined) delete match[key];
  return match;
}
