/** `acrnvm doctor`: what of this host a User VM may miss, and the command that mends it. Reads only. */
import { accessSync, constants, existsSync, readdirSync, readFileSync, type Stats, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, isAbsolute } from 'node:path';
import { managerFolder } from '../../control/manager-folder.ts';
import { vmFoldersRoot } from '../../control/vm-paths.ts';
import { hasVirtualization, readCpuinfo } from '../../devicemodel/core/host/cpuinfo.ts';
import { processLimit } from '../../devicemodel/core/host/process-limits.ts';
import { runRoot } from '../../devicemodel/core/host/run-folder.ts';
import { deadMemberSockets, deadRegions, deadSocketsOfAcrnctl, listVms } from './client.ts';

export interface Finding {
  readonly what: string;
  readonly verdict: 'ok' | 'warn' | 'fail';
  readonly detail: string;
  /** A command; there is one for everything that is not well. */
  readonly mend?: string;
}

const { R_OK, W_OK } = constants;

function can(path: string, mode = R_OK | W_OK): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false;
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

/** A device node that is there, and may be opened. */
function node(what: string, path: string, ifMissing: Pick<Finding, 'verdict' | 'detail' | 'mend'>): Finding {
  if (!existsSync(path)) return { what, ...ifMissing };
  if (can(path)) return { what, verdict: 'ok', detail: path };
  return {
    what,
    verdict: 'fail',
    detail: `${path} may not be opened by this user`,
    mend: `sudo setfacl -m u:$USER:rw ${path}`,
  };
}

/** Of 2 MiB, whatever the default size of this host is. */
const HUGE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB';

/** The least a VM can have: a kernel wants 128 MiB or so. */
const FEWEST_PAGES = 64;

function hugePages(): Finding {
  const what = 'huge pages';
  const free = Number(read(`${HUGE_PAGES}/free_hugepages`));
  const enough = `${free} of 2 MiB are free: enough for ${free * 2} MiB`;
  if (free >= FEWEST_PAGES) return { what, verdict: 'ok', detail: enough };
  return {
    what,
    verdict: 'warn',
    detail: `${free === 0 ? 'none are free' : enough}; on ACRN they are asked for at a start, which fails when memory is in pieces`,
    mend: `echo 512 | sudo tee ${HUGE_PAGES}/nr_hugepages`,
  };
}

/** ACRN takes the CPUs of a User VM from the Service VM. The first one of a machine cannot be given away. */
function offlineCpus(): Finding {
  const what = 'offline CPUs';
  const offline = read('/sys/devices/system/cpu/offline');
  if (offline !== '') return { what, verdict: 'ok', detail: offline };
  if (!existsSync('/dev/acrn_hsm')) return { what, verdict: 'ok', detail: 'none: only ACRN needs them' };
  const last = /\d+$/.exec(read('/sys/devices/system/cpu/online'))?.[0] ?? '0';
  if (last === '0') return { what, verdict: 'ok', detail: 'there is one CPU, which all share' };
  return {
    what,
    verdict: 'warn',
    detail: 'all CPUs belong to the Service VM: a User VM with CPUs of its own shares them',
    mend: `echo 0 | sudo tee /sys/devices/system/cpu/cpu${last}/online`,
  };
}

/** Into the set-up of the firmware, on machines with UEFI. */
const FIRMWARE_SETUP = 'sudo systemctl reboot --firmware-setup';

/** @param cpuinfo as the kernel tells it. */
export function kvm(cpuinfo: string): Finding {
  const found = node('KVM', '/dev/kvm', {
    verdict: 'warn',
    detail: 'not on this machine (no /dev/kvm)',
    mend: 'sudo modprobe kvm-intel || sudo modprobe kvm-amd',
  });
  if (hasVirtualization(cpuinfo)) return found;
  return {
    what: 'KVM',
    verdict: 'warn',
    detail:
      'the CPU shows neither VT-x nor AMD-V: switched off in the firmware, or this is a VM itself that is not given them; ' +
      'VMs run on the software CPU',
    mend: FIRMWARE_SETUP,
  };
}

/** @param cpuinfo as the kernel tells it. */
export function iommu(cpuinfo: string): Finding {
  const what = 'IOMMU';
  const groups = existsSync('/sys/kernel/iommu_groups') ? readdirSync('/sys/kernel/iommu_groups').length : 0;
  if (groups > 0) return { what, verdict: 'ok', detail: `${groups} groups` };
  return {
    what,
    verdict: 'warn',
    detail: 'none: nothing of this host can be passed through, but on ACRN, which has it to itself',
    // Linux uses an AMD one by itself, once the firmware shows it.
    mend: /^vendor_id\s*:\s*AuthenticAMD$/m.test(cpuinfo)
      ? FIRMWARE_SETUP
      : `echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX intel_iommu=on"' | sudo tee /etc/default/grub.d/iommu.cfg && sudo update-grub`,
  };
}

function descriptorLimit(): Finding {
  const what = 'open files';
  const limit = processLimit('Max open files');
  const isEnough = limit >= 1024;
  return isEnough
    ? { what, verdict: 'ok', detail: `up to ${limit === Number.POSITIVE_INFINITY ? 'unlimited' : limit}` }
    : { what, verdict: 'warn', detail: `up to ${limit}: a VM with many queues needs more`, mend: 'ulimit -n 4096' };
}

function stubDriver(): Finding {
  const what = 'drivers for passthrough';
  const there = ['pci-stub', 'vfio-pci'].filter((name) => existsSync(`/sys/bus/pci/drivers/${name}`));
  if (there.length > 0) return { what, verdict: 'ok', detail: there.join(', ') };
  const mend = `sudo modprobe ${existsSync('/dev/acrn_hsm') ? 'pci-stub' : 'vfio-pci'}`;
  return { what, verdict: 'warn', detail: 'neither pci-stub nor vfio-pci is loaded', mend };
}

async function staleSockets(): Promise<Finding> {
  const what = 'VMs that were killed';
  let folders: string[];
  try {
    folders = (await listVms()).filter(({ state }) => state === 'dead').map(({ name }) => name);
  } catch (error) {
    return { what, verdict: 'fail', detail: (error as Error).message };
  }
  const sockets = await deadSocketsOfAcrnctl();
  const dead = [
    ...new Set([...folders, ...sockets.map(({ vmName }) => vmName), ...deadRegions(), ...deadMemberSockets()]),
  ];
  if (dead.length === 0) return { what, verdict: 'ok', detail: 'nothing left behind' };
  return { what, verdict: 'warn', detail: dead.join(', '), mend: 'acrnvm prune' };
}

/** Where VMs of this user meet, and what is below it: what others may write to is not used. */
function runFolder(): Finding {
  const what = 'folder for sockets';
  const root = runRoot(process.env, process.geteuid?.() ?? 0);
  const folders = [root, vmFoldersRoot(), managerFolder()];
  for (const folder of new Set(folders)) {
    const sudo = process.geteuid?.() === 0 ? '' : 'sudo ';
    const stat = statOf(folder);
    if (stat === undefined) continue;
    if (stat === 'hidden') {
      // The C program makes them so that only root can enter.
      const mend = `sudo chmod 755 ${dirname(folder)}`;
      return { what, verdict: 'fail', detail: `${folder} may not be looked at by this user`, mend };
    }
    const isOurs = stat.uid === 0 || stat.uid === process.geteuid?.();
    if (!stat.isDirectory())
      return { what, verdict: 'fail', detail: `${folder} is no folder`, mend: `${sudo}rm ${folder}` };
    if (!isOurs) {
      const detail = `${folder} belongs to user ${stat.uid}: it is not used`;
      return { what, verdict: 'fail', detail, mend: `sudo chown ${process.geteuid?.()} ${folder}` };
    }
    if ((stat.mode & 0o022) !== 0) {
      const detail = `${folder} may be written by others: it is not used`;
      return { what, verdict: 'fail', detail, mend: `${sudo}chmod go-w ${folder}` };
    }
  }
  const { XDG_RUNTIME_DIR: session = '', ACRN_RUN_DIR: asked = '' } = process.env;
  if (process.geteuid?.() !== 0 && asked === '' && !isAbsolute(session)) {
    return {
      what,
      verdict: 'warn',
      detail: `XDG_RUNTIME_DIR is ${session === '' ? 'not set' : 'no absolute path'}: ${root} is used`,
      mend: 'export XDG_RUNTIME_DIR=/run/user/$UID',
    };
  }
  return { what, verdict: 'ok', detail: root };
}

/** @returns undefined where nothing is; `hidden` where this user may not even look. */
function statOf(path: string): Stats | 'hidden' | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return 'hidden';
  }
}

/** VFIO's mappings count against it. */
function lockedMemory(): Finding {
  const what = 'locked memory';
  const limit = processLimit('Max locked memory');
  const isEnough = limit >= LOCKED_BYTES || process.geteuid?.() === 0;
  return isEnough
    ? {
        what,
        verdict: 'ok',
        detail: limit === Number.POSITIVE_INFINITY ? 'unlimited' : `up to ${Math.floor(limit / 2 ** 20)} MiB`,
      }
    : {
        what,
        verdict: 'warn',
        detail: `up to ${Math.floor(limit / 2 ** 10)} KiB: functions of the host cannot be passed through on KVM`,
        mend: 'sudo prlimit --pid $$ --memlock=unlimited',
      };
}

/** What Linux gives by itself is 8 MiB since 5.16; VFIO locks all of a guest's RAM. */
const LOCKED_BYTES = 64 << 20;

/** An installation may lack these; what that costs. */
const optionalPackages = { v86: 'no VM on the software CPU', yaml: '--config takes JSON only' } as const;

function packages(): Finding {
  const what = 'optional packages';
  const { resolve } = createRequire(import.meta.url);
  const missing = Object.entries(optionalPackages).filter(([name]) => {
    try {
      resolve(name);
      return false;
    } catch {
      return true;
    }
  });
  if (missing.length === 0) return { what, verdict: 'ok', detail: Object.keys(optionalPackages).join(', ') };
  return {
    what,
    verdict: 'warn',
    detail: missing.map(([name, cost]) => `without ${name}: ${cost}`).join('; '),
    mend: `npm install ${missing.map(([name]) => name).join(' ')}`,
  };
}

export async function examineHost(): Promise<Finding[]> {
  return [
    node('ACRN', '/dev/acrn_hsm', {
      verdict: 'warn',
      detail:
        'not on this machine (no /dev/acrn_hsm): VMs run on the embedded hypervisor, by KVM or in software; ' +
        'on a Service VM its module is missing',
      mend: 'sudo modprobe acrn',
    }),
    kvm(readCpuinfo()),
    hugePages(),
    offlineCpus(),
    iommu(readCpuinfo()),
    node('taps', '/dev/net/tun', {
      verdict: 'fail',
      detail: 'no network for VMs (no /dev/net/tun)',
      mend: 'sudo modprobe tun',
    }),
    node('vhost-net', '/dev/vhost-net', {
      verdict: 'warn',
      detail: 'virtio-net with vhost is not possible',
      mend: 'sudo modprobe vhost-net',
    }),
    node('vhost-vsock', '/dev/vhost-vsock', {
      verdict: 'warn',
      detail: 'vhost-vsock is not possible',
      mend: 'sudo modprobe vhost-vsock',
    }),
    stubDriver(),
    descriptorLimit(),
    lockedMemory(),
    packages(),
    runFolder(),
    await staleSockets(),
  ];
}
