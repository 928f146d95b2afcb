/** GPIO controllers and UARTs of the host, passed through by their resources: the form of ACRN release 3.3. */
import { type Gpa, hex } from '../../../core/address.ts';
import { ConfigError } from '../../../core/errors.ts';
import { type Aml, device, eisaId, name, scope, text } from '../../../core/firmware/aml.ts';
import { interrupt, io, irqNoFlags, memory32Fixed, resourceTemplate } from '../../../core/firmware/aml-resources.ts';
import type { DeviceAml, InterruptOverride } from '../../../core/firmware/contribution.ts';
import { NON_PCI_BDF, type PtdevIntx } from '../../../core/hsm/hsm.ts';
import type { IoBus, Registration } from '../../../core/io-bus.ts';
import type { PlatformEnv } from '../driver.ts';
import { keepFree, passthroughOf } from '../host-devices.ts';
import type { PlatformDevice } from '../platform-device.ts';
import type { AcpidevOptions, HostResource } from './options.ts';

/** Tiger Lake, Alder Lake, Elkhart Lake. */
const GPIO_IDS = ['INT34C5', 'INT34C6', 'INTC1055', 'INTC1056', 'INTC1057', 'INTC1020'];
const UART_ID = 'PNP0501';
const ISA_IRQS = 16;

/** @throws ConfigError if it is neither. */
export function kindOfHostDevice(hid: string): 'gpio' | 'uart' {
  if (GPIO_IDS.includes(hid)) return 'gpio';
  if (hid === UART_ID) return 'uart';
  throw new ConfigError(`${hid} cannot be passed by its resources`, {
    hint: `${UART_ID} (a UART) and ${GPIO_IDS.join(', ')} (GPIO) can`,
  });
}

/** A resource with its place in the guest. */
type Placed = HostResource & { readonly gpa?: Gpa };

/** `GPI0`, as C has it; its names end with one digit. */
function objectName(kind: 'gpio' | 'uart', uid: number): string {
  const [long, short] = kind === 'gpio' ? ['GPI', 'GP'] : ['COM', 'CM'];
  return uid < 10 ? `${long}${uid}` : `${short}${uid.toString(16).toUpperCase().padStart(2, '0')}`;
}

export class HostAcpiDevice implements PlatformDevice {
  readonly #kind: 'gpio' | 'uart';
  readonly #options: AcpidevOptions;
  readonly #resources: readonly Placed[];
  readonly #env: PlatformEnv;
  /** What takes back what the hypervisor was asked for, in the order it was done. */
  readonly #undo: Array<() => void> = [];

  constructor(options: AcpidevOptions, env: PlatformEnv) {
    const what = `--acpidev_pt ${options.hid}`;
    this.#kind = kindOfHostDevice(options.hid);
    this.#options = options;
    this.#env = env;
    this.#resources = options.resources.map((r) =>
      r.type === 'memory' ? { ...r, gpa: env.window.allocate(r.sizeBytes, what) } : r,
    );
    for (const r of this.#resources) if (r.type === 'irq') env.reserveIrq(r.irq);
  }

  /** Its ports are the hypervisor's to let through; nothing of ours may be there. */
  attach(pio: IoBus, mmio: IoBus): Registration[] {
    return this.#resources.flatMap((r) => {
      if (r.type === 'memory') return keepFree(mmio, [{ base: r.gpa as Gpa, size: r.sizeBytes }], this.#options.hid);
      if (r.type !== 'io_port') return [];
      const other = pio.findOverlap(r.port, r.sizeBytes);
      if (other !== undefined) {
        const hint = 'leave one of them out';
        throw new ConfigError(`--acpidev_pt ${this.#options.hid}: ${other.name} is at port ${hex(r.port)}`, { hint });
      }
      return keepFree(pio, [{ base: r.port, size: r.sizeBytes }], this.#options.hid);
    });
  }

  start(): void {
    const passthrough = passthroughOf(this.#env.hsm, `--acpidev_pt ${this.#options.hid}`);
    const deviceName = this.#kind;
    for (const r of this.#resources) {
      if (r.type === 'memory') {
        const resource = { gpa: r.gpa as Gpa, hostPhysical: r.base, sizeBytes: r.sizeBytes };
        const assignment = { name: deviceName, resources: [resource] };
        passthrough.assignMmiodev(assignment);
        this.#undo.push(() => passthrough.deassignMmiodev(assignment));
      } else if (r.type === 'io_port') {
        const region = { name: deviceName, port: r.port, sizeBytes: r.sizeBytes };
        passthrough.assignPioRegion(region);
        this.#undo.push(() => passthrough.deassignPioRegion(region));
      } else {
        const intx: PtdevIntx = {
          virtualBdf: NON_PCI_BDF,
          physicalBdf: NON_PCI_BDF,
          virtualPin: r.irq,
          physicalPin: r.irq,
          isPicPin: false,
        };
        passthrough.setPtdevIntx(intx);
        this.#undo.push(() => passthrough.resetPtdevIntx(intx));
      }
    }
  }

  /** Last first; a step that fails does not keep the others. */
  stop(): void {
    for (const undo of this.#undo.splice(0).reverse()) {
      try {
        undo();
      } catch (error) {
        this.#env.log.warn((error as Error).message);
      }
    }
  }

  reset(): void {}

  aml(): DeviceAml[] {
    const { hid, uid } = this.#options;
    const resources = name('_CRS', resourceTemplate(this.#resources.map((r) => this.#descriptor(r))));
    const id = this.#kind === 'gpio' ? text(hid) : eisaId(hid);
    return [
      {
        place: 'system',
        aml: scope('_SB', [device(objectName(this.#kind, uid), [name('_HID', id), name('_UID', uid), resources])]),
      },
    ];
  }

  interruptOverrides(): InterruptOverride[] {
    if (this.#kind !== 'gpio') return [];
    return this.#resources.flatMap((r) =>
      r.type === 'irq' && r.irq < ISA_IRQS
        ? [{ irq: r.irq, gsi: r.irq, flags: r.polarity | (r.triggerMode << 2) }]
        : [],
    );
  }

  #descriptor(r: Placed): Aml {
    switch (r.type) {
      case 'memory':
        // Compat: for a UART C writes the host's address here, where the guest has nothing.
        return memory32Fixed(r.gpa as Gpa, r.sizeBytes);
      case 'io_port':
        return io(r.port, r.sizeBytes);
      case 'irq':
        return this.#kind === 'gpio' || r.irq >= ISA_IRQS
          ? interrupt({ level: true, activeLow: true, shared: true }, [r.irq])
          : irqNoFlags(r.irq);
    }
  }
}
