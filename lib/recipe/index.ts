export { fitGroupSize } from './group_size';
export { type PlanOptions, planModel } from './plan';
export {
  defaultPreset,
  isPreset,
  PRESET_NAMES,
  type PresetContext,
  type PresetName,
  presetRecipe,
  uniformRecipe,
} from './presets';
export { parseRecipe } from './recipe';
export { type RecipeOptions, resolveRecipe } from './resolve';
export { EXPERT_GROUPS, type ExpertGroups } from './target_bits';
export * from './types';
export { parseUsage, rankExperts, readUsage } from './usage';
