/** Numbers, sizes and offsets of KVM's interface against the C compiler with the system's <linux/kvm.h>. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import * as kvm from '../../../devicemodel/core/host/kvm-abi.ts';

const hasCompiler = spawnSync('gcc', ['--version']).status === 0 && existsSync('/usr/include/linux/kvm.h');

/** Values by the C expression that has to give the same. */
function expected(): Map<string, number> {
  const values = new Map<string, number>();
  for (const [name, value] of Object.entries(kvm.KvmIoctl)) values.set(`KVM_${name}`, value);
  for (const [name, value] of Object.entries(kvm.KvmCap)) values.set(`KVM_CAP_${name}`, value);
  const exits = {
    Unknown: 'UNKNOWN',
    Io: 'IO',
    Debug: 'DEBUG',
    Hlt: 'HLT',
    Mmio: 'MMIO',
    IrqWindowOpen: 'IRQ_WINDOW_OPEN',
    Shutdown: 'SHUTDOWN',
    FailEntry: 'FAIL_ENTRY',
    Intr: 'INTR',
    InternalError: 'INTERNAL_ERROR',
    SystemEvent: 'SYSTEM_EVENT',
  } as const;
  for (const [name, word] of Object.entries(exits)) {
    values.set(`KVM_EXIT_${word}`, kvm.KvmExit[name as keyof typeof exits]);
  }
  const { io, mmio, failEntry, internal, systemEvent } = kvm.RunField;
  const run = {
    immediate_exit: kvm.RunField.immediateExit,
    exit_reason: kvm.RunField.exitReason,
    'io.direction': io.direction,
    'io.size': io.size,
    'io.port': io.port,
    'io.count': io.count,
    'io.data_offset': io.dataOffset,
    'mmio.phys_addr': mmio.address,
    'mmio.data': mmio.data,
    'mmio.len': mmio.length,
    'mmio.is_write': mmio.isWrite,
    'fail_entry.hardware_entry_failure_reason': failEntry.reason,
    'fail_entry.cpu': failEntry.cpu,
    'internal.suberror': internal.suberror,
    'internal.ndata': internal.dataCount,
    'internal.data': internal.data,
    'system_event.type': systemEvent.type,
  };
  for (const [field, offset] of Object.entries(run)) values.set(`offsetof(struct kvm_run, ${field})`, offset);
  const structs = {
    kvm_userspace_memory_region: [kvm.KvmMemoryRegion, { gpa: 'guest_phys_addr', sizeBytes: 'memory_size' }],
    kvm_msi: [kvm.KvmMsi, { addressLow: 'address_lo', data: 'data', deviceId: 'devid' }],
    kvm_irqfd: [kvm.KvmIrqfd, { fd: 'fd', gsi: 'gsi', flags: 'flags', resampleFd: 'resamplefd' }],
    kvm_ioeventfd: [
      kvm.KvmIoeventfd,
      { dataMatch: 'datamatch', address: 'addr', length: 'len', fd: 'fd', flags: 'flags' },
    ],
    kvm_create_device: [kvm.KvmCreateDevice, { type: 'type', fd: 'fd' }],
    kvm_device_attr: [kvm.KvmDeviceAttr, { group: 'group', attr: 'attr', addr: 'addr' }],
    kvm_segment: [kvm.KvmSegment, { selector: 'selector', type: 'type', db: 'db', l: 'l', unusable: 'unusable' }],
    kvm_sregs: [
      kvm.KvmSregs,
      { ds: 'ds', ss: 'ss', tr: 'tr', ldt: 'ldt', gdt: 'gdt', cr0: 'cr0', apicBase: 'apic_base' },
    ],
    kvm_regs: [kvm.KvmRegs, { rbx: 'rbx', rsp: 'rsp', rip: 'rip', rflags: 'rflags' }],
    kvm_translation: [kvm.KvmTranslation, { physicalAddress: 'physical_address', valid: 'valid' }],
    kvm_cpuid_entry2: [kvm.KvmCpuidEntry, { leaf: 'function', subleaf: 'index', eax: 'eax', edx: 'edx' }],
    kvm_msr_entry: [kvm.KvmMsrEntry, { index: 'index', data: 'data' }],
    kvm_irq_routing_entry: [kvm.KvmRoute, { gsi: 'gsi', type: 'type', union: 'u' }],
  } as const;
  for (const [name, [layout, fields]] of Object.entries(structs)) {
    values.set(`sizeof(struct ${name})`, layout.size);
    for (const [ours, theirs] of Object.entries(fields)) {
      values.set(`offsetof(struct ${name}, ${theirs})`, (layout.offsets as Record<string, number>)[ours] as number);
    }
  }
  const { dataMatch, pio, deassign } = kvm.IoeventfdFlag;
  return values
    .set('sizeof(struct kvm_irq_level)', 8)
    .set('offsetof(struct kvm_irq_level, level)', 4)
    .set('sizeof(struct kvm_irqchip)', kvm.IRQCHIP_BYTES)
    .set('KVM_IRQCHIP_PIC_MASTER', kvm.KvmIrqchip.pic)
    .set('KVM_IRQCHIP_PIC_SLAVE', kvm.KvmIrqchip['pic-slave'])
    .set('KVM_IRQCHIP_IOAPIC', kvm.KvmIrqchip.ioapic)
    .set('KVM_IOEVENTFD_FLAG_DATAMATCH', dataMatch)
    .set('KVM_IOEVENTFD_FLAG_PIO', pio)
    .set('KVM_IOEVENTFD_FLAG_DEASSIGN', deassign)
    .set('KVM_IRQFD_FLAG_DEASSIGN', kvm.IrqfdFlag.deassign)
    .set('KVM_IRQFD_FLAG_RESAMPLE', kvm.IrqfdFlag.resample)
    .set('KVM_DEV_TYPE_VFIO', kvm.KVM_DEV_TYPE_VFIO)
    .set('KVM_DEV_VFIO_GROUP', kvm.KvmVfioGroup.group)
    .set('KVM_DEV_VFIO_GROUP_ADD', Number(kvm.KvmVfioGroup.add))
    .set('KVM_DEV_VFIO_GROUP_DEL', Number(kvm.KvmVfioGroup.remove))
    .set('KVM_MEM_READONLY', kvm.KVM_MEM_READONLY)
    .set('KVM_MP_STATE_RUNNABLE', kvm.MpState.Runnable)
    .set('KVM_MP_STATE_UNINITIALIZED', kvm.MpState.Uninitialized);
}

test.skipIf(!hasCompiler)('numbers, sizes and offsets are those of <linux/kvm.h>', () => {
  const values = expected();
  const lines = [...values.keys()].map((name) => `  printf("%llu\\n", (unsigned long long)(${name}));`);
  const directory = mkdtempSync(join(tmpdir(), 'kvm-abi-'));
  try {
    const source = join(directory, 'abi.c');
    const includes = ['linux/kvm.h', 'stddef.h', 'stdio.h'].map((name) => `#include <${name}>`);
    writeFileSync(source, [...includes, 'int main(void) {', ...lines, '}'].join('\n'));
    execFileSync('gcc', ['-o', join(directory, 'abi'), source]);
    const answers = execFileSync(join(directory, 'abi'), { encoding: 'utf8' }).trim().split('\n').map(Number);
    const theirs = Object.fromEntries([...values.keys()].map((name, i) => [name, answers[i]]));
    expect(Object.fromEntries(values)).toEqual(theirs);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
