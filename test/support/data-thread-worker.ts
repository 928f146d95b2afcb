/** The code of a disk's data thread as JavaScript: a worker takes nothing else. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const root = join(import.meta.dirname, '../..');
/** Inside the repository, so that packages are found. */
const cache = join(root, 'node_modules/.cache/acrn-dm-test');

/** @returns where it is, and how to take it away. */
export async function buildDataThreadWorker(): Promise<{ readonly url: URL; remove(): void }> {
  const path = join(cache, `data-thread-${process.pid}.mjs`);
  mkdirSync(cache, { recursive: true });
  await build({
    entryPoints: [join(root, 'devicemodel/hw/pci/virtio/data-thread-main.ts')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    outfile: path,
    logLevel: 'error',
  });
  return { url: pathToFileURL(path), remove: () => rmSync(path) };
}
