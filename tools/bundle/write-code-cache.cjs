/**
 * node write-code-cache.cjs DIST_DIR ARG...: runs the bundle as acrn-dm.js would, and when it ends writes V8's code
 * cache, which then holds what that run compiled. The arguments should take the way most starts take.
 */
const { readFileSync, renameSync, writeFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { join, resolve } = require('node:path');
const { Script } = require('node:vm');

const dist = resolve(process.argv[2]);
const filename = join(dist, 'acrn-dm.bundle.cjs');
const script = new Script(readFileSync(filename, 'latin1'), { filename });

process.on('exit', () => {
  const file = join(dist, `acrn-dm.${process.versions.v8}.cache`);
  writeFileSync(`${file}.new`, script.createCachedData());
  renameSync(`${file}.new`, file);
});
const main = join(dist, 'acrn-dm.js');
process.argv.splice(1, 2, main);
script.runInThisContext()(createRequire(main), { exports: {} }, filename, dist);
