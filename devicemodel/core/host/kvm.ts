/**
 * /dev/kvm, as typed calls. Nothing here decides anything; hypervisor/kvm does. Numbers and structs are in kvm-abi.ts.
 */
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';
import {
  Blob,
  type CpuidEntry,
  type GsiRoute,
  IoeventfdFlag,
  IRQCHIP_BYTES,
  IrqfdFlag,
  KVM_DEV_TYPE_VFIO,
  KVM_MEM_READONLY,
  KvmCap,
  type KvmCapName,
  KvmCpuidEntry,
  KvmCreateDevice,
  KvmDeviceAttr,
  KvmIoctl,
  KvmIoeventfd,
  KvmIrqchip,
  KvmIrqfd,
  KvmMemoryRegion,
  KvmMsi,
  KvmMsrEntry,
  KvmRegs,
  type KvmRegsValue,
  KvmRoute,
  KvmSregs,
  type KvmSregsValue,
  KvmTranslation,
  KvmVfioGroup,
  LIST_HEADER_BYTES,
  RouteType,
  type VcpuBlob,
} from './kvm-abi.ts';
import { type KvmRun, kvmRun } from './kvm-run.ts';
import { must } from './libc.ts';
import { type Mapping, map } from './mapping.ts';

export const KVM_DEVICE = '/dev/kvm';
/** What KVM_GET_API_VERSION has said since 2007. */
const API_VERSION = 12;

/** KVM as a whole: what the engine asks of the device node. The fake of the tests has the same shape. */
export interface Kvm {
  /** What KVM answers for a capability; 0: it has none. */
  capability(name: KvmCapName): number;
  supportedCpuid(): CpuidEntry[];
  msrIndexes(): number[];
  /** @throws HostError */
  createVm(): KvmVm;
  close(): void;
}

export interface KvmVm {
  readonly fd: number;
  /** @throws HostError */
  setTssAddress(gpa: number): void;
  setIdentityMapAddress(gpa: number): void;
  createIrqchip(): void;
  /** @param sizeBytes 0 takes the slot away. @returns 0 or a negative errno. */
  setMemory(slot: number, gpa: number, sizeBytes: number, hostAddress: bigint, isReadOnly: boolean): number;
  setRoutes(routes: readonly GsiRoute[]): void;
  setLine(gsi: number, asserted: boolean): void;
  /** @returns whether a vCPU took it. */
  signalMsi(address: number, data: number): boolean;
  /** @param resampleFd for a line: rung at the guest's end of interrupt. @returns 0 or a negative errno. */
  irqfd(fd: number, gsi: number, assign: boolean, resampleFd?: number): number;
  /** @returns 0 or a negative errno. */
  ioeventfd(spec: KvmIoeventfdSpec, assign: boolean): number;
  /**
   * KVM knows of a group of VFIO, whose DMA may pass the CPU's caches by. It holds the group until it leaves.
   * @returns 0 or a negative errno.
   */
  vfioGroup(groupFd: number, isMember: boolean): number;
  irqchip(chip: keyof typeof KvmIrqchip): Uint8Array;
  setIrqchip(state: Uint8Array): void;
  createVcpu(id: number): KvmVcpu;
  close(): void;
}

export interface KvmIoeventfdSpec {
  readonly fd: number;
  readonly address: number;
  readonly isPort: boolean;
  readonly sizeBytes: number;
  readonly dataMatch?: bigint;
}

export interface KvmVcpu {
  readonly fd: number;
  /** struct kvm_run and what belongs to it. */
  readonly run: Uint8Array;
  /** KVM_RUN on the calling thread. @returns 0 or a negative errno. */
  enter(): number;
  registers(): KvmRegsValue;
  setRegisters(value: Partial<KvmRegsValue>): void;
  specialRegisters(): KvmSregsValue;
  setSpecialRegisters(value: KvmSregsValue): void;
  setCpuid(entries: readonly CpuidEntry[]): void;
  tscKhz(): number;
  mpState(): number;
  setMpState(state: number): void;
  blob(name: VcpuBlob): Uint8Array;
  setBlob(name: VcpuBlob, value: Uint8Array): void;
  /** Those that can be read. */
  msrs(indexes: readonly number[]): Map<number, bigint>;
  /** Those that can be written are. */
  setMsrs(values: ReadonlyMap<number, bigint>): void;
  /** @returns undefined where the guest has nothing mapped. */
  translate(linearAddress: bigint): bigint | undefined;
  close(): void;
}

/** @throws HostError: ENOENT without KVM, EACCES without the right to it. */
export function openKvm(path: string = KVM_DEVICE): Kvm {
  const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  const version = ioctlNumber(fd, KvmIoctl.GET_API_VERSION, 0);
  if (version !== API_VERSION) {
    closeFd(fd);
    throw new HostError(`${path}: ${version < 0 ? 'not KVM' : `KVM API ${version}, not ${API_VERSION}`}`, Errno.ENOTTY);
  }
  return new RealKvm(fd);
}

function list(count: number, entryBytes: number): { bytes: Uint8Array; view: DataView } {
  const out = new Uint8Array(LIST_HEADER_BYTES + count * entryBytes);
  const view = new DataView(out.buffer);
  view.setUint32(0, count, true);
  return { bytes: out, view };
}

class RealKvm implements Kvm {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  capability(name: KvmCapName): number {
    return Math.max(0, ioctlNumber(this.#fd, KvmIoctl.CHECK_EXTENSION, KvmCap[name]));
  }

  supportedCpuid(): CpuidEntry[] {
    for (let room = 128; ; room *= 2) {
      const { bytes: buffer, view } = list(room, KvmCpuidEntry.size);
      const result = ioctlBytes(this.#fd, KvmIoctl.GET_SUPPORTED_CPUID, buffer);
      if (result === -Errno.E2BIG && room < 4096) continue;
      must(result, 'KVM_GET_SUPPORTED_CPUID', KVM_DEVICE);
      return Array.from({ length: view.getUint32(0, true) }, (_, i) =>
        KvmCpuidEntry.decode(buffer.subarray(LIST_HEADER_BYTES + i * KvmCpuidEntry.size)),
      );
    }
  }

  msrIndexes(): number[] {
    for (let room = 512; ; room *= 2) {
      const view = new DataView(new ArrayBuffer(4 + 4 * room));
      view.setUint32(0, room, true);
      const result = ioctlBytes(this.#fd, KvmIoctl.GET_MSR_INDEX_LIST, view);
      if (result === -Errno.E2BIG && room < 8192) continue;
      must(result, 'KVM_GET_MSR_INDEX_LIST', KVM_DEVICE);
      return Array.from({ length: view.getUint32(0, true) }, (_, i) => view.getUint32(4 + 4 * i, true));
    }
  }

  createVm(): KvmVm {
    const runBytes = must(ioctlNumber(this.#fd, KvmIoctl.GET_VCPU_MMAP_SIZE, 0), 'KVM_GET_VCPU_MMAP_SIZE', KVM_DEVICE);
    return new RealVm(must(ioctlNumber(this.#fd, KvmIoctl.CREATE_VM, 0), 'KVM_CREATE_VM', KVM_DEVICE), runBytes);
  }

  close(): void {
    closeFd(this.#fd);
  }
}

/** What a thread that did not make the VM does with it. */
export type KvmVmPart = Pick<KvmVm, 'setMemory' | 'setRoutes' | 'signalMsi' | 'irqfd' | 'ioeventfd'>;

/** A VM of another thread of this process, by its descriptor, which stays that one's. */
export function kvmVmOf(fd: number): KvmVmPart {
  return new RealVm(fd, 0);
}

class RealVm implements KvmVm {
  readonly fd: number;
  readonly #runBytes: number;
  /** Reused: interrupts come often. struct kvm_irq_level: number, level. */
  readonly #line = new Uint32Array(2);
  readonly #msi = new Uint32Array(KvmMsi.size / 4);
  /** KVM's device for groups of VFIO, and where its argument is; made with the first one. */
  #vfio: { readonly fd: number; readonly argument: Mapping } | undefined;

  constructor(fd: number, runBytes: number) {
    this.fd = fd;
    this.#runBytes = runBytes;
  }

  setTssAddress(gpa: number): void {
    must(ioctlNumber(this.fd, KvmIoctl.SET_TSS_ADDR, gpa), 'KVM_SET_TSS_ADDR', KVM_DEVICE);
  }

  setIdentityMapAddress(gpa: number): void {
    const argument = BigUint64Array.of(BigInt(gpa));
    must(ioctlBytes(this.fd, KvmIoctl.SET_IDENTITY_MAP_ADDR, argument), 'KVM_SET_IDENTITY_MAP_ADDR', KVM_DEVICE);
  }

  createIrqchip(): void {
    must(ioctlNumber(this.fd, KvmIoctl.CREATE_IRQCHIP, 0), 'KVM_CREATE_IRQCHIP', KVM_DEVICE);
  }

  setMemory(slot: number, gpa: number, sizeBytes: number, hostAddress: bigint, isReadOnly: boolean): number {
    const flags = isReadOnly ? KVM_MEM_READONLY : 0;
    const region = KvmMemoryRegion.encode({ slot, flags, gpa, sizeBytes, hostAddress });
    return ioctlBytes(this.fd, KvmIoctl.SET_USER_MEMORY_REGION, region);
  }

  setRoutes(routes: readonly GsiRoute[]): void {
    const { bytes: buffer, view } = list(routes.length, KvmRoute.size);
    for (const [i, route] of routes.entries()) {
      const { gsi } = route;
      const isMsi = 'address' in route;
      const union = isMsi ? [route.address, 0, route.data] : [KvmIrqchip[route.chip], route.pin];
      const entry = { gsi, type: isMsi ? RouteType.msi : RouteType.irqchip, flags: 0, pad: 0, union };
      KvmRoute.write(view, LIST_HEADER_BYTES + i * KvmRoute.size, entry);
    }
    must(ioctlBytes(this.fd, KvmIoctl.SET_GSI_ROUTING, buffer), 'KVM_SET_GSI_ROUTING', KVM_DEVICE);
  }

  setLine(gsi: number, asserted: boolean): void {
    this.#line[0] = gsi;
    this.#line[1] = asserted ? 1 : 0;
    must(ioctlBytes(this.fd, KvmIoctl.IRQ_LINE, this.#line), 'KVM_IRQ_LINE', `line ${gsi}`);
  }

  signalMsi(address: number, data: number): boolean {
    this.#msi[0] = address;
    this.#msi[2] = data;
    return ioctlBytes(this.fd, KvmIoctl.SIGNAL_MSI, this.#msi) > 0;
  }

  irqfd(fd: number, gsi: number, assign: boolean, resampleFd?: number): number {
    const flags = assign ? (resampleFd === undefined ? 0 : IrqfdFlag.resample) : IrqfdFlag.deassign;
    const argument = KvmIrqfd.encode({ fd, gsi, flags, resampleFd: resampleFd ?? 0 });
    return ioctlBytes(this.fd, KvmIoctl.IRQFD, argument);
  }

  ioeventfd(spec: KvmIoeventfdSpec, assign: boolean): number {
    const { fd, address, sizeBytes: length, dataMatch } = spec;
    const flags =
      (spec.isPort ? IoeventfdFlag.pio : 0) |
      (dataMatch === undefined ? 0 : IoeventfdFlag.dataMatch) |
      (assign ? 0 : IoeventfdFlag.deassign);
    const argument = KvmIoeventfd.encode({ fd, address, length, flags, dataMatch: dataMatch ?? 0n });
    return ioctlBytes(this.fd, KvmIoctl.IOEVENTFD, argument);
  }

  vfioGroup(groupFd: number, isMember: boolean): number {
    if (this.#vfio === undefined) {
      const argument = map(4, 'argument of KVM_DEV_VFIO_GROUP');
      const device = KvmCreateDevice.encode({ type: KVM_DEV_TYPE_VFIO });
      const result = ioctlBytes(this.fd, KvmIoctl.CREATE_DEVICE, device);
      if (result < 0) {
        argument.dispose();
        return result;
      }
      this.#vfio = { fd: KvmCreateDevice.decode(device).fd, argument };
    }
    const { fd, argument } = this.#vfio;
    new DataView(argument.bytes.buffer).setInt32(0, groupFd, true);
    const { group, add, remove } = KvmVfioGroup;
    const attr = KvmDeviceAttr.encode({ flags: 0, group, attr: isMember ? add : remove, addr: argument.address });
    return ioctlBytes(fd, KvmIoctl.SET_DEVICE_ATTR, attr);
  }

  irqchip(chip: keyof typeof KvmIrqchip): Uint8Array {
    const state = new Uint8Array(IRQCHIP_BYTES);
    new DataView(state.buffer).setUint32(0, KvmIrqchip[chip], true);
    must(ioctlBytes(this.fd, KvmIoctl.GET_IRQCHIP, state), 'KVM_GET_IRQCHIP', chip);
    return state;
  }

  setIrqchip(state: Uint8Array): void {
    must(ioctlBytes(this.fd, KvmIoctl.SET_IRQCHIP, state), 'KVM_SET_IRQCHIP', KVM_DEVICE);
  }

  createVcpu(id: number): KvmVcpu {
    const fd = must(ioctlNumber(this.fd, KvmIoctl.CREATE_VCPU, id), 'KVM_CREATE_VCPU', `vCPU ${id}`);
    try {
      return new RealVcpu(id, fd, map(this.#runBytes, `vCPU ${id}`, fd));
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  }

  close(): void {
    if (this.#vfio !== undefined) closeFd(this.#vfio.fd);
    this.#vfio?.argument.dispose();
    closeFd(this.fd);
  }
}

class RealVcpu implements KvmVcpu {
  readonly fd: number;
  readonly run: Uint8Array;
  readonly #what: string;
  readonly #mapping: Mapping;
  /** Made by whoever enters first: a vCPU with a thread of its own does without. */
  #kvmRun: KvmRun | undefined;

  constructor(id: number, fd: number, mapping: Mapping) {
    this.fd = fd;
    this.#what = `vCPU ${id}`;
    this.#mapping = mapping;
    this.run = mapping.bytes;
  }

  enter(): number {
    this.#kvmRun ??= kvmRun(this.fd, this.#what);
    return this.#kvmRun.enter();
  }

  registers(): KvmRegsValue {
    return KvmRegs.decode(this.#get('GET_REGS', KvmRegs.size));
  }

  setRegisters(value: Partial<KvmRegsValue>): void {
    this.#set('SET_REGS', KvmRegs.encode(value));
  }

  specialRegisters(): KvmSregsValue {
    return KvmSregs.decode(this.#get('GET_SREGS', KvmSregs.size));
  }

  setSpecialRegisters(value: KvmSregsValue): void {
    this.#set('SET_SREGS', KvmSregs.encode(value));
  }

  setCpuid(entries: readonly CpuidEntry[]): void {
    const { bytes: buffer, view } = list(entries.length, KvmCpuidEntry.size);
    for (const [i, entry] of entries.entries()) {
      KvmCpuidEntry.write(view, LIST_HEADER_BYTES + i * KvmCpuidEntry.size, { ...entry, padding: [] });
    }
    this.#set('SET_CPUID2', buffer);
  }

  tscKhz(): number {
    return must(ioctlNumber(this.fd, KvmIoctl.GET_TSC_KHZ, 0), 'KVM_GET_TSC_KHZ', this.#what);
  }

  mpState(): number {
    return new DataView(this.#get('GET_MP_STATE', 4).buffer).getUint32(0, true);
  }

  setMpState(state: number): void {
    this.#set('SET_MP_STATE', Uint32Array.of(state));
  }

  blob(name: VcpuBlob): Uint8Array {
    const { get, sizeBytes } = Blob[name];
    const value = new Uint8Array(sizeBytes);
    must(ioctlBytes(this.fd, get, value), `KVM get ${name}`, this.#what);
    return value;
  }

  setBlob(name: VcpuBlob, value: Uint8Array): void {
    must(ioctlBytes(this.fd, Blob[name].set, value), `KVM set ${name}`, this.#what);
  }

  msrs(indexes: readonly number[]): Map<number, bigint> {
    const values = new Map<number, bigint>();
    this.#eachMsr(
      KvmIoctl.GET_MSRS,
      indexes.map((index) => ({ index, data: 0n })),
      (entry) => values.set(entry.index, entry.data),
    );
    return values;
  }

  setMsrs(values: ReadonlyMap<number, bigint>): void {
    const entries = [...values].map(([index, data]) => ({ index, data }));
    this.#eachMsr(KvmIoctl.SET_MSRS, entries, () => {});
  }

  /** KVM stops at the first that it cannot do and says how many it did: go on behind it. */
  #eachMsr(
    request: number,
    entries: readonly { readonly index: number; readonly data: bigint }[],
    onDone: (entry: { readonly index: number; readonly data: bigint }) => void,
  ): void {
    for (let at = 0; at < entries.length; ) {
      const rest = entries.slice(at);
      const { bytes: buffer, view } = list(rest.length, KvmMsrEntry.size);
      const place = (i: number) => LIST_HEADER_BYTES + i * KvmMsrEntry.size;
      for (const [i, entry] of rest.entries()) KvmMsrEntry.write(view, place(i), { ...entry, reserved: 0 });
      const done = must(ioctlBytes(this.fd, request, buffer), 'KVM_MSRS', this.#what);
      for (let i = 0; i < done; i++) onDone(KvmMsrEntry.read(view, place(i)));
      at += done + 1;
    }
  }

  translate(linearAddress: bigint): bigint | undefined {
    const argument = KvmTranslation.encode({ linearAddress });
    if (ioctlBytes(this.fd, KvmIoctl.TRANSLATE, argument) < 0) return undefined;
    const { valid, physicalAddress } = KvmTranslation.decode(argument);
    return valid === 0 ? undefined : physicalAddress;
  }

  close(): void {
    this.#kvmRun?.dispose();
    this.#mapping.dispose();
    closeFd(this.fd);
  }

  #get(name: 'GET_REGS' | 'GET_SREGS' | 'GET_MP_STATE', sizeBytes: number): Uint8Array<ArrayBuffer> {
    const value = new Uint8Array(sizeBytes);
    must(ioctlBytes(this.fd, KvmIoctl[name], value), `KVM_${name}`, this.#what);
    return value;
  }

  #set(name: 'SET_REGS' | 'SET_SREGS' | 'SET_CPUID2' | 'SET_MP_STATE', value: ArrayBufferView): void {
    must(ioctlBytes(this.fd, KvmIoctl[name], value), `KVM_${name}`, this.#what);
  }
}
