/**
 * The ACRN back end: /dev/acrn_hsm (or its predecessor /dev/acrn_vhm). Each method is one ioctl; its C counterpart in
 * vmmapi.c is named. The descriptor is one VM life: after DESTROY_VM the driver wants a new one.
 */
import { formatBdf, type Gsi, hex } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { BugError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { closeFd, OpenFlag, openFile } from '../../devicemodel/core/host/files.ts';
import { ioctlBytes, ioctlBytesOnce, ioctlNumber, ioctlWait } from '../../devicemodel/core/host/ioctl.ts';
import { type Mapping, map } from '../../devicemodel/core/host/mapping.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import {
  describeMmiodev,
  describePioRegion,
  encodeMmiodev,
  encodePioRegion,
} from '../../devicemodel/core/hsm/host-regions.ts';
import {
  type AsyncioAbility,
  type CpuStateQuery,
  type HostFunctionAbility,
  type Hsm,
  type IntrMonitorAbility,
  type IoeventfdSpec,
  type IrqLineOp,
  type MmioMapping,
  NON_PCI_BDF,
  type PassthroughAbility,
  type PtdevIntx,
  type RamMapping,
  type VcpuRegs,
  type VmEventAbility,
  type VmSpec,
  type WaitResult,
} from '../../devicemodel/core/hsm/hsm.ts';
import { describePcidev, encodePcidev, encodePtdevIntx } from '../../devicemodel/core/hsm/ptdev.ts';
import { encodeVdev, encodeVdevForDestroy, type HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { IOREQ_SLOTS, IoreqPage, IoreqState } from '../../devicemodel/core/ioreq-page.ts';
import { formatSize } from '../../devicemodel/core/units.ts';
import {
  AcrnIoeventfd,
  AcrnIoreqNotify,
  AcrnIrqfd,
  AcrnMsiEntry,
  AcrnVcpuRegs,
  AcrnVmCreation,
  AcrnVmMemmap,
  CpuStateType,
  Ioctl,
  type IoctlName,
  IoeventfdFlag,
  IrqfdFlag,
  IrqLineOpCode,
  MemmapAttr,
  MemmapType,
} from './abi.ts';
import { findHsmNode, NODES } from './node.ts';
import { PolledAttach } from './polled-attach.ts';

const PAGE_BYTES = 4096;
/** A VM of the same name may still be going away; the C device model tries ten times, 500 ms apart. */
const CREATE_ATTEMPTS = 10;
const CREATE_RETRY_MS = 500;
/** Longest answer of PM_GET_CPU_STATE: struct acrn_pstate_data. */
const CPU_STATE_BYTES = 48;

/**
 * Open the HSM for one VM life.
 * @param isInterruptible whether this thread may wait in ATTACH, where a signal reaches it: see polled-attach.ts.
 * @throws HostError that says what to do.
 */
export function openAcrnHsm(isInterruptible: boolean): AcrnHsm {
  const path = findHsmNode() ?? NODES[1];
  try {
    return new AcrnHsm(openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec), isInterruptible);
  } catch (error) {
    if (!(error instanceof HostError)) throw error;
    const hint =
      error.errno === Errno.ENOENT
        ? 'boot the ACRN hypervisor with an HSM kernel'
        : error.errno === Errno.EACCES || error.errno === Errno.EPERM
          ? 'run as root'
          : undefined;
    throw new HostError(error.message, error.errno, {
      exitCode:
        error.errno === Errno.EACCES || error.errno === Errno.EPERM ? ExitCode.NoPermission : ExitCode.Unavailable,
      cause: error,
      ...(hint === undefined ? {} : { hint }),
    });
  }
}

export class AcrnHsm implements Hsm {
  readonly backend = 'acrn';
  readonly givesHostFunctions = true;
  readonly ioreqPage: Uint8Array;
  readonly hostFunctions: HostFunctionAbility;
  readonly passthrough: PassthroughAbility;
  readonly vmEvents: VmEventAbility;
  readonly asyncio: AsyncioAbility;
  readonly intrMonitor: IntrMonitorAbility;

  #fd: number;
  #vmid = 0;
  readonly #page: Mapping;
  /** Encoded arguments of the calls on the request path, at an address that does not move. */
  readonly #scratch: Mapping;
  readonly #notifyView: DataView;
  readonly #requests: IoreqPage;
  readonly #isInterruptible: boolean;
  /** From CREATE_VM on, where ATTACH cannot be interrupted. */
  #polledAttach: PolledAttach | undefined;

  constructor(fd: number, isInterruptible: boolean) {
    this.#fd = fd;
    this.#isInterruptible = isInterruptible;
    this.#page = map(PAGE_BYTES, 'I/O request page');
    this.#scratch = map(PAGE_BYTES, 'ioctl arguments');
    this.#notifyView = new DataView(this.#scratch.bytes.buffer);
    this.ioreqPage = this.#page.bytes;
    this.#requests = new IoreqPage(this.ioreqPage);
    this.passthrough = this.#makePassthrough();
    this.hostFunctions = this.passthrough;
    this.vmEvents = {
      setup: (ringAddress, eventfd) => {
        if (!this.#optional('SETUP_VM_EVENT_RING', ringAddress)) return false;
        return this.#optional('SETUP_VM_EVENT_FD', BigInt(eventfd));
      },
    };
    this.asyncio = { setup: (pageAddress) => this.#optional('SETUP_ASYNCIO', pageAddress) };
    this.intrMonitor = { intrMonitor: (bufferAddress) => this.#call('VM_INTR_MONITOR', bufferAddress) };
  }

  /** C: vm_create. */
  async createVm(spec: VmSpec, ending?: AbortSignal): Promise<{ readonly vmid: number; readonly vcpuCount: number }> {
    const creation = AcrnVmCreation.encode({
      name: new TextEncoder().encode(spec.name),
      vmFlag: spec.flags,
      ioreqBuf: this.#page.address,
      cpuAffinity: spec.cpuAffinity,
    });
    for (let attempt = 1; ; attempt++) {
      const errno = this.#try('CREATE_VM', creation);
      if (errno === 0) break;
      if (attempt === CREATE_ATTEMPTS) throw new HsmError('CREATE_VM', errno, { what: `"${spec.name}"` });
      await sleep(CREATE_RETRY_MS, ending);
      ending?.throwIfAborted();
    }
    const { vmid, vcpuNum } = AcrnVmCreation.decode(creation);
    this.#vmid = vmid;
    if (!this.#isInterruptible) {
      const resultOf = (result: number) => this.#waitResult(result);
      const slots = Math.min(vcpuNum, IOREQ_SLOTS);
      this.#polledAttach = new PolledAttach({ fd: this.#fd, page: this.#requests, vcpuCount: slots, resultOf });
    }
    return { vmid, vcpuCount: vcpuNum };
  }

  /** C: vm_run. */
  startVm(): void {
    this.#call('START_VM', 0n);
  }

  /** C: vm_pause. */
  pauseVm(): void {
    this.#call('PAUSE_VM', 0n);
  }

  /** C: vm_reset. Leaves the VM in state CREATED. */
  resetVm(): void {
    this.#call('RESET_VM', 0n);
  }

  /** C: vm_destroy, the ioctl part. The hypervisor wants the VM paused. */
  destroyVm(): void {
    this.#call('DESTROY_VM', 0n);
  }

  /** C: vm_set_vcpu_regs. */
  setVcpuRegs(vcpu: number, regs: VcpuRegs): void {
    this.#call('SET_VCPU_REGS', encodeVcpuRegs(vcpu, regs));
  }

  /** C: vm_map_memseg_vma. */
  mapRam(mapping: RamMapping): void {
    this.#call(
      'SET_MEMSEG',
      AcrnVmMemmap.encode({
        type: MemmapType.Ram,
        attr:
          MemmapAttr.Read |
          (mapping.writable ? MemmapAttr.Write : 0) |
          (mapping.executable === false ? 0 : MemmapAttr.Execute),
        userVmPa: mapping.gpa,
        hostAddress: mapping.hostAddress,
        len: mapping.sizeBytes,
      }),
      `RAM ${formatSize(mapping.sizeBytes)} at ${hex(mapping.gpa)}`,
    );
  }

  /** C: vm_set_gsi_irq. */
  setIrqLine(gsi: Gsi, op: IrqLineOp): void {
    const argument = (BigInt(IrqLineOpCode[op]) << 32n) | BigInt(gsi);
    this.#call('SET_IRQLINE', argument, `line ${gsi} ${op}`);
  }

  /** C: vm_lapic_msi. */
  injectMsi(message: MsiMessage): void {
    const entry = AcrnMsiEntry.encode({ msiAddr: message.address, msiData: BigInt(message.data) });
    this.#call('INJECT_MSI', entry, `address ${hex(message.address)} data ${hex(message.data)}`);
  }

  /** C: vm_create_ioreq_client. */
  createIoreqClient(): void {
    this.#call('CREATE_IOREQ_CLIENT', 0n);
  }

  /** C: vm_destroy_ioreq_client. */
  destroyIoreqClient(): void {
    this.#call('DESTROY_IOREQ_CLIENT', 0n);
  }

  /** C: vm_clear_ioreq. */
  clearIoreqs(): void {
    this.#call('CLEAR_VM_IOREQ', 0n);
  }

  /** C: vm_attach_ioreq_client. Blocks this thread until a request or a signal, unless another one has to wait. */
  waitForIoreqs(): WaitResult | Promise<WaitResult> {
    if (this.#polledAttach !== undefined) return this.#polledAttach.wait();
    return this.#waitResult(ioctlWait(this.#fd, Ioctl.ATTACH_IOREQ_CLIENT, 0));
  }

  /** A thread that blocks in ATTACH is woken by a signal; who calls this is not in it. */
  interruptWait(): void {
    this.#polledAttach?.interrupt();
  }

  /** @param result 0 or a negative errno. */
  #waitResult(result: number): WaitResult {
    if (result === 0) return 'pending';
    if (result === -Errno.EINTR) return 'idle';
    if (result === -Errno.ENODEV) return 'closed';
    throw new HsmError('ATTACH_IOREQ_CLIENT', -result);
  }

  /** C: vm_notify_request_done. */
  notifyIoreqDone(vcpu: number): void {
    this.#notifyView.setUint32(AcrnIoreqNotify.offsets.vcpu, vcpu, true);
    for (;;) {
      const result = ioctlBytesOnce(this.#fd, Ioctl.NOTIFY_REQUEST_FINISH, this.#scratch.bytes);
      if (result === 0) return;
      if (result !== -Errno.EINTR) throw new HsmError('NOTIFY_REQUEST_FINISH', -result, { what: `vCPU ${vcpu}` });
      // The driver never answers EINTR, something between us and it may: then it is done if the slot moved on.
      if (this.#requests.state(vcpu) !== IoreqState.Processing) return;
    }
  }

  /** C: vm_add_hv_vdev. */
  createVdev(vdev: HvVdev): void {
    this.#call('CREATE_VDEV', encodeVdev(vdev), describeVdev(vdev));
  }

  /** C: vm_remove_hv_vdev. */
  destroyVdev(vdev: HvVdev): void {
    this.#call('DESTROY_VDEV', encodeVdevForDestroy(vdev), describeVdev(vdev));
  }

  /** C: vm_ioeventfd. */
  ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    const flags =
      (spec.space === 'pio' ? IoeventfdFlag.Pio : 0) |
      (spec.dataMatch === undefined ? 0 : IoeventfdFlag.DataMatch) |
      (spec.asyncio === true ? IoeventfdFlag.Asyncio : 0) |
      (assign ? 0 : IoeventfdFlag.Deassign);
    this.#call(
      'IOEVENTFD',
      AcrnIoeventfd.encode({ fd: spec.fd, flags, addr: spec.address, len: spec.sizeBytes, data: spec.dataMatch ?? 0n }),
      `${spec.space} ${hex(spec.address)}`,
    );
  }

  /** C: vm_irqfd. */
  irqfd(fd: number, message: MsiMessage, assign: boolean): void {
    this.#call(
      'IRQFD',
      AcrnIrqfd.encode({
        fd,
        flags: assign ? 0 : IrqfdFlag.Deassign,
        msi: { msiAddr: message.address, msiData: BigInt(message.data) },
      }),
    );
  }

  /**
   * C: vm_get_cpu_state. A hypervisor without P- or C-state data answers with an error: undefined here.
   * @throws HsmError EINVAL without a VM, as every other call.
   */
  getCpuState(query: CpuStateQuery): Uint8Array | undefined {
    const buffer = new Uint8Array(CPU_STATE_BYTES);
    const command = (this.#vmid << 24) | (query.vcpu << 16) | (query.state << 8) | CpuStateType[query.type];
    new DataView(buffer.buffer).setBigUint64(0, BigInt(command >>> 0), true);
    const errno = this.#try('PM_GET_CPU_STATE', buffer);
    if (errno === Errno.EINVAL && this.#vmid === 0) throw new HsmError('PM_GET_CPU_STATE', errno);
    return errno === 0 ? buffer : undefined;
  }

  close(): void {
    if (this.#fd < 0) return;
    closeFd(this.#fd);
    this.#fd = -1;
    this.#page.dispose();
    this.#scratch.dispose();
  }

  #makePassthrough(): PassthroughAbility {
    const isPci = (i: PtdevIntx) => i.physicalBdf !== NON_PCI_BDF;
    const intx = (i: PtdevIntx) => (isPci(i) ? describePcidev(i) : `interrupt ${i.physicalPin}`);
    const mmio = (m: MmioMapping) =>
      AcrnVmMemmap.encode({
        type: MemmapType.Mmio,
        attr: MemmapAttr.Read | MemmapAttr.Write | MemmapAttr.Execute,
        userVmPa: m.gpa,
        hostAddress: BigInt(m.physicalAddress),
        len: m.sizeBytes,
      });
    const range = (m: MmioMapping) => `MMIO ${hex(m.physicalAddress)} at ${hex(m.gpa)}`;
    return {
      /** C: vm_assign_pcidev. */
      assignPcidev: (a) => this.#call('ASSIGN_PCIDEV', encodePcidev(a), describePcidev(a)),
      /** C: vm_deassign_pcidev. */
      deassignPcidev: (a) => this.#call('DEASSIGN_PCIDEV', encodePcidev(a), describePcidev(a)),
      /** C: vm_assign_mmiodev. */
      assignMmiodev: (a) => this.#call('ASSIGN_MMIODEV', encodeMmiodev(a), describeMmiodev(a)),
      /** C: vm_deassign_mmiodev. */
      deassignMmiodev: (a) => this.#call('DEASSIGN_MMIODEV', encodeMmiodev(a), describeMmiodev(a)),
      /** C, release 3.3: vm_assign_pio_region. */
      assignPioRegion: (r) => this.#call('ASSIGN_PIO_REGION', encodePioRegion(r), describePioRegion(r)),
      /** C, release 3.3: vm_deassign_pio_region. */
      deassignPioRegion: (r) => this.#call('DEASSIGN_PIO_REGION', encodePioRegion(r), describePioRegion(r)),
      /** C: vm_set_ptdev_intx_info. */
      setPtdevIntx: (i) => this.#call('SET_PTDEV_INTR', encodePtdevIntx(i), intx(i)),
      /** C: vm_reset_ptdev_intx_info. */
      resetPtdevIntx: (i) =>
        this.#call('RESET_PTDEV_INTR', encodePtdevIntx(isPci(i) ? { ...i, physicalPin: 0 } : i), intx(i)),
      /** C: vm_map_ptdev_mmio. */
      mapMmio: (m) => this.#call('SET_MEMSEG', mmio(m), range(m)),
      /** C: vm_unmap_ptdev_mmio. */
      unmapMmio: (m) => this.#call('UNSET_MEMSEG', mmio(m), range(m)),
    };
  }

  /** @returns errno, 0 on success. */
  #try(name: IoctlName, argument: bigint | ArrayBufferView): number {
    if (this.#fd < 0) throw new BugError(`${name} on a closed HSM`);
    const result =
      typeof argument === 'bigint'
        ? ioctlNumber(this.#fd, Ioctl[name], argument)
        : ioctlBytes(this.#fd, Ioctl[name], argument);
    return result < 0 ? -result : 0;
  }

  #call(name: IoctlName, argument: bigint | ArrayBufferView, what?: string): void {
    const errno = this.#try(name, argument);
    if (errno !== 0) throw new HsmError(name, errno, what === undefined ? {} : { what });
  }

  /** For abilities only fork kernels have. */
  #optional(name: IoctlName, argument: bigint | ArrayBufferView): boolean {
    return this.#try(name, argument) === 0;
  }
}

/** For so long, or until the signal comes. */
function sleep(ms: number, ending?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timeout = setTimeout(done, ms);
    ending?.addEventListener('abort', done);
    function done(): void {
      clearTimeout(timeout);
      ending?.removeEventListener('abort', done);
      resolve();
    }
  });
}

/** `ivshmem hv:/shm_region_0 (2 MiB) at 00:08.0`. */
export function describeVdev(vdev: HvVdev): string {
  const at = `at ${formatBdf(vdev.bdf)}`;
  switch (vdev.type) {
    case 'ivshmem':
      return `ivshmem ${vdev.regionName} (${formatSize(vdev.sizeBytes)}) ${at}`;
    case 'vuart':
      return `vuart index ${vdev.vuartIndex} ${at}`;
    case 'root-port':
      return `root port for ${formatBdf(vdev.physicalBdf)} ${at}`;
  }
}

/** struct acrn_vcpu_regs, 296 bytes. */
export function encodeVcpuRegs(vcpu: number, regs: VcpuRegs): Uint8Array {
  const r = regs;
  const gp = (value: bigint | undefined) => value ?? 0n;
  return AcrnVcpuRegs.encode({
    vcpuId: vcpu,
    vcpuRegs: {
      gprs: {
        rax: gp(r.rax),
        rcx: gp(r.rcx),
        rdx: gp(r.rdx),
        rbx: gp(r.rbx),
        rsp: gp(r.rsp),
        rbp: gp(r.rbp),
        rsi: gp(r.rsi),
        rdi: gp(r.rdi),
        r8: 0n,
        r9: 0n,
        r10: 0n,
        r11: 0n,
        r12: 0n,
        r13: 0n,
        r14: 0n,
        r15: 0n,
      },
      gdt: { limit: r.gdt?.limit ?? 0, base: r.gdt?.base ?? 0n, reserved: [] },
      idt: { limit: r.idt?.limit ?? 0, base: r.idt?.base ?? 0n, reserved: [] },
      rip: r.rip,
      csBase: r.cs.base,
      cr0: r.cr0,
      cr4: r.cr4 ?? 0n,
      cr3: r.cr3 ?? 0n,
      ia32Efer: r.efer ?? 0n,
      rflags: r.rflags ?? 0n,
      reserved64: [],
      csAr: r.cs.attributes,
      csLimit: r.cs.limit,
      reserved32: [],
      csSel: r.cs.selector,
      ssSel: r.ss ?? 0,
      dsSel: r.ds ?? 0,
      esSel: r.es ?? 0,
      fsSel: r.fs ?? 0,
      gsSel: r.gs ?? 0,
      ldtSel: r.ldt ?? 0,
      trSel: r.tr ?? 0,
    },
  });
}
