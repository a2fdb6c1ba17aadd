import { defineConfig } from 'vitest/config';
import ClosingLine from './test/closing-line-reporter.mts';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Processes, not threads: a crash in the addon ends one worker and names its file, and --expose-gc is allowed.
    pool: 'forks',
    maxWorkers: 2,
    execArgv: ['--expose-gc'],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    reporters: ['default', new ClosingLine()],
  },
});
