/**
 * npm run build [-- --force] [--out DIR]
 *
 *   dist/acrn-dm.js             the program: a few lines that load the bundle from V8's code cache
 *   dist/acrn-dm.bundle.cjs     cmd/acrn-dm.ts and what most starts need, one file; packages with native parts stay outside
 *   dist/parts/                 what only some starts need: a device, an engine, a report; see bundle/parts.mjs
 *   dist/acrn-dm.VERSION.cache  compiled code for the V8 this was built with, and a checksum over it and the bundle
 *   dist/version.js             the answer to --version, without the program
 *   dist/acrnvm.js              the client of the API
 *   dist/yargs.cjs              loaded when the help is asked for
 *   dist/data-thread-main.js    what runs in a thread of its own
 *   dist/*.map                  where in the sources a place in a bundle is; read when a stack is shown
 *   dist/library.js             the library: the same parts, from another entry
 *   dist/lib/                   its types
 *
 * Does nothing when no source is newer than the last build.
 */
import './usage.mjs';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { makeCodeCache } from './bundle/code-cache.mjs';
import { assemble, urlOfThisFile } from './bundle/parts.mjs';
import { root } from './root.mjs';

/** Sources by path, time and size; with the Node version, since the code cache belongs to it. */
function fingerprint() {
  const hash = createHash('sha256').update(process.version);
  const visit = (path) => {
    const stat = statSync(join(root, path));
    if (stat.isDirectory()) for (const name of readdirSync(join(root, path)).sort()) visit(join(path, name));
    else hash.update(`${path} ${stat.mtimeMs} ${stat.size}\n`);
  };
  const folders = ['cmd', 'config', 'control', 'devicemodel', 'hypervisor', 'library', 'tools'];
  for (const path of [...folders, 'package.json', 'package-lock.json']) visit(path);
  for (const path of ['tsconfig.json', 'tsconfig.build.json']) visit(path);
  return hash.digest('hex');
}

/** A reader never sees half a file. */
function replaceFile(path, text) {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

/** Threads are files of their own beside the bundle; they are loaded when a VM needs one. */
const threads = [
  'devicemodel/hw/pci/virtio/data-thread/data-thread-main.ts',
  'devicemodel/hw/storage/copy-thread/copy-thread-main.ts',
  'devicemodel/hw/display/sdl/sdl-window-main.ts',
  'hypervisor/kvm/vdevs/vdev-thread-main.ts',
];

/** What a start of a VM on ACRN imports, or a plan (`--dry-run`): it is in the bundle, everything else is a part. */
const usual = [
  'cmd/acrn-dm.ts',
  'cmd/dry-run.ts',
  'cmd/run.ts',
  'cmd/version.ts',
  'config/claims.ts',
  'config/preflight.ts',
  'control/manager-socket.ts',
  'devicemodel/core/log-sinks.ts',
  'devicemodel/core/log.ts',
  'hypervisor/acrn/acrn-hsm.ts',
  'hypervisor/acrn/index.ts',
  'hypervisor/blocking-loop/loop.ts',
  'hypervisor/choose.ts',
  'hypervisor/kvm/index.ts',
  'hypervisor/soft/index.ts',
  'hypervisor/turn-loop/loop.ts',
];

/** Parts of Node that take 1 to 4 ms to load, and that most VMs never use: loaded at first use. */
const lazyBuiltins = [
  'node:child_process',
  'node:crypto',
  'node:dns',
  'node:fs/promises',
  'node:module',
  'node:net',
  'node:tty',
  'node:worker_threads',
];

/** Stands an object whose properties load the real module in the place of a builtin. */
const lazyBuiltinsPlugin = {
  name: 'lazy-builtins',
  setup(build) {
    build.onResolve({ filter: /^node:/ }, ({ path, namespace }) =>
      lazyBuiltins.includes(path) && namespace !== 'lazy' ? { path, namespace: 'lazy' } : { path, external: true },
    );
    build.onLoad({ filter: /.*/, namespace: 'lazy' }, async ({ path }) => {
      const names = Object.keys(await import(path)).filter((name) => name !== 'default');
      const getters = names.map((name) => `get ${name}() { return load().${name}; }`);
      const contents = `let real; const load = () => (real ??= require('${path}')); module.exports = { ${getters} };`;
      return { contents, loader: 'js' };
    });
  },
};

/** In the bundle koffi's native module is loaded without the package's own loader; see bundle/koffi.cjs. */
const koffiPlugin = {
  name: 'koffi',
  setup(build) {
    const standIn = join(root, 'tools/bundle/koffi.cjs');
    build.onResolve({ filter: /^koffi$/ }, ({ importer }) =>
      importer === standIn ? { path: 'koffi', external: true } : { path: standIn },
    );
  },
};

/** Only the help needs yargs; see bundle/yargs.cjs. */
const yargsPlugin = {
  name: 'yargs',
  setup(build) {
    build.onResolve({ filter: /^yargs$/ }, ({ importer }) =>
      importer.endsWith('bundle/yargs.cjs') ? undefined : { path: './yargs.cjs', external: true },
    );
  },
};

/**
 * What esbuild makes of entry points and all they import, with source maps. Names are not kept: the calls that keep
 * them cost 3 ms of every start, and a map that is read when a stack is shown tells more.
 */
async function bundle(entryPoints, options) {
  const { build: esbuild } = await import('esbuild');
  const version = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version;
  return esbuild({
    absWorkingDir: root,
    entryPoints,
    bundle: true,
    write: false,
    minify: true,
    platform: 'node',
    target: 'node20.19',
    external: ['v86', '@koromix/*'],
    alias: { 'string-width': './tools/bundle/string-width.cjs' },
    define: { 'import.meta.url': '__bundle.url', ACRN_DM_VERSION: JSON.stringify(version) },
    plugins: [yargsPlugin, lazyBuiltinsPlugin, koffiPlugin],
    legalComments: 'inline',
    sourcemap: 'external',
    sourcesContent: false,
    logLevel: 'warning',
    ...options,
  });
}

/** A file that runs by itself, as CommonJS. import() would need a loader hook that a code cache does not go with. */
async function oneFile(entryPoint, outfile, firstLine = '') {
  const { outputFiles } = await bundle([entryPoint], {
    outfile,
    format: 'cjs',
    supported: { 'dynamic-import': false },
    banner: { js: `${firstLine}"use strict";const __bundle=${urlOfThisFile};` },
  });
  for (const { path, text } of outputFiles) replaceFile(path, text);
}

/** The bundle and its parts; see bundle/parts.mjs. The loader reads it as Latin-1: esbuild escapes everything else. */
async function splitProgram(dist) {
  const entries = { 'acrn-dm': 'cmd/acrn-dm.ts', library: 'library/index.ts' };
  const output = await bundle(entries, { outdir: dist, format: 'esm', splitting: true, metafile: true });
  const { bundle: script, map, parts } = assemble(output, usual);
  replaceFile(join(dist, 'acrn-dm.bundle.cjs'), script);
  replaceFile(join(dist, 'acrn-dm.bundle.cjs.map'), map);
  rmSync(join(dist, 'parts'), { recursive: true, force: true });
  mkdirSync(join(dist, 'parts'));
  for (const part of parts) {
    replaceFile(join(dist, 'parts', `${part.name}.cjs`), part.text);
    replaceFile(join(dist, 'parts', `${part.name}.cjs.map`), part.map);
  }
  // One statement a name: Node looks for them when an ES module imports this one.
  const { exports } = output.metafile.outputs[relative(root, join(dist, 'library.js'))];
  const lines = exports.map((name) => `exports.${name} = library.${name};\n`);
  replaceFile(join(dist, 'library.js'), `const library = require('./acrn-dm.js')('library');\n${lines.join('')}`);
}

async function program(dist) {
  await splitProgram(dist);
  replaceFile(join(dist, 'acrn-dm.js'), readFileSync(join(root, 'tools/bundle/acrn-dm.js')));
  chmodSync(join(dist, 'acrn-dm.js'), 0o755);
  replaceFile(join(dist, 'package.json'), '{ "type": "commonjs" }\n');
  await oneFile('tools/bundle/yargs.cjs', join(dist, 'yargs.cjs'));
  // As acrn-dm: nobody debugs what may run as root.
  const [firstLine] = readFileSync(join(root, 'tools/bundle/acrn-dm.js'), 'utf8').split('\n');
  await oneFile('cmd/acrnvm/main.ts', join(dist, 'acrnvm.js'), `${firstLine}\n`);
  chmodSync(join(dist, 'acrnvm.js'), 0o755);
  await oneFile('cmd/version-only.ts', join(dist, 'version.js'));
  for (const thread of threads) await oneFile(thread, join(dist, basename(thread).replace(/\.ts$/, '.js')));
}

/**
 * The library's types: the declarations that library/index.ts comes to, and no others. Types are checked by
 * `npm run check`, not here.
 */
function declarations(dist) {
  const lib = join(dist, 'lib');
  rmSync(lib, { recursive: true, force: true });
  const options = ['-p', 'tsconfig.build.json', '--noCheck', '--outDir', lib];
  const result = spawnSync(join(root, 'node_modules/.bin/tsc'), options, { cwd: root, stdio: 'inherit' });
  if (result.status !== 0) throw new Error('build: tsc failed');
  const needed = new Set();
  const visit = (path) => {
    if (needed.has(path) || !existsSync(path)) return;
    needed.add(path);
    for (const [, name] of readFileSync(path, 'utf8').matchAll(/(?:from|import\() ?["'](\.[^"']+)["']/g)) {
      visit(join(dirname(path), name.replace(/\.[jt]s$/, '.d.ts')));
    }
  };
  visit(join(lib, 'library/index.d.ts'));
  for (const entry of readdirSync(lib, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isFile() && !needed.has(path)) rmSync(path);
  }
  // As what they describe.
  replaceFile(join(lib, 'package.json'), '{ "type": "commonjs" }\n');
}

/** @param options.dist where to; below the repository, so that packages are found. */
export async function build({ force = false, dist = join(root, 'dist') } = {}) {
  const stamp = join(dist, '.built');
  const now = fingerprint();
  if (!force && existsSync(stamp) && readFileSync(stamp, 'utf8') === now) return;
  const startMs = Date.now();
  mkdirSync(dist, { recursive: true });
  rmSync(stamp, { force: true });
  await program(dist);
  makeCodeCache(dist);
  declarations(dist);
  replaceFile(stamp, now);
  // Not to standard output, which belongs to whatever needed the build: `npm pack --json`, `npm start`.
  console.error(`acrn-dm: built ${relative(root, dist)}/ in ${((Date.now() - startMs) / 1000).toFixed(1)} s`);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({ options: { force: { type: 'boolean' }, out: { type: 'string' } } });
  try {
    await build({ force: values.force, ...(values.out === undefined ? {} : { dist: resolve(values.out) }) });
  } catch (error) {
    console.error(error.message); // esbuild and tsc have shown the place
    process.exit(1);
  }
}
