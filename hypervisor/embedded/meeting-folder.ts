/**
 * The folder where VMs meet, and what they keep in it: a lock, and two sockets of each VM. In that of one user everything is that
 * user's alone. In that of a group every member may put something there: whose a thing is says its owner, as the kernel knows it,
 * and only that one takes it away.
 */
import { lstatSync, rmSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { OpenFlag, openFile } from '../../devicemodel/core/host/files.ts';
import { ensureOwnFolder, FolderMode, makeParents } from '../../devicemodel/core/host/folders.ts';
import {
  findGroupFolder,
  giveSocketToGroup,
  openGroupLock,
  type PinnedSocket,
  pinGroupSocket,
} from '../../devicemodel/core/host/group-place.ts';
import { GROUP_TOO, OWNER_ONLY, withUmask } from '../../devicemodel/core/host/umask.ts';
import { type MeetingPlace, ROOT_DIRECTORY } from './meeting-place.ts';

/** For messages, and for doorbells with their descriptors. */
export type SocketKind = 'sock' | 'bells';

/** To a socket; whose it is, in a folder where that matters. */
export type Way = Pick<PinnedSocket, 'path' | 'release'> & Partial<PinnedSocket>;

export interface MeetingFolder {
  readonly path: string;
  /** Who has the lock lets go of it soon, or does not belong here. */
  readonly lockPatienceMs: number;
  /** Make it where it is missing, or find that of a group. @throws HostError when it is not there, or not to be trusted */
  prepare(): void;
  pathOf(vmid: number, kind?: SocketKind): string;
  /** @returns a descriptor of the lock file. @throws HostError */
  openLock(): number;
  /** What a socket's mode does not have when it is bound. */
  readonly socketMask: number;
  /** One was bound. @throws HostError */
  share(path: string): void;
  /** @returns the way to a socket, to be let go of after connecting; undefined: nothing that one connects to. @throws HostError without descriptors */
  reach(vmid: number, kind?: SocketKind): Way | undefined;
  /** What a VM left that was killed. @returns whether the name is free. */
  clear(vmid: number, kind: SocketKind): boolean;
  /** Whether that user may speak for that VM. */
  isOf(vmid: number, userId: number | undefined): boolean;
}

export function meetingFolder(place: MeetingPlace): MeetingFolder {
  return place.groupId === undefined ? new OwnFolder(place.folder) : new GroupFolder(place.folder, place.groupId);
}

class OwnFolder implements MeetingFolder {
  readonly lockPatienceMs = Number.POSITIVE_INFINITY;
  readonly socketMask = OWNER_ONLY;
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  prepare(): void {
    const parent = dirname(this.path);
    makeParents(parent);
    // Below /run there are folders of other programs' sockets beside ours.
    if (this.path === ROOT_DIRECTORY) ensureOwnFolder(parent, FolderMode.public);
    else if (basename(parent).startsWith('acrn')) ensureOwnFolder(parent, FolderMode.private);
    ensureOwnFolder(this.path, FolderMode.private);
  }

  pathOf(vmid: number, kind: SocketKind = 'sock'): string {
    return `${this.path}/vm-${vmid}.${kind}`;
  }

  openLock(): number {
    // This user's next VM has to open it, whatever the umask.
    const flags = OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec;
    return withUmask(OWNER_ONLY, () => openFile(`${this.path}/lock`, flags, 0o600));
  }

  share(): void {}

  reach(vmid: number, kind?: SocketKind): Way {
    return { path: this.pathOf(vmid, kind), release: () => {} };
  }

  clear(vmid: number, kind: SocketKind): boolean {
    rmSync(this.pathOf(vmid, kind), { force: true });
    return true;
  }

  isOf(): boolean {
    return true;
  }
}

class GroupFolder implements MeetingFolder {
  readonly lockPatienceMs = 30_000;
  readonly socketMask = GROUP_TOO;
  readonly path: string;
  readonly #groupId: number;

  constructor(path: string, groupId: number) {
    this.path = path;
    this.#groupId = groupId;
  }

  prepare(): void {
    findGroupFolder(this.path, this.#groupId);
  }

  pathOf(vmid: number, kind: SocketKind = 'sock'): string {
    return `${this.path}/vm-${vmid}.${kind}`;
  }

  openLock(): number {
    return openGroupLock(`${this.path}/lock`, this.#groupId);
  }

  share(path: string): void {
    giveSocketToGroup(path, this.#groupId);
  }

  reach(vmid: number, kind?: SocketKind): PinnedSocket | undefined {
    const pinned = pinGroupSocket(this.pathOf(vmid, kind), this.#groupId);
    return typeof pinned === 'string' ? undefined : pinned;
  }

  clear(vmid: number, kind: SocketKind): boolean {
    const path = this.pathOf(vmid, kind);
    try {
      rmSync(path, { force: true });
    } catch {
      // Another user's, who or whose next VM takes it away; nobody has that id meanwhile.
    }
    return lookAt(path) === undefined;
  }

  isOf(vmid: number, userId: number | undefined): boolean {
    const found = lookAt(this.pathOf(vmid));
    const owner = typeof found === 'object' ? found.uid : undefined;
    return owner !== undefined && owner === userId;
  }
}

/** @returns what tells a file from one that is made anew under its name; undefined: there is none, or it cannot be looked at. */
export function identityOf(path: string): string | undefined {
  const found = lookAt(path);
  return typeof found === 'object' ? `${found.dev}:${found.ino}:${found.ctimeMs}` : undefined;
}

/** @returns 'hidden' for what cannot be looked at: a member may mount a file system that lets nobody else. */
function lookAt(path: string): Stats | 'hidden' | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch {
    return 'hidden';
  }
}
