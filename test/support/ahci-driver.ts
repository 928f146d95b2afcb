/**
 * Plays the guest's side of AHCI: memory, and a driver that fills command lists over the registers, as Linux does.
 *
 *   const { driver } = await ahciMachine(`hd:${path}`);
 *   driver.start(0);                                       // port 0: list, frames, ST
 *   await driver.run(0, { command: 0x25, lba: 8, count: 1, memory: [[0x40000, 512]] });
 */
import { onTestFinished } from 'vitest';
import { ConfigSpace } from '../../devicemodel/chips/pci-config-space.ts';
import type { Gpa } from '../../devicemodel/core/address.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import { Ahci } from '../../devicemodel/hw/pci/ahci/ahci.ts';
import type { OpenQueue } from '../../devicemodel/hw/pci/ahci/medium.ts';
import { AhciOptions, parseAhciText } from '../../devicemodel/hw/pci/ahci/options.ts';
import { type MachineChoices, VirtioMachine } from './virtio-driver.ts';

export const Reg = {
  cap: 0,
  ghc: 4,
  is: 8,
  pi: 0xc,
  vs: 0x10,
  clb: 0,
  clbu: 4,
  fb: 8,
  fbu: 0xc,
  pis: 0x10,
  pie: 0x14,
  cmd: 0x18,
  tfd: 0x20,
  sig: 0x24,
  ssts: 0x28,
  sctl: 0x2c,
  serr: 0x30,
  sact: 0x34,
  ci: 0x38,
  sntf: 0x3c,
} as const;
type PortRegister =
  | 'clb'
  | 'clbu'
  | 'fb'
  | 'fbu'
  | 'pis'
  | 'pie'
  | 'cmd'
  | 'tfd'
  | 'sig'
  | 'ssts'
  | 'sctl'
  | 'serr'
  | 'sact'
  | 'ci'
  | 'sntf';

const ABAR = 5;
/** Where the driver has its structures, per port. */
const LISTS = 0x1000;
const FRAMES = 0x2000;
const TABLES = 0x8000;
const TABLE_BYTES = 0x400;
/** Free for data. */
export const DATA = 0x40000;

export interface AtaCommand {
  readonly command: number;
  readonly lba?: number;
  readonly count?: number;
  readonly features?: number;
  readonly device?: number;
  /** Byte 16 of the frame. */
  readonly auxiliary?: number;
  /** ATAPI command. */
  readonly packet?: readonly number[];
  /** Physical region descriptors: address, bytes. */
  readonly memory?: ReadonlyArray<readonly [Gpa, number]>;
  readonly isWrite?: boolean;
  /** Where the table is. */
  readonly table?: Gpa;
}

export class AhciDriver {
  readonly machine: VirtioMachine;
  readonly fn: Ahci;
  readonly config = new ConfigSpace();

  constructor(machine: VirtioMachine, fn: Ahci) {
    this.machine = machine;
    this.fn = fn;
    fn.configure(this.config);
    this.config.seal();
  }

  hba(reg: number): number {
    return this.fn.readBar(ABAR, reg, 4);
  }
  setHba(reg: number, value: number): void {
    this.fn.writeBar(ABAR, reg, 4, value >>> 0);
  }
  get(port: number, reg: PortRegister): number {
    return this.hba(0x100 + port * 0x80 + Reg[reg]);
  }
  set(port: number, reg: PortRegister, value: number): void {
    this.setHba(0x100 + port * 0x80 + Reg[reg], value);
  }

  /** List, frames, interrupts, COMRESET, ST. */
  start(port: number): void {
    this.set(port, 'clb', LISTS + port * 0x400);
    this.set(port, 'clbu', 0);
    this.set(port, 'fb', FRAMES + port * 0x100);
    this.set(port, 'fbu', 0);
    this.set(port, 'cmd', 0x16);
    this.set(port, 'sctl', 1);
    this.set(port, 'sctl', 0);
    this.set(port, 'serr', 0xffffffff);
    this.set(port, 'pis', 0xffffffff);
    this.set(port, 'pie', 0x7dc0007f);
    this.setHba(Reg.ghc, 0x80000002);
    this.set(port, 'cmd', 0x17);
  }

  /** After an error, as software does: ST off and on. */
  async restart(port: number): Promise<void> {
    this.set(port, 'cmd', 0x16);
    await this.until(() => (this.get(port, 'cmd') & 0x8000) === 0);
    this.set(port, 'pis', 0xffffffff);
    this.setHba(Reg.is, 0xffffffff);
    this.set(port, 'cmd', 0x17);
  }

  tableAt(port: number, slot: number): Gpa {
    return TABLES + (port * 32 + slot) * TABLE_BYTES;
  }
  headerAt(port: number, slot: number): Gpa {
    return LISTS + port * 0x400 + slot * 32;
  }

  /** Write a slot's header and table. */
  prepare(port: number, slot: number, command: AtaCommand): void {
    const { memory } = this.machine;
    const { memory: regions = [], packet = [], table = this.tableAt(port, slot) } = command;
    const fis = new Uint8Array(0x80 + regions.length * 16);
    const view = new DataView(fis.buffer);
    const isQueued = command.command === 0x60 || command.command === 0x61 || command.command === 0x64;
    const { lba = 0, count = 0, features = 0 } = command;
    fis.set([0x27, 0x80, command.command]);
    const low = isQueued ? count : features;
    fis[3] = low & 0xff;
    fis[11] = low >> 8;
    for (let i = 0; i < 6; i++) fis[i < 3 ? 4 + i : 5 + i] = Math.floor(lba / 2 ** (8 * i)) & 0xff;
    fis[7] = command.device ?? 0x40;
    // ACS-2 §7.42: the LBA of old commands ends in the device register.
    if ([0x20, 0x30, 0xc4, 0xc5, 0xc8, 0xca].includes(command.command)) fis[7] |= Math.floor(lba / 2 ** 24) & 0xf;
    fis[12] = isQueued ? slot << 3 : count & 0xff;
    fis[13] = isQueued ? 0 : count >> 8;
    fis[16] = command.auxiliary ?? 0;
    fis.set(packet, 0x40);
    regions.forEach(([at, bytes], i) => {
      view.setBigUint64(0x80 + i * 16, BigInt(at), true);
      view.setUint32(0x8c + i * 16, bytes - 1, true);
    });
    memory.write(table, fis);
    const header = this.headerAt(port, slot);
    memory.writeU16(header, 5 | (command.isWrite === true ? 0x40 : 0) | (packet.length > 0 ? 0x20 : 0));
    memory.writeU16(header + 2, regions.length);
    memory.writeU32(header + 4, 0);
    memory.writeU64(header + 8, BigInt(table));
  }

  issue(port: number, ...slots: number[]): void {
    this.set(
      port,
      'ci',
      slots.reduce((bits, slot) => bits | (1 << slot), 0),
    );
  }

  issueQueued(port: number, ...slots: number[]): void {
    this.set(
      port,
      'sact',
      slots.reduce((bits, slot) => bits | (1 << slot), 0),
    );
    this.issue(port, ...slots);
  }

  /** Run one command in a slot to its end. @returns PxTFD, PRDBC, and whether it failed. */
  async run(port: number, command: AtaCommand, slot = 0): Promise<{ tfd: number; bytes: number; failed: boolean }> {
    this.prepare(port, slot, command);
    const isQueued = command.command === 0x60 || command.command === 0x61 || command.command === 0x64;
    if (isQueued) this.issueQueued(port, slot);
    else this.issue(port, slot);
    const failed = () => (this.get(port, 'pis') & 0x60000000) !== 0;
    await this.until(() => ((this.get(port, 'ci') | this.get(port, 'sact')) & (1 << slot)) === 0 || failed());
    return {
      tfd: this.get(port, 'tfd'),
      bytes: this.machine.memory.readU32(this.headerAt(port, slot) + 4),
      failed: failed(),
    };
  }

  /** The event loop and the device's timers have their turns until it is so. */
  async until(isSo: () => boolean): Promise<void> {
    const endMs = Date.now() + 20_000;
    while (!isSo()) {
      if (Date.now() > endMs) throw new Error('the device does not answer');
      this.machine.clock.advance(1000);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  read(at: Gpa, length: number): Uint8Array {
    return this.machine.memory.read(at, length);
  }
}

export interface AhciChoices extends MachineChoices {
  readonly driver?: 'ahci' | 'ahci-cd';
  /** Other storage. */
  readonly openQueue?: OpenQueue;
  /** Default true. */
  readonly isStarted?: boolean;
}

/** A machine with a controller made of option text, gone when the test is over. */
export async function ahciMachine(text: string, choices: AhciChoices = {}) {
  const { driver: name = 'ahci', isStarted = true, openQueue, ...machineChoices } = choices;
  const machine = new VirtioMachine(machineChoices);
  const options = checkOptions(AhciOptions, parseAhciText(name, name === 'ahci' ? 'hd' : 'cd', text));
  const fn = new Ahci(options, machine.env(), openQueue);
  onTestFinished(async () => {
    await fn.stop();
    machine.dispose();
  });
  const driver = new AhciDriver(machine, fn);
  if (isStarted) await fn.start();
  return { machine, fn, driver };
}
