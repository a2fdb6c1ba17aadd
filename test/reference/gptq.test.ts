import { referenceTests } from './harness';
import { gptqCases } from './runners/gptq';

referenceTests('gptq', gptqCases);
