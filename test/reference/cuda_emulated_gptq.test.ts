import { describe } from 'vitest';
import { devices } from '../../lib';
import { referenceTests } from './harness';
import { gptqCasesOn } from './runners/gptq';

// The same bounds for CUDA kernels, run by the emulator: QUANTARIA_BUILD=emulated npx vitest run
const emulated = devices().some((device) => device.id === 'cuda-emulated');
describe.skipIf(!emulated)('cuda-emulated', () => {
  referenceTests('gptq', gptqCasesOn('cuda-emulated'));
});
