import type { Linear, PlainTensor, Role } from '../models/types';
import type { QuantScheme } from '../scheme';

export const FORMAT_NAMES = ['gptq', 'awq', 'compressed-tensors', 'bitsandbytes', 'quanto', 'mxfp4'] as const;
export type FormatName = (typeof FORMAT_NAMES)[number];

/** What a rule asks of a tensor; a field left out asks nothing. */
export interface RuleMatch {
  role?: Role;
  /** Decoder layers, `0-3,27`. */
  layers?: string;
  /** Glob over the module name: `*` any characters, `?` one. */
  name?: string;
  /** `top:N`: one of the N routed experts of its layer that are used most. */
  usage?: string;
  /** `top:N`: one of the N weights, of those that the rest of the match covers, whose input features spread most. */
  outliers?: string;
}

/** The first rule that matches a tensor decides; a `null` scheme keeps it as it is. */
export interface RecipeRule {
  match: RuleMatch;
  scheme: QuantScheme | null;
}

export interface Recipe {
  /** The preset's name, or null for a recipe from a file or from flags. */
  preset: string | null;
  method?: string;
  format?: FormatName;
  rules: RecipeRule[];
  /** What was decided on the way to the rules, for the report. */
  notes: string[];
}

/** How often each expert of each layer was chosen, as `quantaria usage --json` reports it. */
export interface Usage {
  tokens: number;
  layers: { layer: number; counts: number[] }[];
}

export interface LinearDecision {
  linear: Linear;
  /** Null: kept as it is. */
  scheme: QuantScheme | null;
  /** Index of the rule that decided; null if none matched. */
  rule: number | null;
  reason: string;
}

export interface TensorDecision {
  tensor: PlainTensor;
  /** Index of the rule that keeps it; null if none matched. */
  rule: number | null;
  reason: string;
}

export interface ModelPlan {
  recipe: Recipe;
  linears: LinearDecision[];
  others: TensorDecision[];
  /** Weights that no rule matched: kept, and reported. */
  unmatched: string[];
  /**
   * Weights for which a rule asks a scheme that they cannot have (not a readable linear weight): kept, and
   * reported.
   */
  refused: string[];
  /**
   * 8 x bytes of the decoder's linear weights, kept ones included, / their number of parameters; 0 without
   * any.
   */
  averageBits: number;
  /** Bytes of all tensors as planned. */
  bytes: number;
  notes: string[];
}
