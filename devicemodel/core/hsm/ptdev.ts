/**
 * Passed-through PCI functions as the HSM takes them: struct acrn_pcidev and acrn_ptdev_irq, checked before the ioctl,
 * since the driver hands them to the hypervisor as they are.
 */
import { type Bdf, bdfToNumber, formatBdf } from '../address.ts';
import { BugError } from '../errors.ts';
import { AcrnPcidev, AcrnPtdevIrq } from './abi.ts';
import type { PcidevAssignment, PtdevIntx } from './hsm.ts';

const ACRN_PTDEV_IRQ_INTX = 0;
/** Configuration accesses go to the device model; only MSI, MSI-X and the header are the hypervisor's. */
const ACRN_PTDEV_QUIRK_ASSIGN = 1;
const BAR_REGISTERS = 6;
const MAX_PIN = 4;

/** `02:00.0 as 00:06.0`, for messages. */
export function describePcidev({
  physicalBdf,
  virtualBdf,
}: Pick<PcidevAssignment, 'physicalBdf' | 'virtualBdf'>): string {
  return `${formatBdf(physicalBdf)} as ${formatBdf(virtualBdf)}`;
}

function checkBdf(name: string, { bus, device, function: fn }: Bdf): void {
  const isIn = (value: number, end: number) => Number.isInteger(value) && value >= 0 && value < end;
  if (!isIn(bus, 256) || !isIn(device, 32) || !isIn(fn, 8)) {
    throw new BugError(`${name} address ${bus}:${device}.${fn} is not one of a PCI function`);
  }
}

function isU32(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;
}

/** The 36 bytes of struct acrn_pcidev. @throws BugError for what no function can be. */
export function encodePcidev(assignment: PcidevAssignment): Uint8Array {
  const { virtualBdf, physicalBdf, interruptLine, interruptPin, bars } = assignment;
  checkBdf('virtual', virtualBdf);
  checkBdf('physical', physicalBdf);
  const where = describePcidev(assignment);
  if (bars.length > BAR_REGISTERS || !bars.every(isU32)) throw new BugError(`${where}: six BARs of 32 bits at most`);
  if (!(interruptPin >= 0 && interruptPin <= MAX_PIN)) throw new BugError(`${where}: pin ${interruptPin} is not 0..4`);
  if (!(interruptLine >= 0 && interruptLine <= 0xff))
    throw new BugError(`${where}: line ${interruptLine} is not a byte`);
  return AcrnPcidev.encode({
    type: assignment.quirk === true ? ACRN_PTDEV_QUIRK_ASSIGN : 0,
    virtBdf: bdfToNumber(virtualBdf),
    physBdf: bdfToNumber(physicalBdf),
    intrLine: interruptLine,
    intrPin: interruptPin,
    bar: bars,
  });
}

/** The 20 bytes of struct acrn_ptdev_irq for a legacy interrupt. @throws BugError */
export function encodePtdevIntx(intx: PtdevIntx): Uint8Array {
  const { virtualBdf, physicalBdf, virtualPin, physicalPin, isPicPin } = intx;
  checkBdf('virtual', virtualBdf);
  checkBdf('physical', physicalBdf);
  if (!isU32(virtualPin) || !isU32(physicalPin)) {
    throw new BugError(`${describePcidev(intx)}: pins ${virtualPin} and ${physicalPin}`);
  }
  return AcrnPtdevIrq.encode({
    type: ACRN_PTDEV_IRQ_INTX,
    virtBdf: bdfToNumber(virtualBdf),
    physBdf: bdfToNumber(physicalBdf),
    virtPin: virtualPin,
    physPin: physicalPin,
    isPicPin: isPicPin ? 1 : 0,
  });
}
