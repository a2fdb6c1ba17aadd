import { referenceTests } from './harness';
import { llmInt8Cases } from './runners/llm_int8';

referenceTests('LLM.int8', llmInt8Cases);
