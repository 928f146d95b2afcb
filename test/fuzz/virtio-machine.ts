/** A machine of one virtio function: real buses and PCI host, guarded RAM, a hypervisor that keeps count of its wires. */
import type { Bdf } from '../../devicemodel/core/address.ts';
import { native } from '../../devicemodel/core/host/libc.ts';
import type { Hsm, IoeventfdSpec } from '../../devicemodel/core/hsm/hsm.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { Log, LogLevel } from '../../devicemodel/core/log.ts';
import { newWaits } from '../../devicemodel/core/waits.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import { PciHost } from '../../devicemodel/hw/pci/host.ts';
import { VirtioPci } from '../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { IoapicPins, intxRouter, PirqRouter } from '../../devicemodel/hw/platform/ioapic.ts';
import type { AnyPciDriver } from '../../devicemodel/hw/registry.ts';
import { FakeClock } from '../support/fake-clock.ts';
import type { FakeCharBackend } from '../support/virtio-driver.ts';
import { GuardedRam } from './guarded-ram.ts';

export const SLOT: Bdf = { bus: 0, device: 3, function: 0 };
const KICK = new Uint8Array(new BigUint64Array([1n]).buffer);

/** Turns accesses into eventfd signals as a hypervisor does, and refuses what it would refuse. */
class WiringHsm {
  readonly kicks = new Map<string, IoeventfdSpec>();
  readonly irqfds = new Set<number>();
  /** The hypervisor has no room for more wires. */
  isFull = false;

  ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    const key = `${spec.space} ${spec.address} ${spec.dataMatch ?? ''}`;
    if (!assign) {
      if (!this.kicks.delete(key)) throw new Error(`no ioeventfd at ${key} to take away`);
      return;
    }
    if (this.isFull) throw new Error('IOEVENTFD: made to fail');
    if (this.kicks.has(key)) throw new Error(`a second ioeventfd at ${key}`);
    this.kicks.set(key, spec);
  }

  irqfd(fd: number, _message: unknown, assign: boolean): void {
    if (assign && this.isFull) throw new Error('IRQFD: made to fail');
    if (assign) this.irqfds.add(fd);
    else if (!this.irqfds.delete(fd)) throw new Error('no irqfd to take away');
  }

  /** Levels of interrupt lines: their guest may be woken by them. */
  onLine: () => void = () => {};

  setIrqLine(): void {
    this.onLine();
  }

  /** @returns whether an eventfd took the write. */
  kick(space: 'pio' | 'mmio', address: number, size: number, value: number): boolean {
    if (this.kicks.size === 0 || size !== 2) return false;
    const kick = this.kicks.get(`${space} ${address} ${value}`) ?? this.kicks.get(`${space} ${address} `);
    if (kick === undefined) return false;
    native('int64_t write(int, const void *, size_t)')(kick.fd, KICK, KICK.length);
    return true;
  }
}

export interface MachineChoices {
  readonly virtioPollNs?: number;
  readonly virtioMsi?: boolean;
  /** RAM without addresses, which wants to hear of writes: a WebAssembly engine's. */
  readonly viewsOnly?: boolean;
  readonly charBackend?: () => FakeCharBackend;
  /** A guest with much to do in little time, so that devices ask for a data thread. */
  readonly isBusy?: boolean;
}

/** Makes the function of a target from the wires of its slot. */
export type MakeFunction = (env: PciEnv) => VirtioPci;

export class FuzzMachine {
  readonly ram: GuardedRam;
  readonly pio = new PioBus();
  readonly mmio = new MmioBus();
  readonly clock = new FakeClock();
  readonly hsm = new WiringHsm();
  readonly isBusy: boolean;
  readonly host: PciHost;
  readonly fn: VirtioPci;
  interrupts = 0;
  /** The device did something in the middle of a call that other CPUs of the guest may react to. */
  onActivity: () => void = () => {};
  /** Lines a user would see. */
  logLines = 0;

  constructor(make: MakeFunction, choices: MachineChoices = {}) {
    this.ram = new GuardedRam(choices.viewsOnly);
    this.isBusy = choices.isBusy === true;
    const pins = new IoapicPins();
    const pirq = new PirqRouter();
    const log = new Log([
      {
        maxLevel: LogLevel.info,
        write: () => {
          this.logLines++;
          this.onActivity();
        },
      },
    ]);
    this.hsm.onLine = () => this.onActivity();
    this.host = new PciHost({
      pio: this.pio,
      mmio: this.mmio,
      router: intxRouter(pins, pirq),
      hsm: this.hsm as unknown as Hsm,
      memory: this.ram.memory,
      clock: this.clock,
      log,
      msi: {
        signal: () => {
          this.interrupts++;
          this.onActivity();
        },
      },
      power: { request: () => {} },
      waits: newWaits(() => {}),
      charBackend: () => {
        if (choices.charBackend === undefined) throw new Error('this target has no character back end');
        return choices.charBackend();
      },
      machine: {
        vmName: 'fuzz',
        windows: false,
        virtioMsi: choices.virtioMsi ?? false,
        virtioPollNs: choices.virtioPollNs,
        hasOvmf: false,
        isRtvm: false,
      },
    });
    const driver = { name: 'fuzzed', summary: '', options: {}, create: (_options: unknown, env: PciEnv) => make(env) };
    this.host.add({ bdf: SLOT, driver: driver.name, options: {}, text: '' }, driver as unknown as AnyPciDriver);
    this.host.configure();
    this.host.createVdevs();
    const fn = this.host.functionAt(SLOT);
    if (!(fn instanceof VirtioPci)) throw new TypeError('no virtio function');
    this.fn = fn;
  }

  async stop(): Promise<void> {
    await this.host.stop();
    this.host.dispose();
    this.ram.check();
    if (this.hsm.kicks.size + this.hsm.irqfds.size > 0) throw new Error('wires outlive their device');
    this.ram.dispose();
  }
}
