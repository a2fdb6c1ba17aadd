import type { Reporter, TestModule } from 'vitest/node';

/** Ends the run's output with one plain line, `12 passed, 0 failed, 3 skipped`, for whatever reads the log. */
export default class ClosingLine implements Reporter {
  async onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): Promise<void> {
    const count = { passed: 0, failed: errors.length, skipped: 0, pending: 0 };
    for (const module of modules) {
      for (const test of module.children.allTests()) count[test.result().state]++;
      count.failed += module.errors().length; // a file that could not be loaded has no tests to fail
    }
    // A test that never ran, because its worker died, has not passed.
    const failed = count.failed + count.pending;
    await new Promise(setImmediate); // after the other reporters, whose summary is written in the same turn
    console.log(`${count.passed} passed, ${failed} failed, ${count.skipped} skipped`);
  }
}
