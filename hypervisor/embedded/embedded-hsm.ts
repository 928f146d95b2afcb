/**
 * The embedded hypervisor, without its CPU: what ACRN's hypervisor and the HSM driver do below the Hsm interface. VM
 * states and errnos are those of the real driver and hypervisor, so that the device model cannot tell the difference:
 * Linux drivers/virt/acrn/, ACRN hypervisor/common/hypercall.c.
 */
import { constants } from 'node:os';
import {
  type AccessSize,
  allOnes,
  bdfToNumber,
  formatBdf,
  type Gpa,
  type Gsi,
  hex,
} from '../../devicemodel/core/address.ts';
import type { IoRegion, MsiMessage } from '../../devicemodel/core/device.ts';
import { viewOf } from '../../devicemodel/core/host/libc.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type {
  CpuStateQuery,
  EngineRam,
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
import { IOREQ_PAGE_BYTES, IOREQ_SLOTS, IoreqPage, IoreqState, IoreqType } from '../../devicemodel/core/ioreq-page.ts';
import { Layout } from '../../devicemodel/core/layout.ts';
import { type Log, silentLog } from '../../devicemodel/core/log.ts';
import type { CpuEngine, GuestBus, MemoryWindow } from './cpu-engine.ts';
import { EventRing, VmEventType } from './event-ring.ts';
import type { EventfdHost } from './eventfd-host.ts';
import type { VirtualFunction, VirtualFunctionFactory, VirtualFunctionHost } from './virtual-function.ts';

const E = constants.errno;

/** Life of a VM in the hypervisor; `none` before CREATE_VM and after DESTROY_VM. */
export type VmState = 'none' | 'created' | 'running' | 'paused';

/** GSIs of a User VM's virtual IOAPIC [VIOAPIC_RTE_NUM]. */
const VM_GSI_COUNT = 48;
/** RAM segments the driver keeps per VM [ACRN_MEM_MAPPING_MAX]. */
const MAX_MEMORY_SEGMENTS = 256;
const PAGE_BYTES = 4096;
/** Bytes of a VM name, without the terminator. */
const MAX_NAME_BYTES = 15;

/** PCI configuration mechanism 1. */
const ConfigPort = { Address: 0xcf8, Data: 0xcfc, End: 0xd00 } as const;
const CONFIG_ENABLE = 0x8000_0000;
/** PM1a control of every User VM [VIRTUAL_PM1A_CNT_ADDR]: SLP_EN and sleep type 5. */
const Pm1aControl = { port: 0x404, sleepS5: 0x2000 | (5 << 10) } as const;

interface Ioeventfd extends IoeventfdSpec {
  readonly match: bigint | undefined;
}

interface RegisterRange {
  readonly base: Gpa;
  readonly end: Gpa;
  readonly region: IoRegion;
}

export interface EmbeddedHsmOptions {
  readonly engine: CpuEngine;
  readonly vdevs: VirtualFunctionFactory;
  readonly eventfds: EventfdHost;
  /** Number of this VM among the User VMs of the host; released by the returned function. */
  readonly claimVmid?: (name: string) => Promise<{ readonly vmid: number; release(): void }>;
  readonly log?: Log;
  /** The guest shut down by a triple fault; it stands still. */
  readonly onTripleFault?: () => void;
}

export class EmbeddedHsm implements Hsm {
  readonly ioreqPage: Uint8Array = new Uint8Array(IOREQ_PAGE_BYTES);
  readonly engineRam?: EngineRam;
  readonly vmEvents: VmEventAbility;
  readonly ownRootPorts = true;

  readonly #engine: CpuEngine;
  readonly #vdevFactory: VirtualFunctionFactory;
  readonly #eventfds: EventfdHost;
  readonly #claimVmid: NonNullable<EmbeddedHsmOptions['claimVmid']>;
  readonly #log: Log;
  readonly #onTripleFault: (() => void) | undefined;
  readonly #eventRing: EventRing;
  readonly #page = new IoreqPage(this.ioreqPage);

  #state: VmState = 'none';
  /** One VM per handle, as one VM per open file. */
  #used = false;
  #closed = false;
  #vmid = 0;
  #vcpuCount = 0;
  #releaseVmid: (() => void) | undefined;
  #hasClient = false;
  #serve: (() => void) | undefined;
  #configAddress = 0;
  readonly #memory: Array<{ readonly mapping: RamMapping; readonly window: MemoryWindow }> = [];
  /** By BDF as a number; the hypervisor's own functions. */
  readonly #functions = new Map<number, VirtualFunction>();
  #registers: RegisterRange[] = [];
  #ioeventfds: Ioeventfd[] = [];
  readonly #irqfds = new Map<number, { dispose(): void }>();
  readonly #host: VirtualFunctionHost;

  constructor(options: EmbeddedHsmOptions) {
    this.#engine = options.engine;
    this.#vdevFactory = options.vdevs;
    this.#eventfds = options.eventfds;
    this.#claimVmid = options.claimVmid ?? (async () => ({ vmid: 1, release: () => {} }));
    this.#log = options.log ?? silentLog;
    this.#onTripleFault = options.onTripleFault;
    this.#eventRing = new EventRing((fd) => this.#eventfds.signal(fd));
    this.vmEvents = {
      setup: (ringAddress, eventfd) => {
        this.#needVm('SETUP_VM_EVENT_RING');
        this.#eventRing.attach(viewOf(ringAddress, PAGE_BYTES), eventfd);
        return true;
      },
    };
    if (options.engine.ram !== undefined) this.engineRam = options.engine.ram;
    const hsm = this;
    this.#host = {
      get vmid() {
        return hsm.#vmid;
      },
      log: this.#log,
      signal: (message) => this.#signalMsi(message),
      addRegisters: (base, sizeBytes, region) => this.#addRegisters(base, sizeBytes, region),
      addMemory: (base, bytes, hostAddress) => this.#engine.mapMemory(base, bytes, hostAddress, true),
    };
  }

  get backend(): HsmBackend {
    return this.#engine.backend;
  }

  /** Where the VM is in its life. */
  get vmState(): VmState {
    return this.#state;
  }

  // ---- VM life

  /** @throws HsmError EINVAL: a second VM on this handle, or a name that is empty or longer than 15 bytes. */
  async createVm(spec: VmSpec): Promise<{ readonly vmid: number; readonly vcpuCount: number }> {
    const what = `"${spec.name}"`;
    const nameBytes = new TextEncoder().encode(spec.name).length;
    if (this.#used || this.#closed) {
      throw new HsmError('CREATE_VM', E.EINVAL, { what, hint: 'open the hypervisor again for another VM' });
    }
    if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES) {
      throw new HsmError('CREATE_VM', E.EINVAL, { what, hint: `a VM name has 1 to ${MAX_NAME_BYTES} bytes` });
    }
    this.#used = true;
    const claim = await this.#claimVmid(spec.name);
    try {
      const bus: GuestBus = {
        page: this.#page,
        submit: (vcpu) => this.#submit(vcpu),
        serve: () => this.#serve?.(),
        retire: (vcpu) => this.#retire(vcpu),
        tripleFault: (vcpu) => this.#tripleFault(vcpu),
      };
      this.#vcpuCount = Math.min(await this.#engine.create(bus, spec.cpuAffinity), IOREQ_SLOTS);
    } catch (error) {
      claim.release();
      throw error;
    }
    this.#releaseVmid = () => claim.release();
    this.#vmid = claim.vmid;
    for (let vcpu = 0; vcpu < IOREQ_SLOTS; vcpu++) this.#page.setState(vcpu, IoreqState.Free);
    this.#state = 'created';
    return { vmid: this.#vmid, vcpuCount: this.#vcpuCount };
  }

  startVm(): void {
    this.#needVm('START_VM');
    if (this.#state !== 'created') throw new HsmError('START_VM', E.EPERM);
    this.#state = 'running';
    this.#engine.start();
    this.#engine.wake();
  }

  pauseVm(): void {
    this.#needVm('PAUSE_VM');
    this.#engine.stop();
    this.#state = 'paused';
    this.#engine.wake();
  }

  /** Back to CREATED; RAM, vdevs and eventfds stay. */
  resetVm(): void {
    this.#needVm('RESET_VM');
    if (this.#state !== 'paused') throw new HsmError('RESET_VM', E.EPERM);
    this.#engine.reset();
    this.#configAddress = 0;
    for (let vcpu = 0; vcpu < IOREQ_SLOTS; vcpu++) this.#page.setState(vcpu, IoreqState.Free);
    this.#state = 'created';
  }

  destroyVm(): void {
    this.#needVm('DESTROY_VM');
    if (this.#state !== 'paused') throw new HsmError('DESTROY_VM', E.EPERM);
    this.#teardown();
  }

  setVcpuRegs(vcpu: number, regs: VcpuRegs): void {
    this.#needVm('SET_VCPU_REGS');
    const what = `vCPU ${vcpu}`;
    if (this.#state === 'running' || vcpu < 0 || vcpu >= this.#vcpuCount) {
      throw new HsmError('SET_VCPU_REGS', E.EPERM, { what });
    }
    this.#engine.setRegs(vcpu, regs);
  }

  // ---- memory and interrupts

  mapRam(mapping: RamMapping): void {
    this.#needVm('SET_MEMSEG');
    const what = `${hex(mapping.gpa)}+${hex(mapping.sizeBytes)}`;
    if (mapping.sizeBytes < PAGE_BYTES) throw new HsmError('SET_MEMSEG', E.EINVAL, { what });
    if (mapping.bytes.length < mapping.sizeBytes) throw new HsmError('SET_MEMSEG', E.EFAULT, { what });
    if (this.#memory.length >= MAX_MEMORY_SEGMENTS) throw new HsmError('SET_MEMSEG', E.ENOMEM, { what });
    const bytes = mapping.bytes.subarray(0, mapping.sizeBytes);
    const window = this.#engine.mapMemory(mapping.gpa, bytes, mapping.hostAddress, mapping.writable);
    this.#memory.push({ mapping, window });
  }

  /** @throws HsmError EINVAL for what is not mapped. */
  unmapRam(mapping: RamMapping): void {
    this.#needVm('UNSET_MEMSEG');
    const at = this.#memory.findIndex(
      (m) => m.mapping.gpa === mapping.gpa && m.mapping.sizeBytes === mapping.sizeBytes,
    );
    if (at < 0) {
      throw new HsmError('UNSET_MEMSEG', E.EINVAL, { what: `${hex(mapping.gpa)}+${hex(mapping.sizeBytes)}` });
    }
    for (const { window } of this.#memory.splice(at, 1)) window.dispose();
  }

  setIrqLine(gsi: Gsi, op: IrqLineOp): void {
    this.#needVm('SET_IRQLINE');
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
    this.#needVm('INJECT_MSI');
    if (!isMsiAddress(message.address)) {
      throw new HsmError('INJECT_MSI', E.EPERM, { what: `address ${hex(message.address)}` });
    }
    this.#engine.injectMsi(message);
  }

  // ---- I/O requests

  createIoreqClient(): void {
    this.#needVm('CREATE_IOREQ_CLIENT');
    if (this.#hasClient) throw new HsmError('CREATE_IOREQ_CLIENT', E.EEXIST);
    this.#hasClient = true;
  }

  destroyIoreqClient(): void {
    this.#needVm('DESTROY_IOREQ_CLIENT');
    this.#hasClient = false;
    this.#engine.wake();
  }

  clearIoreqs(): void {
    this.#needVm('CLEAR_VM_IOREQ');
    for (let vcpu = 0; vcpu < this.#vcpuCount; vcpu++) {
      if (this.#page.state(vcpu) === IoreqState.Processing) this.#page.setState(vcpu, IoreqState.Complete);
    }
  }

  waitForIoreqs(serve: () => void): WaitResult | Promise<WaitResult> {
    this.#needVm('ATTACH_IOREQ_CLIENT');
    if (!this.#hasClient) return 'closed';
    // As the driver: at once while a request of the client is not notified.
    if (this.#hasPending()) return 'pending';
    this.#serve = serve;
    const wait = this.#engine.run();
    if (wait !== undefined) return wait.then(() => this.#afterRun());
    return this.#afterRun();
  }

  notifyIoreqDone(vcpu: number): void {
    this.#needVm('NOTIFY_REQUEST_FINISH');
    const slot = vcpu & 0xffff; // the driver's vCPU number is 16 bits wide
    if (slot >= this.#vcpuCount) throw new HsmError('NOTIFY_REQUEST_FINISH', E.EINVAL, { what: `vCPU ${vcpu}` });
    if (this.#hasClient) this.#page.setState(slot, IoreqState.Complete);
  }

  // ---- devices

  createVdev(vdev: HvVdev): void {
    this.#needVm('CREATE_VDEV');
    const what = describeVdev(vdev);
    if (this.#state !== 'created') {
      throw new HsmError('CREATE_VDEV', E.EINVAL, { what, hint: `the VM is ${this.#state}, not created` });
    }
    const key = bdfToNumber(vdev.bdf);
    // Compat: ACRN does not look for a duplicate and keeps both, of which the guest finds one.
    if (this.#functions.has(key)) {
      throw new HsmError('CREATE_VDEV', E.EINVAL, { what, hint: 'the hypervisor has a device there already' });
    }
    const fn = this.#vdevFactory(vdev, this.#host);
    if (fn === undefined) throw new HsmError('CREATE_VDEV', E.EINVAL, { what });
    this.#functions.set(key, fn);
  }

  destroyVdev(vdev: HvVdev): void {
    this.#needVm('DESTROY_VDEV');
    const key = bdfToNumber(vdev.bdf);
    const fn = this.#functions.get(key);
    if (fn === undefined || this.#state === 'running') {
      throw new HsmError('DESTROY_VDEV', E.EINVAL, { what: describeVdev(vdev) });
    }
    this.#functions.delete(key);
    fn.dispose();
  }

  ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    this.#needVm('IOEVENTFD');
    const what = `${spec.space} ${hex(spec.address)}+${spec.sizeBytes}`;
    const bad = this.#eventfds.check(spec.fd);
    if (bad !== 0) throw new HsmError('IOEVENTFD', bad, { what });
    if (!assign) {
      // By descriptor alone, the first one; an unknown one is no error.
      const at = this.#ioeventfds.findIndex((e) => e.fd === spec.fd);
      if (at >= 0) this.#ioeventfds.splice(at, 1);
      return;
    }
    if (![1, 2, 4, 8].includes(spec.sizeBytes) || !Number.isSafeInteger(spec.address + spec.sizeBytes)) {
      throw new HsmError('IOEVENTFD', E.EINVAL, { what });
    }
    const same = (e: Ioeventfd) =>
      e.fd === spec.fd &&
      e.space === spec.space &&
      e.address === spec.address &&
      (e.match === undefined || spec.dataMatch === undefined || e.match === spec.dataMatch);
    if (this.#ioeventfds.some(same)) throw new HsmError('IOEVENTFD', E.EEXIST, { what });
    this.#ioeventfds.push({ ...spec, match: spec.dataMatch });
  }

  irqfd(fd: number, message: MsiMessage, assign: boolean): void {
    this.#needVm('IRQFD');
    const bad = this.#eventfds.check(fd);
    if (bad !== 0) throw new HsmError('IRQFD', bad, { what: `fd ${fd}` });
    const present = this.#irqfds.get(fd);
    if (!assign) {
      present?.dispose();
      this.#irqfds.delete(fd);
      return;
    }
    if (present !== undefined) throw new HsmError('IRQFD', E.EBUSY, { what: `fd ${fd}` });
    this.#irqfds.set(
      fd,
      this.#eventfds.watch(fd, () => this.#signalMsi(message)),
    );
  }

  getCpuState(_query: CpuStateQuery): Uint8Array | undefined {
    this.#needVm('PM_GET_CPU_STATE');
    return undefined; // no P-states and no C-states below an embedded hypervisor
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // As the last close of the device node: the VM goes, in whatever state it is.
    if (this.#state !== 'none') this.#teardown();
    this.#engine.destroy();
  }

  // ---- the guest's side

  #submit(vcpu: number): boolean {
    const page = this.#page;
    const type = page.type(vcpu);
    if (type === IoreqType.PortIo) {
      const port = page.address(vcpu);
      if (port >= ConfigPort.Address && port < ConfigPort.End) {
        if (port >= ConfigPort.Data) return this.#configData(vcpu, port);
        if (port === ConfigPort.Address) {
          if (page.isWrite(vcpu)) this.#configAddress = page.value(vcpu);
          else page.setValue(vcpu, this.#configAddress);
          return this.#completed(vcpu);
        }
      }
      if (this.#ioeventfds.length > 0 && this.#ioeventfdHit(vcpu, 'pio')) return this.#completed(vcpu);
    } else if (type === IoreqType.Mmio) {
      const address = page.address(vcpu);
      if (address >= Layout.ecam.base && address < Layout.ecam.base + Layout.ecam.size) {
        if (this.#ecam(vcpu, address)) return this.#completed(vcpu);
      } else if (this.#registers.length > 0 && this.#registerAccess(vcpu, address)) {
        return this.#completed(vcpu);
      }
      if (this.#ioeventfds.length > 0 && this.#ioeventfdHit(vcpu, 'mmio')) return this.#completed(vcpu);
    }
    if (!this.#hasClient) return this.#completed(vcpu); // as the driver: completed, whatever is in it
    page.setState(vcpu, IoreqState.Processing);
    return false;
  }

  #completed(vcpu: number): true {
    this.#page.setKernelHandled(vcpu, true);
    this.#page.setState(vcpu, IoreqState.Complete);
    return true;
  }

  #retire(vcpu: number): boolean {
    if (this.#page.state(vcpu) !== IoreqState.Complete) return false;
    this.#page.setState(vcpu, IoreqState.Free);
    return true;
  }

  /** Ports CFC..CFF: the hypervisor's own functions answer here, the others become a config request. */
  #configData(vcpu: number, port: number): boolean {
    const page = this.#page;
    const address = this.#configAddress;
    const size = page.size(vcpu) as AccessSize;
    if ((address & CONFIG_ENABLE) === 0) {
      if (!page.isWrite(vcpu)) page.setValue(vcpu, allOnes(size));
      return this.#completed(vcpu);
    }
    // PCI 3.0 §3.2.2.3.2; bits 27:24 are the extended register number, as the driver takes them.
    const bdf = (address >>> 8) & 0xffff;
    const register = (address & 0xfc) + ((address >>> 16) & 0xf00) + (port - ConfigPort.Data);
    const fn = this.#functions.get(bdf);
    if (fn !== undefined) {
      this.#configAccess(fn, vcpu, register, size);
      return this.#completed(vcpu);
    }
    page.fillPciConfig(vcpu, page.isWrite(vcpu), bdf, register, size, page.value(vcpu));
    if (!this.#hasClient) return this.#completed(vcpu);
    page.setState(vcpu, IoreqState.Processing);
    return false;
  }

  /** @returns false for a function that is not the hypervisor's: the device model answers for it. */
  #ecam(vcpu: number, address: Gpa): boolean {
    const fn = this.#functions.get(((address - Layout.ecam.base) >>> 12) & 0xffff);
    if (fn === undefined) return false;
    const size = this.#page.size(vcpu);
    if (size === 8) {
      if (!this.#page.isWrite(vcpu)) this.#page.setValueU64(vcpu, 0xffff_ffffn);
    } else {
      this.#configAccess(fn, vcpu, address & 0xfff, size as AccessSize);
    }
    return true;
  }

  #configAccess(fn: VirtualFunction, vcpu: number, register: number, size: AccessSize): void {
    const page = this.#page;
    const isAligned = register % size === 0;
    if (page.isWrite(vcpu)) {
      if (isAligned) fn.writeConfig(register, size, cut(page.value(vcpu), size));
    } else {
      page.setValue(vcpu, isAligned ? fn.readConfig(register, size) : allOnes(size));
    }
  }

  #addRegisters(base: Gpa, sizeBytes: number, region: IoRegion): { dispose(): void } {
    const range: RegisterRange = { base, end: base + sizeBytes, region };
    this.#registers = [range, ...this.#registers];
    return {
      dispose: () => {
        this.#registers = this.#registers.filter((r) => r !== range);
      },
    };
  }

  #registerAccess(vcpu: number, address: Gpa): boolean {
    for (const range of this.#registers) {
      if (address < range.base || address >= range.end) continue;
      const page = this.#page;
      const offset = address - range.base;
      const size = page.size(vcpu);
      const { region } = range;
      if (size === 8) {
        if (page.isWrite(vcpu)) {
          region.write(offset, 4, page.value(vcpu));
          region.write(offset + 4, 4, Number(page.valueU64(vcpu) >> 32n));
        } else {
          const low = region.read(offset, 4);
          page.setValueU64(vcpu, BigInt(low) | (BigInt(region.read(offset + 4, 4)) << 32n));
        }
      } else if (page.isWrite(vcpu)) {
        region.write(offset, size as AccessSize, cut(page.value(vcpu), size));
      } else {
        page.setValue(vcpu, region.read(offset, size as AccessSize));
      }
      return true;
    }
    return false;
  }

  /** A write that matches rings its eventfd; a read of the range answers 0. */
  #ioeventfdHit(vcpu: number, space: 'pio' | 'mmio'): boolean {
    const page = this.#page;
    const address = page.address(vcpu);
    for (const entry of this.#ioeventfds) {
      if (entry.space !== space || entry.address !== address || page.size(vcpu) < entry.sizeBytes) continue;
      if (!page.isWrite(vcpu)) {
        if (space === 'mmio') page.setValueU64(vcpu, 0n);
        else page.setValue(vcpu, 0);
        return true;
      }
      if (entry.match !== undefined) {
        const value = space === 'mmio' ? page.valueU64(vcpu) : BigInt(page.value(vcpu));
        if (BigInt.asUintN(8 * entry.sizeBytes, value) !== BigInt.asUintN(8 * entry.sizeBytes, entry.match)) continue;
      }
      this.#eventfds.signal(entry.fd);
      return true;
    }
    return false;
  }

  /** From a vdev or an irqfd: a bad address is the guest's fault, and dropped. */
  #signalMsi(message: MsiMessage): void {
    if (this.#state === 'none') return;
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
    if (!this.#submit(vcpu)) this.#serve?.();
    this.#retire(vcpu);
  }

  #afterRun(): WaitResult {
    if (!this.#hasClient) return 'closed';
    return this.#hasPending() ? 'pending' : 'idle';
  }

  #hasPending(): boolean {
    for (let vcpu = 0; vcpu < this.#vcpuCount; vcpu++) {
      if (this.#page.isPending(vcpu)) return true;
    }
    return false;
  }

  #needVm(ioctl: string): void {
    if (this.#state === 'none') {
      throw new HsmError(ioctl, E.EINVAL, { hint: 'there is no VM: not created yet, or destroyed' });
    }
  }

  #teardown(): void {
    this.#engine.stop();
    this.#hasClient = false;
    for (const watch of this.#irqfds.values()) watch.dispose();
    this.#irqfds.clear();
    this.#ioeventfds = [];
    for (const fn of this.#functions.values()) fn.dispose();
    this.#functions.clear();
    for (const { window } of this.#memory) window.dispose();
    this.#eventRing.detach();
    this.#memory.length = 0;
    this.#state = 'none';
    this.#engine.wake();
    this.#engine.destroy();
    this.#releaseVmid?.();
    this.#releaseVmid = undefined;
  }
}

/** Interrupt messages go to FEExxxxx (Intel SDM vol. 3, 11.11.1). */
function isMsiAddress(address: Gpa): boolean {
  return address >= 0xfee0_0000 && address < 0xfef0_0000;
}

function cut(value: number, size: number): number {
  return size === 4 ? value : value & (size === 2 ? 0xffff : 0xff);
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
