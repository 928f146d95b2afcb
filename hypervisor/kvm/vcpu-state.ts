/**
 * The state of a vCPU: as it was when it was made, to which a reset brings it back, and as SET_VCPU_REGS wants it. KVM
 * has no reset of its own; everything it lets one read is kept instead.
 */
import type { KvmVcpu } from '../../devicemodel/core/host/kvm.ts';
import {
  KvmExit,
  type KvmRegsValue,
  type KvmSegmentValue,
  type KvmSregsValue,
  MpState,
  RunField,
  type VcpuBlob,
} from '../../devicemodel/core/host/kvm-abi.ts';
import type { VcpuRegs } from '../../devicemodel/core/hsm/hsm.ts';

/** IA32_TIME_STAMP_COUNTER: time goes on over a reset. */
const MSR_TSC = 0x10;
/** Bit 1 of RFLAGS is always set (Intel SDM vol. 1, §3.4.3). */
const RFLAGS_FIXED = 2n;
/** Selectors are all that SET_VCPU_REGS gives of the others; ACRN sets the rest (arch/x86/guest/vcpu.c). */
const Default = {
  dataAr: 0xc093,
  realAr: 0x93,
  ldtAr: 0x82,
  trAr: 0x8b,
  flatLimit: 0xffff_ffff,
  realLimit: 0xffff,
} as const;
/** Pieces of one access that KVM wants answered one after the other, at the most. */
const MAX_FRAGMENTS = 64;

export interface VcpuSnapshot {
  readonly registers: KvmRegsValue;
  readonly special: KvmSregsValue;
  readonly msrs: ReadonlyMap<number, bigint>;
  readonly blobs: ReadonlyMap<VcpuBlob, Uint8Array>;
  readonly mpState: number;
}

/** @param blobs what this KVM has of them. */
export function snapshotOf(vcpu: KvmVcpu, msrIndexes: readonly number[], blobs: readonly VcpuBlob[]): VcpuSnapshot {
  return {
    registers: vcpu.registers(),
    special: vcpu.specialRegisters(),
    msrs: vcpu.msrs(msrIndexes.filter((index) => index !== MSR_TSC)),
    blobs: new Map(blobs.map((name) => [name, vcpu.blob(name)])),
    mpState: vcpu.mpState(),
  };
}

/** Back to the snapshot. The vCPU is not in KVM_RUN. */
export function restore(vcpu: KvmVcpu, snapshot: VcpuSnapshot): void {
  finishAccess(vcpu);
  vcpu.setSpecialRegisters(snapshot.special);
  vcpu.setRegisters(snapshot.registers);
  for (const name of ['xsave', 'xcrs', 'debugRegisters'] as const) setBlob(vcpu, snapshot, name);
  const now = vcpu.msrs([...snapshot.msrs.keys()]);
  vcpu.setMsrs(new Map([...snapshot.msrs].filter(([index, value]) => now.get(index) !== value)));
  for (const name of ['events', 'lapic'] as const) setBlob(vcpu, snapshot, name);
  vcpu.setMpState(snapshot.mpState);
}

function setBlob(vcpu: KvmVcpu, { blobs }: VcpuSnapshot, name: VcpuBlob): void {
  const blob = blobs.get(name);
  if (blob !== undefined) vcpu.setBlob(name, blob);
}

/**
 * An access that was left open is carried out by KVM when the vCPU is entered next, over whatever registers it has by
 * then: enter it for no longer than that takes.
 */
export function finishAccess(vcpu: KvmVcpu): void {
  const { run } = vcpu;
  run[RunField.immediateExit] = 1;
  for (let i = 0; i < MAX_FRAGMENTS && vcpu.enter() === 0; i++) {
    const reason = run[RunField.exitReason];
    if (reason !== KvmExit.Io && reason !== KvmExit.Mmio) break;
  }
  run[RunField.immediateExit] = 0;
}

/** As ACRN's hypervisor sets a vCPU: flat segments in protected mode, by paragraph in real mode. */
export function setStart(vcpu: KvmVcpu, regs: VcpuRegs): void {
  const now = vcpu.specialRegisters();
  const isProtected = (regs.cr0 & 1n) !== 0n;
  const data = (selector = 0) =>
    isProtected
      ? segment(selector, 0n, Default.flatLimit, Default.dataAr)
      : segment(selector, BigInt(selector) << 4n, Default.realLimit, Default.realAr);
  const table = (value: VcpuRegs['gdt']) => ({
    base: value?.base ?? 0n,
    limit: value?.limit ?? Default.realLimit,
    padding: [],
  });
  vcpu.setSpecialRegisters({
    ...now,
    cs: segment(regs.cs.selector, regs.cs.base, regs.cs.limit, regs.cs.attributes),
    ds: data(regs.ds),
    es: data(regs.es),
    fs: data(regs.fs),
    gs: data(regs.gs),
    ss: data(regs.ss),
    ldt: segment(regs.ldt ?? 0, 0n, Default.realLimit, Default.ldtAr),
    tr: segment(regs.tr ?? 0, 0n, Default.realLimit, Default.trAr),
    gdt: table(regs.gdt),
    idt: table(regs.idt),
    cr0: regs.cr0,
    cr3: regs.cr3 ?? 0n,
    cr4: regs.cr4 ?? 0n,
    efer: regs.efer ?? 0n,
  });
  const { rax = 0n, rbx = 0n, rcx = 0n, rdx = 0n, rsi = 0n, rdi = 0n, rsp = 0n, rbp = 0n, rip } = regs;
  const rflags = (regs.rflags ?? 0n) | RFLAGS_FIXED;
  vcpu.setRegisters({ rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, rip, rflags });
  vcpu.setMpState(MpState.Runnable);
}

/** @param attributes access rights as in a VMCS: Intel SDM vol. 3C, table 25-2. */
function segment(selector: number, base: bigint, limit: number, attributes: number): KvmSegmentValue {
  const bit = (n: number) => (attributes >>> n) & 1;
  return {
    base,
    limit,
    selector,
    type: attributes & 0xf,
    s: bit(4),
    dpl: (attributes >>> 5) & 3,
    present: bit(7),
    avl: bit(12),
    l: bit(13),
    db: bit(14),
    g: bit(15),
    unusable: bit(16),
    padding: 0,
  };
}

/** Intel SDM vol. 3A, table 10-1: where a CPU begins after a reset. */
const RESET_CS_BASE = 0xffff_0000n;
const RESET_RIP = 0xfff0n;
/** The state of an AMD CPU is undefined after a shutdown, and KVM resets it (AMD APM vol. 2, §15.14.3). */
const AFTER_RESET = '(of a reset: an AMD CPU keeps no others over a triple fault)';

/** Registers in one line, for a log. */
export function describeRegisters(regs: KvmRegsValue, special: KvmSregsValue): string {
  const hex = (value: bigint | number) => value.toString(16);
  const names = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rsp'] as const;
  const high = ['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const;
  const upper = high.some((name) => regs[name] !== 0n) ? high : [];
  const { cs, ss } = special;
  return [
    `cs:rip ${hex(cs.selector)}:${hex(regs.rip)} (base ${hex(cs.base)})`,
    `rflags ${hex(regs.rflags)}`,
    `ss ${hex(ss.selector)}`,
    ...[...names, ...upper].map((name) => `${name} ${hex(regs[name])}`),
    ...(['cr0', 'cr2', 'cr3', 'cr4', 'efer'] as const).map((name) => `${name} ${hex(special[name])}`),
    `gdt ${hex(special.gdt.base)}+${hex(special.gdt.limit)}`,
    `idt ${hex(special.idt.base)}+${hex(special.idt.limit)}`,
    ...(special.cs.base === RESET_CS_BASE && regs.rip === RESET_RIP ? [AFTER_RESET] : []),
  ].join(' ');
}
