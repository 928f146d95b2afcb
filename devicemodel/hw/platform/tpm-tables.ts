/** How a guest is told of a TPM 2.0 with a command response buffer. Spec: TCG ACPI 1.2 §7.3, PC Client PTP 1.05 §6.5. */
import type { Gpa } from '../../core/address.ts';
import { device, name, PRESENT, scope, text } from '../../core/firmware/aml.ts';
import { memory32Fixed, resourceTemplate } from '../../core/firmware/aml-resources.ts';
import type { TableContributor } from '../../core/firmware/contribution.ts';
import { tpm2Table } from '../../core/firmware/tables.ts';

/** CTRL_REQ, where the control area begins, from the base of the device. */
const CRB_CONTROL_REQUEST = 0x40;
/** Start method "command response buffer interface" (TCG ACPI 1.2, table 8). */
const START_METHOD_CRB = 7;

export interface TpmPlace {
  readonly base: Gpa;
  readonly sizeBytes: number;
  /** Where the control area is, and how commands are started; default: as a command response buffer has it. */
  readonly control?: { readonly gpa: Gpa; readonly startMethod: number };
  /** The event log of the firmware, if it has one. */
  readonly log?: { readonly gpa: Gpa; readonly sizeBytes: number };
}

export function tpmTables({
  base,
  sizeBytes,
  control,
  log,
}: TpmPlace): Required<Pick<TableContributor, 'aml' | 'tables'>> {
  return {
    aml: () => [
      {
        place: 'system',
        aml: scope('_SB', [
          device('TPM', [
            name('_HID', text('MSFT0101')),
            name('_CRS', resourceTemplate([memory32Fixed(base, sizeBytes)])),
            PRESENT,
          ]),
        ]),
      },
    ],
    tables: () => [
      tpm2Table({
        control: control?.gpa ?? base + CRB_CONTROL_REQUEST,
        startMethod: control?.startMethod ?? START_METHOD_CRB,
        ...(log === undefined ? {} : { logAddress: log.gpa, logLength: log.sizeBytes }),
      }),
    ],
  };
}
