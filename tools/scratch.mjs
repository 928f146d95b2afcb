/** Folders that tools, tests and benchmarks make for themselves: gone with their process, or with the next one of the kind. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';

/** Names that carry the number of the process that made them. */
const nameOf = (kind) => `acrn-dm-${kind}-${process.pid}-`;

/**
 * Remove what processes that are gone left there.
 * @param pattern its first group is the number of the process.
 */
export function sweepDead(parent, pattern) {
  let names;
  try {
    names = readdirSync(parent);
  } catch {
    return;
  }
  for (const name of names) {
    const pid = pattern.exec(name)?.[1];
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
    try {
      rmSync(join(parent, name), { recursive: true, force: true });
    } catch {
      // Another user's.
    }
  }
}

const made = [];

/** A folder until this process ends, by itself or by a signal that can be caught. */
export function makeScratch(kind, parent = tmpdir()) {
  sweepDead(parent, new RegExp(`^acrn-dm-${kind}-(\\d+)-`));
  const path = mkdtempSync(join(parent, nameOf(kind)));
  if (made.push(path) > 1) return path;
  process.on('exit', () => {
    for (const each of made) rmSync(each, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    if (process.listenerCount(signal) === 0) process.once(signal, () => process.exit(128 + constants.signals[signal]));
  }
  return path;
}
