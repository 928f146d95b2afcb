import type { Gpa } from '../../devicemodel/core/address.ts';

/** Interrupt messages go to FEExxxxx (Intel SDM vol. 3, 11.11.1); a write elsewhere is one to memory. */
export function isMsiAddress(address: Gpa): boolean {
  return address >= 0xfee0_0000 && address < 0xfef0_0000;
}
