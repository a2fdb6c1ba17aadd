import { defineConfig, type TestProjectConfiguration } from 'vitest/config';
import ClosingLine from './test/closing-line-reporter.mts';

/** Suites of operations, models and whole jobs, which run on whatever device QUANTARIA_TEST_DEVICE names (test/device.ts). */
const ON_ANY_DEVICE = [
  'test/core/{cast,gptq,hadamard,hessian_stack,linear*,llm_int8*,matmul,moe_*,parts,quantized,queue,tensor}.test.ts',
  'test/models/decoders.test.ts',
  'test/pipeline/{activations,architectures,calibration,evaluate,folding,generate,quantize,verify}.test.ts',
  'test/reference/*.test.ts',
];
/** Whole jobs by the dozen, minutes on the emulator: in its whole sweep. */
const IN_THE_SWEEP = ['test/pipeline/{calibration_settings,recipes,shards,target_bits}.test.ts'];
/** What touches a device at its edges only: in the same sweep, and nowhere else. */
const AT_THE_EDGES = [
  'test/{cli,formats,models,recipe}/*.test.ts',
  'test/checkpoint/{hostile,layout}.test.ts', // the third one writes tensors, which it takes from the CPU
  'test/core/{fuzz,workers}.test.ts',
  'test/pipeline/{convert,determinism,faults,report_page,resume,run}.test.ts',
];
/** Suites that hold a CUDA device against the CPU: tensors are made on the CPU there. */
const AGAINST_CPU = ['test/core/{cuda_emulated*,devices}.test.ts', 'test/pipeline/on_device.test.ts'];

const device = process.env.QUANTARIA_TEST_DEVICE;
const emulated = device === 'cuda-emulated';
const sweep = process.env.QUANTARIA_SWEEP === 'full';
const projects: TestProjectConfiguration[] = [
  {
    extends: true,
    test: {
      name: `on ${device}`,
      include: [
        ...ON_ANY_DEVICE,
        ...(!emulated || sweep ? IN_THE_SWEEP : []),
        ...(emulated && sweep ? AT_THE_EDGES : []),
      ],
      setupFiles: ['test/device_setup.ts'],
    },
  },
  { extends: true, test: { name: `${device} against cpu`, include: AGAINST_CPU } },
];

export default defineConfig({
  test: {
    ...(device ? { projects } : { include: ['test/**/*.test.ts'] }),
    // Processes, not threads: a crash in the addon ends one worker and names its file, and --expose-gc is allowed.
    pool: 'forks',
    maxWorkers: 2,
    execArgv: ['--expose-gc'],
    testTimeout: device ? 180_000 : 30_000, // the emulator takes seconds for what kernels do in microseconds
    hookTimeout: 60_000,
    reporters: ['default', new ClosingLine()],
  },
});
