/**
 * `--dry-run`: the machine a command line describes, as it would be created. The same board and the same drivers make it,
 * stopped before anything of this host or of a hypervisor is touched; so it works anywhere and always says the same.
 */
import { formatBdf, hex } from '../devicemodel/core/address.ts';
import { splitRam } from '../devicemodel/core/boot/loader.ts';
import type { Clock } from '../devicemodel/core/clock.ts';
import type { BootConfig, VmConfig } from '../devicemodel/core/config.ts';
import { Disposer } from '../devicemodel/core/disposer.ts';
import { BugError } from '../devicemodel/core/errors.ts';
import type { Hsm } from '../devicemodel/core/hsm/hsm.ts';
import { encodeVdev, type HvVdev, VdevId } from '../devicemodel/core/hsm/vdev.ts';
import { MmioBus, PioBus } from '../devicemodel/core/io-bus.ts';
import { Layout } from '../devicemodel/core/layout.ts';
import { silentLog } from '../devicemodel/core/log.ts';
import { GuestMemory } from '../devicemodel/core/memory.ts';
import { formatSize } from '../devicemodel/core/units.ts';
import { newWaits } from '../devicemodel/core/waits.ts';
import { pcBoard } from '../devicemodel/hw/board.ts';
import type { PassthroughReport } from '../devicemodel/hw/pci/function.ts';
import { type PciFunctionReport, PciHost } from '../devicemodel/hw/pci/host.ts';
import { comResources } from '../devicemodel/hw/pci/lpc.ts';
import { CharBackendPool } from '../devicemodel/hw/uart/backends/pool.ts';
import { describeCharBackend, parseCharBackend } from '../devicemodel/hw/uart/backends/spec.ts';
import { passthroughLines } from './passthrough-lines.ts';

/** A machine in plain values: what `--dry-run=json` prints. Addresses are numbers, bytes are hexadecimal. */
export interface VmPlan {
  readonly name: string;
  readonly hypervisor: VmConfig['hypervisor'];
  readonly flags: readonly string[];
  /** Local APIC ids of the vCPUs, as far as the command line tells. */
  readonly cpuAffinity: readonly number[];
  readonly memory: readonly { readonly what: string; readonly base: number; readonly sizeBytes: number }[];
  readonly boot: BootConfig | null;
  readonly pci: readonly PciPlan[];
  /** Devices that options of their own put on the board: option and value. */
  readonly board: readonly string[];
  readonly com: readonly {
    readonly name: string;
    readonly port: number;
    readonly irq: number;
    readonly backend: string;
  }[];
  readonly tables: readonly { readonly signature: string; readonly gpa: number; readonly sizeBytes: number }[];
}

export interface PciPlan {
  readonly bdf: string;
  readonly driver: string;
  readonly options: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  readonly bars: PciFunctionReport['bars'];
  readonly intx: { readonly pin: number; readonly gsi: number } | null;
  /** Number of the bus below it, BUS of `-s BUS:0:0,DRIVER`. */
  readonly secondaryBus: number | null;
  /** For a device of the hypervisor: what CREATE_VDEV is given, by name and as struct acrn_vdev. */
  readonly vdev: { readonly fields: Omit<HvVdev, 'bdf'>; readonly bytes: string } | null;
  /** Of a function of the host; a `rootPort` in it is created with the `vdev`. */
  readonly passthrough: PassthroughReport | null;
}

/**
 * @param hostRoot where `sys` of the host is whose functions are passed through; empty: this one.
 * @param hasHostIds whether the vCPUs have the local APIC ids of the CPUs they run on, as on ACRN.
 * @throws ConfigError if the machine cannot be put together.
 */
export async function describeVm(config: VmConfig, hostRoot = '', hasHostIds = true): Promise<VmPlan> {
  const { reports, tables } = await assemble(config, hostRoot, hasHostIds);
  const ram = splitRam(config.memoryBytes);
  const memory = [{ what: 'RAM', base: 0, sizeBytes: ram.lowRamBytes }];
  if (ram.highRamBytes > 0) memory.push({ what: 'RAM', base: Layout.highRamBase, sizeBytes: ram.highRamBytes });
  return {
    name: config.name,
    hypervisor: config.hypervisor,
    flags: flagsOf(config),
    cpuAffinity: config.cpuAffinity,
    memory,
    boot: config.boot ?? null,
    pci: reports.map((report) => pciPlan(report, config)),
    board: config.platform.map(({ driver, text }) => `--${driver} ${text}`.trimEnd()),
    com: config.com.map((com) => ({
      ...comResources(com),
      backend: describeCharBackend(parseCharBackend(com.backend)),
    })),
    tables,
  };
}

function flagsOf(config: VmConfig): string[] {
  const flags: Readonly<Record<string, boolean>> = {
    'real-time': config.rtvm,
    'local APIC passed through': config.lapicPt,
    'secure world': config.trusty,
    "virtio with Oracle's ids": config.windows,
    'virtio with one MSI': config.virtioMsi,
    'debug exit port': config.debugExit,
  };
  return Object.keys(flags).filter((name) => flags[name] === true);
}

/** Build the board and its tables, up to the point where the hypervisor would be called. */
async function assemble(
  config: VmConfig,
  hostRoot: string,
  hasHostIds: boolean,
): Promise<{ readonly reports: readonly PciFunctionReport[]; readonly tables: VmPlan['tables'] }> {
  const memory = new TableMemory();
  const undo = new Disposer();
  // How many vCPUs there will be is for the hypervisor to say; usually it is one for each CPU named.
  const named = config.cpuAffinity.length === 0 ? [0] : config.cpuAffinity;
  const lapicIds = hasHostIds ? named : named.map((_id, vcpu) => vcpu);
  const makeBoard = pcBoard({
    consoles: new CharBackendPool({ log: silentLog }),
    lapicIds: () => lapicIds,
    hostTree: { root: hostRoot, isPlan: true },
  });
  try {
    const board = await makeBoard({
      config,
      hsm: inertHsm(config.hypervisor),
      memory,
      pio: new PioBus(),
      mmio: new MmioBus(),
      clock: stoppedClock,
      power: { request: () => {} },
      events: { emit: () => false },
      waits: newWaits(() => {}),
      vcpuCount: lapicIds.length,
      log: silentLog,
      undo,
    });
    if (!(board.pciConfig instanceof PciHost)) throw new BugError('the board has no PCI host to ask');
    const reports = board.pciConfig.report();
    board.writeTables();
    return { reports, tables: memory.tables };
  } finally {
    await undo.run();
  }
}

/** Guest memory of nothing but tables: where they are written, and how long they are. */
class TableMemory extends GuestMemory {
  readonly tables: { readonly signature: string; readonly gpa: number; readonly sizeBytes: number }[] = [];

  constructor() {
    super([]);
  }

  override write(at: number, data: Uint8Array): void {
    const signature = String.fromCharCode(...data.subarray(0, 4)).trimEnd();
    this.tables.push({ signature, gpa: at, sizeBytes: data.length });
  }
}

/** A hypervisor that must not be asked for anything. */
function inertHsm(hypervisor: VmConfig['hypervisor']): Hsm {
  const refuse = (): never => {
    throw new BugError('a dry run called the hypervisor');
  };
  return {
    backend: 'fake',
    ...(hypervisor === 'acrn' ? {} : { ownRootPorts: true }),
    ...(hypervisor === 'soft' ? {} : { givesHostFunctions: true }),
    ioreqPage: new Uint8Array(0),
    createVm: refuse,
    startVm: refuse,
    pauseVm: refuse,
    resetVm: refuse,
    destroyVm: refuse,
    setVcpuRegs: refuse,
    mapRam: refuse,
    setIrqLine: refuse,
    injectMsi: refuse,
    createIoreqClient: refuse,
    destroyIoreqClient: refuse,
    clearIoreqs: refuse,
    waitForIoreqs: refuse,
    interruptWait: refuse,
    notifyIoreqDone: refuse,
    createVdev: refuse,
    destroyVdev: refuse,
    ioeventfd: refuse,
    irqfd: refuse,
    // Which power states a CPU has is not known here: the tables offer none.
    getCpuState: () => undefined,
    close: () => {},
  };
}

const stoppedClock: Clock = {
  nowNs: () => 0,
  wallMs: () => 0,
  createTimer: () => ({ arm: () => {}, cancel: () => {}, dueNs: undefined }),
};

function pciPlan(report: PciFunctionReport, config: VmConfig): PciPlan {
  const slot = config.pci.find((s) => formatBdf(s.bdf) === formatBdf(report.bdf));
  const { identity } = report;
  const vdev = report.vdev ?? report.passthrough?.rootPort?.vdev;
  // The header of a hypervisor's device is the hypervisor's affair: not every driver fills ours.
  const id =
    report.vdev === undefined
      ? { vendorId: identity.vendorId, deviceId: identity.deviceId }
      : { vendorId: VdevId[report.vdev.type].vendor, deviceId: VdevId[report.vdev.type].device };
  return {
    bdf: formatBdf(report.bdf),
    driver: report.driver,
    options: slot?.text ?? '',
    ...id,
    classCode: identity.classCode,
    bars: report.bars,
    intx: report.intx ?? null,
    secondaryBus: report.secondaryBus ?? null,
    vdev: vdev === undefined ? null : vdevPlan(vdev),
    passthrough: report.passthrough ?? null,
  };
}

function vdevPlan(vdev: HvVdev): NonNullable<PciPlan['vdev']> {
  const { bdf: _, ...fields } = vdev;
  return { fields, bytes: Buffer.from(encodeVdev(vdev)).toString('hex') };
}

/** Bytes in one row of a dump. */
const DUMP_ROW = 16;

/** The plan for people, one line an item. */
export function formatDryRun(plan: VmPlan): string[] {
  const lines = [`VM ${plan.name}, hypervisor ${plan.hypervisor}${plan.flags.map((flag) => `, ${flag}`).join('')}`];
  const section = (title: string, items: readonly string[]) => {
    if (items.length > 0) lines.push('', title, ...items.map((item) => `  ${item}`));
  };
  section('vCPUs', [
    plan.cpuAffinity.length === 0
      ? 'as the hypervisor decides (no --cpu_affinity)'
      : `on the CPUs with local APIC id ${plan.cpuAffinity.join(', ')}`,
  ]);
  section(
    'Memory',
    plan.memory.map((m) => `${range(m.base, m.sizeBytes)}  ${m.what}, ${formatSize(m.sizeBytes)}`),
  );
  section('Boot', bootLines(plan.boot));
  section('PCI', plan.pci.flatMap(pciLines));
  section('Board', plan.board);
  section(
    'Serial ports',
    plan.com.map((com) => `${com.name}  port ${hex(com.port)}, irq ${com.irq}: ${com.backend}`),
  );
  section(
    'Tables',
    plan.tables.map((t) => `${t.signature.padEnd(4)} at ${hex(t.gpa)}, ${t.sizeBytes} bytes`),
  );
  return lines;
}

function bootLines(boot: BootConfig | null): string[] {
  if (boot === null) return ['nothing: give --kernel, --ovmf, --bios or --elf_file'];
  const bootargs = 'bootargs' in boot && boot.bootargs !== undefined ? [`command line  ${boot.bootargs}`] : [];
  switch (boot.kind) {
    case 'bzimage': {
      const ramdisk = boot.ramdiskPath === undefined ? [] : [`RAM disk      ${boot.ramdiskPath}`];
      return [`bzImage       ${boot.kernelPath}`, ...ramdisk, ...bootargs];
    }
    case 'elf': {
      const module = boot.ramdiskPath === undefined ? [] : [`module        ${boot.ramdiskPath}`];
      return [`ELF           ${boot.imagePath}`, ...module, ...bootargs];
    }
    case 'bios':
      return [`firmware      ${boot.imagePath}, ends at ${hex(Layout.firmwareEnd)}`];
    case 'ovmf': {
      const { image } = boot;
      const end = `ends at ${hex(Layout.firmwareEnd)}${image.writeBack ? ', variables are written back' : ''}`;
      return image.form === 'single'
        ? [`firmware      ${image.path}, ${end}`]
        : [`firmware      ${image.codePath}, ${end}`, `variables     ${image.varsPath}`];
    }
  }
}

function pciLines(fn: PciPlan): string[] {
  const id = (value: number) => value.toString(16).padStart(4, '0');
  const classCode = fn.classCode === 0 ? '' : `class ${id(fn.classCode >>> 8)}  `;
  const options = fn.options === '' ? '' : `  (${fn.options})`;
  const lines = [`${fn.bdf}  ${id(fn.vendorId)}:${id(fn.deviceId)}  ${classCode}${fn.driver}${options}`];
  for (const bar of fn.bars) {
    lines.push(
      `         bar${bar.index}  ${range(bar.address, bar.sizeBytes)}  ${bar.kind}, ${formatSize(bar.sizeBytes)}`,
    );
  }
  if (fn.intx !== null) lines.push(`         INT${'ABCD'[fn.intx.pin - 1]}#  IOAPIC pin ${fn.intx.gsi}`);
  if (fn.passthrough !== null) lines.push(...passthroughLines(fn.passthrough));
  if (fn.secondaryBus !== null && fn.passthrough === null) {
    lines.push(`         bus ${fn.secondaryBus} is below it: -s ${fn.secondaryBus}:0:0,DRIVER puts a device there`);
  }
  if (fn.vdev !== null) {
    lines.push(`         CREATE_VDEV ${fn.vdev.fields.type}, struct acrn_vdev (rows of zeros left out):`);
    const bytes = Buffer.from(fn.vdev.bytes, 'hex');
    for (let at = 0; at < bytes.length; at += DUMP_ROW) {
      const row = bytes.subarray(at, at + DUMP_ROW);
      if (row.some((byte) => byte !== 0)) {
        lines.push(`           ${at.toString(16).padStart(2, '0')}  ${row.toString('hex').replace(/..(?!$)/g, '$& ')}`);
      }
    }
  }
  return lines;
}

/** `0x80000000-0x800000ff`. */
function range(base: number, sizeBytes: number): string {
  return `${hex(base, 8)}-${hex(base + sizeBytes - 1, 8)}`;
}
