/** Sizes, offsets and ioctl numbers against the C compiler with Debian's <linux/acrn.h>, and the recorded byte vectors. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import * as sharedAbi from '../../../devicemodel/core/hsm/abi.ts';
import { AcrnVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import * as ioctlAbi from '../../../hypervisor/acrn/abi.ts';
import { encodeVcpuRegs } from '../../../hypervisor/acrn/acrn-hsm.ts';

const abi = { ...sharedAbi, ...ioctlAbi };

const hasCompiler = spawnSync('gcc', ['--version']).status === 0 && existsSync('/usr/include/linux/acrn.h');

/** Our struct, the C one, and where a field is called differently. A C name of '' is not looked up. */
const structs: ReadonlyArray<
  readonly [string, { size: number; offsets: Record<string, number> }, Record<string, string>]
> = [
  [
    'struct acrn_vm_creation',
    abi.AcrnVmCreation,
    {
      vmid: 'vmid',
      reserved0: 'reserved0',
      vcpuNum: 'vcpu_num',
      reserved1: 'reserved1',
      name: 'uuid',
      vmFlag: 'vm_flag',
      ioreqBuf: 'ioreq_buf',
      cpuAffinity: 'cpu_affinity',
    },
  ],
  [
    'struct acrn_gp_regs',
    abi.AcrnGpRegs,
    {
      rax: 'rax',
      rcx: 'rcx',
      rdx: 'rdx',
      rbx: 'rbx',
      rsp: 'rsp',
      rbp: 'rbp',
      rsi: 'rsi',
      rdi: 'rdi',
      r8: 'r8',
      r15: 'r15',
    },
  ],
  ['struct acrn_descriptor_ptr', abi.AcrnDescriptorPtr, { limit: 'limit', base: 'base', reserved: 'reserved' }],
  [
    'struct acrn_regs',
    abi.AcrnRegs,
    {
      gprs: 'gprs',
      gdt: 'gdt',
      idt: 'idt',
      rip: 'rip',
      csBase: 'cs_base',
      cr0: 'cr0',
      cr4: 'cr4',
      cr3: 'cr3',
      ia32Efer: 'ia32_efer',
      rflags: 'rflags',
      csAr: 'cs_ar',
      csLimit: 'cs_limit',
      csSel: 'cs_sel',
      ssSel: 'ss_sel',
      dsSel: 'ds_sel',
      esSel: 'es_sel',
      fsSel: 'fs_sel',
      gsSel: 'gs_sel',
      ldtSel: 'ldt_sel',
      trSel: 'tr_sel',
    },
  ],
  ['struct acrn_vcpu_regs', abi.AcrnVcpuRegs, { vcpuId: 'vcpu_id', reserved: 'reserved', vcpuRegs: 'vcpu_regs' }],
  [
    'struct acrn_vm_memmap',
    abi.AcrnVmMemmap,
    { type: 'type', attr: 'attr', userVmPa: 'user_vm_pa', hostAddress: 'vma_base', len: 'len' },
  ],
  [
    'struct acrn_ptdev_irq',
    abi.AcrnPtdevIrq,
    {
      type: 'type',
      virtBdf: 'virt_bdf',
      physBdf: 'phys_bdf',
      virtPin: 'intx.virt_pin',
      physPin: 'intx.phys_pin',
      isPicPin: 'intx.is_pic_pin',
    },
  ],
  [
    'struct acrn_pcidev',
    abi.AcrnPcidev,
    { type: 'type', virtBdf: 'virt_bdf', physBdf: 'phys_bdf', intrLine: 'intr_line', intrPin: 'intr_pin', bar: 'bar' },
  ],
  ['struct acrn_mmiodev', abi.AcrnMmiodev, { name: 'name', res: 'res' }],
  [
    'struct acrn_vdev',
    AcrnVdev,
    {
      vendor: 'id.fields.vendor',
      device: 'id.fields.device',
      legacyId: 'id.fields.legacy_id',
      slot: 'slot',
      ioAddr: 'io_addr',
      ioSize: 'io_size',
      args: 'args',
    },
  ],
  ['struct acrn_msi_entry', abi.AcrnMsiEntry, { msiAddr: 'msi_addr', msiData: 'msi_data' }],
  [
    'struct acrn_ioeventfd',
    abi.AcrnIoeventfd,
    { fd: 'fd', flags: 'flags', addr: 'addr', len: 'len', reserved: 'reserved', data: 'data' },
  ],
  ['struct acrn_irqfd', abi.AcrnIrqfd, { fd: 'fd', flags: 'flags', msi: 'msi' }],
  ['struct acrn_ioreq_notify', abi.AcrnIoreqNotify, { vmid: 'vmid', reserved: 'reserved', vcpu: 'vcpu' }],
];

/** Ioctls mainline knows; the others are the fork kernel's. */
const mainlineIoctls = [
  'CREATE_VM',
  'DESTROY_VM',
  'START_VM',
  'PAUSE_VM',
  'RESET_VM',
  'SET_VCPU_REGS',
  'INJECT_MSI',
  'VM_INTR_MONITOR',
  'SET_IRQLINE',
  'NOTIFY_REQUEST_FINISH',
  'CREATE_IOREQ_CLIENT',
  'ATTACH_IOREQ_CLIENT',
  'DESTROY_IOREQ_CLIENT',
  'CLEAR_VM_IOREQ',
  'SET_MEMSEG',
  'UNSET_MEMSEG',
  'SET_PTDEV_INTR',
  'RESET_PTDEV_INTR',
  'ASSIGN_PCIDEV',
  'DEASSIGN_PCIDEV',
  'ASSIGN_MMIODEV',
  'DEASSIGN_MMIODEV',
  'CREATE_VDEV',
  'DESTROY_VDEV',
  'PM_GET_CPU_STATE',
  'IOEVENTFD',
  'IRQFD',
] as const;

describe.skipIf(!hasCompiler)('the compiler agrees (skipped without gcc and <linux/acrn.h>)', () => {
  const lines = structs.flatMap(([c, , fields]) => [
    `printf("${c} %zu\\n", sizeof(${c}));`,
    ...Object.values(fields).map((f) => `printf("${c}.${f} %zu\\n", offsetof(${c}, ${f}));`),
  ]);
  for (const name of mainlineIoctls) lines.push(`printf("${name} %lu\\n", (unsigned long)ACRN_IOCTL_${name});`);
  const dir = mkdtempSync(join(tmpdir(), 'acrn-abi-'));
  writeFileSync(
    join(dir, 'dump.c'),
    `#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <sys/ioctl.h>\n#include <linux/acrn.h>\nint main(void) {\n${lines.join('\n')}\nreturn 0; }\n`,
  );
  let said = new Map<string, number>();
  try {
    execFileSync('gcc', ['-o', join(dir, 'dump'), join(dir, 'dump.c')]);
    said = new Map(
      execFileSync(join(dir, 'dump'), { encoding: 'utf8' })
        .trim()
        .split('\n')
        .map((line) => {
          const at = line.lastIndexOf(' ');
          return [line.slice(0, at), Number(line.slice(at + 1))] as const;
        }),
    );
  } finally {
    rmSync(dir, { recursive: true });
  }

  test.each(structs)('%s', (c, ours, fields) => {
    expect(ours.size, 'size').toBe(said.get(c));
    for (const [name, field] of Object.entries(fields))
      expect(ours.offsets[name], name).toBe(said.get(`${c}.${field}`));
  });

  test.each(mainlineIoctls)('ioctl %s', (name) => {
    expect(abi.Ioctl[name]).toBe(said.get(name));
  });
});

/** `offset: bytes` rows of a hex dump; rows of zeros are left out. */
function fromDump(sizeBytes: number, rows: Record<number, string>): Uint8Array {
  const out = new Uint8Array(sizeBytes);
  for (const [at, text] of Object.entries(rows)) {
    text.split(' ').forEach((byte, i) => {
      if (Number(at) + i < sizeBytes) out[Number(at) + i] = Number.parseInt(byte, 16);
    });
  }
  return out;
}

describe('bytes a C program made against the ACRN headers', () => {
  test('CREATE_VM of an RTVM on physical CPUs 2 and 3', () => {
    const bytes = abi.AcrnVmCreation.encode({
      name: new TextEncoder().encode('POST_RT_VM1'),
      vmFlag: 0x816n,
      ioreqBuf: 0x7f1234567000n,
      cpuAffinity: 0b1100n,
    });
    expect(bytes).toEqual(
      fromDump(48, {
        0: '00 00 00 00 00 00 00 00 50 4f 53 54 5f 52 54 5f',
        16: '56 4d 31 00 00 00 00 00 16 08 00 00 00 00 00 00',
        32: '00 70 56 34 12 7f 00 00 0c 00 00 00 00 00 00 00',
      }),
    );
  });

  test('SET_MEMSEG of 2 GiB RAM at 4 GiB', () => {
    const bytes = abi.AcrnVmMemmap.encode({
      type: 0,
      attr: 7,
      userVmPa: 0x1_0000_0000,
      hostAddress: 0x7f8000000000n,
      len: 0x8000_0000,
    });
    expect(bytes).toEqual(
      fromDump(32, {
        0: '00 00 00 00 07 00 00 00 00 00 00 00 01 00 00 00',
        16: '00 00 00 00 80 7f 00 00 00 00 00 80 00 00 00 00',
      }),
    );
  });

  test('IOEVENTFD on MMIO with a data match', () => {
    const bytes = abi.AcrnIoeventfd.encode({
      fd: 17,
      flags: abi.IoeventfdFlag.DataMatch,
      addr: 0xdf004000,
      len: 2,
      data: 1n,
    });
    expect(bytes).toEqual(
      fromDump(32, {
        0: '11 00 00 00 02 00 00 00 00 40 00 df 00 00 00 00',
        16: '02 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00',
      }),
    );
  });

  test('IRQFD with an MSI', () => {
    const bytes = abi.AcrnIrqfd.encode({ fd: 18, flags: 0, msi: { msiAddr: 0xfee01000, msiData: 0x41n } });
    expect(bytes).toEqual(
      fromDump(24, { 0: '12 00 00 00 00 00 00 00 00 10 e0 fe 00 00 00 00', 16: '41 00 00 00 00 00 00 00' }),
    );
  });

  test('SET_VCPU_REGS at the reset vector', () => {
    const bytes = encodeVcpuRegs(0, {
      rip: 0xfff0n,
      cr0: 0x30n,
      cs: { selector: 0xf000, base: 0xffff0000n, limit: 0xffff, attributes: 0x9f },
    });
    expect(bytes).toEqual(
      fromDump(296, {
        160: '00 00 00 00 00 00 00 00 f0 ff 00 00 00 00 00 00',
        176: '00 00 ff ff 00 00 00 00 30 00 00 00 00 00 00 00',
        256: '9f 00 00 00 ff ff 00 00 00 00 00 00 00 00 00 00',
        272: '00 00 00 00 00 f0 00 00 00 00 00 00 00 00 00 00',
      }),
    );
  });

  test('ASSIGN_PCIDEV 00:02.0', () => {
    const bytes = abi.AcrnPcidev.encode({
      virtBdf: 0x10,
      physBdf: 0x10,
      intrLine: 16,
      intrPin: 1,
      bar: [0xc0000004, 0, 0x8000000c],
    });
    expect(bytes).toEqual(
      fromDump(36, {
        0: '00 00 00 00 10 00 10 00 10 01 00 00 04 00 00 c0',
        16: '00 00 00 00 0c 00 00 80 00 00 00 00 00 00 00 00',
      }),
    );
  });

  test('ioctl numbers of the fork kernel', () => {
    expect(abi.Ioctl.SETUP_ASYNCIO).toBe(0x4008a290);
    expect(abi.Ioctl.SETUP_VM_EVENT_RING).toBe(0x4008a2a0);
    expect(abi.Ioctl.SETUP_VM_EVENT_FD).toBe(0x4004a2a1);
    expect(abi.SharedBuf.size).toBe(64);
    expect(abi.AcrnIntrMonitor.size).toBe(392);
  });
});
