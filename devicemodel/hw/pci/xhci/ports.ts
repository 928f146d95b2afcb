/**
 * The root hub's ports. Spec: xHCI 1.0 §4.19 (behaviour), §5.4.8 to §5.4.11 (registers).
 *
 * A port owns the device that is plugged into it. What changed there is kept in its change bits until the event ring has
 * room for an event.
 */
import type { Clock, Timer } from '../../../core/clock.ts';
import { type UsbDevice, UsbSpeed } from '../../usb/device.ts';
import { LatestAnswer } from './latest-answer.ts';
import { FIRST_USB2_PORT, FIRST_USB3_PORT, PORT_BYTES, PORT_COUNT, PORTS_PER_KIND } from './registers.ts';
import { CompletionCode, type EventTrb, eventTrb, TrbType } from './trb.ts';

/** §5.4.8. */
const PortStatus = {
  Connected: 1 << 0,
  Enabled: 1 << 1,
  OverCurrent: 1 << 3,
  Reset: 1 << 4,
  LinkState: 0xf << 5,
  Power: 1 << 9,
  Speed: 0xf << 10,
  Indicator: 3 << 14,
  LinkWrite: 1 << 16,
  ConnectChange: 1 << 17,
  EnabledChange: 1 << 18,
  WarmResetChange: 1 << 19,
  OverCurrentChange: 1 << 20,
  ResetChange: 1 << 21,
  LinkChange: 1 << 22,
  ConfigErrorChange: 1 << 23,
  WakeEnables: 7 << 25,
  WarmReset: 1 << 31,
} as const;
const CHANGES = 0x7f << 17;
const READ_ONLY = PortStatus.Connected | PortStatus.OverCurrent | PortStatus.Speed;

const LinkState = { U0: 0, U3: 3, Disabled: 4, RxDetect: 5, Polling: 7, Resume: 15 } as const;
const linkStateOf = (portsc: number) => (portsc & PortStatus.LinkState) >>> 5;
const linkBits = (state: number) => state << 5;

const Reg = { Status: 0x0, PowerManagement: 0x4, LinkInfo: 0x8, HardwareLpm: 0xc } as const;
/** Of a host that is well every reset is over by then; guests ask anew, or give up, after some tries. */
const RESET_PATIENCE_NS = 3_000_000_000;
const POWER_ON = linkBits(LinkState.RxDetect) | PortStatus.Power;

interface RootPort {
  portsc: number;
  powerManagement: number;
  hardwareLpm: number;
  device: UsbDevice | undefined;
  /** Without power, the guest has not asked for it back: nobody who comes is shown. */
  isOff: boolean;
  /** Changed since the last event. */
  hasNews: boolean;
  /** Reset of a device that takes its time, whether it is still there. */
  readonly resetAnswer: LatestAnswer<boolean>;
  /** Runs while the guest sees a reset. */
  readonly resetTimer: Timer;
  /** That reset. */
  isWarm: boolean;
}

export interface PortWires {
  readonly clock: Clock;
  /** Events are told: the controller runs. */
  isRunning(): boolean;
  /** There is an event to be fetched by {@link RootPorts.nextEvent}. */
  changed(): void;
  /** Bus reset of the device, with what the controller has of it. @returns whether it is still there */
  resetDevice(device: UsbDevice): boolean | Promise<boolean>;
}

export class RootPorts {
  readonly #ports: readonly RootPort[];
  readonly #wires: PortWires;

  constructor(wires: PortWires) {
    this.#wires = wires;
    this.#ports = Array.from({ length: PORT_COUNT }, () => {
      const port: RootPort = {
        portsc: POWER_ON,
        powerManagement: 0,
        hardwareLpm: 0,
        device: undefined,
        isOff: false,
        hasNews: false,
        resetAnswer: new LatestAnswer(),
        resetTimer: wires.clock.createTimer(() => this.#resetDone(port, false)),
        isWarm: false,
      };
      return port;
    });
  }

  /** Power-on; what is plugged in stays so. */
  reset(): void {
    for (const port of this.#ports) {
      port.portsc = port.device === undefined ? POWER_ON : connected(port.device);
      port.powerManagement = 0;
      port.hardwareLpm = 0;
      port.isOff = false;
      port.hasNews = false;
      forgetReset(port);
    }
  }

  /** Reset of the controller. Compat: ports without a device keep what they have. */
  restart(): void {
    for (const port of this.#ports) {
      port.isOff = false;
      port.hasNews = false;
      forgetReset(port);
      if (port.device !== undefined) port.portsc = connected(port.device);
    }
  }

  // Devices.

  /** Plug in. @param preferred a port it had before. @returns the port; undefined when all ports of its kind are taken. */
  connect(device: UsbDevice, preferred?: number): number | undefined {
    const first = device.isUsb3 ? FIRST_USB3_PORT : FIRST_USB2_PORT;
    const numbers = Array.from({ length: PORTS_PER_KIND }, (_, i) => first + i);
    const free = numbers.filter((number) => this.#ports[number - 1]?.device === undefined);
    const number = preferred !== undefined && free.includes(preferred) ? preferred : free[0];
    const port = this.#ports[(number ?? 0) - 1];
    if (port === undefined) return undefined;
    port.device = device;
    device.onRemoteWake = () => this.#wake(port);
    if (!port.isOff) this.#show(port, device);
    return number;
  }

  /** Pull out. Nothing happens when it is not plugged in. */
  disconnect(device: UsbDevice): void {
    const port = this.#ports.find((p) => p.device === device);
    if (port === undefined) return;
    port.device = undefined;
    forgetReset(port);
    device.onRemoteWake = undefined;
    if (port.isOff) return;
    const kept = port.portsc & (PortStatus.Power | PortStatus.WakeEnables | CHANGES);
    port.portsc = (kept | linkBits(LinkState.RxDetect) | PortStatus.ConnectChange) >>> 0;
    this.#tell(port);
  }

  /** Who can be reached there. */
  deviceAt(number: number): UsbDevice | undefined {
    const port = this.#ports[number - 1];
    return port?.isOff === false ? port.device : undefined;
  }

  get devices(): readonly UsbDevice[] {
    return this.#ports.flatMap(({ device }) => (device === undefined ? [] : [device]));
  }

  /** Just plugged in, as far as the guest sees. @param kept of the register. */
  #show(port: RootPort, device: UsbDevice, kept = 0): void {
    port.portsc = (port.portsc & kept) | connected(device);
    this.#tell(port);
  }

  /** §4.15.2.1: a sleeping link resumes when its device wants so. */
  #wake(port: RootPort): void {
    if (linkStateOf(port.portsc) !== LinkState.U3) return;
    port.portsc = (port.portsc & ~PortStatus.LinkState) | linkBits(LinkState.Resume) | PortStatus.LinkChange;
    this.#tell(port);
  }

  // Events.

  #tell(port: RootPort): void {
    if (!this.#wires.isRunning()) return;
    port.hasNews = true;
    this.#wires.changed();
  }

  /** The oldest port that has something to say, which is said by this. */
  nextEvent(): EventTrb | undefined {
    const index = this.#ports.findIndex((port) => port.hasNews);
    if (index < 0) return undefined;
    (this.#ports[index] as RootPort).hasNews = false;
    // §6.4.2.3: the port is in the uppermost byte of the first dword.
    return eventTrb(TrbType.PortStatusChangeEvent, CompletionCode.Success, ((index + 1) << 24) >>> 0);
  }

  // Registers, from the first port on.

  read(offset: number): number {
    const port = this.#ports[Math.floor(offset / PORT_BYTES)];
    if (port === undefined) return 0;
    switch (offset & 0xc) {
      case Reg.Status:
        return port.portsc >>> 0;
      case Reg.PowerManagement:
        return port.powerManagement;
      case Reg.HardwareLpm:
        return port.hardwareLpm;
      default:
        return 0;
    }
  }

  write(offset: number, value: number): void {
    const port = this.#ports[Math.floor(offset / PORT_BYTES)];
    if (port === undefined) return;
    const register = offset % PORT_BYTES;
    if (register === Reg.Status) this.#writeStatus(port, value);
    else if (register === Reg.PowerManagement) port.powerManagement = value;
    else if (register === Reg.HardwareLpm) port.hardwareLpm = value;
  }

  /**
   * Compat: a write of 1 clears a change bit, and one of 0 leaves it; with C every write clears them all. As with C a port
   * that the guest switched off while nobody was there reads as off until somebody comes, or the VM is reset.
   */
  #writeStatus(port: RootPort, value: number): void {
    port.portsc &= ~(value & CHANGES);
    if ((port.portsc & PortStatus.Power) === 0) {
      if ((value & PortStatus.Power) !== 0) this.#switchOn(port, value & PortStatus.WakeEnables);
      return;
    }
    if ((value & (PortStatus.Reset | PortStatus.WarmReset)) !== 0) {
      this.#resetPort(port, (value & PortStatus.WarmReset) !== 0);
      return;
    }
    if ((value & PortStatus.Power) === 0) {
      this.#switchOff(port, value);
      return;
    }
    const kept =
      READ_ONLY | PortStatus.Enabled | PortStatus.LinkState | PortStatus.Indicator | PortStatus.Reset | CHANGES;
    port.portsc = (port.portsc & kept) | (value & (PortStatus.Power | PortStatus.WakeEnables));
    if ((value & port.portsc & PortStatus.Enabled) !== 0) this.#disable(port);
    if ((value & PortStatus.LinkWrite) !== 0) this.#writeLinkState(port, linkStateOf(value));
  }

  /**
   * §5.4.8, PP: a port without power shows nobody and tells of nobody. Compat: with C it stays so until the controller is
   * reset, shows its device all the same, and is enabled by a reset.
   */
  #switchOff(port: RootPort, value: number): void {
    // Whatever the device answers now is no news of this port.
    forgetReset(port);
    port.isOff = true;
    port.portsc = (port.portsc & (CHANGES | PortStatus.Indicator)) | (value & PortStatus.WakeEnables);
    port.portsc |= linkBits(LinkState.RxDetect);
  }

  /** Whoever is there is as if just plugged in. */
  #switchOn(port: RootPort, wakes: number): void {
    port.isOff = false;
    if (port.device === undefined) return;
    port.portsc = (port.portsc & CHANGES) | wakes;
    this.#show(port, port.device, CHANGES | PortStatus.WakeEnables);
  }

  /** §4.19.1.1.6 and §4.19.1.2.1. Compat: C ignores it. */
  #disable(port: RootPort): void {
    const state = port.device?.isUsb3 === true ? LinkState.Disabled : LinkState.Polling;
    port.portsc = (port.portsc & ~(PortStatus.Enabled | PortStatus.LinkState)) | linkBits(state);
  }

  #writeLinkState(port: RootPort, state: number): void {
    const before = linkStateOf(port.portsc);
    if (state !== LinkState.U0 && state !== LinkState.U3 && state !== LinkState.Resume) return;
    if (state === before) return;
    port.portsc = (port.portsc & ~PortStatus.LinkState) | linkBits(state);
    if (state !== LinkState.U0) return;
    port.portsc |= PortStatus.LinkChange;
    this.#tell(port);
  }

  /** §4.19.5. A port without a device has nothing to reset, and one that is being reset is at it. */
  #resetPort(port: RootPort, isWarm: boolean): void {
    const { device } = port;
    if (device === undefined || (port.portsc & PortStatus.Reset) !== 0) return;
    port.isWarm = isWarm;
    const answer = this.#wires.resetDevice(device);
    if (typeof answer === 'boolean') {
      port.resetAnswer.forget();
      this.#resetDone(port, answer);
      return;
    }
    // Table 5-27, PED and PEC: disabled by that, which is no change of its own.
    port.portsc = (port.portsc & ~PortStatus.Enabled) | PortStatus.Reset;
    const { clock } = this.#wires;
    port.resetTimer.arm(clock.nowNs() + RESET_PATIENCE_NS);
    port.resetAnswer.listen(answer, (isThere) => {
      if ((port.portsc & PortStatus.Reset) !== 0) this.#resetDone(port, isThere);
      else if (isThere) this.#comeToItself(port);
    });
  }

  /**
   * The device answered, or nobody waits for it any longer: the guest's driver has to see an end, as with a device that does
   * not answer on a real bus. What is asked of it then fails.
   */
  #resetDone(port: RootPort, isThere: boolean): void {
    const { device } = port;
    port.resetTimer.cancel();
    if (device === undefined) return;
    port.portsc &= ~(PortStatus.Reset | PortStatus.LinkState | PortStatus.Speed);
    // §4.19.5: the reset of a USB 2 port never fails.
    if (isThere || !device.isUsb3) {
      port.portsc |= PortStatus.Enabled | speedBits(device) | linkBits(LinkState.U0);
      // One that an earlier reset lost is there again.
      setConnected(port, true);
    } else {
      port.portsc = (port.portsc & ~PortStatus.Enabled) | linkBits(LinkState.RxDetect);
      setConnected(port, false);
    }
    if (port.isWarm && device.isUsb3) port.portsc |= PortStatus.WarmResetChange;
    port.portsc |= PortStatus.ResetChange;
    this.#tell(port);
  }

  /** Its reset is over after all. A USB 3 link that was lost by it is there again, as if just plugged in. */
  #comeToItself(port: RootPort): void {
    const { device } = port;
    if (device === undefined || (port.portsc & PortStatus.Connected) !== 0) return;
    this.#show(port, device, CHANGES | PortStatus.WakeEnables);
  }
}

function forgetReset(port: RootPort): void {
  port.resetAnswer.forget();
  port.resetTimer.cancel();
}

/** Table 5-27, CSC: set whichever way CCS goes. */
function setConnected(port: RootPort, isConnected: boolean): void {
  if (isConnected === ((port.portsc & PortStatus.Connected) !== 0)) return;
  port.portsc = (port.portsc ^ PortStatus.Connected) | PortStatus.ConnectChange;
}

function speedBits(device: UsbDevice): number {
  return device.speed << 10;
}

/** §4.19.1: a USB 3 link trains by itself, a USB 2 port waits for a reset. */
function connected(device: UsbDevice): number {
  const link =
    device.speed === UsbSpeed.Super ? PortStatus.Enabled | linkBits(LinkState.U0) : linkBits(LinkState.Polling);
  return PortStatus.Connected | PortStatus.Power | PortStatus.ConnectChange | speedBits(device) | link;
}
