#!/usr/bin/env node

/*
 * Runs acrn-dm.bundle.cjs from V8's code cache when there is one for this very V8; V8 refuses one that does not fit,
 * and then simply compiles. Kept small: this file is compiled on every start.
 */
const { readFileSync } = require('node:fs');
const { Script } = require('node:vm');
const filename = `${__dirname}/acrn-dm.bundle.cjs`;
let cachedData;
try {
  cachedData = readFileSync(`${__dirname}/acrn-dm.${process.versions.v8}.cache`);
} catch {}
const script = new Script(readFileSync(filename, 'latin1'), { filename, cachedData });
script.runInThisContext()(require, module, filename, __dirname);
