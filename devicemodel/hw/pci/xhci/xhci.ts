/**
 * xHCI: USB 3 host controller as a PCI function. Ids and registers are those of the C device model.
 *
 * Who owns what: the function owns what is plugged in: the tablet, and by its port mapper the devices of the host. They go
 * back in `stop`, at the end of the VM; a reset and S3 leave them plugged in. What they have in flight comes back in
 * `settle`, before a reset, S3 and the end.
 */
import { writeFileSync } from 'node:fs';
import type { BarIndex, BarSpec, ConfigSpace } from '../../../chips/pci-config-space.ts';
import type { AccessSize } from '../../../core/address.ts';
import { allOnes } from '../../../core/address.ts';
import { leaveThreadBehind } from '../../../core/host/exit-hooks.ts';
import type { IoPatience } from '../../../core/io-patience.ts';
import type { Log } from '../../../core/log.ts';
import type { PortMapper } from '../../usb/port-mapper.ts';
import { UsbTablet } from '../../usb/tablet.ts';
import { definePciDriver, type PciEnv } from '../driver.ts';
import type { EmulatedPciFunction, PciIdentity } from '../function.ts';
import { Msi } from '../msi.ts';
import { XhciController } from './controller.ts';
import { AplCapabilities, plainCapabilities, type UsbRole } from './extended-capabilities.ts';
import { type XhciOptions, xhciInfo } from './options.ts';

/** Serial bus controller, USB, xHCI. */
const CLASS_XHCI = 0x0c0330;
const Ids = {
  plain: { vendorId: 0x1234, deviceId: 0x1234 },
  /** Intel Apollo Lake. */
  apl: { vendorId: 0x8086, deviceId: 0x5aa8 },
} as const;
/** Serial Bus Release Number (xHCI 1.0 §5.2.3): USB 3.0. */
const ConfigReg = { ReleaseNumber: 0x60 } as const;
const USB_3_0 = 0x30;
const ROLE_SWITCH = '/sys/class/usb_role/intel_xhci_usb_sw-role-switch/role';

class Xhci implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly #controller: XhciController;
  readonly #msi: Msi;
  readonly #tablet: UsbTablet | undefined;
  readonly #ports: readonly string[];
  readonly #log: Log;
  readonly #patience: IoPatience;
  #isPlugged = false;
  #mapper: PortMapper | undefined;

  constructor(options: XhciOptions, env: PciEnv) {
    const isApl = options.cap === 'apl';
    this.identity = { ...(isApl ? Ids.apl : Ids.plain), classCode: CLASS_XHCI };
    this.bars = [{ index: 0, kind: 'mem32', sizeBytes: isApl ? 0x1_0000 : 0x1000 }];
    this.#msi = new Msi({ vectors: 1 }, env.msi);
    const line = env.intx();
    const { memory, clock, log } = env;
    const { patience } = env.waits;
    this.#controller = new XhciController(
      {
        memory,
        clock,
        log,
        patience,
        isTraced: /^[dv]/i.test(options.log ?? ''),
        // With MSI the pin is left alone by the line itself, which comes back when the guest takes MSI back.
        setLine: (isAsserted) => line.set(isAsserted),
        sendMessage: () => void this.#msi.signal(0),
      },
      isApl ? new AplCapabilities((role) => switchRole(role, log)) : plainCapabilities,
    );
    this.#ports = options.ports;
    this.#log = log;
    this.#patience = patience;
    this.#tablet = options.tablet ? new UsbTablet(env.input) : undefined;
  }

  configure(config: ConfigSpace): void {
    config.set8(ConfigReg.ReleaseNumber, USB_3_0);
    this.#msi.attach(config);
  }

  async start(): Promise<void> {
    if (this.#isPlugged) return;
    this.#isPlugged = true;
    if (this.#tablet !== undefined) {
      this.#tablet.plugIn();
      this.#controller.ports.connect(this.#tablet);
    }
    if (this.#ports.length > 0) await this.#mapPorts();
  }

  /** libusb is loaded, and the host's USB looked at, only here. @throws HostError */
  async #mapPorts(): Promise<void> {
    const [{ openHostUsb }, { PortMapper }] = await Promise.all([
      import('../../usb/host-usb.ts'),
      import('../../usb/port-mapper.ts'),
    ]);
    this.#mapper = new PortMapper(this.#ports, this.#controller.ports, openHostUsb(), this.#log, this.#patience);
    this.#mapper.start();
  }

  async stop(): Promise<void> {
    this.#isPlugged = false;
    await this.#controller.recall();
    // The guest's memory goes, and this process may stay: what comes back later finds neither rings nor slots.
    this.#controller.reset();
    const stopped = await this.#mapper?.stop();
    this.#mapper = undefined;
    // A device that hangs is closed when it comes to itself; when the process ends before, it is the kernel's.
    if (stopped?.isGivenBack === false) leaveThreadBehind();
    if (this.#tablet === undefined) return;
    this.#controller.ports.disconnect(this.#tablet);
    this.#tablet.close();
  }

  reset(): void {
    this.#controller.reset();
    this.#tablet?.reset();
  }

  settle(): Promise<void> | undefined {
    return this.#controller.recall();
  }

  resume(): void {
    this.#controller.resume();
  }

  readBar(_index: BarIndex, offset: number, size: AccessSize): number {
    return (this.#controller.read(offset) & allOnes(size)) >>> 0;
  }

  writeBar(_index: BarIndex, offset: number, _size: AccessSize, value: number): void {
    this.#controller.write(offset, value);
  }
}

/** Of the port of the host that the guest's stands for. */
function switchRole(role: UsbRole, log: Log): boolean {
  try {
    writeFileSync(ROLE_SWITCH, role);
    return true;
  } catch (error) {
    log.rationed('warn', () => `the USB port is not switched to ${role}: ${(error as Error).message}`);
    return false;
  }
}

export const xhci = definePciDriver({ ...xhciInfo, create: (options, env) => new Xhci(options, env) });
