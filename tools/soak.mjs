/**
 * npm run soak [-- --rounds N] [--host]: many VMs one after the other in one process (test/core/soak.ts), bundled with --host
 * with the code of data threads beside it, as the program is.
 */
import './usage.mjs';
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { ensureInstalled, root } from './prepare.mjs';
import { sweepDead } from './scratch.mjs';

ensureInstalled();
const { build } = await import('esbuild');
// Inside the repository, so that packages are found.
const cache = join(root, 'node_modules/.cache');
sweepDead(cache, /^acrn-dm-soak-(\d+)$/);
const outdir = join(cache, `acrn-dm-soak-${process.pid}`);
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
const child = spawn(process.execPath, ['--expose-gc', join(outdir, 'soak.js'), ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
});
// It removes what it made; what was bundled for it is removed here.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
child.on('close', (code) => {
  rmSync(outdir, { recursive: true, force: true });
  process.exit(code ?? 128);
});
