/** CPUs that the VM's tables cannot name. */
import { describe, expect, test } from 'vitest';
import { buildAcpi } from '../../../devicemodel/core/firmware/acpi-tables.ts';
import { buildMpTable } from '../../../devicemodel/core/firmware/mptable.ts';
import { pcAcpiInput } from '../../support/pc-tables.ts';

const tables = {
  ACPI: (lapicId: number) => buildAcpi(pcAcpiInput({ cpus: [{ lapicId, pStates: undefined, cStates: [] }] })),
  MP: (lapicId: number) => buildMpTable({ lapicIds: [lapicId], lapicPassthrough: false, routes: [], sciGsi: 9 }),
};

// Mutation: one table that takes 255, or calls a larger id a mistake of the program's own (status 70).
describe.each(Object.keys(tables) as (keyof typeof tables)[])('%s table', (name) => {
  test.each([255, 256, 300, 1_000_000, 0xffff_ffff])('id %i is refused with status 69', (lapicId) => {
    expect(() => tables[name](lapicId)).toThrow(
      expect.objectContaining({
        message: expect.stringContaining(`local APIC id ${lapicId}`),
        hint: expect.stringContaining('up to 254 by --cpu_affinity'),
        exitCode: 69,
      }),
    );
  });
  test.each([0, 1, 254])('id %i is taken', (lapicId) => {
    expect(tables[name](lapicId).length).toBeGreaterThan(0);
  });
});
