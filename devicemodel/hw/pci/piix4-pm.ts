/**
 * The power management function of a PIIX4 south bridge, for firmware that takes its clock from there and powers off by
 * it: OVMF and SeaBIOS on a 440FX. Operating systems are told of the registers at fixed ports (platform/pm.ts) instead.
 * Spec: Intel 82371AB (PIIX4), datasheet 290562, §7.1 and §7.2.
 */
import * as v from 'valibot';
import type { ConfigSpace } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { Clock } from '../../core/clock.ts';
import type { PciSlotConfig } from '../../core/config.ts';
import type { IoRegion, PowerControl } from '../../core/device.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { definePciDriver } from './driver.ts';
import type { EmulatedPciFunction } from './function.ts';

/** Bridge, other. */
const Id = { vendorId: 0x8086, deviceId: 0x7113, classCode: 0x068000 };
/** Where the ports are, and whether they are there; device activity B. */
const ConfigReg = { portBase: 0x40, deviceActivityB: 0x58, portEnable: 0x80 } as const;
/** Writes to the APM command port raise an SMI (§7.1.10): firmware that finds it set does not wait for an SMM of its own. */
const APMC_ENABLE = 1 << 25;
const PORTS = 0x40;
/** Bits 15:6 of the base are an address, bit 0 says that it is one of ports. */
const BASE_WRITABLE = [0xc0, 0xff];
const Port = { control: 4, timer: 8 } as const;
const Control = { sleepEnable: 1 << 13, typeMask: 7 << 10 } as const;
/** Four times per cycle of the 8254's clock, 24 bits. */
const TIMER_HZ = 3_579_545;
const TIMER_MASK = 0xff_ffff;
const NS_PER_S = 1e9;

class Piix4Pm implements EmulatedPciFunction, IoRegion {
  readonly backing = 'device-model';
  readonly identity = Id;
  readonly bars = [];
  readonly #clock: Clock;
  readonly #power: PowerControl;
  readonly #pio: IoBus | undefined;
  #config: ConfigSpace | undefined;
  #ports: Registration | undefined;

  constructor(env: { readonly clock: Clock; readonly power: PowerControl; readonly pio?: IoBus }) {
    this.#clock = env.clock;
    this.#power = env.power;
    this.#pio = env.pio;
  }

  configure(config: ConfigSpace): void {
    this.#config = config;
    config.set8(ConfigReg.portBase, 1);
    config.set32(ConfigReg.deviceActivityB, APMC_ENABLE);
    config.setWritable(ConfigReg.portBase, BASE_WRITABLE);
    config.setWritable(ConfigReg.portEnable, [1]);
    const written = () => this.#place();
    config.hook(ConfigReg.portBase, 4, { written });
    config.hook(ConfigReg.portEnable, 1, { written });
  }

  readBar(_index: number, _offset: number, size: AccessSize): number {
    return allOnes(size);
  }
  writeBar(): void {}

  reset(): void {
    this.stop();
  }

  stop(): void {
    this.#ports?.dispose();
    this.#ports = undefined;
  }

  read(offset: number, size: AccessSize): number {
    if (offset === Port.timer && size === 4) {
      return Math.floor((this.#clock.nowNs() * TIMER_HZ) / NS_PER_S) % (TIMER_MASK + 1);
    }
    return 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset !== Port.control || size !== 2 || (value & Control.sleepEnable) === 0) return;
    // §7.2.3: type 0 is soft off. The others are kept from a guest that was not told of them.
    if ((value & Control.typeMask) === 0) {
      this.#power.request({ kind: 'poweroff', reason: 'guest entered soft off (PIIX4)', by: 'guest' });
    }
  }

  /** The guest may put them where others are: they answer nowhere then. */
  #place(): void {
    this.stop();
    const config = this.#config;
    if (config === undefined || (config.get8(ConfigReg.portEnable) & 1) === 0) return;
    const base = config.get16(ConfigReg.portBase) & ~1;
    if (base === 0 || this.#pio?.findOverlap(base, PORTS) !== undefined) return;
    this.#ports = this.#pio?.register({ base, size: PORTS, name: 'piix4 pm' }, this);
  }
}

export const piix4Pm = definePciDriver({
  name: 'piix4_pm',
  summary: 'power management function of a PIIX4; comes with hostbridge,model=i440fx',
  options: v.strictObject({}),
  isSingle: true,
  create: (_options, env) => new Piix4Pm(env),
});

/** Where firmware looks for it. */
export const PIIX4_PM_SLOT: PciSlotConfig = {
  bdf: { bus: 0, device: 1, function: 3 },
  driver: piix4Pm.name,
  options: {},
  text: '',
};
