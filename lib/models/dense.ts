import type { Architecture } from './architecture';

/** Decoders without experts that share Llama's names. Source: transformers. */
export const dense: Architecture = {
  modelTypes: ['llama', 'mistral', 'qwen2', 'qwen3'],
  experts: null,
};
