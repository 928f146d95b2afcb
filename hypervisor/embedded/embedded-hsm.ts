/**
 * The embedded hypervisor, without its CPU: what ACRN's hypervisor and the HSM driver do below the Hsm interface, so
 * that the device model cannot tell the difference. States are in vm-state.ts, the way of an access in guest-bus.ts,
 * eventfds in eventfd-table.ts.
 */
import { constants } from 'node:os';
import { formatBdf, type Gsi, hex } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { viewOf } from '../../devicemodel/core/host/mapping.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type {
  CpuStateQuery,
  EngineRam,
  FreezeAbility,
  HostFunctionAbility,
  Hsm,
  HsmBackend,
  IoeventfdSpec,
  IrqLineOp,
  RamMapping,
  VcpuRegs,
  VmEventAbility,
  VmSpec,
  WaitResult,
} from '../../devicemodel/core/hsm/hsm.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { IOREQ_PAGE_BYTES, IOREQ_SLOTS, IoreqPage, IoreqState } from '../../devicemodel/core/ioreq-page.ts';
import { type Log, silentLog } from '../../devicemodel/core/log.ts';
import type { ThreadPulse } from '../../devicemodel/core/thread-pulses.ts';
import { GiB } from '../../devicemodel/core/units.ts';
import type { CpuEngine, GuestBus, MemoryWindow } from './cpu-engine.ts';
import { EventRing, VmEventType } from './event-ring.ts';
import type { EventfdHost } from './eventfd-host.ts';
import { EventfdTable } from './eventfd-table.ts';
import { functionEventfds } from './function-eventfds.ts';
import { AccessRouter } from './guest-bus.ts';
import { whereGuestPutIt } from './guest-placed.ts';
import { type HostFunctionProvider, HostFunctions, hostFunctionHost } from './host-functions.ts';
import { isMsiAddress } from './msi-address.ts';
import type { VirtualFunctionFactory, VirtualFunctionHost } from './virtual-function.ts';
import { type VmidClaim, VmLife, type VmState } from './vm-state.ts';

const E = constants.errno;

/** GSIs of a User VM's virtual IOAPIC [VIOAPIC_RTE_NUM]. */
const VM_GSI_COUNT = 48;
/** A longer segment of huge pages shows its first GiB; the rest is at its address (core/guest-ram.ts). */
const VIEW_BYTES = GiB;
/** RAM segments the driver keeps per VM [ACRN_MEM_MAPPING_MAX]. */
const MAX_MEMORY_SEGMENTS = 256;
const PAGE_BYTES = 4096;
/** PM1a control of every User VM [VIRTUAL_PM1A_CNT_ADDR]: SLP_EN and sleep type 5. */
const Pm1aControl = { port: 0x404, sleepS5: 0x2000 | (5 << 10) } as const;

export interface EmbeddedHsmOptions {
  readonly engine: CpuEngine;
  readonly vdevs: VirtualFunctionFactory;
  readonly eventfds: EventfdHost;
  /** Number of this VM among the User VMs of the host; released by the returned function. The signal gives up. */
  readonly claimVmid?: (name: string, ending: AbortSignal) => Promise<VmidClaim>;
  /** What another VM may still have, so that `vdevs` waits for nobody; the signal gives up. */
  readonly awaitRegions?: (ending: AbortSignal) => Promise<void>;
  readonly log?: Log;
  /** Where vCPUs have threads of their own: what these know of its functions (access-map.ts). */
  readonly accessMap?: Int32Array;
  /** Absent: no function of the host can be given to the guest. */
  readonly hostFunctions?: HostFunctionProvider;
  /** Where functions have one. */
  readonly thread?: ThreadPulse;
  /** The guest shut down by a triple fault; it stands still. */
  readonly onTripleFault?: () => void;
}

export class EmbeddedHsm implements Hsm {
  readonly ioreqPage: Uint8Array = new Uint8Array(IOREQ_PAGE_BYTES);
  readonly engineRam?: EngineRam;
  readonly freezing?: FreezeAbility;
  readonly vmEvents: VmEventAbility;
  readonly ownRootPorts = true;
  readonly thread?: ThreadPulse;
  readonly givesHostFunctions?: true;
  readonly hostFunctionDriver?: string;
  readonly hostFunctions?: HostFunctionAbility;

  readonly #engine: CpuEngine;
  readonly #vdevFactory: VirtualFunctionFactory;
  readonly #eventfds: EventfdHost;
  readonly #claimVmid: NonNullable<EmbeddedHsmOptions['claimVmid']>;
  readonly #awaitRegions: EmbeddedHsmOptions['awaitRegions'];
  readonly #log: Log;
  readonly #onTripleFault: (() => void) | undefined;
  readonly #eventRing: EventRing;
  readonly #page = new IoreqPage(this.ioreqPage);

  readonly #life = new VmLife();
  #serve: (() => void) | undefined;
  readonly #memory: Array<{ readonly mapping: RamMapping; readonly windows: readonly MemoryWindow[] }> = [];
  readonly #eventfdTable: EventfdTable;
  readonly #router: AccessRouter;
  readonly #host: VirtualFunctionHost;
  readonly #hostFunctions: HostFunctions | undefined;

  constructor(options: EmbeddedHsmOptions) {
    this.#engine = options.engine;
    this.#vdevFactory = options.vdevs;
    this.#eventfds = options.eventfds;
    this.#claimVmid = options.claimVmid ?? (async () => ({ vmid: 1, release: () => {} }));
    this.#awaitRegions = options.awaitRegions;
    this.#log = options.log ?? silentLog;
    this.#onTripleFault = options.onTripleFault;
    this.#eventRing = new EventRing((fd) => this.#eventfds.signal(fd));
    this.vmEvents = {
      setup: (ringAddress, eventfd) => {
        this.#life.need('SETUP_VM_EVENT_RING');
        this.#eventRing.attach(viewOf(ringAddress, PAGE_BYTES), eventfd);
        return true;
      },
    };
    if (options.engine.ram !== undefined) this.engineRam = options.engine.ram;
    if (options.thread !== undefined) this.thread = options.thread;
    if (options.engine.freezing !== undefined) this.freezing = options.engine.freezing;
    const signal = (message: MsiMessage) => this.#signalMsi(message);
    this.#eventfdTable = new EventfdTable(options.eventfds, { signal }, options.engine.eventfds);
    const { accessMap: words } = options;
    this.#router = new AccessRouter(this.#page, this.#eventfdTable, words === undefined ? {} : { words });
    const life = this.#life;
    this.#host = {
      get vmid() {
        return life.vmid;
      },
      log: this.#log,
      ...(options.engine.eventfds === undefined
        ? {}
        : { eventfds: functionEventfds(options.engine.eventfds, options.eventfds) }),
      signal,
      addRegisters: (base, sizeBytes, region) => this.#router.addRegisters(base, sizeBytes, region),
      addMemory: (base, bytes, hostAddress) =>
        whereGuestPutIt(this.#log, () => this.#engine.mapMemory(base, bytes, hostAddress, true)),
    };
    const { hostFunctions: provider } = options;
    if (provider !== undefined) {
      const router = this.#router;
      const host = hostFunctionHost(options.engine, router, this.#host);
      this.#hostFunctions = new HostFunctions({ provider, life, router, host, gsiCount: options.engine.gsiCount });
      this.hostFunctions = this.#hostFunctions;
      this.hostFunctionDriver = provider.driver;
      this.givesHostFunctions = true;
    }
  }

  get backend(): HsmBackend {
    return this.#engine.backend;
  }

  /** Where the VM is in its life. */
  get vmState(): VmState {
    return this.#life.state;
  }

  // ---- VM life

  /** @throws HsmError EINVAL: a second VM on this handle, or a name that is empty or longer than 15 bytes. */
  async createVm(spec: VmSpec, ending?: AbortSignal): Promise<{ readonly vmid: number; readonly vcpuCount: number }> {
    const bus: GuestBus = {
      page: this.#page,
      submit: (vcpu) => this.#router.submit(vcpu),
      serve: () => this.#serve?.(),
      retire: (vcpu) => this.#router.retire(vcpu),
      tripleFault: (vcpu) => this.#tripleFault(vcpu),
    };
    const { closing } = this.#life;
    const isOver = ending === undefined ? closing : AbortSignal.any([closing, ending]);
    if (this.#awaitRegions !== undefined) await this.#awaitRegions(isOver);
    const claimVmid = (name: string) => this.#claimVmid(name, isOver);
    return this.#life.create(spec, claimVmid, async () => {
      const vcpuCount = await this.#engine.create(bus, spec.cpuAffinity);
      // What came up after the end of everything else.
      if (this.#life.isClosed) this.#engine.destroy();
      this.#freeSlots();
      return vcpuCount;
    });
  }

  startVm(): void {
    this.#life.start();
    this.#engine.start();
    this.#engine.wake();
  }

  /** While the VM is paused. */
  describeVcpus(): readonly string[] {
    return Array.from({ length: this.#life.vcpuCount }, (_, vcpu) => this.#engine.describeVcpu(vcpu));
  }

  pauseVm(): void {
    this.#life.need('PAUSE_VM');
    this.#engine.stop();
    this.#life.pause();
    this.#engine.wake();
  }

  /** Back to CREATED; RAM, vdevs and eventfds stay. */
  resetVm(): void {
    this.#life.needPaused('RESET_VM');
    this.#engine.reset();
    this.#router.reset();
    this.#hostFunctions?.reset();
    this.#freeSlots();
    this.#life.reset();
  }

  destroyVm(): void {
    this.#life.needPaused('DESTROY_VM');
    this.#teardown();
  }

  setVcpuRegs(vcpu: number, regs: VcpuRegs): void {
    this.#life.needStoppedVcpu('SET_VCPU_REGS', vcpu);
    this.#engine.setRegs(vcpu, regs);
  }

  #freeSlots(): void {
    for (let vcpu = 0; vcpu < IOREQ_SLOTS; vcpu++) this.#page.setState(vcpu, IoreqState.Free);
  }

  // ---- memory and interrupts

  mapRam(mapping: RamMapping): void {
    this.#life.need('SET_MEMSEG');
    const what = `${hex(mapping.gpa)}+${hex(mapping.sizeBytes)}`;
    if (mapping.sizeBytes < PAGE_BYTES) throw new HsmError('SET_MEMSEG', E.EINVAL, { what });
    const { gpa, sizeBytes, bytes, hostAddress, writable } = mapping;
    if (bytes.length < Math.min(sizeBytes, VIEW_BYTES)) throw new HsmError('SET_MEMSEG', E.EFAULT, { what });
    if (this.#memory.length >= MAX_MEMORY_SEGMENTS) throw new HsmError('SET_MEMSEG', E.ENOMEM, { what });
    const windows: MemoryWindow[] = [];
    for (let at = 0; at < sizeBytes; at += VIEW_BYTES) {
      const length = Math.min(sizeBytes - at, VIEW_BYTES);
      const view = at === 0 ? bytes.subarray(0, length) : viewOf(hostAddress + BigInt(at), length);
      windows.push(this.#engine.mapMemory(gpa + at, view, hostAddress + BigInt(at), writable));
    }
    try {
      this.#hostFunctions?.mapRam(mapping);
    } catch (error) {
      for (const window of windows) window.dispose();
      throw error;
    }
    this.#memory.push({ mapping, windows });
  }

  /** @throws HsmError EINVAL for what is not mapped. */
  unmapRam(mapping: RamMapping): void {
    this.#life.need('UNSET_MEMSEG');
    const at = this.#memory.findIndex(
      (m) => m.mapping.gpa === mapping.gpa && m.mapping.sizeBytes === mapping.sizeBytes,
    );
    if (at < 0) {
      throw new HsmError('UNSET_MEMSEG', E.EINVAL, { what: `${hex(mapping.gpa)}+${hex(mapping.sizeBytes)}` });
    }
    for (const { mapping: mapped, windows } of this.#memory.splice(at, 1)) {
      this.#hostFunctions?.unmapRam(mapped);
      for (const window of windows) window.dispose();
    }
  }

  setIrqLine(gsi: Gsi, op: IrqLineOp): void {
    this.#life.need('SET_IRQLINE');
    if (gsi < 0 || gsi >= VM_GSI_COUNT) throw new HsmError('SET_IRQLINE', E.EPERM, { what: `gsi ${gsi}` });
    if (gsi >= this.#engine.gsiCount) {
      this.#log.guest(() => `line ${gsi} is beyond the ${this.#engine.gsiCount} pins of this engine's IOAPIC`);
      return;
    }
    switch (op) {
      case 'high':
        this.#engine.setLine(gsi, true);
        break;
      case 'low':
        this.#engine.setLine(gsi, false);
        break;
      case 'rising-pulse':
        this.#engine.setLine(gsi, true);
        this.#engine.setLine(gsi, false);
        break;
      case 'falling-pulse':
        this.#engine.setLine(gsi, false);
        this.#engine.setLine(gsi, true);
        break;
    }
  }

  injectMsi(message: MsiMessage): void {
    this.#life.need('INJECT_MSI');
    if (!isMsiAddress(message.address)) {
      throw new HsmError('INJECT_MSI', E.EPERM, { what: `address ${hex(message.address)}` });
    }
    this.#engine.injectMsi(message);
  }

  // ---- I/O requests

  createIoreqClient(): void {
    this.#life.need('CREATE_IOREQ_CLIENT');
    if (!this.#router.isUnattended) throw new HsmError('CREATE_IOREQ_CLIENT', E.EEXIST);
    this.#router.isUnattended = false;
  }

  destroyIoreqClient(): void {
    this.#life.need('DESTROY_IOREQ_CLIENT');
    this.#router.isUnattended = true;
    this.#engine.wake();
  }

  clearIoreqs(): void {
    this.#life.need('CLEAR_VM_IOREQ');
    for (let vcpu = 0; vcpu < this.#life.vcpuCount; vcpu++) {
      if (this.#page.state(vcpu) === IoreqState.Processing) this.#page.setState(vcpu, IoreqState.Complete);
    }
  }

  waitForIoreqs(serve: () => void, goesOn?: () => boolean): WaitResult | Promise<WaitResult> {
    this.#life.need('ATTACH_IOREQ_CLIENT');
    if (this.#router.isUnattended) return 'closed';
    // As the driver: at once while a request of the client is not notified.
    if (this.#hasPending()) return 'pending';
    this.#serve = serve;
    const wait = this.#engine.run(goesOn);
    if (wait !== undefined) return wait.then(() => this.#afterRun());
    return this.#afterRun();
  }

  pollIoreqs(): void {
    if (!this.#router.isUnattended) this.#engine.poll?.();
  }

  interruptWait(): void {
    this.#engine.interrupt();
  }

  notifyIoreqDone(vcpu: number): void {
    this.#life.need('NOTIFY_REQUEST_FINISH');
    const slot = vcpu & 0xffff; // the driver's vCPU number is 16 bits wide
    if (slot >= this.#life.vcpuCount) throw new HsmError('NOTIFY_REQUEST_FINISH', E.EINVAL, { what: `vCPU ${vcpu}` });
    if (!this.#router.isUnattended) this.#page.setState(slot, IoreqState.Complete);
  }

  // ---- devices

  createVdev(vdev: HvVdev): void {
    this.#life.need('CREATE_VDEV');
    const what = describeVdev(vdev);
    if (this.#life.state !== 'created') {
      throw new HsmError('CREATE_VDEV', E.EINVAL, { what, hint: `the VM is ${this.#life.state}, not created` });
    }
    // Compat: ACRN does not look for a duplicate and keeps both, of which the guest finds one.
    if (this.#router.functionAt(vdev.bdf) !== undefined) {
      throw new HsmError('CREATE_VDEV', E.EINVAL, { what, hint: 'the hypervisor has a device there already' });
    }
    const fn = this.#vdevFactory(vdev, this.#host);
    if (fn === undefined) throw new HsmError('CREATE_VDEV', E.EINVAL, { what });
    this.#router.addFunction(fn);
  }

  destroyVdev(vdev: HvVdev): void {
    this.#life.need('DESTROY_VDEV');
    const fn = this.#router.functionAt(vdev.bdf);
    if (fn === undefined || this.#life.state === 'running') {
      throw new HsmError('DESTROY_VDEV', E.EINVAL, { what: describeVdev(vdev) });
    }
    this.#router.removeFunction(fn);
  }

  ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    this.#life.need('IOEVENTFD');
    this.#eventfdTable.ioeventfd(spec, assign);
  }

  irqfd(fd: number, message: MsiMessage, assign: boolean): void {
    this.#life.need('IRQFD');
    this.#eventfdTable.irqfd(fd, message, assign);
  }

  getCpuState(_query: CpuStateQuery): Uint8Array | undefined {
    this.#life.need('PM_GET_CPU_STATE');
    return undefined; // no P-states and no C-states below an embedded hypervisor
  }

  close(): void {
    if (!this.#life.close()) return;
    // As the last close of the device node: the VM goes, in whatever state it is.
    if (this.#life.state !== 'none') this.#teardown();
    this.#hostFunctions?.dispose();
    this.#engine.destroy();
  }

  // ---- the guest's side

  /** From a vdev or an irqfd: a bad address is the guest's fault, and dropped. */
  #signalMsi(message: MsiMessage): void {
    if (this.#life.state === 'none') return;
    if (isMsiAddress(message.address)) this.#engine.injectMsi(message);
    else this.#log.guest(() => `MSI to ${hex(message.address)}, which is no interrupt address: dropped`);
  }

  /**
   * As ACRN (triple_fault_shutdown_vm): tell the device model by an event, and power the VM off in the guest's name, by
   * a write of S5 to its PM1a control register.
   */
  #tripleFault(vcpu: number): void {
    this.#log.rationed('error', () => `triple fault on vCPU ${vcpu}: ${this.#engine.describeVcpu(vcpu)}`);
    this.#eventRing.put(VmEventType.TripleFault);
    this.#onTripleFault?.();
    this.#page.fillPortIo(vcpu, true, Pm1aControl.port, 2, Pm1aControl.sleepS5);
    // Past the ports of functions: a guest can put those of a BAR here.
    if (!this.#router.submitToClient(vcpu)) this.#serve?.();
    this.#router.retire(vcpu);
  }

  #afterRun(): WaitResult {
    if (this.#router.isUnattended) return 'closed';
    return this.#hasPending() ? 'pending' : 'idle';
  }

  #hasPending(): boolean {
    for (let vcpu = 0; vcpu < this.#life.vcpuCount; vcpu++) {
      if (this.#page.isPending(vcpu)) return true;
    }
    return false;
  }

  #teardown(): void {
    this.#engine.stop();
    this.#router.isUnattended = true;
    this.#eventfdTable.clear();
    this.#router.removeAllFunctions();
    // Before memory is anybody else's: devices may write to it until then.
    this.#hostFunctions?.dispose();
    for (const { windows } of this.#memory) for (const window of windows) window.dispose();
    this.#eventRing.detach();
    this.#memory.length = 0;
    this.#engine.wake();
    this.#engine.destroy();
    this.#life.end();
  }
}

function describeVdev(vdev: HvVdev): string {
  const at = `at ${formatBdf(vdev.bdf)}`;
  switch (vdev.type) {
    case 'ivshmem':
      return `ivshmem ${vdev.regionName} (${vdev.sizeBytes} bytes) ${at}`;
    case 'vuart':
      return `vUART ${vdev.vuartIndex} ${at}`;
    case 'root-port':
      return `root port to bus ${vdev.secondaryBus} ${at}`;
  }
}
