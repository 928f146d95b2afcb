import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    environment: 'node',
    // Where the tests of two checkouts run at the same time, starts of a process take seconds.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    pool: 'forks',
    // vitest leaves one CPU to itself, which is half of a machine with two.
    maxWorkers: availableParallelism(),
    setupFiles: ['test/support/run-dir.ts'],
    globalSetup: ['test/support/traces.ts'],
  },
});
