/**
 * Whether VFIO can have the functions that a VM asks for, before there is a VM: looks at sysfs and at the rights to
 * /dev/vfio, and opens nothing.
 */
import { accessSync, constants, existsSync } from 'node:fs';
import { join } from 'node:path';
import type { WantedHostFunction } from '../../../devicemodel/core/config.ts';
import { ConfigError, ExitCode } from '../../../devicemodel/core/errors.ts';
import { bindCommand } from '../../../devicemodel/core/host/sysfs-pci.ts';
import { HostTreeOfVfio, VFIO_DRIVER } from './host-tree.ts';

/**
 * @param savedRoot where `sys` of another host is: rights to its device nodes are not known. Missing: this host.
 * @returns why functions cannot be had, one reason each, with the command that mends it.
 */
export function hostFunctionProblems(wanted: readonly WantedHostFunction[], savedRoot?: string): ConfigError[] {
  if (savedRoot !== undefined) return problemsBelow(savedRoot, wanted, () => {});
  return problemsBelow('/', wanted, checkAccess);
}

/** @param root where `sys` and `dev` are. */
export function problemsBelow(
  root: string,
  wanted: readonly WantedHostFunction[],
  check: typeof checkAccess = checkAccess,
): ConfigError[] {
  const tree = new HostTreeOfVfio(root);
  const managed = new Set(wanted.filter(({ isManaged }) => isManaged).map(({ name }) => name));
  // One that is not there is the device's own to refuse.
  return wanted
    .filter(({ name }) => tree.exists(name))
    .flatMap(({ name, isManaged }) => {
      try {
        checkFunction(tree, name, isManaged, managed);
        check(root, tree, name, isManaged);
        return [];
      } catch (error) {
        if (error instanceof ConfigError) return [error];
        throw error;
      }
    });
}

function checkFunction(tree: HostTreeOfVfio, name: string, isManaged: boolean, managed: ReadonlySet<string>): void {
  const group = tree.groupOf(name);
  if (group === undefined) {
    throw refused(
      `${name} is behind no IOMMU, and could write to all memory of the host`,
      "enable VT-d or AMD-Vi in the firmware's setup, and boot with intel_iommu=on on an Intel CPU",
    );
  }
  const driver = tree.driverOf(name);
  if (driver !== VFIO_DRIVER && !isManaged) {
    const now = driver === undefined ? 'has no driver' : `is bound to ${driver}`;
    throw refused(
      `${name} ${now}, not to ${VFIO_DRIVER}`,
      `add managed, or: ${bindCommand(name, VFIO_DRIVER, driver !== undefined)}`,
    );
  }
  const strangers = tree.strangersOf(name).filter((other) => !managed.has(other.name));
  const [first] = strangers;
  if (first !== undefined) throw refused(...notViable(name, group, strangers));
}

function checkAccess(root: string, tree: HostTreeOfVfio, name: string, isManaged: boolean): void {
  // A managed one has its node once it is bound.
  const group = join(root, 'dev/vfio', String(tree.groupOf(name)));
  const paths = [join(root, 'dev/vfio/vfio'), ...(isManaged && tree.driverOf(name) !== VFIO_DRIVER ? [] : [group])];
  for (const path of paths) {
    if (!existsSync(path)) throw refused(`${name}: there is no ${path}`, 'modprobe vfio-pci vfio_iommu_type1');
    try {
      accessSync(path, constants.R_OK | constants.W_OK);
    } catch (cause) {
      throw new ConfigError(`${name}: this user may not open ${path}`, {
        exitCode: ExitCode.NoPermission,
        hint: `run as root, or: sudo chown $USER ${path}`,
        cause,
      });
    }
  }
}

/** Message and hint. */
export function notViable(
  name: string,
  group: number,
  strangers: readonly { readonly name: string; readonly driver: string }[],
): [message: string, hint: string] {
  const who = strangers.map((other) => `${other.name} (${other.driver})`).join(', ');
  const [first] = strangers;
  return [
    `IOMMU group ${group} of ${name} cannot be given away: the host uses ${who} of it`,
    first === undefined ? 'free all of its functions' : bindCommand(first.name, VFIO_DRIVER, true),
  ];
}

function refused(message: string, hint: string): ConfigError {
  return new ConfigError(message, { exitCode: ExitCode.Unavailable, hint });
}
