/** The code of a thread as JavaScript: a worker takes nothing else. */
import { mkdirSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const root = join(import.meta.dirname, '../..');
/** Inside the repository, so that packages are found. */
const cache = join(root, 'node_modules/.cache/acrn-dm-test');

let counter = 0;

export interface BundledWorker {
  /** Where it is once it is built. */
  readonly url: URL;
  build(): Promise<void>;
  remove(): void;
}

/** @param main from the repository's folder. @param first a module that is run before the thread begins. */
export function bundledWorker(main: string, first?: string): BundledWorker {
  const path = join(cache, `${basename(main, '.ts')}-${process.pid}-${counter++}.mjs`);
  return {
    url: pathToFileURL(path),
    build: async () => {
      mkdirSync(cache, { recursive: true });
      await build({
        stdin: {
          contents: [...(first === undefined ? [] : [first]), main].map((file) => `import './${file}';`).join('\n'),
          resolveDir: root,
        },
        bundle: true,
        platform: 'node',
        format: 'esm',
        packages: 'external',
        outfile: path,
        logLevel: 'error',
      });
    },
    remove: () => rmSync(path),
  };
}
