/** npm test [-- VITEST_ARGUMENTS]: installs and builds if needed, then runs the tests once. */
import './usage.mjs';
import { join } from 'node:path';
import { prepare, root, run } from './prepare.mjs';

await prepare();
process.exit(run(process.execPath, [join(root, 'node_modules/vitest/vitest.mjs'), 'run', ...process.argv.slice(2)]));
