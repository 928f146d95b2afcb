/** The machine as a whole: what control commands reach in it. */
import { writeFileSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import type { PciSlotConfig } from '../../devicemodel/core/config.ts';
import { Disposer } from '../../devicemodel/core/disposer.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { checkOptions, optionsFromText } from '../../devicemodel/core/options.ts';
import { newWaits } from '../../devicemodel/core/waits.ts';
import { pcBoard } from '../../devicemodel/hw/board.ts';
import { loadPciDriver } from '../../devicemodel/hw/registry.ts';
import { CharBackendPool } from '../../devicemodel/hw/uart/backends/pool.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { FakeHsm } from '../support/fake-hsm.ts';
import { FakePower } from '../support/fake-line.ts';
import { makePc } from '../support/fake-pc.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory } from '../support/pty.ts';
import { bareVmConfig } from '../support/vm-config.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function slot(device: number, driver: string, text = '', bus = 0): Promise<PciSlotConfig> {
  const { options, parseText } = await loadPciDriver(driver);
  const raw = parseText === undefined ? optionsFromText(options, text) : parseText(text);
  return { bdf: { bus, device, function: 0 }, driver, options: checkOptions(options, raw), text };
}

async function makeBoard(pci: PciSlotConfig[]) {
  const { log, lines } = memoryLog();
  const undo = new Disposer();
  cleanUp.push(() => undo.run());
  const hsm = new FakeHsm();
  hsm.createVm({ name: 'vm1', vcpuAffinity: 1n, flags: 0n } as never);
  const config = { ...bareVmConfig, pci };
  const board = await pcBoard({
    consoles: new CharBackendPool({ log } as never),
    lapicIds: () => [0],
  })({
    config,
    hsm,
    memory: new GuestMemory([{ base: 0, bytes: new Uint8Array(1 << 20), hostAddress: undefined }]),
    pio: new PioBus(),
    mmio: new MmioBus(),
    clock: new FakeClock(),
    power: new FakePower(),
    events: { emit: () => false },
    waits: newWaits(() => {}),
    vcpuCount: 1,
    log,
    undo,
  });
  await board.start();
  return { board, lines };
}

describe('blkrescan', () => {
  async function makeMachine() {
    const directory = scratchDirectory();
    cleanUp.push(() => directory.remove());
    const image = directory.file('disk');
    writeFileSync(image, new Uint8Array(8192));
    const pci = [await slot(0, 'hostbridge'), await slot(3, 'virtio-rnd'), await slot(4, 'virtio-blk', 'nodisk')];
    return { ...(await makeBoard(pci)), image };
  }

  test('plugs the image into the slot, once', async () => {
    const { board, image } = await makeMachine();
    expect(await board.rescanBlockDevice(`4,${image},ro`)).toBe(true);
    expect(await board.rescanBlockDevice(`4,${image}`)).toBe(false);
  });

  // Mutation: say of it what is said of a device that is no CD drive.
  test('so does an insert, which says why it cannot', async () => {
    const { board, image } = await makeMachine();
    await expect(board.changeMedium?.('4', 0, `${image}.not`)).rejects.toThrow(/disk\.not: open: ENOENT/);
    await expect(board.changeMedium?.('4', 1, image)).rejects.toThrow('a virtio-blk has no port 1');
    await expect(board.changeMedium?.('3', 0, image)).rejects.toThrow(
      'neither an ahci nor a virtio-blk is in that slot',
    );
    await board.changeMedium?.('4', 0, image);
    await expect(board.changeMedium?.('4', 0, image)).rejects.toThrow('a disk cannot be replaced');
  });

  test('an eject is of CD drives alone', async () => {
    const { board } = await makeMachine();
    await expect(board.changeMedium?.('4', 0, undefined)).rejects.toThrow('there is no ahci in that slot');
  });

  test('and into a slot below a root port', async () => {
    const { image } = await makeMachine();
    const { board } = await makeBoard([
      await slot(0, 'hostbridge'),
      await slot(6, 'root-port'),
      await slot(0, 'virtio-blk', 'nodisk', 1),
    ]);
    expect(await board.rescanBlockDevice(`2:0:0,${image}`)).toBe(false);
    expect(await board.rescanBlockDevice(`1:0:8,${image}`)).toBe(false);
    expect(await board.rescanBlockDevice(`1:0:0,${image}`)).toBe(true);
  });

  test.each([
    ['no slot', (path: string) => path],
    ['no path', () => '4'],
    ['an empty path', () => '4,'],
    ['a slot that is no number', (path: string) => `x,${path}`],
    ['an empty slot', (path: string) => `9,${path}`],
    ['a slot that does not exist: not one of another bus either', (path: string) => `${4 + 32},${path}`],
    ['another kind of device', (path: string) => `3,${path}`],
    ['an image that is not there', (path: string) => `4,${path}.not`],
  ])('refuses %s with one warning, and the slot stays usable', async (_what, argument) => {
    const { board, lines, image } = await makeMachine();
    const before = lines.length;
    expect(await board.rescanBlockDevice(argument(image))).toBe(false);
    expect(lines.slice(before)).toHaveLength(1);
    expect(await board.rescanBlockDevice(`4,${image}`)).toBe(true);
  });
});

describe('a reset', () => {
  test('lines are idle and tables written before RESET_VM, devices of the hypervisor made after it', async () => {
    const pc = makePc(['-s', '3,virtio-rnd', '-s', '5,ivshmem,hv:/shm,2'], ({ guest }) => {
      void guest.outb(0xcf9, 0x06);
      void guest.pioWrite(0x404, 2, 0x3400);
    });
    cleanUp.push(pc.dispose);
    await pc.vm.run();
    const names = pc.lives.flatMap((hsm) => hsm.callNames);
    const between = names.slice(names.indexOf('clearIoreqs'), names.lastIndexOf('startVm'));
    const isOnce = (name: string, i: number) => between.indexOf(name as never) === i;
    const order = ['clearIoreqs', 'destroyVdev', 'setIrqLine', 'getCpuState', 'resetVm', 'createVdev', 'setVcpuRegs'];
    expect(between.filter(isOnce)).toEqual(order);
    expect(between.filter((name) => name === 'setIrqLine')).toHaveLength(1);
  });

  test('of any kind: the firmware finds the same RPMB key again, the guest what it left in the extended CMOS', async () => {
    const directory = scratchDirectory();
    cleanUp.push(() => directory.remove());
    const ovmf = directory.file('OVMF.fd');
    writeFileSync(ovmf, new Uint8Array(4096));
    const found: number[][] = [];
    const pc = makePc(['--ovmf', ovmf], ({ guest }, life) => {
      const take = async () => {
        const bytes: number[] = [];
        for (const index of [0x10, ...Array.from({ length: 64 }, (_, i) => 0x20 + i)]) {
          await guest.outb(0x74, index);
          bytes.push(await guest.inb(0x75));
        }
        found.push(bytes);
        await guest.outb(0x74, 0x10);
        await guest.outb(0x75, 0x42);
      };
      const live = async () => {
        await take();
        if (life > 1) return guest.pioWrite(0x404, 2, 0x3400);
        void guest.outb(0xcf9, 0x06);
        await take();
        return guest.outb(0xcf9, 0x0e);
      };
      void live();
    });
    cleanUp.push(pc.dispose);
    await pc.vm.run();
    const [first = []] = found;
    expect(first.some((byte) => byte !== 0)).toBe(true);
    expect(found).toEqual([first, [0x42, ...first.slice(1)], [0x42, ...first.slice(1)]]);
  });
});
