import { aria } from './aria';
import type { DecoderTraits } from './decoder/traits';
import { deepseek } from './deepseek';
import { dense } from './dense';
import { generic } from './generic';
import { gptOss } from './gpt_oss';
import type { ExpertNaming } from './layouts';
import { mixtral } from './mixtral';
import { qwen2Moe } from './qwen2_moe';
import { qwen3Moe } from './qwen3_moe';
import type { RoleRule } from './roles';

/**
 * One family of models: how it names its tensors, in files and in transformers v5's memory. What is common to
 * all (roles by name, the three expert layouts) is in roles.ts and layouts.ts; a family states only how it
 * differs.
 */
export interface Architecture {
  /** `model_type` values of config.json, the decoder's or the whole model's. */
  readonly modelTypes: readonly string[];
  /** Names of routed experts; null in a dense family. */
  readonly experts: ExpertNaming | null;
  /** Rules that precede the common ones, over names as they are in files. */
  readonly roles?: readonly RoleRule[];
  /** Files never carry the in-memory prefix `model.language_model.`: where it is seen, it is a loader's. */
  readonly wrapper?: boolean;
  /** Name in transformers v5's memory of a tensor or module that a file names so, prefixes aside. */
  readonly toLoader?: (diskName: string) => string;
  /** The inverse; must leave names that are a file's already as they are. */
  readonly toDisk?: (loaderName: string) => string;
  /** Modules whose two-dimensional weights are not nn.Linear's `[out, in]`. */
  readonly notLinear?: RegExp;
  /** How its decoder computes; without it there is no forward pass. */
  readonly decoder?: DecoderTraits;
}

const registry: readonly Architecture[] = [aria, mixtral, qwen2Moe, qwen3Moe, deepseek, gptOss, dense];

const byModelType = new Map(
  registry.flatMap((entry) => entry.modelTypes.map((type) => [type, entry] as const)),
);

/** The family of a `model_type`, and whether it is one that is known by name. */
export function architectureOf(modelType: string | null): { architecture: Architecture; known: boolean } {
  const found = modelType === null ? undefined : byModelType.get(modelType);
  return { architecture: found ?? generic, known: found !== undefined };
}
