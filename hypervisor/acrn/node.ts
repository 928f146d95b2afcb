/** The HSM's device node, and what answers behind it. */
import { accessSync, existsSync } from 'node:fs';

/** The legacy node first, as the C device model tries them. */
export const NODES = ['/dev/acrn_vhm', '/dev/acrn_hsm'] as const;

/** Whether a device node of the HSM exists; `auto` asks this. */
export function findHsmNode(): string | undefined {
  return NODES.find((path) => {
    try {
      accessSync(path);
      return true;
    } catch {
      return false;
    }
  });
}

/** The driver's device, as the kernel shows it. */
const DRIVER_SYSFS = '/sys/class/misc/acrn_hsm';

/** Whether a signal ends ATTACH early: it is the kernel driver that answers. */
export function isWaitInterruptible(): boolean {
  return existsSync(DRIVER_SYSFS);
}
