/** The data thread's code for tests: workers take JavaScript only. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { beforeAll } from 'vitest';

/** Inside the repository, so that packages are found. */
const cache = join(import.meta.dirname, '../../node_modules/.cache/acrn-dm-test');

/** Build it before the tests of this file, remove it after them. */
export function useDataThreadWorker(): URL {
  const path = join(cache, `data-thread-${process.pid}.mjs`);
  beforeAll(async () => {
    mkdirSync(cache, { recursive: true });
    await build({
      entryPoints: [join(import.meta.dirname, '../../devicemodel/hw/pci/virtio/data-thread-main.ts')],
      bundle: true,
      platform: 'node',
      format: 'esm',
      packages: 'external',
      outfile: path,
      logLevel: 'error',
    });
    return () => rmSync(path);
  });
  return pathToFileURL(path);
}
