/**
 * The paths of Cloud Hypervisor's API (its cloud-hypervisor.yaml), so that its clients, libvirt's driver among them, can
 * drive a VM here. What there is no counterpart of is answered with 501 and the reason.
 */
import { existsSync } from 'node:fs';
import { formatBdf, formatSlot } from '../../devicemodel/core/address.ts';
import { CH_VERSION } from './ch-version.ts';
import { deviceIds } from './device-ids.ts';
import { HttpProblem } from './problem.ts';
import { pressPowerButton, resized } from './resources.ts';
import { type Answer, done, json, parsed, type Route } from './routes.ts';
import { Give, Take } from './shapes.ts';
import type { ChConfig, RunningGuest, Vmm } from './vmm.ts';

const BASE = '/api/v1';
const REASON = 'asked by the API';
/** What the document has for a device that cannot be as it is described. */
const BAD_CONFIG = 400;
/** For an order that the VM cannot follow as it is now. */
const NOT_NOW = 405;
/** And for a device that is not named. */
const NO_DEVICE = 404;

/** What can be done to a configuration that is running, by its path, and why it is not possible. */
const notHere: Readonly<Record<string, string>> = {
  'vm.nmi': 'an NMI cannot be sent to a guest',
  'vmm.nmi': 'an NMI cannot be sent to a guest',
  'vm.resize': 'memory and vCPUs of a VM do not change while it runs',
  'vm.resize-zone': 'there are no memory zones',
  'vm.add-device': 'functions of the host are passed through from the start only',
  'vm.add-fs': 'there is no virtio-fs',
  'vm.add-generic-vhost-user': 'there is no vhost-user',
  'vm.add-pmem': 'there is no virtio-pmem',
  'vm.add-net': 'a network cannot be added while the VM runs',
  'vm.add-vsock': 'a vsock cannot be added while the VM runs',
  'vm.add-vdpa': 'there is no vDPA',
  'vm.add-user-device': 'there is no vfio-user',
  'vm.snapshot': 'there are no snapshots',
  'vm.restore': 'there are no snapshots',
  'vm.receive-migration': 'there is no migration',
  'vm.send-migration': 'there is no migration',
  'vm.coredump': 'there is no core dump of a guest',
};

export function cloudHypervisorRoutes(vmm: Vmm): Route[] {
  const put = (name: string, summary: string, run: Route['run'], more: Partial<Route> = {}): Route => ({
    method: 'PUT',
    path: `${BASE}/${name}`,
    summary,
    run,
    ...more,
  });
  const get = (name: string, summary: string, run: Route['run'], answer: NonNullable<Route['answer']>): Route => ({
    method: 'GET',
    path: `${BASE}/${name}`,
    summary,
    run,
    answer,
  });
  const order = (name: string, summary: string, run: (guest: RunningGuest) => void): Route =>
    put(name, summary, () => {
      run(bootedGuest(vmm));
      return done;
    });
  return [
    get(
      'vmm.ping',
      'Whether anybody is there, and who.',
      () => json({ build_version: `acrn-dm ${vmm.version}`, version: CH_VERSION, pid: process.pid, features: [] }),
      Give.ping,
    ),
    put('vmm.shutdown', 'End the process, and its VM at once.', ({ response }) => {
      response.once('close', () => vmm.quit());
      return done;
    }),
    get('vm.info', 'The VM and its configuration.', () => json(infoOf(vmm)), Give.info),
    get(
      'vm.counters',
      'What devices have done.',
      () => json(countersOf(bootedGuest(vmm), vmm.config)),
      Give.deviceCounters,
    ),
    put('vm.create', 'Describe a VM, without starting it.', createVm(vmm), { body: () => vmm.createSchema() }),
    put('vm.boot', 'Start the VM that was described.', async () => {
      if (vmm.config === undefined) throw notCreated();
      await vmm.boot();
      return done;
    }),
    put('vm.delete', 'End the VM at once if it runs, and forget it.', async () => {
      if (vmm.config === undefined) throw notCreated();
      await vmm.remove();
      return done;
    }),
    order('vm.pause', 'The guest stands still.', ({ commands }) => commands.run('pause', {})),
    order('vm.resume', 'A guest that is paused, or suspended, goes on.', ({ commands, state }) => {
      if (state === 'suspended') commands.run('wake', {});
      else commands.run('resume', {});
    }),
    order(
      'vm.shutdown',
      'Press the power button; the power is cut when the guest takes too long.',
      ({ commands, state }) => commands.run('shutdown', { reason: REASON, isPatient: state !== 'suspended' }),
    ),
    order('vm.reboot', 'Start the guest anew.', ({ commands }) => commands.run('reset', { reason: REASON })),
    order('vm.power-button', 'Press the power button.', (guest) => pressPowerButton(guest, NOT_NOW)),
    put('vm.add-disk', 'Give a virtio-blk that was started with nodisk its medium.', addDisk(vmm), {
      body: async () => (await vmm.disks()).schema,
      answer: Give.device,
    }),
    put('vm.resize-disk', 'Make the image of a disk larger.', resizeDisk(vmm), { body: Take.diskSize }),
    put('vm.remove-device', 'Take the medium out of a CD drive; nothing else can be taken away.', removeDevice(vmm), {
      body: Take.device,
    }),
    ...Object.entries(notHere).map(([name, why]) =>
      put(name, `Not possible: ${why}.`, () => {
        throw new HttpProblem(501, 'impossible', why);
      }),
    ),
  ];
}

function notCreated(): HttpProblem {
  return new HttpProblem(404, 'not-created', 'there is no VM: vm.create was not asked for');
}

/** @throws HttpProblem 404 without a VM, 405 for one that does not run. */
function bootedGuest({ guest, config }: Vmm): RunningGuest {
  if (guest !== undefined) return guest;
  if (config === undefined) throw notCreated();
  throw new HttpProblem(405, 'not-booted', 'the VM is not booted');
}

function createVm(vmm: Vmm): Route['run'] {
  return async ({ body }) => {
    if (typeof body !== 'object' || body === null || Array.isArray(body)) {
      throw new HttpProblem(422, 'member', 'a VM is described by an object');
    }
    await vmm.create(body);
    return done;
  };
}

/** Running, Paused, Created and Shutdown are all the states there are; a guest in S3 is one that stands still. */
function stateOf({ guest, hasRun }: Vmm): string {
  if (guest === undefined) return hasRun ? 'Shutdown' : 'Created';
  switch (guest.state) {
    case 'created':
      return 'Created';
    case 'running':
      return 'Running';
    case 'ended':
      return 'Shutdown';
    default:
      return 'Paused';
  }
}

function infoOf(vmm: Vmm): object {
  const { guest, config } = vmm;
  if (config === undefined) throw notCreated();
  return {
    config: guest === undefined ? config : withConsoles(config, guest),
    state: stateOf(vmm),
    ...(guest === undefined
      ? {}
      : {
          memory_actual_size: guest.config.memoryBytes,
          acrn: { name: guest.config.name, hypervisor: guest.hypervisor, state: guest.state },
        }),
  };
}

/** A pseudo terminal has a name once it is open: `virsh console` opens it. */
function withConsoles(config: NonNullable<Vmm['config']>, { lines }: RunningGuest): object {
  const fileOf = (isOurs: (id: string) => boolean) =>
    lines.find(({ id, backend }) => isOurs(id) && backend.startsWith('pty '))?.backend.slice('pty '.length);
  const merged = (name: 'console' | 'serial', file: string | undefined) =>
    file === undefined ? {} : { [name]: { ...(config[name] as object | undefined), mode: 'Pty', file } };
  return {
    ...config,
    ...merged(
      'console',
      fileOf((id) => id.startsWith('virtio-console')),
    ),
    ...merged(
      'serial',
      fileOf((id) => id === 'com1'),
    ),
  };
}

/** @throws HttpProblem 404 */
function deviceOf({ config, addedIds }: RunningGuest, vmm: Vmm, id: string) {
  const ids = deviceIds(config.pci, vmm.config, addedIds);
  const slot = ids.get(id);
  if (slot !== undefined) return { ...slot, at: formatSlot(slot.bdf) };
  throw new HttpProblem(404, 'no-such-device', `there is no device "${id}"`, {
    hint: `there are ${[...ids.keys()].join(', ')}`,
  });
}

function resizeDisk(vmm: Vmm): Route['run'] {
  return async ({ body }) => {
    const { id, desired_size: wished } = parsed(Take.diskSize, body, NO_DEVICE);
    const guest = bootedGuest(vmm);
    await resized(vmm, guest, deviceOf(guest, vmm, id).at, wished);
    return done;
  };
}

function removeDevice(vmm: Vmm): Route['run'] {
  return async ({ body }) => {
    const { id } = parsed(Take.device, body, NO_DEVICE);
    const guest = bootedGuest(vmm);
    const { driver, at, options } = deviceOf(guest, vmm, id);
    const { ports = [] } = options as { readonly ports?: readonly { readonly drive?: string }[] };
    const drives = ports.flatMap(({ drive }, port) => (drive === 'cd' ? [port] : []));
    if (drives.length === 0) {
      throw new HttpProblem(501, 'no-hot-removal', `${id}: a ${driver} cannot be taken away while the VM runs`, {
        hint: 'the guest can let go of it; it is gone with the next start without it',
      });
    }
    for (const port of drives) await guest.commands.run('eject', { slot: at, port });
    vmm.events.emit('disk', 'ejected', { id });
    return done;
  };
}

/** Of disks and networks, by the dialect's names of devices and counters. */
function countersOf({ config, counters, addedIds }: RunningGuest, asCreated: ChConfig | undefined): object {
  const ids = [...deviceIds(config.pci, asCreated, addedIds)];
  const idAt = (at: string) => ids.find(([, { bdf }]) => formatBdf(bdf) === at)?.[0] ?? at;
  return Object.fromEntries(
    counters.all.flatMap((each) => {
      const { id, kind } = each;
      const values: Readonly<Record<string, number>> = each.values();
      const picked = (names: Readonly<Record<string, string>>) =>
        Object.fromEntries(Object.entries(names).map(([theirs, ours]) => [theirs, values[ours] ?? 0]));
      if (kind !== 'disk' && kind !== 'net') return [];
      const [at = id, port] = id.split('@');
      return [[`${idAt(at)}${port === undefined ? '' : `_${port}`}`, picked(counterNames[kind])]];
    }),
  );
}

/** Cloud Hypervisor's names, and ours. */
const counterNames = {
  disk: {
    read_ops: 'reads',
    read_bytes: 'readBytes',
    write_ops: 'writes',
    write_bytes: 'writeBytes',
  },
  net: { rx_frames: 'rxFrames', rx_bytes: 'rxBytes', tx_frames: 'txFrames', tx_bytes: 'txBytes' },
} as const;

function addDisk(vmm: Vmm): Route['run'] {
  return async ({ body }): Promise<Answer> => {
    if (vmm.guest === undefined && vmm.config !== undefined) {
      throw new HttpProblem(501, 'impossible', 'a disk comes with vm.create, or once the VM is booted');
    }
    const { config, commands, addedIds } = bootedGuest(vmm);
    const { schema, mediumOf } = await vmm.disks();
    const disk = parsed(schema, body, BAD_CONFIG);
    const { path, id: asked } = disk;
    const medium = mediumOf(disk);
    if (!existsSync(path)) throw new HttpProblem(BAD_CONFIG, 'no-file', `${path}: no such file`);
    const ids = [...deviceIds(config.pci, vmm.config, addedIds)];
    const empty = ids.filter(
      ([, { driver, options }]) => driver === 'virtio-blk' && (options as { path?: unknown }).path === '',
    );
    // One that vm.create left empty by that name is the one that is meant.
    const meant = ids.find(([id]) => id === asked);
    if (meant !== undefined && !empty.includes(meant)) {
      throw new HttpProblem(BAD_CONFIG, 'member', `id: another device is called "${asked}"`);
    }
    for (const [given, { bdf }] of meant === undefined ? empty : [meant]) {
      if (!(await commands.run('blkrescan', { medium: `${formatSlot(bdf)},${medium}` }))) continue;
      const id = asked ?? given;
      addedIds.set(formatBdf(bdf), id);
      vmm.events.emit('disk', 'inserted', { id, path });
      return json({ id, bdf: `0000:${formatBdf(bdf)}` });
    }
    throw new HttpProblem(409, 'no-slot', 'no virtio-blk is there that was started with nodisk and has no medium yet', {
      hint: 'start the VM with -s SLOT,virtio-blk,nodisk for each disk that may come later; the log says what was wrong',
    });
  };
}
