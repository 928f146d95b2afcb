/**
 * The DSDT: what the devices hand in, in the order the board gives it, and the processors. Spec: ACPI 6.4 chapters 5, 6
 * and 8.
 */
import { type Aml, arg, method, name, scope, store, terms } from './aml.ts';
import type { AmlPlace, DeviceAml } from './contribution.ts';
import { type Cpu, operatingSystemCapabilities, processors } from './processor-aml.ts';

export interface DsdtInput {
  /** In vCPU order. */
  readonly cpus: readonly Cpu[];
  /** In the order they are to be written; pieces for the ISA bridge are inside the bridge already. */
  readonly parts: readonly DeviceAml[];
}

/** The definition block's term list: what follows the table header. */
export function dsdtBody(input: DsdtInput): Aml {
  const at = (place: AmlPlace) => input.parts.filter((part) => part.place === place).map((part) => part.aml);
  const isContinuous = input.cpus[0]?.pStates === 'continuous';
  return terms([
    ...at('root'),
    // Interrupt model: 0 = PIC, 1 = APIC; the guest tells it by _PIC (ACPI 6.4 §5.8.1).
    name('PICM', 0),
    method('_PIC', 1, [store(arg(0), 'PICM')]),
    scope('_SB', at('system-bus')),
    ...at('system'),
    ...(isContinuous ? [operatingSystemCapabilities()] : []),
    ...processors(input.cpus),
  ]);
}
