/** The state of a boot CPU that starts in flat 32-bit protected mode. Spec: Intel SDM volume 3, §2.5 and §3.4.5. */
import type { Gpa } from '../address.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import type { GuestMemory } from '../memory.ts';

/** Segment descriptors: base 0, limit 4 GiB, 32-bit, ring 0, accessed. */
export const FLAT_CODE = 0x00cf_9b00_0000_ffffn;
export const FLAT_DATA = 0x00cf_9300_0000_ffffn;

/** ET, NE, PE. */
const CR0_PROTECTED = 0x31n;

/** Segment registers for flat code and data. */
export function flatSegments(codeSelector: number, codeAttributes: number, dataSelector: number) {
  return {
    cr0: CR0_PROTECTED,
    cs: { selector: codeSelector, base: 0n, limit: 0xffff_ffff, attributes: codeAttributes },
    ds: dataSelector,
    es: dataSelector,
    ss: dataSelector,
  } satisfies Partial<VcpuRegs>;
}

/** Write a descriptor table. @returns the GDT register for it. */
export function writeGdt(memory: GuestMemory, at: Gpa, descriptors: readonly bigint[]) {
  for (const [i, descriptor] of descriptors.entries()) memory.writeU64(at + 8 * i, descriptor);
  return { base: BigInt(at), limit: 8 * descriptors.length - 1 };
}
