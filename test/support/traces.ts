/**
 * A vitest global set-up: after all tests the host looks as before. Temporary files of the run go into a folder of its own,
 * which must be empty at the end, and so does what has to be in memory; what a run that was killed left goes first. Shared
 * memory and sockets outside of them are compared. Names there carry the id of the
 * process that made them: those of processes that live belong to somebody else's run.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { makeScratch } from '../../tools/scratch.mjs';
import { isWritable, MEMORY_VARIABLE } from './memory-dir.ts';

const PLACES = ['/dev/shm', '/run/acrn', '/run/acrn/mngr', '/run/acrn/soft', '/run/hugepage/acrn'];
/** Folders and locks that are made once and stay. */
const STAYS = new Set(['/run/acrn/mngr', '/run/acrn/soft', '/run/acrn/soft/lock', '/run/hugepage/acrn/lock']);
/** What ends takes a moment. */
const PATIENCE_MS = 5000;

/** What is not there, or is somebody else's alone, is nothing that these tests could change. */
function namesIn(place: string): string[] {
  try {
    return readdirSync(place);
  } catch {
    return [];
  }
}

const entries = () => PLACES.flatMap((place) => namesIn(place).map((name) => join(place, name)));

/** Whether the process that made it is gone. A name without an id may be of another run that goes on. */
function isOfTheDead(path: string): boolean {
  const ids = path.match(/(?<!\d)\d{3,7}(?!\d)/g) ?? [];
  return ids.length > 0 && !ids.some((id) => existsSync(`/proc/${id}`));
}

/** What is there now and was not, and belongs to nobody who lives. */
export function tracesSince(before: ReadonlySet<string>): string[] {
  return entries().filter((path) => !before.has(path) && !STAYS.has(path) && isOfTheDead(path));
}

/** In place of /run/acrn for whoever is not root and has no run directory of the session. */
const ownRun = `acrn-${process.getuid?.()}`;

/** What is in a scratch folder; tsx keeps what it compiled in one of its own, and of `ownRun` folders and locks stay. */
export function filesIn(scratch: string): string[] {
  const names = readdirSync(scratch).filter((name) => !name.startsWith('tsx-') && name !== ownRun);
  const inRun = existsSync(join(scratch, ownRun))
    ? readdirSync(join(scratch, ownRun), { recursive: true, withFileTypes: true })
        .filter((entry) => !entry.isDirectory() && entry.name !== 'lock')
        .map((entry) => join(entry.parentPath, entry.name))
    : [];
  return [...names.map((name) => join(scratch, name)), ...inRun];
}

export default function setup(): () => Promise<void> {
  const before = new Set(entries());
  const temporary = makeScratch('test');
  process.env['TMPDIR'] = temporary;
  const memory = isWritable('/dev/shm') ? makeScratch('test', '/dev/shm') : temporary;
  process.env[MEMORY_VARIABLE] = memory;
  return async () => {
    const left = () => [...tracesSince(before), ...new Set([temporary, memory].flatMap(filesIn))];
    for (const endMs = Date.now() + PATIENCE_MS; left().length > 0 && Date.now() < endMs; ) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const traces = left();
    for (const folder of [temporary, memory]) rmSync(folder, { recursive: true, force: true });
    if (traces.length === 0) return;
    console.error(`tests left behind:\n  ${traces.join('\n  ')}`);
    process.exitCode = 1;
  };
}
