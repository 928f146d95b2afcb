import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    environment: 'node',
    // Where the tests of two checkouts run at the same time, starts of a process take seconds.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    pool: 'forks',
    setupFiles: ['test/support/run-dir.ts'],
    globalSetup: ['test/support/traces.ts'],
  },
});
