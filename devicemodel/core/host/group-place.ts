/**
 * A folder in which processes of several users meet, and what they keep in it: sticky and set-group-ID (mode 3770), so that what
 * is made there is the group's to use and its owner's to remove. Every member of the group may put anything there, under any name:
 * nothing is opened, connected to or cut before it was looked at, and what was looked at is what is used.
 */
import { chmodSync, chownSync, fchmodSync, fchownSync, fstatSync, lstatSync, unlinkSync } from 'node:fs';
import { ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { tryLock } from './file-lock.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { type LooseFolder, looseFolderAbove } from './folders.ts';
import { groupName } from './groups.ts';
import { pathFailure } from './path-failure.ts';
import { GROUP_TOO, withUmask } from './umask.ts';

const FOLDER_MODE = 0o3770;
const FILE_MODE = 0o660;
const OTHERS = 0o007;
const OPEN_FLAGS = OpenFlag.ReadWrite | OpenFlag.NoFollow | OpenFlag.NonBlock | OpenFlag.CloseOnExec;
/** Of open(2): the name alone, for fstat(2) and connect(2). */
const O_PATH = 0o10000000;
/** A name that is taken away whenever it is there, and there whenever it is made. */
const MAX_TRIES = 100;

const nameOf = (groupId: number) => groupName(groupId) ?? String(groupId);

/** What root does once; after a start of the machine /run is empty. */
function howToMake(path: string, groupId: number): string {
  const name = nameOf(groupId);
  return `as root, "install -d -o root -m 3770 -g ${name} ${path}" makes it, and after each start "d ${path} 3770 root ${name}" in /etc/tmpfiles.d/acrn.conf`;
}

function refusal(path: string, what: string, groupId: number, hint = howToMake(path, groupId)): HostError {
  const text = `folder ${path}, where the VMs of group ${nameOf(groupId)} meet, ${what}`;
  return new HostError(text, Errno.EPERM, { exitCode: ExitCode.CannotCreate, hint });
}

/** Whether this process may use what is the group's. */
function isMember(groupId: number): boolean {
  return (
    process.geteuid?.() === 0 || process.getegid?.() === groupId || process.getgroups?.().includes(groupId) === true
  );
}

/** Reads only: root makes it, once, and no VM. @throws HostError when it is not there or not to be used, with what root does */
export function findGroupFolder(path: string, groupId: number): void {
  if (!isMember(groupId)) {
    const name = nameOf(groupId);
    throw refusal(
      path,
      'is not for this user',
      groupId,
      `"usermod -aG ${name} USER" makes a member of ${name}, from the next login on`,
    );
  }
  let stat: ReturnType<typeof lstatSync> | undefined;
  let loose: LooseFolder | undefined;
  try {
    stat = lstatSync(path, { throwIfNoEntry: false });
    loose = looseFolderAbove(path);
  } catch (error) {
    throw pathFailure(`folder ${path}`, error, ExitCode.CannotCreate);
  }
  if (loose !== undefined) {
    const what = `can be swapped by others, since ${loose.path} ${loose.problem}: it is not used`;
    throw refusal(
      path,
      what,
      groupId,
      `as root, "chown root ${loose.path}" and "chmod go-w ${loose.path}" put it right`,
    );
  }
  if (stat === undefined) throw refusal(path, 'is not there', groupId);
  const problem = !stat.isDirectory()
    ? 'is no folder'
    : stat.gid !== groupId
      ? `is that of group ${nameOf(stat.gid)}`
      : (stat.mode & 0o7777 & ~0o4700) !== (FOLDER_MODE & ~0o700)
        ? `has mode ${(stat.mode & 0o7777).toString(8).padStart(4, '0')}`
        : stat.uid !== 0 && stat.uid !== process.geteuid?.()
          ? `belongs to user ${stat.uid}, who can put anything in the place of what is in it`
          : undefined;
  if (problem !== undefined) throw refusal(path, `${problem}: it is not used`, groupId);
}

/**
 * A file of the group's in such a folder, for reading and writing. The sticky folder of a hardened kernel (fs.protected_regular)
 * lets nobody open another's file with O_CREAT: so it is opened or made, one after the other.
 * @param isMade whether a missing one is made, empty. @returns the descriptor. @throws HostError, also for what is no file of the group's
 */
export function openGroupFile(path: string, groupId: number, { isMade }: { readonly isMade: boolean }): number {
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    let fd: number;
    try {
      fd = openFile(path, OPEN_FLAGS);
    } catch (error) {
      if (!isMade || !isErrno(error, Errno.ENOENT)) throw error;
      const made = makeGroupFile(path, groupId);
      if (made === undefined) continue;
      return made;
    }
    try {
      checkGroupFile(fd, path, groupId);
      return fd;
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  }
  throw new HostError(`${path}: it comes and goes`, Errno.EAGAIN);
}

/**
 * As {@link openGroupFile}, for one that has nothing in it. Any member can give it a second name and so have it refused: its owner,
 * or root, takes the first one away and makes another, while nobody has it locked. Who has locked it looks whether it is still
 * the one of that name.
 */
export function openGroupLock(path: string, groupId: number): number {
  removeSecondNamed(path);
  return openGroupFile(path, groupId, { isMade: true });
}

/** Whatever cannot be removed is for {@link openGroupFile} to refuse. */
function removeSecondNamed(path: string): void {
  let fd: number;
  try {
    fd = openFile(path, OPEN_FLAGS);
  } catch {
    return;
  }
  try {
    const { nlink, uid } = fstatSync(fd);
    const mayRemove = uid === process.geteuid?.() || process.geteuid?.() === 0;
    if (nlink > 1 && mayRemove && tryLock(fd, 'exclusive', path)) unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  } finally {
    closeFd(fd);
  }
}

function isErrno(error: unknown, errno: number): boolean {
  return error instanceof HostError && error.errno === errno;
}

/** @returns undefined when somebody else was quicker, or has just put another folder in place. @throws HostError */
function makeGroupFile(path: string, groupId: number): number | undefined {
  let fd: number;
  try {
    // Of the folder's group from the beginning.
    fd = withUmask(GROUP_TOO, () => openFile(path, OPEN_FLAGS | OpenFlag.Create | OpenFlag.Exclusive, FILE_MODE));
  } catch (error) {
    if (isErrno(error, Errno.EEXIST) || isErrno(error, Errno.ENOENT)) return undefined;
    throw error;
  }
  try {
    fchownSync(fd, -1, groupId);
    fchmodSync(fd, FILE_MODE);
    return fd;
  } catch (error) {
    closeFd(fd);
    throw pathFailure(`${path}: cannot be given to group ${nameOf(groupId)}`, error, ExitCode.CannotCreate);
  }
}

/** A second name would be a file of this user's elsewhere, which somebody wants to have cut. @throws HostError */
function checkGroupFile(fd: number, path: string, groupId: number): void {
  const stat = fstatSync(fd);
  if (stat.isFile() && stat.gid === groupId && (stat.mode & OTHERS) === 0 && stat.nlink <= 1) return;
  throw new HostError(`${path}: it is there, and is not a file of group ${nameOf(groupId)} alone`, Errno.EPERM, {
    hint: `its owner, user ${stat.uid}, or root can remove it`,
  });
}

/** A socket that was looked at: `path` leads to it, whatever becomes of its name. */
export interface PinnedSocket {
  readonly path: string;
  /** Who made it. */
  readonly userId: number;
  release(): void;
}

/**
 * A link would have this process connect, with its own rights, to whatever its maker likes.
 * @returns 'missing', or 'strange' for what is no socket of the group's. @throws HostError without descriptors
 */
export function pinGroupSocket(path: string, groupId: number): PinnedSocket | 'missing' | 'strange' {
  let fd: number;
  try {
    fd = openFile(path, O_PATH | OpenFlag.NoFollow | OpenFlag.CloseOnExec);
  } catch (error) {
    if (isErrno(error, Errno.ENOENT)) return 'missing';
    if (isErrno(error, Errno.EMFILE) || isErrno(error, Errno.ENFILE)) throw error;
    return 'strange';
  }
  try {
    const stat = fstatSync(fd);
    if (stat.isSocket() && stat.gid === groupId && stat.nlink <= 1) {
      return { path: `/proc/self/fd/${fd}`, userId: stat.uid, release: () => closeFd(fd) };
    }
  } catch {
    // On a file system of some user's own, which lets nobody else look.
  }
  closeFd(fd);
  return 'strange';
}

/**
 * After it was bound: a folder with a default ACL, and a thread without a umask of its own, have their way. By its name anything
 * could be given away that somebody has put there meanwhile. @throws HostError
 */
export function giveSocketToGroup(path: string, groupId: number): void {
  const what = `socket ${path}: cannot be given to group ${nameOf(groupId)}`;
  const fd = openFile(path, O_PATH | OpenFlag.NoFollow | OpenFlag.CloseOnExec);
  try {
    const stat = fstatSync(fd);
    if (!stat.isSocket() || stat.uid !== process.geteuid?.() || stat.nlink > 1) {
      throw new HostError(`${what}: something else is in its place`, Errno.EPERM, { exitCode: ExitCode.CannotCreate });
    }
    chownSync(`/proc/self/fd/${fd}`, -1, groupId);
    chmodSync(`/proc/self/fd/${fd}`, FILE_MODE);
  } catch (error) {
    throw error instanceof HostError ? error : pathFailure(what, error, ExitCode.CannotCreate);
  } finally {
    closeFd(fd);
  }
}
