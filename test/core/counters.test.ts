import { expect, test } from 'vitest';
import { AccessCount, CounterBook, countersOf, DiskCount, tally, tallyRead } from '../../devicemodel/core/counters.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { IoreqServer } from '../../devicemodel/core/ioreq-server.ts';
import { silentLog } from '../../devicemodel/core/log.ts';
import { FakeHsm } from '../support/fake-hsm.ts';

test('what several threads counted is one sum, and a thread that comes after another goes on', () => {
  const book = new CounterBook();
  const disk = book.of('disk', '00:03.0');
  tallyRead(disk.own, 512);
  tallyRead(disk.ofThread(1), 4096);
  tally(disk.ofThread(0), DiskCount.errors, 1);
  tallyRead(disk.ofThread(1), 4096);
  expect(disk.values()).toEqual({
    reads: 3,
    readBytes: 8704,
    writes: 0,
    writeBytes: 0,
    flushes: 0,
    discards: 0,
    errors: 1,
  });
  expect(disk.ofThread(1).buffer).toBeInstanceOf(SharedArrayBuffer);
});

test('a device has the same counters in its next life, and another device others', () => {
  const book = new CounterBook();
  tallyRead(book.of('disk', '00:03.0').own, 1);
  expect(book.of('disk', '00:03.0').values().reads).toBe(1);
  expect(book.of('disk', '00:04.0').values().reads).toBe(0);
  expect(book.of('net', '00:03.0').values()).not.toHaveProperty('reads');
  expect(book.all.map(({ kind, id }) => `${kind} ${id}`)).toEqual(['disk 00:03.0', 'disk 00:04.0', 'net 00:03.0']);
});

test.each(Object.entries(countersOf))('%s: each counter has a place of its own, without gaps', (_kind, places) => {
  expect(Object.values(places)).toEqual(Object.values(places).map((_, i) => i));
});

test('accesses of the guest, by where they went and which way', async () => {
  const hsm = new FakeHsm({ vcpuCount: 1, serving: 'from-page' });
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
  hsm.createIoreqClient();
  hsm.startVm();
  const counts = new CounterBook().of('accesses', 'vm');
  const pci = { readConfig: () => 0, writeConfig: () => {} };
  const server = new IoreqServer({
    hsm,
    pio: new PioBus(),
    mmio: new MmioBus(),
    pci,
    vcpuCount: 1,
    counts: counts.own,
    log: silentLog,
  });
  const { guest } = hsm;
  const accesses = [
    guest.pioRead(0x60, 1),
    guest.pioWrite(0x60, 1, 2),
    guest.pioWrite(0x60, 1, 2),
    guest.mmioRead(0x1000, 4),
    guest.pciWrite({ bus: 0, device: 3, function: 0 }, 4, 2, 7),
  ];
  for (const _ of accesses) {
    void hsm.waitForIoreqs(server.serve);
    server.serve();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(accesses);
  expect(counts.values()).toMatchObject({
    pioReads: 1,
    pioWrites: 2,
    mmioReads: 1,
    mmioWrites: 0,
    pciReads: 0,
    pciWrites: 1,
  });
  expect(counts.own[AccessCount.pioWrites]).toBe(2);
});
