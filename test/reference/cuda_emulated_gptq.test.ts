import { describe } from 'vitest';
import { DEVICE, hasCuda } from '../core/cuda_device';
import { referenceTests } from './harness';
import { gptqCasesOn } from './runners/gptq';

// The same bounds for CUDA kernels: on a GPU, or run by the emulator with QUANTARIA_BUILD=emulated.
describe.skipIf(!hasCuda)(DEVICE, () => {
  referenceTests('gptq', gptqCasesOn(DEVICE));
});
