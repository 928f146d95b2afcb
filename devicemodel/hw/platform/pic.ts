/** The two 8259s (Intel 8259A datasheet). The hypervisor has them; the guest's tables say where. An RTVM has none. */
import { io, irqNoFlags } from '../../core/firmware/aml-resources.ts';
import { isaDevice, type TableContributor } from '../../core/firmware/contribution.ts';

const Pic = { primaryPort: 0x20, secondaryPort: 0xa0, cascadeIrq: 2 } as const;

export const picTables: TableContributor = {
  aml: () => [
    isaDevice('PIC', 'PNP0000', [io(Pic.primaryPort, 2), io(Pic.secondaryPort, 2), irqNoFlags(Pic.cascadeIrq)]),
  ],
};
