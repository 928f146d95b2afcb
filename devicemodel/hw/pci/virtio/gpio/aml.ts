/** What virtio-gpio adds to the DSDT: the controller, and methods that read and write lines. */
import type { Bdf, Port } from '../../../../core/address.ts';
import {
  add,
  arg,
  device,
  FieldAccess,
  field,
  local,
  method,
  name,
  operationRegion,
  RegionSpace,
  ret,
  SERIALIZED,
  scope,
  shiftLeft,
  store,
  terms,
  text,
} from '../../../../core/firmware/aml.ts';
import { resourceTemplate } from '../../../../core/firmware/aml-resources.ts';
import { type PciFunctionAml, pciAddress } from '../../../../core/firmware/contribution.ts';

/** Path of the virtio GPIO controller, for resources that name it. */
export const GPIO_CONTROLLER = '\\_SB_.PCI0.AGPI';

/**
 * The virtio GPIO controller with methods to read and write lines from AML: `\_SB.GPCG(line)`, `\_SB.GPCS(line, value)`.
 * @param lineBase port of the first line's register in the device's I/O BAR; lines are 4 ports apart.
 */
export function gpioAml(bdf: Bdf, lineBase: Port): PciFunctionAml {
  const lineRegister = (bits: number) => [
    add(lineBase, shiftLeft(arg(0), 2), local(0)),
    operationRegion('GPOR', RegionSpace.SystemIo, local(0), 4),
    field('GPOR', { access: FieldAccess.DWord }, [{ name: 'TEMP', bits }]),
  ];
  return {
    bdf,
    aml: () =>
      terms([
        device('AGPI', [
          name('_ADR', pciAddress(bdf)),
          name('_DDN', text('Virtio GPIO Controller ')),
          name('_UID', 1),
          name('LINK', text(GPIO_CONTROLLER)),
          // Compat: C has a method _CRS that returns nothing, which ACPI forbids (§6.2.2).
          name('_CRS', resourceTemplate([])),
        ]),
        scope('\\_SB', [
          method('GPCS', 2, [...lineRegister(2), store(arg(1), 'TEMP')], SERIALIZED),
          method('GPCG', 1, [...lineRegister(1), ret('TEMP')], SERIALIZED),
        ]),
      ]),
  };
}
