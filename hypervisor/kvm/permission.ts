/** What a user has to do who may not open /dev/kvm. */
import { statSync } from 'node:fs';
import { userInfo } from 'node:os';
import { groupName } from '../../devicemodel/core/host/groups.ts';

/** `group kvm may: usermod -aG kvm USER, then log in again`. */
export function joinKvmGroup(path = '/dev/kvm'): string {
  const stat = statSync(path, { throwIfNoEntry: false });
  const group = stat === undefined ? undefined : groupName(stat.gid);
  if (stat === undefined || group === undefined || (stat.mode & 0o060) !== 0o060) return 'run as root';
  return `group ${group} may open it: "sudo usermod -aG ${group} ${userInfo().username}", and log in again`;
}
