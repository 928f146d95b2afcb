/**
 * node write-code-cache.cjs DIST_DIR ARG...: runs the bundle as acrn-dm.js would, and when it ends writes V8's code
 * cache, which then holds what that run compiled. The arguments should take the way most starts take.
 *
 *   0  u32   CRC-32 over the bundle, then the cache
 *   4  u32   0; V8 copies what is not aligned to 8 bytes
 *   8        what V8 calls the cached data
 */
const { readFileSync, renameSync, writeFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { join, resolve } = require('node:path');
const { setFlagsFromString } = require('node:v8');
const { Script } = require('node:vm');
const { crc32 } = require('node:zlib');

const dist = resolve(process.argv[2]);
const filename = join(dist, 'acrn-dm.bundle.cjs');
const bundle = readFileSync(filename);
// The name is in the cache, which is packed: not the path of the machine that builds.
const script = new Script(bundle.latin1Slice(), { filename: 'acrn-dm.bundle.cjs' });

// What a start needs once is needed in the cache; the flag is part of what V8 compares, so it is as it was in the end.
setFlagsFromString('--no-flush-bytecode');
let part;
process.on('exit', () => {
  // What this run did not come to, the hypervisor's part, is at least loaded: loading it would compile most of a start.
  part();
  const file = join(dist, `acrn-dm.${process.versions.v8}.cache`);
  setFlagsFromString('--flush-bytecode');
  const data = script.createCachedData();
  const header = Buffer.alloc(8);
  header.writeUInt32LE(crc32(data, crc32(bundle)));
  writeFileSync(`${file}.new`, Buffer.concat([header, data]));
  renameSync(`${file}.new`, file);
});
const main = join(dist, 'acrn-dm.js');
process.argv.splice(1, 2, main);
part = script.runInThisContext()(createRequire(main), { exports: {} }, filename, dist);
part('acrn-dm');
