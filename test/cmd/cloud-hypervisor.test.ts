/** Cloud Hypervisor's words, those of its API and of its command line, as ours. */
import { describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { orderOfChVm, parseChCommandLine } from '../../cmd/cloud-hypervisor.ts';
import { ConfigError, RefusedError } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';

/** What libvirt 9.0 sends, and what newer ones do. */
const older = {
  console: { mode: 'Pty' },
  cpus: { boot_vcpus: 1, max_vcpus: 1 },
  memory: { size: 268435456 },
  kernel: { path: '/k' },
  cmdline: { args: 'console=hvc0' },
  initramfs: { path: '/i' },
  disks: [{ path: '/d.img', readonly: true }],
  net: [{ tap: 'tap0', mac: '52:54:00:00:00:01' }],
};
const { kernel, cmdline, initramfs, ...rest } = older;
const newer = { ...rest, payload: { kernel: kernel.path, cmdline: cmdline.args, initramfs: initramfs.path } };

const argvOf = (line: string) => {
  const parsed = parseChCommandLine(line.split(' '));
  if (parsed.kind !== 'argv') throw new Error('printed');
  return parsed.argv;
};
const configOf = (line: string) => {
  const order = parseCommandLine(argvOf(line), pciDrivers);
  if (order.action !== 'run') throw new Error(order.action);
  return order.config;
};

describe('the body of vm.create', () => {
  test.each([
    ['older', older],
    ['newer', newer],
  ])('of an %s client', (_, body) => {
    const { order, config } = orderOfChVm(body);
    expect(order.config).toMatchObject({
      memoryBytes: 1 << 28,
      boot: { kind: 'bzimage', kernelPath: '/k', bootargs: 'console=hvc0', ramdiskPath: '/i' },
      name: `ch-${process.pid}`,
    });
    expect(order.config.pci.map(({ driver, text }) => `${driver} ${text}`)).toEqual([
      'hostbridge ',
      'lpc ',
      'virtio-console @pty:console',
      'virtio-blk /d.img,ro',
      'virtio-net tap=tap0,mac=52:54:00:00:00:01',
    ]);
    // What a client reads back is of the newer generation, with all it gave.
    expect(config).toMatchObject({ payload: newer.payload, disks: older.disks });
  });

  test('may name its VM, and say that it does without what there is not', () => {
    const { order } = orderOfChVm({
      ...newer,
      acrn: { name: 'vm1' },
      iommu: false,
      fs: [],
      vsock: null,
      debug_console: { mode: 'Off' },
    });
    expect(order.config.name).toBe('vm1');
  });

  test.each([
    ['fs', { fs: [{ tag: 'x' }] }],
    ['iommu', { iommu: true }],
    ['vsock', { vsock: { cid: 3 } }],
    ['cpus.boot_vcpus', { cpus: { boot_vcpus: 4, max_vcpus: 4 } }],
    ['net.0', { net: [{ mac: '52:54:00:00:00:01' }] }],
    ['disks.1.vhost_user', { disks: [{ path: '/a' }, { path: '/b', vhost_user: true, vhost_socket: '/s' }] }],
    ['disks.0.rate_limiter_config', { disks: [{ path: '/a', rate_limiter_config: { ops: { size: 1 } } }] }],
    ['disks.0.image_type', { disks: [{ path: '/a.qcow2', image_type: 'Qcow2' }] }],
    ['disks.0.image_type', { disks: [{ path: '/a', image_type: 'FixedVhd' }] }],
    ['disks.0.image_type', { disks: [{ path: '/a', image_type: ['Raw'] }] }],
    ['disks.0.backing_files', { disks: [{ path: '/a', image_type: 'Raw', backing_files: true }] }],
    ['net.0.ip', { net: [{ tap: 'tap0', ip: '192.168.249.2' }] }],
    ['net.0.mask', { net: [{ tap: 'tap0', ip: '192.168.249.1', mask: '255.255.0.0' }] }],
    ['cpus.topology', { cpus: { boot_vcpus: 1, topology: { threads_per_core: 2 } } }],
    ['memory.hotplug_size', { memory: { size: 1 << 28, hotplug_size: 1 << 28 } }],
    ['payload.igvm', { payload: { kernel: '/k', igvm: '/i' } }],
    ['platform.tdx', { platform: { tdx: true } }],
    ['console.iommu', { console: { mode: 'Pty', iommu: true } }],
    ['acrn.vsock', { acrn: { name: 'vm1', vsock: 3 } }],
  ])('%s is refused, not passed over', (where, more) => {
    expect(() => orderOfChVm({ ...newer, ...more })).toThrow(RefusedError);
    expect(() => orderOfChVm({ ...newer, ...more })).toThrow(where);
  });

  test('may say how the host shall go about it, and does without what is off', () => {
    const { order } = orderOfChVm({
      ...newer,
      cpus: { boot_vcpus: 1, max_vcpus: 1, features: { amx: false }, topology: null },
      memory: { size: 1 << 28, shared: true, hugepages: false, hotplug_size: 0, zones: [] },
      disks: [{ path: '/d.img', id: 'root', num_queues: 4, vhost_user: false, serial: null }],
      platform: { uuid: 'u', tdx: false },
    });
    expect(order.config.pci.map(({ driver, text }) => `${driver} ${text}`)).toContain('virtio-blk /d.img');
  });

  // A client that a generator made of the document sends these, asked or not. Mutation: refuse net.ip whatever it is.
  test('may say what the document has as default', () => {
    const { order } = orderOfChVm({
      ...newer,
      net: [{ tap: 'tap0', ip: '192.168.249.1', mask: '255.255.255.0', num_queues: 2, vhost_mode: 'Client' }],
    });
    expect(order.config.pci.map(({ driver, text }) => `${driver} ${text}`)).toContain('virtio-net tap=tap0');
  });

  // Raw is what every image is taken for; what is not known is not looked at.
  test.each(['Raw', 'raw', 'Unknown', null])('a disk whose image type is %s is one', (imageType) => {
    const { order } = orderOfChVm({
      ...newer,
      disks: [{ path: '/d.img', image_type: imageType, backing_files: false }],
    });
    expect(order.config.pci.map(({ driver, text }) => `${driver} ${text}`)).toContain('virtio-blk /d.img');
  });

  // Mutation: without the defaults in orderOfChVm they are dropped in silence.
  test('what the process was started with counts, unless the body says otherwise', () => {
    const words =
      '--api-socket /s --shutdown-timeout 60 --hypervisor soft --crash-dump /c --rtvm -m 1G --on-reboot exit';
    const order = parseCommandLine(words.split(' '), pciDrivers);
    if (order.action !== 'serve') throw new Error(order.action);
    expect(orderOfChVm({ ...newer, memory: { size: 256 << 20 } }, order.argv).order.config).toMatchObject({
      shutdownTimeoutMs: 60_000,
      hypervisor: 'soft',
      crashDumpPath: '/c',
      rtvm: true,
      memoryBytes: 256 << 20,
      afterEnd: { onReboot: 'exit' },
    });
  });

  test.each([
    ['memory.size', { memory: { size: '1G' } }],
    ['disks.0.path', { disks: [{ path: 'a,b' }] }],
    ['console.mode', { console: { mode: 'Spy' } }],
    ['serial.file', { serial: { mode: 'File' } }],
    ['devices.0.path', { devices: [{ path: '/etc/passwd' }] }],
    ['net.0.mac', { net: [{ tap: 'tap0', mac: '52:54:00:00:00:01,vhost' }] }],
    ['42 devices', { disks: Array.from({ length: 40 }, () => ({ path: '/disk' })), rng: null }],
  ])('%s of another form is an error that names it', (where, more) => {
    expect(() => orderOfChVm({ ...newer, ...more })).toThrow(ConfigError);
    expect(() => orderOfChVm({ ...newer, ...more })).toThrow(where);
  });

  test('a function of the host and a vCPU on a CPU of it', () => {
    const body = {
      ...newer,
      net: [],
      devices: [{ path: '/sys/bus/pci/devices/0000:01:00.1/' }],
      cpus: {
        boot_vcpus: 2,
        affinity: [
          { vcpu: 1, host_cpus: [6] },
          { vcpu: 0, host_cpus: [4] },
        ],
      },
    };
    const { order } = orderOfChVm(body);
    expect(order.config.cpuAffinity).toEqual([4, 6]);
    expect(order.config.pci.at(-1)).toMatchObject({ driver: 'passthru', text: '01/00/1' });
  });
});

test.each([
  ['fewer than vCPUs', 4, [{ vcpu: 0, host_cpus: [4] }], 'boot_vcpus is 4'],
  [
    'one vCPU twice',
    2,
    [
      { vcpu: 0, host_cpus: [4] },
      { vcpu: 0, host_cpus: [5] },
    ],
    'vCPU 0, 0',
  ],
  ['several host CPUs', 1, [{ vcpu: 0, host_cpus: [4, 5] }], 'vCPU 0 has 2 host CPUs'],
  ['no host CPU', 1, [{ vcpu: 0, host_cpus: [] }], 'vCPU 0 has 0 host CPUs'],
])('an affinity of %s is refused', (_what, boot_vcpus, affinity, message) => {
  expect(() => orderOfChVm({ ...newer, cpus: { boot_vcpus, affinity } })).toThrow(RefusedError);
  expect(() => orderOfChVm({ ...newer, cpus: { boot_vcpus, affinity } })).toThrow(message);
});

describe('the command line', () => {
  test('of a VM', () => {
    const line =
      '--kernel /k --cmdline console=ttyS0 --memory size=512M --cpus boot=1 --disk path=/a path=/b,readonly=on --console off --serial tty -v --api-socket path=/run/x.sock';
    expect(configOf(line)).toMatchObject({
      memoryBytes: 512 << 20,
      com: [{ index: 1, backend: 'stdio' }],
      apiSocket: { kind: 'path', path: '/run/x.sock' },
    });
    expect(configOf(line).pci.map(({ driver, text }) => `${driver} ${text}`)).toEqual([
      'hostbridge ',
      'lpc ',
      'virtio-blk /a',
      'virtio-blk /b,ro',
      'virtio-rnd ',
    ]);
  });

  test.each([
    ['--cpus boot=two', ConfigError, '"two" is no number of vCPUs'],
    ['--cpus boot=1,topology=2:1:1:1', RefusedError, 'cpus.topology'],
    ['--memory size=1G,hotplug_size=1G', RefusedError, 'memory.hotplug_size'],
    ['--disk path=/a,vhost_user=on,socket=/s', RefusedError, 'disks.0.vhost_user'],
    ['--disk path=/a,image_type=qcow2', RefusedError, 'disks.0.image_type'],
    ['--disk path=/a,backing_files=on', RefusedError, 'disks.0.backing_files'],
    ['--net tap=tap0,ip=10.0.0.1', RefusedError, 'net.0.ip'],
    ['--rng src=/dev/urandom,iommu=on', RefusedError, 'rng.iommu'],
    // Opened for writing, in silence, until now.
    ['--disk path=/a,readonly=yes', ConfigError, 'readonly=yes is not on, off, true or false'],
    ['--disk path=/a,readonly=1', ConfigError, 'readonly=1'],
    ['--disk path=/a,readonly=On', ConfigError, 'readonly=On'],
    ['--disk path=/a,direct=yes', ConfigError, 'direct=yes'],
    ['--net tap=tap0,mac=a --net tap=tap0,mac=52:54:00:00:00:01,mac2=x', RefusedError, 'net.1.mac2'],
  ])('%s is refused, not passed over', (line, kind, what) => {
    expect(() => argvOf(`--kernel /k ${line}`)).toThrow(kind);
    expect(() => argvOf(`--kernel /k ${line}`)).toThrow(what);
  });

  test.each([
    ['readonly=on,direct=true', '/a,ro,nocache'],
    ['readonly=true', '/a,ro'],
    ['readonly=off,direct=false', '/a'],
  ])('a disk with %s', (words, text) => {
    const { pci } = configOf(`--kernel /k --disk path=/a,${words}`);
    expect(pci.find(({ driver }) => driver === 'virtio-blk')?.text).toBe(text);
  });

  test('a file of a serial port may have an equals sign in its name', () => {
    expect(argvOf('--kernel /k --serial file=/a=b')).toContain('com1,file:/a=b');
  });

  test('may say how the host shall go about it', () => {
    const line =
      '--kernel /k --memory size=1G,shared=on,hotplug_size=0 --disk path=/a,id=root,num_queues=2,vhost_user=off';
    expect(configOf(line).memoryBytes).toBe(1 << 30);
  });

  test('that only listens, as libvirt gives it', () => {
    expect(parseCommandLine(argvOf('--api-socket fd=5'), pciDrivers)).toMatchObject({
      action: 'serve',
      options: { apiSocket: { kind: 'fd', fd: 5 } },
    });
  });

  test('its version is one that libvirt takes', () => {
    const printed = parseChCommandLine(['--version']);
    expect(printed.kind === 'print' && printed.lines[0]).toMatch(/^cloud-hypervisor v(1[5-9]|[2-9]\d)\.\d+\.\d+$/);
  });

  test.each(['--frobnicate', '--kernel', 'word', '--memory size=1X', '--memory shared', '--console spy'])(
    '%s is refused',
    (line) => {
      expect(() => argvOf(line)).toThrow(ConfigError);
    },
  );
});
