/** npm run fuzz [-- ARGUMENTS of test/fuzz/main.ts]: installs and builds if needed, then runs hostile guests. */
import './usage.mjs';
import { join } from 'node:path';
import { prepare, root, run } from './prepare.mjs';

await prepare();
process.exit(run(process.execPath, ['--import', 'tsx', join(root, 'test/fuzz/main.ts'), ...process.argv.slice(2)]));
