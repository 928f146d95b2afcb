import { describe, expect, test } from 'vitest';
import { buildAcpi } from '../../../devicemodel/core/firmware/acpi-tables.ts';
import { buildMpTable } from '../../../devicemodel/core/firmware/mptable.ts';
import { recordedCases, recordedDir, recordedFile } from '../../support/recorded-cases.ts';
import { machineFacts } from './machine-facts.ts';

interface RecordedTable {
  readonly gpa: string;
  readonly hex?: string;
  readonly file?: string;
}

/** Who made a table, and the checksum that depends on it, differ from the reference on purpose. */
function withoutMaker(signature: string, bytes: Uint8Array): string {
  const copy = Uint8Array.from(bytes);
  if (!['RSDP', 'FACS', 'MPFP', 'MPTABLE'].includes(signature)) {
    copy[9] = 0;
    copy.fill(0, 28, 36);
  }
  return Buffer.from(copy).toString('hex');
}

describe.skipIf(recordedDir === undefined)(
  'tables of the reference, from the command line of each recorded case',
  () => {
    for (const recorded of recordedCases('acpi/tables.json')) {
      const facts = machineFacts(recorded);
      test.skipIf(facts === undefined)(
        `${recorded.name}${facts === undefined ? ': has a device unknown here' : ''}`,
        () => {
          const tables = JSON.parse(
            new TextDecoder().decode(recordedFile(recorded.name, 'acpi/tables.json')),
          ) as Record<string, RecordedTable>;
          const expected = Object.entries(tables).map(([signature, table]) => {
            const bytes =
              table.hex === undefined
                ? recordedFile(recorded.name, `acpi/${table.file}`)
                : Uint8Array.from(Buffer.from(table.hex, 'hex'));
            return [signature, Number(table.gpa), withoutMaker(signature, bytes as Uint8Array)];
          });
          const { acpi, mp } = facts as NonNullable<typeof facts>;
          const built = [...buildAcpi(acpi), ...buildMpTable(mp)].map((table) => [
            table.signature,
            table.gpa,
            withoutMaker(table.signature, table.bytes),
          ]);
          const bySignature = (list: unknown[][]) =>
            Object.fromEntries(list.map(([signature, ...rest]) => [signature, rest]));
          expect(bySignature(built)).toEqual(bySignature(expected));
        },
      );
    }
  },
);
