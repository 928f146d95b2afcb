/**
 * A KVM for unit tests: it keeps what it is given, and its vCPUs leave the guest as the test says. No thread, no system
 * call.
 */
import { constants } from 'node:os';
import type { Kvm, KvmIoeventfdSpec, KvmVcpu, KvmVm } from '../../devicemodel/core/host/kvm.ts';
import {
  type CpuidEntry,
  type GsiRoute,
  type KvmCapName,
  KvmExit,
  KvmRegs,
  type KvmRegsValue,
  KvmSregs,
  type KvmSregsValue,
  RunField,
  type VcpuBlob,
} from '../../devicemodel/core/host/kvm-abi.ts';

const RUN_BYTES = 0x3000;
const PORT_DATA = 0x1000;

/** What a vCPU does in the guest until it leaves: writes its exit, and says what KVM_RUN gives. */
export type FakeExit = (run: DataView) => number;

export const exits = {
  out:
    (port: number, size: number, ...values: number[]): FakeExit =>
    (run) => {
      leaveByPort(run, 1, port, size, values.length);
      for (const [i, value] of values.entries()) {
        for (let n = 0; n < size; n++) run.setUint8(PORT_DATA + i * size + n, (value >>> (8 * n)) & 0xff);
      }
      return 0;
    },
  in:
    (port: number, size: number, count = 1): FakeExit =>
    (run) => {
      leaveByPort(run, 0, port, size, count);
      return 0;
    },
  mmio:
    (address: number, length: number, value?: bigint): FakeExit =>
    (run) => {
      const { mmio } = RunField;
      run.setUint32(RunField.exitReason, KvmExit.Mmio, true);
      run.setBigUint64(mmio.address, BigInt(address), true);
      run.setBigUint64(mmio.data, value ?? 0n, true);
      run.setUint32(mmio.length, length, true);
      run.setUint8(mmio.isWrite, value === undefined ? 0 : 1);
      return 0;
    },
  reason:
    (reason: number, ...words: number[]): FakeExit =>
    (run) => {
      run.setUint32(RunField.exitReason, reason, true);
      for (const [i, word] of words.entries()) run.setUint32(32 + 4 * i, word, true);
      return 0;
    },
  fails:
    (errno: number): FakeExit =>
    () =>
      -errno,
} as const;

function leaveByPort(run: DataView, direction: number, port: number, size: number, count: number): void {
  const { io } = RunField;
  run.setUint32(RunField.exitReason, KvmExit.Io, true);
  run.setUint8(io.direction, direction);
  run.setUint8(io.size, size);
  run.setUint16(io.port, port, true);
  run.setUint32(io.count, count, true);
  run.setBigUint64(io.dataOffset, BigInt(PORT_DATA), true);
}

/** What a guest's `in` or read gets. */
export const answers = {
  port: (run: Uint8Array, size: number, index = 0) => read(run, PORT_DATA + index * size, size),
  mmio: (run: Uint8Array, size: number) => read(run, RunField.mmio.data, size),
};

function read(run: Uint8Array, at: number, size: number): bigint {
  let value = 0n;
  for (let n = size - 1; n >= 0; n--) value = (value << 8n) | BigInt(run[at + n] as number);
  return value;
}

const zero = (size: number) => new Uint8Array(size);
const zeroSpecial = KvmSregs.decode(zero(KvmSregs.size));

export class FakeVcpu implements KvmVcpu {
  readonly fd: number = -1;
  readonly run = new Uint8Array(RUN_BYTES);
  /** What it does at each KVM_RUN; then a signal comes. */
  readonly script: FakeExit[] = [];
  /** What KVM_RUN was entered with: immediate_exit at the time. */
  readonly entries: number[] = [];
  /** Everything that was set, in order. */
  readonly log: string[];
  registersNow: KvmRegsValue = KvmRegs.decode(zero(KvmRegs.size));
  specialNow: KvmSregsValue = { ...zeroSpecial, cr0: 0x6000_0010n };
  cpuid: readonly CpuidEntry[] = [];
  readonly msrsNow = new Map<number, bigint>([
    [0x10, 1n],
    [0x1a0, 1n],
  ]);
  mpStateNow: number;
  isClosed = false;
  readonly #view = new DataView(this.run.buffer);

  constructor(id: number, log: string[]) {
    this.log = log;
    this.mpStateNow = id === 0 ? 0 : 1;
  }

  enter(): number {
    const immediate = this.run[RunField.immediateExit] as number;
    this.entries.push(immediate);
    if (immediate !== 0) return -constants.errno.EINTR;
    return this.script.shift()?.(this.#view) ?? -constants.errno.EINTR;
  }
  registers(): KvmRegsValue {
    return this.registersNow;
  }
  setRegisters(value: Partial<KvmRegsValue>): void {
    this.log.push('registers');
    this.registersNow = KvmRegs.decode(KvmRegs.encode(value));
  }
  specialRegisters(): KvmSregsValue {
    return this.specialNow;
  }
  setSpecialRegisters(value: KvmSregsValue): void {
    this.log.push('special');
    this.specialNow = value;
  }
  setCpuid(entries: readonly CpuidEntry[]): void {
    this.cpuid = entries;
  }
  tscKhz(): number {
    return 2_100_000;
  }
  mpState(): number {
    return this.mpStateNow;
  }
  setMpState(state: number): void {
    this.log.push(`mp ${state}`);
    this.mpStateNow = state;
  }
  blob(): Uint8Array {
    return zero(8);
  }
  setBlob(name: VcpuBlob): void {
    this.log.push(name);
  }
  msrs(indexes: readonly number[]): Map<number, bigint> {
    return new Map([...this.msrsNow].filter(([index]) => indexes.includes(index)));
  }
  setMsrs(values: ReadonlyMap<number, bigint>): void {
    for (const [index, value] of values) {
      this.log.push(`msr ${index.toString(16)}`);
      this.msrsNow.set(index, value);
    }
  }
  translate(linearAddress: bigint): bigint {
    return linearAddress;
  }
  close(): void {
    this.isClosed = true;
  }
}

export class FakeKvmVm implements KvmVm {
  readonly fd = -1;
  readonly vcpus: FakeVcpu[] = [];
  readonly log: string[] = [];
  routes: readonly GsiRoute[] = [];
  readonly lines: Array<readonly [gsi: number, asserted: boolean]> = [];
  readonly messages: Array<readonly [address: number, data: number]> = [];
  /** Slots in use. */
  readonly memory = new Map<
    number,
    { readonly gpa: number; readonly sizeBytes: number; readonly isReadOnly: boolean }
  >();
  readonly irqfds = new Map<number, number>();
  readonly vfioGroups = new Set<number>();
  readonly resampleFds = new Map<number, number>();
  readonly ioeventfds: KvmIoeventfdSpec[] = [];
  isClosed = false;

  setTssAddress(): void {}
  setIdentityMapAddress(): void {}
  createIrqchip(): void {}
  setMemory(slot: number, gpa: number, sizeBytes: number, _hostAddress: bigint, isReadOnly: boolean): number {
    if (sizeBytes === 0) this.memory.delete(slot);
    else {
      // As KVM: beyond what any CPU addresses.
      if (gpa + sizeBytes > 2 ** 52) return -constants.errno.EINVAL;
      for (const other of this.memory.values()) {
        if (gpa < other.gpa + other.sizeBytes && other.gpa < gpa + sizeBytes) return -constants.errno.EEXIST;
      }
      this.memory.set(slot, { gpa, sizeBytes, isReadOnly });
    }
    return 0;
  }
  setRoutes(routes: readonly GsiRoute[]): void {
    this.routes = routes;
  }
  setLine(gsi: number, asserted: boolean): void {
    this.lines.push([gsi, asserted]);
  }
  signalMsi(address: number, data: number): boolean {
    this.messages.push([address, data]);
    return true;
  }
  irqfd(fd: number, gsi: number, assign: boolean, resampleFd?: number): number {
    if (assign) this.irqfds.set(fd, gsi);
    else this.irqfds.delete(fd);
    if (assign && resampleFd !== undefined) this.resampleFds.set(fd, resampleFd);
    else this.resampleFds.delete(fd);
    return 0;
  }
  ioeventfd(spec: KvmIoeventfdSpec, assign: boolean): number {
    const at = this.ioeventfds.findIndex((e) => e.fd === spec.fd && e.address === spec.address);
    if (assign) this.ioeventfds.push(spec);
    else if (at >= 0) this.ioeventfds.splice(at, 1);
    return 0;
  }
  vfioGroup(groupFd: number, isMember: boolean): number {
    if (isMember) this.vfioGroups.add(groupFd);
    else this.vfioGroups.delete(groupFd);
    return 0;
  }
  irqchip(): Uint8Array {
    return zero(8);
  }
  setIrqchip(): void {
    this.log.push('irqchip');
  }
  createVcpu(id: number): FakeVcpu {
    const vcpu = new FakeVcpu(id, this.log);
    this.vcpus.push(vcpu);
    return vcpu;
  }
  close(): void {
    this.isClosed = true;
  }
}

export class FakeKvm implements Kvm {
  readonly vm = new FakeKvmVm();
  readonly missing = new Set<KvmCapName>();
  isClosed = false;

  capability(name: KvmCapName): number {
    if (this.missing.has(name)) return 0;
    return name === 'MAX_VCPUS' ? 4 : 1;
  }
  supportedCpuid(): CpuidEntry[] {
    const none = { subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
    return [
      { ...none, leaf: 1, ebx: 0x0008_0800, ecx: 0x0000_0009 },
      { ...none, leaf: 0xb, edx: 7 },
      { ...none, leaf: 0x4000_0000, eax: 0x4000_0001, ebx: 0x4b4d_564b },
      { ...none, leaf: 0x8000_0000, eax: 0x8000_0008 },
    ];
  }
  msrIndexes(): number[] {
    return [0x10, 0x1a0, 0x999];
  }
  createVm(): FakeKvmVm {
    return this.vm;
  }
  close(): void {
    this.isClosed = true;
  }
}
