/**
 * The engine on /dev/kvm: the CPU's own virtualization, local APICs, IOAPIC and PIC in the kernel; the timer chip is the
 * device model's, as with ACRN. Guest RAM is the host's, mapped as it is.
 *
 * Each vCPU is either in the guest, or its exit is being served: here, on the device thread, wherever the vCPU runs.
 */
import { type Gpa, type Gsi, hex } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { BugError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { hasGuardedMappings, mendAll } from '../../devicemodel/core/host/bus-faults.ts';
import { describeErrno, Errno } from '../../devicemodel/core/host/errno.ts';
import type { Kvm, KvmVcpu, KvmVm } from '../../devicemodel/core/host/kvm.ts';
import { KvmExit, type VcpuBlob, vcpuBlobs } from '../../devicemodel/core/host/kvm-abi.ts';
import type { FreezeAbility, VcpuRegs } from '../../devicemodel/core/hsm/hsm.ts';
import { IOREQ_SLOTS } from '../../devicemodel/core/ioreq-page.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { CpuEngine, EngineEventfds, EngineHostFunctions, GuestBus, MemoryWindow } from '../embedded/cpu-engine.ts';
import { guestCpuid } from './cpuid.ts';
import { ExitAccess } from './exit-access.ts';
import { describeFailure } from './failure.ts';
import { GsiRoutes, IOAPIC_PINS, ISA_LINES } from './gsi-routes.ts';
import { MemorySlots, type SlotTable } from './memory-slots.ts';
import type { VcpuRunner } from './runner.ts';
import { describeRegisters, restore, setStart, snapshotOf, type VcpuSnapshot } from './vcpu-state.ts';
import { type MessageRoutes, vmEventfds } from './vm-eventfds.ts';

/** Three pages and one that Intel's CPUs need for real mode: in the gap below the firmware, where nothing else is. */
const IntelPages = { identityMap: 0xfeff_c000, tss: 0xfeff_d000 } as const;
const IRQCHIPS = ['pic', 'pic-slave', 'ioapic'] as const;
/** Another process may cut shared memory and give it back all the time; an access that can be made is made by then. */
const MAX_FAULTS_OF_WHOLE_MEMORY = 256;

export interface KvmEngineOptions {
  readonly kvm: Kvm;
  readonly vcpuCount: number;
  readonly makeRunner: (vcpus: readonly KvmVcpu[]) => VcpuRunner;
  readonly log: Log;
  /** Present where the hypervisor's functions have a thread of their own. */
  readonly hypervisorThread?: EngineHypervisorThread | undefined;
}

/**
 * The thread that has the hypervisor's functions. It has the tables of slots and messages as well, since its functions
 * have some of each and KVM takes no two tables: it must not wait for the device thread, which may wait for it.
 */
export interface EngineHypervisorThread {
  /** @param address port or guest-physical. */
  isForFunction(isPort: boolean, address: number): boolean;
  /** It serves these vCPUs from now on. @throws HostError */
  attach(vm: KvmVm, vcpus: readonly KvmVcpu[], runner: VcpuRunner): Tables;
  /** It touches nothing of them any more. */
  detach(): void;
}

export interface Tables {
  readonly slots: SlotTable;
  readonly routes: MessageRoutes;
}

interface Vcpu {
  readonly kvm: KvmVcpu;
  readonly view: DataView;
  readonly access: ExitAccess;
  readonly initial: VcpuSnapshot;
}

/** All that a VM has in KVM. */
interface Machine {
  readonly vm: KvmVm;
  readonly vcpus: readonly Vcpu[];
  readonly runner: VcpuRunner;
  readonly slots: SlotTable;
  readonly routes: MessageRoutes;
  readonly chips: readonly Uint8Array[];
  readonly bus: GuestBus;
}

export class KvmEngine implements CpuEngine {
  readonly backend = 'kvm';
  readonly gsiCount = IOAPIC_PINS;
  readonly eventfds: EngineEventfds;
  readonly hostFunctions: EngineHostFunctions = {
    joinGroup: (groupFd) => {
      const result = this.#need().vm.vfioGroup(groupFd, true);
      // Without it functions work that keep to the CPU's caches, which is nearly all of them.
      if (result < 0) this.#options.log.info(`KVM_DEV_VFIO_GROUP_ADD: ${describeErrno(-result)}`);
      return { dispose: () => void (result === 0 && this.#machine?.vm.vfioGroup(groupFd, false)) };
    },
    mapMemory: (gpa, sizeBytes, hostAddress) => this.#need().slots.addDevice(gpa, sizeBytes, hostAddress),
    line: (fd, gsi, resampleFd) => {
      const errno = Math.max(0, -this.#need().vm.irqfd(fd, gsi, true, resampleFd));
      return errno === 0 ? { dispose: () => void this.#machine?.vm.irqfd(fd, gsi, false) } : errno;
    },
  };
  readonly freezing: FreezeAbility = { freeze: () => this.#freeze(), thaw: () => this.#thaw() };

  readonly #options: KvmEngineOptions;
  #machine: Machine | undefined;
  #isStopped = true;
  /** By vCPU: its request waits for the device model. */
  readonly #isWaiting = new Uint8Array(IOREQ_SLOTS);
  #waiting = 0;
  /** Requests wait for {@link run}, which has several vCPUs served together; that of the only one is served where it arrives. */
  #putsOff = true;
  /** Somebody wants {@link run} to end. */
  #isKicked = false;
  /** By vCPU: so many times in a row its exit was EFAULT, and nothing was missing that could be mended. */
  readonly #faultsOfWhole = new Uint16Array(IOREQ_SLOTS);
  /** Exits of vCPUs that came back while somebody wants them to stand still; undefined: nobody does. */
  #held: { readonly vcpu: number; readonly result: number }[] | undefined;
  /** Of an exit that was held: whoever let the vCPUs go on is not the one to hear that one of them cannot. */
  #thawFailure: { readonly error: unknown } | undefined;
  #isClosed = false;

  constructor(options: KvmEngineOptions) {
    this.#options = options;
    this.eventfds = vmEventfds(
      () => this.#need(),
      () => this.#machine,
    );
  }

  async create(bus: GuestBus): Promise<number> {
    const { kvm, vcpuCount, makeRunner, log, hypervisorThread } = this.#options;
    const vm = createVm(kvm);
    const made: KvmVcpu[] = [];
    let runner: VcpuRunner | undefined;
    try {
      if (kvm.capability('SET_IDENTITY_MAP_ADDR') > 0) vm.setIdentityMapAddress(IntelPages.identityMap);
      if (kvm.capability('SET_TSS_ADDR') > 0) vm.setTssAddress(IntelPages.tss);
      vm.createIrqchip();
      const msrIndexes = kvm.msrIndexes();
      const blobs = vcpuBlobs.filter((name) => hasBlob(kvm, name));
      const supported = kvm.supportedCpuid();
      const hasTscDeadline = kvm.capability('TSC_DEADLINE_TIMER') > 0;
      const vcpus = Array.from({ length: vcpuCount }, (_, id): Vcpu => {
        const vcpu = vm.createVcpu(id);
        made.push(vcpu);
        vcpu.setCpuid(guestCpuid({ supported, apicId: id, vcpuCount, tscKhz: vcpu.tscKhz(), hasTscDeadline }));
        const { run } = vcpu;
        return {
          kvm: vcpu,
          view: new DataView(run.buffer, run.byteOffset, run.byteLength),
          access: new ExitAccess(run),
          initial: snapshotOf(vcpu, msrIndexes, blobs),
        };
      });
      const chips = IRQCHIPS.map((chip) => vm.irqchip(chip));
      runner = makeRunner(made);
      const tables = hypervisorThread?.attach(vm, made, runner) ?? {
        slots: new MemorySlots(vm, log),
        routes: new GsiRoutes(vm, log),
      };
      this.#machine = { vm, vcpus, runner, ...tables, chips, bus };
      return vcpuCount;
    } catch (error) {
      runner?.dispose();
      for (const vcpu of made) vcpu.close();
      vm.close();
      throw error;
    }
  }

  setRegs(vcpu: number, regs: VcpuRegs): void {
    setStart(this.#vcpu(vcpu).kvm, regs);
  }

  mapMemory(gpa: Gpa, bytes: Uint8Array, hostAddress: bigint | undefined, writable: boolean): MemoryWindow {
    if (hostAddress === undefined) throw new BugError(`memory for ${hex(gpa)} has no address in this process`);
    return this.#need().slots.add(gpa, bytes, hostAddress, writable);
  }

  start(): void {
    const { vcpus, runner } = this.#need();
    this.#isStopped = false;
    for (const vcpu of vcpus.keys()) runner.resume(vcpu);
  }

  stop(): void {
    this.#isStopped = true;
    this.#isKicked = true;
    this.#machine?.runner.recall();
  }

  reset(): void {
    const { vm, vcpus, chips, runner } = this.#need();
    runner.forget();
    this.#held = undefined;
    this.#thawFailure = undefined;
    this.#isWaiting.fill(0);
    this.#faultsOfWhole.fill(0);
    this.#waiting = 0;
    for (const vcpu of vcpus) restore(vcpu.kvm, vcpu.initial);
    for (const chip of chips) vm.setIrqchip(chip);
  }

  destroy(): void {
    this.stop();
    const machine = this.#machine;
    this.#machine = undefined;
    if (machine !== undefined) {
      this.#options.hypervisorThread?.detach();
      machine.runner.dispose();
      for (const { kvm } of machine.vcpus) kvm.close();
      machine.vm.close();
    }
    if (!this.#isClosed) this.#options.kvm.close();
    this.#isClosed = true;
  }

  describeVcpu(vcpu: number): string {
    const { kvm } = this.#vcpu(vcpu);
    return describeRegisters(kvm.registers(), kvm.specialRegisters());
  }

  /**
   * KVM's IOAPIC takes what it is told for the assertion, whatever the redirection entry says of polarity. Lines above
   * the ISA's are PCI's, active low by every table the guest is given.
   */
  setLine(gsi: Gsi, isHigh: boolean): void {
    this.#machine?.vm.setLine(gsi, gsi < ISA_LINES ? isHigh : !isHigh);
  }

  injectMsi({ address, data }: MsiMessage): void {
    this.#machine?.vm.signalMsi(address, data);
  }

  /** @throws HostError where KVM cannot go on with a vCPU. */
  run(goesOn = comesBack): undefined | Promise<void> {
    const machine = this.#need();
    if (this.#thawFailure !== undefined) throw this.#thawFailure.error;
    // Answered late, after all: a device had made them wait.
    if (this.#waiting > 0 && this.#answerWaiting(machine)) return undefined;
    this.#isKicked = false;
    const isAlone = machine.vcpus.length === 1;
    do {
      this.#putsOff = !isAlone;
      // Frozen: nobody is in the guest, and a wake-up or a signal is all there is to come.
      const isAny = machine.runner.collect(this.#onExit);
      this.#putsOff = true;
      if (isAny instanceof Promise) return isAny.then(() => this.#serve());
      if (!isAlone) this.#serve();
      if (!isAny) break;
    } while (isAlone && !this.#isKicked && this.#waiting === 0 && goesOn());
    return undefined;
  }

  poll(): void {
    const machine = this.#machine;
    if (machine === undefined || this.#isStopped) return;
    this.#answerWaiting(machine);
    machine.runner.tell(this.#onExit);
  }

  wake(): void {
    this.#isKicked = true;
    this.#machine?.runner.wake();
  }

  interrupt(): void {
    this.wake();
  }

  /** vCPUs leave the guest where they are; what one of them left it for is seen to when they go on. */
  #freeze(): void {
    if (this.#held !== undefined || this.#isStopped) return;
    this.#held = [];
    this.#isKicked = true;
    const machine = this.#need();
    machine.runner.recall();
    machine.runner.tell(this.#onExit);
  }

  #thaw(): void {
    const held = this.#held;
    this.#held = undefined;
    for (const { vcpu, result } of held ?? []) {
      try {
        this.#onExit(vcpu, result);
      } catch (error) {
        this.#thawFailure ??= { error };
      }
    }
    this.wake();
  }

  // ---- exits: the hot path. Of a field that is true V8 asks ten instructions whether it is; of one that is false, two.

  readonly #onExit = (vcpu: number, result: number): void => {
    const machine = this.#machine;
    if (machine === undefined || this.#isStopped) return;
    if (this.#held !== undefined) {
      this.#held.push({ vcpu, result });
      return;
    }
    const own = machine.vcpus[vcpu] as Vcpu;
    const { access } = own;
    if (result < 0) {
      this.#isKicked = true;
      if (result === -Errno.EFAULT) this.#mendAfterFault(vcpu);
      else if (result !== -Errno.EINTR && result !== -Errno.EAGAIN) throw this.#runFailure(vcpu, result);
      machine.runner.resume(vcpu);
      return;
    }
    this.#faultsOfWhole[vcpu] = 0;
    switch (access.reason) {
      case KvmExit.Io:
        access.beginIo();
        this.#begin(machine, vcpu, own, result);
        break;
      case KvmExit.Mmio:
        access.beginMmio();
        this.#begin(machine, vcpu, own, result);
        break;
      case KvmExit.Intr:
      case KvmExit.IrqWindowOpen:
        machine.runner.resume(vcpu);
        break;
      case KvmExit.Shutdown:
        machine.bus.tripleFault(vcpu);
        break;
      default:
        throw this.#failure(vcpu, describeFailure(own.view));
    }
  };

  /**
   * Memory that the guest shares was cut by another process: with its pages back, the access is made again. Nothing is
   * missing, too, when somebody was quicker: another vCPU's exit, another VM with that memory. Only an access that fails
   * again and again then is one that KVM cannot make.
   */
  #mendAfterFault(vcpu: number): void {
    const isMended = mendAll();
    const faults = this.#faultsOfWhole[vcpu] as number;
    const most = hasGuardedMappings() ? MAX_FAULTS_OF_WHOLE_MEMORY : 1;
    if (!isMended && faults >= most) throw this.#runFailure(vcpu, -Errno.EFAULT);
    this.#faultsOfWhole[vcpu] = isMended ? 0 : faults + 1;
  }

  /** @param result of {@link OnExit}: where the hypervisor's thread has left off. */
  #begin(machine: Machine, vcpu: number, { access }: Vcpu, result: number): void {
    if (result > 0) access.skip(result - 1);
    this.#proceed(machine, vcpu, access, result > 0);
  }

  /**
   * Carry the access on until all of it is done, or somebody else is asked: the device model, or the hypervisor's thread.
   * @param isOurs the next part came back from that thread: it is not to be asked again.
   */
  #proceed(machine: Machine, vcpu: number, access: ExitAccess, isOurs = false): void {
    const { bus, runner } = machine;
    const { hypervisorThread } = this.#options;
    for (let asks = !isOurs; !access.isDone; asks = true) {
      if (asks && hypervisorThread?.isForFunction(access.isPort, access.address) === true) {
        runner.handOn?.(vcpu, access.partsDone);
        return;
      }
      access.fill(bus.page, vcpu);
      if (!bus.submit(vcpu)) {
        if (!this.#putsOff) bus.serve();
        if (this.#putsOff || !this.#mayAnswer() || !bus.retire(vcpu)) {
          this.#isWaiting[vcpu] = 1;
          this.#waiting++;
          return;
        }
      } else {
        bus.retire(vcpu);
      }
      access.take(bus.page, vcpu);
    }
    runner.resume(vcpu);
  }

  /** The device model looks at what waits for it, until it answers nothing any more. */
  #serve(): void {
    const machine = this.#machine;
    if (machine === undefined) return;
    while (this.#waiting > 0 && this.#mayAnswer()) {
      machine.bus.serve();
      if (!this.#answerWaiting(machine)) return;
    }
  }

  /** A vCPU whose request was answered goes on. */
  #mayAnswer(): boolean {
    return !this.#isStopped && this.#held === undefined;
  }

  /** @returns whether any vCPU went on. */
  #answerWaiting(machine: Machine): boolean {
    let isAny = false;
    const { vcpus, bus } = machine;
    for (let vcpu = 0; vcpu < vcpus.length; vcpu++) {
      if (this.#isWaiting[vcpu] === 0 || !this.#mayAnswer() || !bus.retire(vcpu)) continue;
      isAny = true;
      this.#isWaiting[vcpu] = 0;
      this.#waiting--;
      const { access } = vcpus[vcpu] as Vcpu;
      access.take(bus.page, vcpu);
      this.#proceed(machine, vcpu, access);
    }
    return isAny;
  }

  // ----

  #runFailure(vcpu: number, result: number): HostError {
    return this.#failure(vcpu, 'KVM_RUN failed', -result);
  }

  #failure(vcpu: number, what: string, errno = 0): HostError {
    const { kvm } = this.#vcpu(vcpu);
    const regs = kvm.registers();
    const special = kvm.specialRegisters();
    const { log } = this.#options;
    log.error(`vCPU ${vcpu}: ${describeRegisters(regs, special)}`);
    log.error(`vCPU ${vcpu}: code at rip: ${this.#codeAt(kvm, special.cs.base + regs.rip)}`);
    return new HostError(`KVM cannot go on with vCPU ${vcpu}: ${what}`, errno, { exitCode: ExitCode.VmFailed });
  }

  #codeAt(kvm: KvmVcpu, linearAddress: bigint): string {
    const at = kvm.translate(linearAddress);
    const bytes = at === undefined ? undefined : this.#machine?.slots.bytesAt(Number(at));
    if (bytes === undefined) return 'not in memory';
    return [...bytes.subarray(0, 16)].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
  }

  #vcpu(index: number): Vcpu {
    const vcpu = this.#need().vcpus[index];
    if (vcpu === undefined) throw new BugError(`vCPU ${index}`);
    return vcpu;
  }

  #need(): Machine {
    if (this.#machine === undefined) throw new BugError('the VM of this engine is gone');
    return this.#machine;
  }
}

const comesBack = (): boolean => false;

/** @throws HostError */
function createVm(kvm: Kvm): KvmVm {
  try {
    return kvm.createVm();
  } catch (error) {
    if (!(error instanceof HostError) || error.errno !== Errno.EBUSY) throw error;
    throw new HostError(error.message, error.errno, {
      cause: error,
      hint: "another hypervisor (VirtualBox, VMware, Xen) has this CPU's virtualization: end it, or use --hypervisor soft",
    });
  }
}

function hasBlob(kvm: Kvm, name: VcpuBlob): boolean {
  switch (name) {
    case 'xsave':
      return kvm.capability('XSAVE') > 0;
    case 'xcrs':
      return kvm.capability('XCRS') > 0;
    case 'debugRegisters':
      return kvm.capability('DEBUGREGS') > 0;
    default:
      return true;
  }
}
