/**
 * npm run soak [-- --rounds N] [--host]: many VMs one after the other in one process (test/core/soak.ts), bundled with --host
 * with the code of data threads beside it, as the program is.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { ensureInstalled, root, run } from './prepare.mjs';

ensureInstalled();
const { build } = await import('esbuild');
// Inside the repository, so that packages are found.
const outdir = join(root, `node_modules/.cache/acrn-dm-soak-${process.pid}`);
await build({
  absWorkingDir: root,
  entryPoints: {
    soak: 'test/core/soak.ts',
    ...(process.argv.includes('--host')
      ? { 'data-thread-main': 'devicemodel/hw/pci/virtio/data-thread/data-thread-main.ts' }
      : {}),
  },
  outdir,
  bundle: true,
  platform: 'node',
  format: 'esm',
  packages: 'external',
  logLevel: 'error',
});
const status = run(process.execPath, ['--expose-gc', join(outdir, 'soak.js'), ...process.argv.slice(2)]);
rmSync(outdir, { recursive: true });
process.exit(status);
