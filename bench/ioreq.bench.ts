/** One guest access through the device model, the hypervisor left out: look at the page, dispatch, notify. */
import { bench, describe } from 'vitest';
import type { AccessSize } from '../devicemodel/core/address.ts';
import type { IoRegion, PciConfigAccess } from '../devicemodel/core/device.ts';
import type { Hsm } from '../devicemodel/core/hsm/hsm.ts';
import { MmioBus, PioBus } from '../devicemodel/core/io-bus.ts';
import { IOREQ_PAGE_BYTES, IoreqPage, IoreqState } from '../devicemodel/core/ioreq-page.ts';
import { IoreqServer } from '../devicemodel/core/ioreq-server.ts';
import { silentLog } from '../devicemodel/core/log.ts';

const ROUNDS = 1000;
const page = new IoreqPage(new Uint8Array(IOREQ_PAGE_BYTES));
const hsm = {
  ioreqPage: page.bytes,
  notifyIoreqDone: (vcpu: number) => page.setState(vcpu, IoreqState.Free),
} as unknown as Hsm;

let last = 0;
const register: IoRegion = {
  read: (offset: number, _size: AccessSize) => last + offset,
  write: (_offset: number, _size: AccessSize, value: number) => {
    last = value & 0xff;
  },
};
const pci: PciConfigAccess = { readConfig: (_bdf, offset) => offset, writeConfig: () => {} };
const pio = new PioBus();
const mmio = new MmioBus();
pio.register({ base: 0x3f8, size: 8, name: 'com1' }, register);
for (let n = 0; n < 16; n++) {
  mmio.register({ base: 0x8000_0000 + n * 0x1000, size: 0x1000, name: `bar ${n}` }, register);
}
const server = new IoreqServer({ hsm, pio, mmio, pci, vcpuCount: 2, log: silentLog });

function turn(fill: () => void): void {
  for (let round = 0; round < ROUNDS; round++) {
    fill();
    page.setState(0, IoreqState.Processing);
    server.serve();
  }
}

describe(`${ROUNDS} requests`, () => {
  bench('port read', () => turn(() => page.fillPortIo(0, false, 0x3fd, 1, 0)));
  bench('port write', () => turn(() => page.fillPortIo(0, true, 0x3f8, 1, 0x41)));
  bench('MMIO read', () => turn(() => page.fillMmio(0, false, 0x8000_7010, 4, 0)));
  bench('config read', () => turn(() => page.fillPciConfig(0, false, 0x28, 0x10, 4, 0)));
  bench('nobody answers', () => turn(() => page.fillPortIo(0, false, 0x1234, 1, 0)));
});
