/**
 * A vitest global set-up: after all tests the host looks as before. Temporary files of the run go into a folder of its own,
 * which must be empty at the end; shared memory and sockets outside of it are compared. Names there carry the id of the
 * process that made them: those of processes that live belong to somebody else's run.
 */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

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

export default function setup(): () => Promise<void> {
  const before = new Set(entries());
  const temporary = mkdtempSync(join(tmpdir(), 'acrn-dm-test-'));
  process.env['TMPDIR'] = temporary;
  return async () => {
    // tsx keeps what it compiled in a folder of its own.
    const files = () => readdirSync(temporary).filter((name) => !name.startsWith('tsx-'));
    const left = () => [...tracesSince(before), ...files().map((name) => join(temporary, name))];
    for (const endMs = Date.now() + PATIENCE_MS; left().length > 0 && Date.now() < endMs; ) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const traces = left();
    rmSync(temporary, { recursive: true, force: true });
    if (traces.length === 0) return;
    console.error(`tests left behind:\n  ${traces.join('\n  ')}`);
    process.exitCode = 1;
  };
}
