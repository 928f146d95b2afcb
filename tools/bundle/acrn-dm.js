#!/usr/bin/env -S -u NODE_OPTIONS node --inspect-port=192.0.2.1:65535

/*
 * The program, and the parts of the library (library.js): acrn-dm.bundle.cjs, from V8's code cache when there is one for
 * this very V8. V8 refuses a cache of another version or for a source of another length, but does not look at what is in
 * it: a damaged one would crash, and one of an older bundle would run the older code. So the file begins with a CRC-32
 * over the bundle and the cache. Without a cache V8 compiles.
 * Kept small: this file is compiled on every start.
 *
 * Nobody may debug a process of root: env drops NODE_OPTIONS, which is the caller's, and a SIGUSR1 before the first line
 * finds an address for the debugger's port that no host has (192.0.2.0/24 is for documentation). Where the file is given
 * to node instead, cmd/first-line.ts closes the port again.
 */
const isProgram = require.main === module;
if (isProgram) process.on('SIGUSR1', () => {});
// What libvirt asks for often is a file of its own.
const [, name, word] = process.argv;
if (isProgram && process.argv.length === 3 && /^(--version|-v)$/.test(word) && !name.endsWith('cloud-hypervisor')) {
  require(`${__dirname}/version.js`); // and ends
}
const { readFileSync } = require('node:fs');
const { Script } = require('node:vm');
const filename = `${__dirname}/acrn-dm.bundle.cjs`;
const bundle = readFileSync(filename);
/**
 * Node's own CRC-32, which node:zlib only hands on, after it has loaded all of Node's streams, 3 ms of every start. Node
 * tells of who calls process.binding(), with --throw-deprecation as an error that nothing catches: not in a process that
 * is another program's, and not told of in ours.
 */
let crc32;
if (isProgram) {
  const { noDeprecation } = process;
  process.noDeprecation = true;
  try {
    ({ crc32 } = process.binding('zlib'));
  } catch {}
  process.noDeprecation = noDeprecation;
}
let cachedData;
try {
  crc32 ??= require('node:zlib').crc32;
  const file = readFileSync(`${__dirname}/acrn-dm.${process.versions.v8}.cache`);
  const data = file.subarray(8);
  if (file.readUInt32LE(0) === crc32(data, crc32(bundle, 0))) cachedData = data;
} catch {}
const script = new Script(bundle.latin1Slice(), { filename, cachedData });
module.exports = script.runInThisContext()(require, module, filename, __dirname);
if (isProgram) module.exports('acrn-dm');
