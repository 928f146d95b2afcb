/**
 * A hypervisor for unit tests: the embedded hypervisor's own state machine (so the errno rules are written once) with
 * a scripted guest in place of a CPU.
 *
 *   const hsm = new FakeHsm();                       // or { vcpuCount: 2, serving: 'from-page' }
 *   hsm.fail('createVdev', 1, constants.errno.EINVAL);   // the first call from now on throws HsmError
 *   const value = hsm.guest.inb(0x3f8);              // queued; a promise of what the guest reads
 *   hsm.waitForIoreqs(serve);                        // the loop under test
 *   expect(hsm.calls.map((c) => c.method)).toEqual([...]);
 */
import { constants } from 'node:os';
import type { AccessSize, Bdf, Gpa, Gsi, Port } from '../../devicemodel/core/address.ts';
import { bdfToNumber } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import { encodeMmiodev, encodePioRegion } from '../../devicemodel/core/hsm/host-regions.ts';
import {
  type CpuStateQuery,
  type HostFunctionAbility,
  type Hsm,
  type IoeventfdSpec,
  type IrqLineOp,
  NON_PCI_BDF,
  type PassthroughAbility,
  type PcidevAssignment,
  type RamMapping,
  type VcpuRegs,
  type VmSpec,
  type WaitResult,
} from '../../devicemodel/core/hsm/hsm.ts';
import { encodePcidev, encodePtdevIntx } from '../../devicemodel/core/hsm/ptdev.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { IoreqState } from '../../devicemodel/core/ioreq-page.ts';
import type { CpuEngine, GuestBus, MemoryWindow } from '../../hypervisor/embedded/cpu-engine.ts';
import { EmbeddedHsm } from '../../hypervisor/embedded/embedded-hsm.ts';
import type { EventfdHost } from '../../hypervisor/embedded/eventfd-host.ts';
import { hostEventfds } from '../../hypervisor/embedded/host-eventfds.ts';
import type { VirtualFunction, VirtualFunctionFactory } from '../../hypervisor/embedded/virtual-function.ts';

/** The methods of an Hsm and of its passthrough ability: what can be recorded and made to fail. */
export type HsmMethod =
  | Exclude<
      { [K in keyof Hsm]-?: NonNullable<Hsm[K]> extends (...args: never[]) => unknown ? K : never }[keyof Hsm],
      undefined
    >
  | keyof PassthroughAbility;

/** What an HsmError of each method is called. */
const IOCTL: { readonly [K in HsmMethod]: string } = {
  createVm: 'CREATE_VM',
  startVm: 'START_VM',
  pauseVm: 'PAUSE_VM',
  resetVm: 'RESET_VM',
  destroyVm: 'DESTROY_VM',
  setVcpuRegs: 'SET_VCPU_REGS',
  mapRam: 'SET_MEMSEG',
  unmapRam: 'UNSET_MEMSEG',
  setIrqLine: 'SET_IRQLINE',
  injectMsi: 'INJECT_MSI',
  createIoreqClient: 'CREATE_IOREQ_CLIENT',
  destroyIoreqClient: 'DESTROY_IOREQ_CLIENT',
  clearIoreqs: 'CLEAR_VM_IOREQ',
  waitForIoreqs: 'ATTACH_IOREQ_CLIENT',
  pollIoreqs: 'a look',
  describeVcpus: 'a look at registers',
  interruptWait: 'a kick',
  notifyIoreqDone: 'NOTIFY_REQUEST_FINISH',
  createVdev: 'CREATE_VDEV',
  destroyVdev: 'DESTROY_VDEV',
  assignPcidev: 'ASSIGN_PCIDEV',
  deassignPcidev: 'DEASSIGN_PCIDEV',
  assignMmiodev: 'ASSIGN_MMIODEV',
  deassignMmiodev: 'DEASSIGN_MMIODEV',
  assignPioRegion: 'ASSIGN_PIO_REGION',
  deassignPioRegion: 'DEASSIGN_PIO_REGION',
  setPtdevIntx: 'SET_PTDEV_INTR',
  resetPtdevIntx: 'RESET_PTDEV_INTR',
  mapMmio: 'SET_MEMSEG',
  unmapMmio: 'UNSET_MEMSEG',
  ioeventfd: 'IOEVENTFD',
  irqfd: 'IRQFD',
  getCpuState: 'PM_GET_CPU_STATE',
  close: 'close',
};

export interface HsmCall {
  readonly method: HsmMethod;
  readonly args: readonly unknown[];
}

type PendingAccess = {
  readonly vcpu: number;
  readonly fill: (bus: GuestBus, vcpu: number) => void;
  readonly wide: boolean;
  readonly resolve: (value: bigint) => void;
  posted: boolean;
};

/** Accesses of a guest, queued; each resolves with what it read (writes: with anything) once it was answered. */
export class FakeGuest {
  readonly #post: (access: PendingAccess) => void;

  constructor(post: (access: PendingAccess) => void) {
    this.#post = post;
  }

  pioRead(port: Port, size: AccessSize, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillPortIo(v, false, port, size, 0));
  }
  pioWrite(port: Port, size: AccessSize, value: number, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillPortIo(v, true, port, size, value));
  }
  mmioRead(address: Gpa, size: AccessSize, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillMmio(v, false, address, size, 0));
  }
  mmioWrite(address: Gpa, size: AccessSize, value: number, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillMmio(v, true, address, size, value));
  }
  mmioReadU64(address: Gpa, vcpu = 0): Promise<bigint> {
    return this.#wide(vcpu, (bus, v) => bus.page.fillMmio(v, false, address, 8, 0));
  }
  mmioWriteU64(address: Gpa, value: bigint, vcpu = 0): Promise<bigint> {
    return this.#wide(vcpu, (bus, v) => {
      bus.page.fillMmio(v, true, address, 8, 0);
      bus.page.setValueU64(v, value);
    });
  }
  /** A config request as the driver makes it of CF8/CFC. */
  pciRead(bdf: Bdf, register: number, size: AccessSize, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillPciConfig(v, false, bdfToNumber(bdf), register, size, 0));
  }
  pciWrite(bdf: Bdf, register: number, size: AccessSize, value: number, vcpu = 0): Promise<number> {
    return this.#access(vcpu, (bus, v) => bus.page.fillPciConfig(v, true, bdfToNumber(bdf), register, size, value));
  }
  /** Any request, well formed or not: `fill` writes the slot. */
  raw(fill: (bus: GuestBus, vcpu: number) => void, vcpu = 0): Promise<number> {
    return this.#access(vcpu, fill);
  }

  inb(port: Port): Promise<number> {
    return this.pioRead(port, 1);
  }
  outb(port: Port, value: number): Promise<number> {
    return this.pioWrite(port, 1, value);
  }

  #access(vcpu: number, fill: PendingAccess['fill']): Promise<number> {
    return new Promise((resolve) => {
      this.#post({ vcpu, fill, wide: false, posted: false, resolve: (value) => resolve(Number(value)) });
    });
  }
  #wide(vcpu: number, fill: PendingAccess['fill']): Promise<bigint> {
    return new Promise((resolve) => {
      this.#post({ vcpu, fill, wide: true, posted: false, resolve });
    });
  }
}

class FakeEngine implements CpuEngine {
  describeVcpu(): string {
    return 'fake';
  }

  readonly backend = 'fake';
  readonly gsiCount = 48;
  readonly vcpuCount: number;
  readonly inline: boolean;
  bus: GuestBus | undefined;
  running = false;
  isFaultDue = false;
  wakeWaiter: (() => void) | undefined;
  readonly queue: PendingAccess[] = [];
  readonly lines = new Map<Gsi, boolean>();
  readonly edges: Gsi[] = [];
  readonly msis: MsiMessage[] = [];
  readonly windows: Array<{ gpa: Gpa; bytes: Uint8Array }> = [];
  regs: VcpuRegs | undefined;

  constructor(vcpuCount: number, inline: boolean) {
    this.vcpuCount = vcpuCount;
    this.inline = inline;
  }

  async create(bus: GuestBus): Promise<number> {
    this.bus = bus;
    return this.vcpuCount;
  }
  setRegs(_vcpu: number, regs: VcpuRegs): void {
    this.regs = regs;
  }
  mapMemory(gpa: Gpa, bytes: Uint8Array): MemoryWindow {
    const window = { gpa, bytes };
    this.windows.push(window);
    return { dispose: () => void this.windows.splice(this.windows.indexOf(window), 1) };
  }
  start(): void {
    this.running = true;
  }
  stop(): void {
    this.running = false;
  }
  reset(): void {
    this.lines.clear();
    this.#dropPosted();
  }
  destroy(): void {
    this.running = false;
    this.#dropPosted();
  }
  setLine(gsi: Gsi, asserted: boolean): void {
    if (asserted && this.lines.get(gsi) !== true) this.edges.push(gsi);
    this.lines.set(gsi, asserted);
  }
  injectMsi(message: MsiMessage): void {
    this.msis.push({ ...message });
  }

  /** One access of each vCPU; from inside (as an engine on this thread) or left on the page (as the driver does). */
  run(): undefined | Promise<void> {
    if (this.running && this.isFaultDue) {
      this.isFaultDue = false;
      this.bus?.tripleFault(0);
      return undefined;
    }
    if (!this.running || this.queue.length === 0) {
      return new Promise((resolve) => {
        this.wakeWaiter = () => resolve(undefined);
      });
    }
    for (let vcpu = 0; vcpu < this.vcpuCount; vcpu++) {
      const isForDeviceModel = this.#postNext(vcpu);
      if (isForDeviceModel && this.inline) {
        this.bus?.serve();
        this.settle();
      }
      if (!this.running) break;
    }
    return undefined;
  }

  /** Guests of the driver do not ask whether anybody waits for them. */
  asked(): void {
    if (this.inline || !this.running) return;
    for (let vcpu = 0; vcpu < this.vcpuCount; vcpu++) this.#postNext(vcpu);
  }

  #postNext(vcpu: number): boolean {
    const access = this.queue.find((a) => a.vcpu === vcpu);
    return access !== undefined && !access.posted && this.#post(access);
  }

  wake(): void {
    const waiter = this.wakeWaiter;
    this.wakeWaiter = undefined;
    waiter?.();
  }

  interrupt(): void {
    this.wake();
  }

  /** Hand the answers of completed slots to the guest. */
  settle(): void {
    const { bus } = this;
    if (bus === undefined) return;
    for (const access of this.queue.filter((a) => a.posted)) {
      if (bus.retire(access.vcpu)) this.#finish(access);
    }
  }

  /** @returns whether the device model has to answer. */
  #post(access: PendingAccess): boolean {
    const { bus } = this;
    if (bus === undefined) return false;
    access.fill(bus, access.vcpu);
    access.posted = true;
    if (!bus.submit(access.vcpu)) return true;
    if (bus.retire(access.vcpu)) this.#finish(access);
    return false;
  }

  #finish(access: PendingAccess): void {
    this.queue.splice(this.queue.indexOf(access), 1);
    const page = this.bus?.page;
    if (page === undefined) return;
    access.resolve(access.wide ? page.valueU64(access.vcpu) : BigInt(page.value(access.vcpu)));
  }

  /** A vCPU that is reset never comes back to the access it was in. */
  #dropPosted(): void {
    for (const access of this.queue.filter((a) => a.posted)) this.queue.splice(this.queue.indexOf(access), 1);
  }
}

/** Eventfds without a kernel: any number below 1000 is one, unless the test closed it. */
export class FakeEventfds implements EventfdHost {
  readonly signals: number[] = [];
  readonly notEventfds = new Set<number>();
  readonly #watchers = new Map<number, () => void>();

  check(fd: number): number {
    if (fd < 0 || fd >= 1000) return constants.errno.EBADF;
    return this.notEventfds.has(fd) ? constants.errno.EINVAL : 0;
  }
  /** Recorded; a real one (of the vm event ring) is signalled as well. */
  signal(fd: number): void {
    this.signals.push(fd);
    if (hostEventfds.check(fd) === 0) hostEventfds.signal(fd);
  }
  watch(fd: number, onSignal: () => void): { dispose(): void } {
    this.#watchers.set(fd, onSignal);
    return { dispose: () => void this.#watchers.delete(fd) };
  }
  /** The device model writes the descriptor of an irqfd. */
  ring(fd: number): void {
    this.#watchers.get(fd)?.();
  }
  get watched(): readonly number[] {
    return [...this.#watchers.keys()];
  }
}

function isSameBdf(a: Bdf, b: Bdf): boolean {
  return bdfToNumber(a) === bdfToNumber(b);
}

/** A vdev that exists and answers config reads with its place, nothing more. */
const stubVdev: VirtualFunctionFactory = (vdev): VirtualFunction => ({
  bdf: vdev.bdf,
  readConfig: () => 0,
  writeConfig: () => {},
  dispose: () => {},
});

export interface FakeHsmOptions {
  readonly vcpuCount?: number;
  /**
   * `inside`: requests are served from inside waitForIoreqs, as the soft engine does. `from-page`: waitForIoreqs
   * returns 'pending' and the caller serves, as with the ACRN driver.
   */
  readonly serving?: 'inside' | 'from-page';
  /** Which vdevs exist; default all, as stubs. */
  readonly vdevs?: VirtualFunctionFactory;
  readonly onTripleFault?: () => void;
}

export class FakeHsm extends EmbeddedHsm {
  /** What the hypervisor has of the host's PCI functions, by physical address. */
  readonly assigned = new Map<number, PcidevAssignment>();
  override readonly givesHostFunctions = true;
  readonly passthrough: PassthroughAbility = this.#makePassthrough();
  override readonly hostFunctions: HostFunctionAbility = this.passthrough;
  /** Every call of the device model, failed ones too, in order; waitForIoreqs and notifyIoreqDone are left out. */
  readonly calls: HsmCall[] = [];
  readonly guest: FakeGuest;
  readonly eventfds: FakeEventfds;
  /** CREATE_VDEVs not destroyed. */
  readonly vdevs: HvVdev[] = [];
  /** How often the device model entered the wait, and notified. */
  waits = 0;
  notifies = 0;

  readonly #fakeEngine: FakeEngine;
  readonly #counts = new Map<HsmMethod, number>();
  readonly #failures: Array<{ method: HsmMethod; atCount: number; errno: number }> = [];

  constructor(options: FakeHsmOptions = {}) {
    const engine = new FakeEngine(options.vcpuCount ?? 1, (options.serving ?? 'inside') === 'inside');
    const eventfds = new FakeEventfds();
    super({
      engine,
      eventfds,
      vdevs: options.vdevs ?? stubVdev,
      ...(options.onTripleFault === undefined ? {} : { onTripleFault: options.onTripleFault }),
    });
    this.#fakeEngine = engine;
    this.eventfds = eventfds;
    this.guest = new FakeGuest((access) => {
      engine.queue.push(access);
      engine.asked();
      engine.wake();
    });
  }

  /** The `nth` call of `method` from now on (1 = the next) throws HsmError with `errno` and changes nothing. */
  fail(method: HsmMethod, nth: number, errno: number): void {
    this.#failures.push({ method, atCount: (this.#counts.get(method) ?? 0) + nth, errno });
  }

  /** Method names in call order. */
  get callNames(): readonly HsmMethod[] {
    return this.calls.map((c) => c.method);
  }

  // What the hypervisor has seen.
  /** GSIs in the order in which their lines went from low to high. */
  get edges(): readonly Gsi[] {
    return this.#fakeEngine.edges;
  }
  lineOf(gsi: Gsi): boolean {
    return this.#fakeEngine.lines.get(gsi) ?? false;
  }
  get msis(): readonly MsiMessage[] {
    return this.#fakeEngine.msis;
  }
  get ramWindows(): ReadonlyArray<{ readonly gpa: Gpa; readonly bytes: Uint8Array }> {
    return this.#fakeEngine.windows;
  }
  /** Of the last setVcpuRegs. */
  get vcpuRegs(): VcpuRegs | undefined {
    return this.#fakeEngine.regs;
  }
  /** Guest accesses that wait for an answer, or for their turn. */
  get outstanding(): number {
    return this.#fakeEngine.queue.length;
  }

  /** The guest's CPU shuts down in the next wait. */
  tripleFault(): void {
    this.#fakeEngine.isFaultDue = true;
    this.#fakeEngine.wake();
  }

  override async createVm(spec: VmSpec) {
    this.#enter('createVm', spec);
    return super.createVm(spec);
  }
  override startVm(): void {
    this.#enter('startVm');
    super.startVm();
  }
  override pauseVm(): void {
    this.#enter('pauseVm');
    super.pauseVm();
  }
  override resetVm(): void {
    this.#enter('resetVm');
    super.resetVm();
  }
  override destroyVm(): void {
    this.#enter('destroyVm');
    super.destroyVm();
    this.vdevs.length = 0;
  }
  override setVcpuRegs(vcpu: number, regs: VcpuRegs): void {
    this.#enter('setVcpuRegs', vcpu, regs);
    super.setVcpuRegs(vcpu, regs);
  }
  override mapRam(mapping: RamMapping): void {
    this.#enter('mapRam', mapping);
    super.mapRam(mapping);
  }
  override unmapRam(mapping: RamMapping): void {
    this.#enter('unmapRam', mapping);
    super.unmapRam(mapping);
  }
  override setIrqLine(gsi: Gsi, op: IrqLineOp): void {
    this.#enter('setIrqLine', gsi, op);
    super.setIrqLine(gsi, op);
  }
  override injectMsi(message: MsiMessage): void {
    this.#enter('injectMsi', message);
    super.injectMsi(message);
  }
  override createIoreqClient(): void {
    this.#enter('createIoreqClient');
    super.createIoreqClient();
  }
  override destroyIoreqClient(): void {
    this.#enter('destroyIoreqClient');
    super.destroyIoreqClient();
  }
  override clearIoreqs(): void {
    this.#enter('clearIoreqs');
    super.clearIoreqs();
  }
  override waitForIoreqs(serve: () => void): WaitResult | Promise<WaitResult> {
    this.waits++;
    this.#failIfAsked('waitForIoreqs');
    return super.waitForIoreqs(serve);
  }
  override notifyIoreqDone(vcpu: number): void {
    this.notifies++;
    this.#failIfAsked('notifyIoreqDone');
    super.notifyIoreqDone(vcpu);
    if (!this.#fakeEngine.inline) this.#fakeEngine.settle();
  }
  override createVdev(vdev: HvVdev): void {
    this.#enter('createVdev', vdev);
    super.createVdev(vdev);
    this.vdevs.push(vdev);
  }
  override destroyVdev(vdev: HvVdev): void {
    this.#enter('destroyVdev', vdev);
    super.destroyVdev(vdev);
    const key = bdfToNumber(vdev.bdf);
    const at = this.vdevs.findIndex((v) => bdfToNumber(v.bdf) === key);
    this.vdevs.splice(at, 1);
  }
  override ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    this.#enter('ioeventfd', spec, assign);
    super.ioeventfd(spec, assign);
  }
  override irqfd(fd: number, message: MsiMessage, assign: boolean): void {
    this.#enter('irqfd', fd, message, assign);
    super.irqfd(fd, message, assign);
  }
  override getCpuState(query: CpuStateQuery): Uint8Array | undefined {
    this.#enter('getCpuState', query);
    return super.getCpuState(query);
  }
  override close(): void {
    this.#enter('close');
    super.close();
    this.vdevs.length = 0;
  }

  /** States and errnos of hcall_assign_pcidev and its like. */
  #makePassthrough(): PassthroughAbility {
    const { EINVAL, ENODEV, EPERM } = constants.errno;
    const physical = (a: { readonly physicalBdf: Bdf }) => bdfToNumber(a.physicalBdf);
    const check = (method: HsmMethod, isRight: boolean, errno: number) => {
      if (!isRight) throw new HsmError(IOCTL[method], errno, { what: `(the VM is ${this.vmState})` });
    };
    const simple = (method: HsmMethod) => (argument: unknown) => this.#enter(method, argument);
    return {
      assignPcidev: (a) => {
        this.#enter('assignPcidev', a);
        encodePcidev(a);
        check('assignPcidev', this.vmState === 'created', EINVAL);
        check('assignPcidev', !this.assigned.has(physical(a)), ENODEV);
        this.assigned.set(physical(a), a);
      },
      deassignPcidev: (a) => {
        this.#enter('deassignPcidev', a);
        check('deassignPcidev', this.vmState === 'created' || this.vmState === 'paused', EINVAL);
        const held = this.assigned.get(physical(a));
        check('deassignPcidev', held !== undefined && isSameBdf(held.virtualBdf, a.virtualBdf), EINVAL);
        this.assigned.delete(physical(a));
      },
      setPtdevIntx: (i) => {
        this.#enter('setPtdevIntx', i);
        encodePtdevIntx(i);
        if (i.physicalBdf === NON_PCI_BDF) return;
        const held = this.assigned.get(physical(i));
        check('setPtdevIntx', held !== undefined && isSameBdf(held.virtualBdf, i.virtualBdf), EPERM);
      },
      resetPtdevIntx: simple('resetPtdevIntx'),
      assignMmiodev: (a) => {
        this.#enter('assignMmiodev', a);
        encodeMmiodev(a);
        check('assignMmiodev', this.vmState === 'created', EINVAL);
      },
      deassignMmiodev: (a) => {
        this.#enter('deassignMmiodev', a);
        encodeMmiodev(a);
        check('deassignMmiodev', this.vmState === 'created' || this.vmState === 'paused', EINVAL);
      },
      assignPioRegion: (r) => {
        this.#enter('assignPioRegion', r);
        encodePioRegion(r);
        check('assignPioRegion', this.vmState === 'created', EINVAL);
      },
      deassignPioRegion: simple('deassignPioRegion'),
      mapMmio: simple('mapMmio'),
      unmapMmio: simple('unmapMmio'),
    };
  }

  /** Whether the request page has a request that nobody answered. */
  get slotStates(): readonly number[] {
    const words = new Int32Array(this.ioreqPage.buffer);
    return Array.from({ length: this.#fakeEngine.vcpuCount }, (_, v) => words[v * 64 + 34] ?? IoreqState.Free);
  }

  #enter(method: HsmMethod, ...args: unknown[]): void {
    this.calls.push({ method, args });
    this.#failIfAsked(method);
  }

  #failIfAsked(method: HsmMethod): void {
    const count = (this.#counts.get(method) ?? 0) + 1;
    this.#counts.set(method, count);
    const at = this.#failures.findIndex((f) => f.method === method && f.atCount === count);
    if (at < 0) return;
    const errno = this.#failures[at]?.errno ?? 0;
    this.#failures.splice(at, 1);
    throw new HsmError(IOCTL[method], errno, { what: '(made to fail by the test)' });
  }
}
