/** What a user has to do who cannot open /dev/kvm. */
import { statSync } from 'node:fs';
import { userInfo } from 'node:os';
import { ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { groupName } from '../../devicemodel/core/host/groups.ts';

interface Who {
  readonly uid: number;
  /** Undefined for an id without a name, as in many a container. */
  readonly name: string | undefined;
}

/** `group kvm may open it: "sudo usermod -aG kvm USER", and log in again`, or what else helps. */
export function joinKvmGroup(path = '/dev/kvm', { uid, name } = thisUser()): string {
  // Not its mode is in the way then, but the device rules of a container or a unit.
  if (uid === 0) return `let this container or unit have it: "--device ${path}", or "DeviceAllow=${path} rw"`;
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || (stat.mode & 0o060) !== 0o060) return 'run as root';
  if (name === undefined)
    return `group ${stat.gid} may open it: "--group-add ${stat.gid}" gives a container that group`;
  const group = groupName(stat.gid);
  if (group === undefined) return 'run as root';
  return `group ${group} may open it: "sudo usermod -aG ${group} ${name}", and log in again`;
}

function thisUser(): Who {
  const uid = process.geteuid?.() ?? 0;
  try {
    return { uid, name: userInfo().username };
  } catch {
    return { uid, name: undefined };
  }
}

/** /dev/kvm that cannot be opened, with the way to it. @param message what failed. */
export function kvmRefusal(message: string, errno: number, cause: unknown): HostError {
  const isForbidden = errno === Errno.EACCES || errno === Errno.EPERM;
  return new HostError(message, errno, {
    cause,
    exitCode: isForbidden ? ExitCode.NoPermission : ExitCode.Unavailable,
    hint: isForbidden
      ? joinKvmGroup()
      : 'load kvm_intel or kvm_amd (is virtualization enabled in the BIOS?), or use --hypervisor soft',
  });
}
