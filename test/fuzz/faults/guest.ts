/** The guest of the fault run: prints, writes to disks, resets itself, and powers off. */
import { SECTOR_BYTES, sectorPattern } from './data.ts';

export interface Access {
  readonly kind: 'pio' | 'mmio' | 'pci';
  /** Port, address, or register in configuration space. */
  readonly address: number;
  readonly size: 1 | 2 | 4;
  /** Missing: a read. */
  readonly value?: number;
  /** Of a PCI function on bus 0. */
  readonly bdf?: number;
}

export interface GuestMachine {
  ram(gpa: number, sizeBytes: number): DataView;
}

/** Gives accesses, takes what was read; `undefined` waits for a moment. */
export type Guest = Generator<Access | undefined, void, number>;

/** What happens to the VM in its lives, in order; the last is how it ends. */
export type Ending = 'system-reset' | 'full-reset' | 'power-off' | 'SIGTERM' | 'SIGINT';

export interface GuestPlan {
  /** Device numbers of the disks. */
  readonly disks: readonly number[];
  /** What the guest does at the end of its n-th start. */
  readonly endings: readonly Ending[];
  /** A disk has kept what was written to it: sector, of the n-th disk. */
  readonly onFlushed: (disk: number, sector: number) => void;
  /** A disk has not answered for long: neither that it is done nor that it failed. */
  readonly onSilent: (disk: number) => void;
}

const COM1 = 0x3f8;
const RESET_PORT = 0xcf9;
const PM1_CONTROL = 0x404;
const SLEEP_S5 = 0x3400;

/** Virtio 0.9.5, legacy registers in BAR 0, with MSI-X on. */
const Legacy = { guestFeatures: 0x04, pfn: 0x08, select: 0x0e, notify: 0x10, status: 0x12, queueVector: 0x16 } as const;
const Status = { driver: 3, driverOk: 7 } as const;
const MSIX_CAPABILITY = 0x11;
const Blk = { write: 1, flush: 4, flushFeature: 1 << 9 } as const;
const DescFlag = { next: 1, write: 2 } as const;
const QUEUE_SIZE_REGISTER = 0x0c;
const PAGE_BYTES = 4096;
/** Where the guest keeps the rings and buffers of its n-th disk. */
const RING_BASE = 0x200_0000;
const DISK_STRIDE = 0x10_0000;
const BUFFERS = 0x8_0000;
/** Looks for a completion, 1 ms apart: a disk whose thread died has others, and one that was given up answers an error. */
const MAX_LOOKS = 20_000;

const out = (address: number, size: 1 | 2 | 4, value: number): Access => ({ kind: 'pio', address, size, value });

export function* runGuest(machine: GuestMachine, plan: GuestPlan, start: number): Guest {
  for (const char of `start ${start}\n`) yield out(COM1, 1, char.charCodeAt(0));
  for (const [index, device] of plan.disks.entries()) {
    const disk = yield* setUpDisk(machine, device, index);
    for (let n = 0; n < 2; n++) {
      const sector = 2 * start + n;
      const write = yield* request(machine, disk, Blk.write, sector);
      const flush = write === 'done' ? yield* request(machine, disk, Blk.flush, 0) : write;
      if (flush === 'silent') plan.onSilent(index);
      if (flush !== 'done') break;
      plan.onFlushed(index, sector);
    }
  }
  const ending = plan.endings[Math.min(start, plan.endings.length - 1)];
  if (ending === 'system-reset') yield out(RESET_PORT, 1, 0x06);
  else if (ending === 'full-reset') yield out(RESET_PORT, 1, 0x0e);
  else if (ending === 'power-off') yield out(PM1_CONTROL, 2, SLEEP_S5);
  else if (ending !== undefined) process.kill(process.pid, ending);
  for (;;) yield undefined;
}

interface Disk {
  readonly bar: number;
  readonly base: number;
  readonly queueSize: number;
  readonly usedAt: number;
  done: number;
}

function* setUpDisk(machine: GuestMachine, device: number, index: number): Generator<Access | undefined, Disk, number> {
  const bdf = device << 3;
  const config = (address: number, size: 1 | 2 | 4, value?: number): Access =>
    value === undefined ? { kind: 'pci', bdf, address, size } : { kind: 'pci', bdf, address, size, value };
  const bar = (yield config(0x10, 4)) & ~3;
  yield config(0x04, 2, 7);
  for (let at = (yield config(0x34, 1)) & 0xff, n = 0; at !== 0 && n < 16; n++) {
    if (((yield config(at, 1)) & 0xff) === MSIX_CAPABILITY) yield config(at + 2, 2, 0x8000);
    at = (yield config(at + 1, 1)) & 0xff;
  }
  yield out(bar + Legacy.status, 1, 0);
  yield out(bar + Legacy.status, 1, Status.driver);
  yield out(bar + Legacy.guestFeatures, 4, Blk.flushFeature);
  yield out(bar + Legacy.select, 2, 0);
  const queueSize = (yield { kind: 'pio', address: bar + QUEUE_SIZE_REGISTER, size: 2 }) & 0xffff;
  const base = RING_BASE + index * DISK_STRIDE;
  new Uint8Array(machine.ram(base, BUFFERS).buffer, machine.ram(base, 1).byteOffset, BUFFERS).fill(0);
  yield out(bar + Legacy.pfn, 4, base / PAGE_BYTES);
  yield out(bar + Legacy.queueVector, 2, 0);
  yield out(bar + Legacy.status, 1, Status.driverOk);
  const availableEnd = 16 * queueSize + 4 + 2 * queueSize;
  const usedAt = base + Math.ceil(availableEnd / PAGE_BYTES) * PAGE_BYTES;
  return { bar, base, queueSize, usedAt, done: 0 };
}

/** One request in one chain, waited for. @returns what the disk answered. */
function* request(
  machine: GuestMachine,
  disk: Disk,
  type: number,
  sector: number,
): Generator<Access | undefined, 'done' | 'failed' | 'silent', number> {
  const { base, queueSize, usedAt, bar } = disk;
  if (queueSize === 0) return 'failed';
  const buffers = base + BUFFERS;
  const header = machine.ram(buffers, 16);
  header.setUint32(0, type, true);
  header.setBigUint64(8, BigInt(sector), true);
  const data = machine.ram(buffers + 0x1000, SECTOR_BYTES);
  new Uint8Array(data.buffer, data.byteOffset, SECTOR_BYTES).set(sectorPattern(sector));
  machine.ram(buffers + 0x2000, 1).setUint8(0, 0xff);
  const parts: (readonly [at: number, bytes: number, flags: number])[] = [[buffers, 16, 0]];
  if (type === Blk.write) parts.push([buffers + 0x1000, SECTOR_BYTES, 0]);
  parts.push([buffers + 0x2000, 1, DescFlag.write]);
  for (const [n, [at, bytes, flags]] of parts.entries()) {
    const desc = machine.ram(base + 16 * n, 16);
    desc.setBigUint64(0, BigInt(at), true);
    desc.setUint32(8, bytes, true);
    desc.setUint16(12, flags | (n + 1 < parts.length ? DescFlag.next : 0), true);
    desc.setUint16(14, n + 1, true);
  }
  const available = machine.ram(base + 16 * queueSize, 4 + 2 * queueSize);
  available.setUint16(4 + 2 * (disk.done % queueSize), 0, true);
  disk.done = (disk.done + 1) & 0xffff;
  available.setUint16(2, disk.done, true);
  yield out(bar + Legacy.notify, 2, 0);
  for (let looks = 0; machine.ram(usedAt, 4).getUint16(2, true) !== disk.done; looks++) {
    if (looks === MAX_LOOKS) return 'silent';
    yield undefined;
  }
  return machine.ram(buffers + 0x2000, 1).getUint8(0) === 0 ? 'done' : 'failed';
}
