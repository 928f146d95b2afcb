/** Where a CPU starts after power-on. */
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';

/** Real mode at the reset vector, 16 bytes below 4 GiB (Intel SDM volume 3, §9.1.4). */
const RESET_VECTOR = Layout.firmwareEnd - 16;
export const RESET_REGS: VcpuRegs = {
  cr0: 0x30n, // ET, NE
  cs: { selector: 0xf000, base: BigInt(RESET_VECTOR - (RESET_VECTOR % 0x1_0000)), limit: 0xffff, attributes: 0x9f },
  rip: BigInt(RESET_VECTOR % 0x1_0000),
};
