import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openSoftware, splitRam } from '../../../devicemodel/core/boot/loader.ts';
import type { BootConfig } from '../../../devicemodel/core/config.ts';
import { buildMpTable } from '../../../devicemodel/core/firmware/mptable.ts';
import type { VcpuRegs } from '../../../devicemodel/core/hsm/hsm.ts';
import { Layout } from '../../../devicemodel/core/layout.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { GuestMemory, type RamChunk } from '../../../devicemodel/core/memory.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { bzImage, elf32, file, noise, temporaryDirectory } from '../../support/images.ts';
import {
  optionValues,
  type RecordedCase,
  recordedCases,
  recordedDir,
  recordedFile,
  recordedTrace,
} from '../../support/recorded-cases.ts';
import { machineFacts } from '../firmware/machine-facts.ts';

/** The images the cases were recorded with, by their names there. */
const images: Record<string, () => Uint8Array> = {
  BZIMAGE: () => bzImage(),
  BZIMAGE0: () => bzImage({ setupSects: 0, bodyBytes: 50_000, tag: 'bz0' }),
  BZIMAGE_BIG: () => bzImage({ setupSects: 30, bodyBytes: 3_000_000, tag: 'bzb' }),
  INITRD: () => noise('initrd', 10_000),
  INITRD_PAGE: () => noise('initrd4k', 8192),
  INITRD_BIG: () => noise('initrdb', 1_500_001),
  ELF: () => elf32(),
  ELF_MB: () => elf32({ multibootFlags: 2 }),
  ELF_MB_BAD: () => elf32({ multibootFlags: 3 }),
  ELF_2SEG: () =>
    elf32({
      entry: 0x300_0020,
      segments: [
        { base: 0x300_0000, fileBytes: 5000, memoryBytes: 5000 },
        { base: 0x310_0000, fileBytes: 100, memoryBytes: 70_000 },
      ],
    }),
  NOT_ELF: () => Uint8Array.from([0x7f, 0x45, 0x4c, 0x58, ...new Uint8Array(9000)]),
  OVMF: () => noise('ovmf', 2 * MiB),
  OVMF_1M: () => noise('ovmf1m', 1 * MiB),
  OVMF_CODE: () => noise('ovmfc', 0x1e_0000 - 0x4000),
  OVMF_VARS: () => noise('ovmfv', 0x2_0000),
  OVMF_TOO_BIG: () => noise('ovmfx', 2 * MiB + 1),
  EMPTY: () => new Uint8Array(),
};

/** Images that cannot be made here, from the directory named by ACRN_FIXTURES_DIR. */
function foreignImage(name: string): Uint8Array | undefined {
  const path = join(process.env['ACRN_FIXTURES_DIR'] ?? '/nonexistent', name.toLowerCase());
  return existsSync(path) ? readFileSync(path) : undefined;
}

/** Boot options of a case with `@NAME@` replaced by real files; undefined if an image is missing. */
function bootConfig(argv: readonly string[]): BootConfig | undefined {
  const dir = temporaryDirectory();
  let isComplete = true;
  const real = (text: string | undefined) =>
    text?.replace(/@(\w+)@/g, (_, name: string) => {
      const content = images[name]?.() ?? foreignImage(name);
      isComplete &&= name === 'WORK' || content !== undefined;
      return content === undefined ? join(dir, 'missing') : file(dir, name.toLowerCase(), content);
    });
  const option = (name: string) => real(optionValues(argv, name).at(-1));
  const [kernelPath, ramdiskPath, bootargs, imagePath] = [option('-k'), option('-r'), option('-B'), option('-E')];
  const ovmf = option('--ovmf');
  const isKernel = kernelPath !== undefined;
  const boot: BootConfig | undefined =
    ovmf !== undefined
      ? { kind: 'ovmf', image: ovmfImage(ovmf) }
      : isKernel
        ? { kind: 'bzimage', kernelPath, ramdiskPath, bootargs }
        : imagePath !== undefined
          ? { kind: 'elf', imagePath, bootargs }
          : undefined;
  return isComplete ? boot : undefined;
}

function ovmfImage(text: string): Extract<BootConfig, { kind: 'ovmf' }>['image'] {
  const words = text.split(',');
  const value = (key: string) => words.find((w) => w.startsWith(key))?.slice(key.length);
  const [codePath, varsPath] = [value('code='), value('vars=')];
  const writeBack = words.includes('w');
  return codePath !== undefined
    ? { form: 'split', codePath, varsPath: varsPath ?? '', writeBack }
    : { form: 'single', path: words.find((w) => w !== 'w') ?? '', writeBack };
}

const UNITS: Readonly<Record<string, number>> = { k: KiB, K: KiB, m: MiB, M: MiB, g: 1024 * MiB, G: 1024 * MiB };
/** Without -m. */
const DEFAULT_MEMORY = 256 * MiB;

function memoryBytes(argv: readonly string[]): number {
  const text = optionValues(argv, '-m').at(-1);
  const match = /^(\d+)([kKmMgG])$/.exec(text ?? '');
  return match === null ? DEFAULT_MEMORY : Number(match[1]) * (UNITS[match[2] as string] as number);
}

/** RAM where software goes: the first 64 MiB, the last 2 MiB of low RAM, firmware. What lies between stays untouched. */
function sparseMemory(lowRamBytes: number, regions: readonly { base: number; sizeBytes: number }[]): GuestMemory {
  const chunk = (base: number, sizeBytes: number): RamChunk => {
    return { base, bytes: new Uint8Array(sizeBytes), hostAddress: undefined };
  };
  return new GuestMemory([
    chunk(0, 64 * MiB),
    chunk(lowRamBytes - 2 * MiB, 2 * MiB),
    ...regions.map((region) => chunk(region.base, region.sizeBytes)),
  ]);
}

/** Runs of pages that are not all zero, as the recorder lists them; the ACPI area is left out. */
function memoryMap(memory: GuestMemory): { gpa: string; len: string; sha256: string }[] {
  const runs: { gpa: string; len: string; sha256: string }[] = [];
  const zero = Buffer.alloc(4096);
  let start = -1;
  let parts: Uint8Array[] = [];
  const finish = () => {
    if (start >= 0) {
      const bytes = Buffer.concat(parts);
      runs.push({
        gpa: `0x${start.toString(16)}`,
        len: `0x${bytes.length.toString(16)}`,
        sha256: createHash('sha256').update(bytes).digest('hex'),
      });
    }
    start = -1;
    parts = [];
  };
  for (const { base, bytes } of memory.chunks) {
    for (let at = 0; at < bytes.length; at += 4096) {
      const gpa = base + at;
      const page = bytes.subarray(at, at + 4096);
      const isLeftOut = gpa >= 0xf_2000 && gpa < 0x10_0000;
      if (isLeftOut || zero.compare(page) === 0) {
        finish();
        continue;
      }
      if (start < 0) start = gpa;
      parts.push(page);
    }
    finish();
  }
  return runs;
}

/** Register values as the recorder prints them, for the fields that the loaders set. */
function printedRegs(regs: VcpuRegs): Record<string, string> {
  const hex = (value: bigint | number | undefined) => `0x${(value ?? 0).toString(16)}`;
  return {
    rax: hex(regs.rax),
    rbx: hex(regs.rbx),
    rcx: hex(regs.rcx),
    rdx: hex(regs.rdx),
    rsp: hex(regs.rsp),
    rbp: hex(regs.rbp),
    rsi: hex(regs.rsi),
    rdi: hex(regs.rdi),
    rip: hex(regs.rip),
    cr0: hex(regs.cr0),
    cr3: hex(regs.cr3),
    cr4: hex(regs.cr4),
    ia32_efer: hex(regs.efer),
    rflags: hex(regs.rflags),
    gdt_base: hex(regs.gdt?.base),
    gdt_limit: hex(regs.gdt?.limit),
    idt_base: hex(regs.idt?.base),
    idt_limit: hex(regs.idt?.limit),
    cs_base: hex(regs.cs.base),
    cs_limit: hex(regs.cs.limit),
    cs_sel: hex(regs.cs.selector),
    cs_ar: hex(regs.cs.attributes),
    ds_sel: hex(regs.ds),
    es_sel: hex(regs.es),
    ss_sel: hex(regs.ss),
    fs_sel: hex(regs.fs),
    gs_sel: hex(regs.gs),
    ldt_sel: hex(regs.ldt),
    tr_sel: hex(regs.tr),
  };
}

function load(recorded: RecordedCase, boot: BootConfig) {
  const ram = splitRam(memoryBytes(recorded.argv));
  const software = openSoftware(boot, ram, silentLog);
  const memory = sparseMemory(ram.lowRamBytes, software.regions);
  return { software, memory, regs: software.load(memory) };
}

const bootCases = recordedCases('trace.jsonl').filter((c) =>
  /^(boot_|bad_(kernel|ramdisk|ovmf|bootargs))/.test(c.name),
);

describe.skipIf(recordedDir === undefined)('what the reference puts into guest memory', () => {
  for (const recorded of bootCases) {
    const { name, argv } = recorded;
    const trace = recordedTrace(name);
    const setRegs = trace.find((e) => e.name === 'SET_VCPU_REGS');
    if (setRegs === undefined) continue;
    test(name, (context) => {
      const boot = bootConfig(argv);
      context.skip(boot === undefined, 'an image of this case cannot be made here');
      const { memory, regs, software } = load(recorded, boot as BootConfig);
      software.close();

      const { vcpu_id, ...recordedRegs } = setRegs.arg;
      expect(vcpu_id).toBe(0);
      expect(recordedRegs).toMatchObject(printedRegs(regs));

      // On purpose: Multiboot images find more in their information than the reference gives (deviations.json).
      const isMultiboot = name === 'boot_elf_mb';
      const recordedMap = trace.find((e) => e.op === 'mem_map');
      if (recordedMap !== undefined && !isMultiboot) {
        const facts = machineFacts(recorded);
        context.skip(facts === undefined, 'has a device unknown here');
        for (const table of buildMpTable((facts as NonNullable<typeof facts>).mp)) memory.write(table.gpa, table.bytes);
        expect(memoryMap(memory)).toEqual(recordedMap.runs);
      }
      for (const dump of trace.filter((e) => e.op === 'mem_dump' && /^(top|e820)/.test(e.file))) {
        const expected = recordedFile(name, dump.file) as Uint8Array;
        expect(Buffer.from(memory.read(Number(dump.gpa), dump.len)).equals(expected)).toBe(true);
      }
      for (const read of trace.filter((e) => e.op === 'mem_read')) {
        const expected = Buffer.from(read.hex, 'hex');
        // On purpose: the reference lets go of the command line behind its 1024th byte.
        const bootargs = optionValues(argv, '-B').at(-1) ?? '';
        if (bootargs.length > 1024) expected.write(bootargs, 'latin1');
        expect(Buffer.from(memory.read(Number(read.gpa), read.len)).equals(expected)).toBe(true);
      }
    });
  }
});

describe.skipIf(recordedDir === undefined)('what the reference refuses', () => {
  for (const recorded of bootCases) {
    if (recordedTrace(recorded.name).at(-1).reached_loop === true) continue;
    // On purpose: these Multiboot flags are served (deviations.json).
    if (recorded.name === 'boot_elf_mb_bad') continue;
    test(recorded.name, (context) => {
      const boot = bootConfig(recorded.argv);
      // An --ovmf option with one half of a split image is refused by the option parser.
      context.skip(boot === undefined || recorded.name === 'bad_ovmf_code_only', 'refused before the loaders see it');
      expect(() => load(recorded, boot as BootConfig)).toThrow(/^-|^--/);
    });
  }
});

test.skipIf(recordedDir === undefined)(
  'variables of boot_ovmf_w go back to the file as the reference writes them',
  () => {
    const recorded = bootCases.find((c) => c.name === 'boot_ovmf_w') as RecordedCase;
    const boot = bootConfig(recorded.argv) as Extract<BootConfig, { kind: 'ovmf' }>;
    const { memory, software } = load(recorded, boot);
    const base = Layout.firmwareEnd - 2 * MiB;
    memory.write(base + 0x10, new TextEncoder().encode('NVDATA-WRITTEN'));
    memory.write(base + 0x1_fff0, new TextEncoder().encode('LAST-NV-BYTES!!!'));
    memory.write(base + 0x2_0000, new TextEncoder().encode('NOT-NV'));
    software.save(memory);
    software.close();
    const path = boot.image.form === 'single' ? boot.image.path : boot.image.varsPath;
    // Recorded: the file's SHA-256, then its first bytes in hexadecimal.
    const [recordedSum] = Buffer.from(recordedFile('boot_ovmf_w', 'ovmf_after.bin') as Uint8Array)
      .toString('latin1')
      .split('\n');
    expect(createHash('sha256').update(readFileSync(path)).digest('hex')).toBe(recordedSum);
  },
);
