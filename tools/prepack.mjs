/** npm pack, npm publish: installs if needed, then builds anew, whatever is in dist/. */
import './usage.mjs';
import { ensureInstalled } from './prepare.mjs';

ensureInstalled();
const { build } = await import('./build.mjs');
await build({ force: true });
