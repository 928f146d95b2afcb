/** Where the VMs of this host meet: those of one user, or of the users of a group. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type VmConfig, wantsHypervisorDevices } from '../../devicemodel/core/config.ts';
import { ConfigError, DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { groupFolder, groupFolders, hasOwnVm } from '../../devicemodel/core/host/group-folders.ts';
import { errnoOf, pathFailure } from '../../devicemodel/core/host/path-failure.ts';
import { ROOT_RUN_FOLDER, runRoot } from '../../devicemodel/core/host/run-folder.ts';
import { checkSocketPath } from '../../devicemodel/core/host/socket-path.ts';
import type { Log } from '../../devicemodel/core/log.ts';

export const ROOT_DIRECTORY = join(ROOT_RUN_FOLDER, 'soft');
/** The longest name of a socket in it. */
const LONGEST_NAME = 'vm-255.bells';
const HINT = 'ACRN_RUN_DIR=FOLDER in the environment names another place';

/** Text and a number: it may go to another thread. */
export interface MeetingPlace {
  readonly folder: string;
  /** Whose VMs meet there; undefined: those of this user, and the folder is that user's own. */
  readonly groupId?: number;
}

type Wants = Partial<Pick<VmConfig, 'socketGroup' | 'pci'>>;

/** /run for root, else the user's own. `ACRN_RUN_DIR` stands for /run/acrn. */
export function ownMeetingPlace(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): MeetingPlace {
  return { folder: join(runRoot(env, uid), 'soft') };
}

/** One for all users: below /run/acrn, or what stands for it. */
export function groupMeetingPlace(groupId: number, env: NodeJS.ProcessEnv = process.env): MeetingPlace {
  return { folder: groupFolder(groupId, env), groupId };
}

/** What was said last: a VM asks anew in each of its lives. */
const lastWarnings = new WeakMap<Log, string>();

function warnOnce(log: Log | undefined, line: string): void {
  if (log === undefined || lastWarnings.get(log) === line) return;
  lastWarnings.set(log, line);
  log.warn(line);
}

/** Where else there are VMs of this user, which this one will not meet. */
function partedFrom(place: MeetingPlace): string[] {
  const folders = [ownMeetingPlace().folder, ...groupFolders().map(({ folder }) => folder)];
  return folders.filter((folder) => folder !== place.folder && hasOwnVm(folder));
}

function warnOfParted(log: Log | undefined, place: MeetingPlace, pci: VmConfig['pci']): void {
  const isShared = wantsHypervisorDevices({ pci: pci.filter(({ driver }) => driver !== 'root-port') });
  const others = log === undefined || !isShared ? [] : partedFrom(place);
  if (others.length === 0) return;
  warnOnce(
    log,
    `this VM meets others in ${place.folder}: no vUART, doorbell or region of it leads to the VMs of this user in ${others.join(', ')} (--socket-group is for all of them, or for none)`,
  );
}

/**
 * A VM without a device that another one could meet stays with its user: managers alone need nothing of the host. So does one
 * whose group has no folder, or none to be trusted: its option may be for the managers, and root has to make the folder.
 * @param log of this VM: is told why it is not the group's, and which VMs of its user it does not meet. @throws ConfigError for a group that is none
 */
export async function meetingPlace({ socketGroup, pci = [] }: Wants, log?: Log): Promise<MeetingPlace> {
  const own = ownMeetingPlace();
  if (!wantsHypervisorDevices({ pci })) return own;
  if (socketGroup === undefined) {
    warnOfParted(log, own, pci);
    return own;
  }
  const { groupId } = await import('../../devicemodel/core/host/groups.ts');
  const id = groupId(socketGroup);
  if (id === undefined) {
    throw new ConfigError(`--socket-group: there is no group "${socketGroup}"`, { hint: 'getent group lists them' });
  }
  const place = groupMeetingPlace(id);
  const problem = await groupPlaceProblem(place.folder, id);
  if (problem === undefined) {
    warnOfParted(log, place, pci);
    return place;
  }
  const hint = problem.hint === undefined ? '' : ` (${problem.hint})`;
  warnOnce(log, `${problem.message}; this VM meets only others of its user, in ${own.folder}${hint}`);
  return own;
}

/** @returns undefined for a group that is none: whoever looks at the options says so. */
export async function findMeetingPlace(config: Wants): Promise<MeetingPlace | undefined> {
  try {
    return await meetingPlace(config);
  } catch (error) {
    if (error instanceof ConfigError) return undefined;
    throw error;
  }
}

/** Whether it is there or can be made. Reads only. */
export async function meetingPlaceProblems(config: Wants): Promise<DmError[]> {
  const place = await findMeetingPlace(config);
  // That of a group was looked at.
  if (place === undefined || place.groupId !== undefined) return [];
  const { folder } = place;
  try {
    checkSocketPath(join(folder, LONGEST_NAME));
    inspect(folder);
    return [];
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    const { cause } = error;
    // The environment is wrong, not the command line.
    const exitCode = error.exitCode === ExitCode.Usage ? ExitCode.CannotCreate : error.exitCode;
    return [
      new ConfigError(`${folder}, where the VMs of this host meet: ${error.message}`, {
        exitCode,
        cause,
        hint: placeHint(folder),
      }),
    ];
  }
}

export function placeHint(folder: string, { XDG_RUNTIME_DIR: session }: NodeJS.ProcessEnv = process.env): string {
  const isOfSession = session !== undefined && session !== '' && folder.startsWith(join(session, '/'));
  return isOfSession ? `${HINT}; XDG_RUNTIME_DIR leads here: unset it if it is another user's, as after su` : HINT;
}

/** Why it cannot be used. Reads only. */
async function groupPlaceProblem(folder: string, groupId: number): Promise<DmError | undefined> {
  const { findGroupFolder } = await import('../../devicemodel/core/host/group-place.ts');
  try {
    checkSocketPath(join(folder, LONGEST_NAME));
    findGroupFolder(folder, groupId);
    return undefined;
  } catch (error) {
    if (error instanceof DmError) return error;
    throw error;
  }
}

function inspect(directory: string): void {
  for (let folder = directory; ; folder = dirname(folder)) {
    try {
      if (!statSync(folder).isDirectory()) throw Object.assign(new Error(), { errno: Errno.ENOTDIR });
      accessSync(folder, constants.W_OK | constants.X_OK);
      return;
    } catch (error) {
      const isMissing = errnoOf(error) === Errno.ENOENT && folder !== dirname(folder);
      if (!isMissing) throw pathFailure(`folder ${folder}`, error, ExitCode.CannotCreate);
    }
  }
}
