/** What `npm start` and `npm test` need on a fresh clone, before any dependency is there. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './root.mjs';

export { root };

/** Whether node_modules holds what package-lock.json asks for (npm notes what it installed in a lock file of its own). */
function isInstalled() {
  const installedFile = join(root, 'node_modules/.package-lock.json');
  if (!existsSync(installedFile)) return false;
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  const installed = JSON.parse(readFileSync(installedFile, 'utf8')).packages;
  return Object.entries(wanted).every(
    ([path, entry]) => path === '' || entry.optional === true || installed[path]?.version === entry.version,
  );
}

/** Run npm with this Node. */
function npm(args) {
  const cli = process.env.npm_execpath;
  const [command, prefix] = cli?.endsWith('.js') ? [process.execPath, [cli]] : ['npm', []];
  return spawnSync(command, [...prefix, ...args], { cwd: root, stdio: ['ignore', process.stderr, process.stderr] });
}

/** Install dependencies if they are missing or not those of package-lock.json. */
export function ensureInstalled() {
  if (isInstalled()) return;
  console.error('acrn-dm: installing dependencies');
  // Run by `npm pack --dry-run --json`, npm would take over both.
  const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error', '--no-dry-run', '--no-json'];
  if (npm(['ci', ...options]).status === 0) return;
  // A registry that lacks packages of other platforms cannot satisfy the lock file to the letter.
  console.error('acrn-dm: trying without the lock file');
  if (npm(['install', '--no-save', ...options]).status === 0) return;
  console.error('acrn-dm: npm could not install the dependencies; is the package registry within reach?');
  process.exit(1);
}

/** Install, then build unless dist/ is up to date. */
export async function prepare() {
  ensureInstalled();
  const { build } = await import('./build.mjs');
  await build();
}

/** Run a program with this terminal; resolves to its exit status (128 + signal number if a signal ended it). */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (result.error) throw result.error;
  return result.status ?? 128;
}
