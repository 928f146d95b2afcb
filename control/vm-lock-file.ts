/** What a VM writes into its `lock` (vm-folder.ts): who it is, and where its API is if not in the folder. A line each. */
import { readFileSync } from 'node:fs';
import { isAbsolute, resolve } from 'node:path';

export interface LockText {
  /** As it stands there: empty for a process that was killed before it wrote it. */
  readonly pid: string;
  readonly apiSocket?: string;
}

export function lockTextOf(pid: number, apiSocket?: string): string {
  return `${pid}\n${apiSocket === undefined ? '' : `${resolve(apiSocket)}\n`}`;
}

/** @returns undefined when there is no lock, which its holder may have taken away, or it is not ours to read. */
export function readLockText(path: string): LockText | undefined {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
  const [pid = '', apiSocket = ''] = text.split('\n');
  return { pid: pid.trim(), ...(isAbsolute(apiSocket) ? { apiSocket } : {}) };
}
