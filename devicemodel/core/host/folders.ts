/** Folders in which the program keeps its sockets: who may look into them, and whether one that exists can be trusted. */
import { chmodSync, chownSync, lstatSync, mkdirSync, realpathSync, rmdirSync, type Stats, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { pathFailure } from './path-failure.ts';

/** Group and others may write. */
const WRITABLE_BY_OTHERS = 0o022;
const STICKY = 0o1000;

/** Of our own folders: nobody else, everybody may look, or a group. */
export const FolderMode = { private: 0o700, public: 0o755, group: 0o750 } as const;

const isOurs = (stat: Stats) => stat.uid === 0 || stat.uid === (process.geteuid?.() ?? 0);

function cannotMake(path: string, cause: unknown): HostError {
  return pathFailure(`folder ${path}: cannot be made`, cause, ExitCode.CannotCreate);
}

/** @returns whether it was not there; another VM may have been quicker. @throws HostError */
function makeFolder(path: string, mode: number, groupId: number | undefined): boolean {
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw cannotMake(path, error);
  }
  try {
    if (groupId !== undefined) chownSync(path, -1, groupId);
    chmodSync(path, mode);
  } catch (error) {
    removeFolder(path);
    throw cannotMake(path, error);
  }
  return true;
}

/** With a group or mode that was not asked for, the next VM would use it without a word. */
function removeFolder(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    // Somebody has put something into it meanwhile.
  }
}

/**
 * A folder of the program's own, with exactly this mode if it has to be made, whatever the umask; its parent is there.
 * One that exists is used when root or we own it and nobody else may write to it: anybody could have put it into /tmp.
 * @throws HostError
 */
export function ensureOwnFolder(path: string, mode: number, groupId?: number): void {
  if (makeFolder(path, mode, groupId)) return;
  const stat = lstatSync(path, { throwIfNoEntry: false });
  // The VM whose it was ended and took it away.
  if (stat === undefined) {
    ensureOwnFolder(path, mode, groupId);
    return;
  }
  const problem = !stat.isDirectory()
    ? 'is no folder'
    : !isOurs(stat)
      ? `belongs to user ${stat.uid}`
      : (stat.mode & WRITABLE_BY_OTHERS) !== 0
        ? `may be written by others (mode ${(stat.mode & 0o7777).toString(8).padStart(4, '0')})`
        : undefined;
  if (problem === undefined) return;
  throw new HostError(`folder ${path} ${problem}: it is not used`, Errno.EPERM, {
    exitCode: ExitCode.CannotCreate,
    hint: 'remove it, or have its owner and mode put right',
  });
}

/** @returns undefined for what is not there or cannot be looked at: whoever opens something in it hears why. */
function lookAt(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

/** Ours, and everybody may look into them: sockets of other programs and users are beside those of a VM. */
const PUBLIC_FOLDERS: ReadonlySet<string> = new Set(['/run/acrn', '/run/acrn/mngr', '/run/acrn/vm']);

/** The folders above a path that are missing. Those that exist are the user's choice. @throws HostError */
export function makeParents(path: string, groupId?: number): void {
  const parent = dirname(resolve(path));
  if (lookAt(parent)?.isDirectory() === true) return;
  makeParents(parent, groupId);
  if (PUBLIC_FOLDERS.has(parent)) ensureOwnFolder(parent, FolderMode.public);
  else ensureOwnFolder(parent, groupId === undefined ? FolderMode.private : FolderMode.group, groupId);
}

/** Whether anybody may put something into the folder of this path that its owner alone can remove, as in /tmp. */
export function isInStickyFolder(path: string): boolean {
  const parent = lookAt(dirname(resolve(path)));
  return parent !== undefined && (parent.mode & STICKY) !== 0;
}

/** Another user's way to put a different folder in the place of one. */
export interface LooseFolder {
  readonly path: string;
  readonly problem: string;
}

/**
 * Whoever owns a folder above, or may write to it, can swap what is below after it was looked at; but in a sticky one, as /tmp,
 * only what is that user's own. What is missing is passed over. @throws what Node does for a folder that cannot be looked at
 */
export function looseFolderAbove(path: string): LooseFolder | undefined {
  const parent = dirname(resolve(path));
  const ways = new Set(existsThere(parent) ? [parent, realpathSync(parent)] : [parent]);
  for (const way of ways) {
    for (let above = way; ; above = dirname(above)) {
      const stat = statSync(above, { throwIfNoEntry: false });
      if (stat !== undefined && !isOurs(stat)) return { path: above, problem: `belongs to user ${stat.uid}` };
      if (stat !== undefined && isLoose(stat)) {
        return { path: above, problem: 'may be written by others' };
      }
      if (above === dirname(above)) break;
    }
  }
  return undefined;
}

const existsThere = (path: string) => statSync(path, { throwIfNoEntry: false }) !== undefined;
const isLoose = ({ mode }: Stats) => (mode & WRITABLE_BY_OTHERS) !== 0 && (mode & STICKY) === 0;
