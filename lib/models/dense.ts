import type { Architecture } from './architecture';
import { count } from './config';

/** Decoders without experts that share Llama's names. Source: transformers. */
export const dense: Architecture = {
  modelTypes: ['llama', 'mistral', 'qwen2', 'qwen3'],
  experts: null,
  decoder: {
    // Mistral slides wherever a window is given; Qwen names layers, or has it on from one layer on.
    slides: (text, layer) =>
      text.model_type === 'mistral' ||
      (text.use_sliding_window === true && layer >= (count(text, 'max_window_layers') ?? 28)),
    window: (text) => (text.model_type === 'mistral' && text.sliding_window === undefined ? 4096 : null),
  },
};
