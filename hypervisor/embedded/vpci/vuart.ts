/**
 * The hypervisor's PCI vUART (MCS9900): 16550 registers in BAR0, one MSI-X vector, and a wire to the vUART of another
 * VM. Registers: PC16550D data sheet; behaviour of ACRN's dm/vuart.c and dm/vpci/vmcs9900.c.
 */
import { Msix } from '../../../devicemodel/chips/msix.ts';
import { Ns16550 } from '../../../devicemodel/chips/ns16550.ts';
import { ConfigSpace } from '../../../devicemodel/chips/pci-config-space.ts';
import type { AccessSize } from '../../../devicemodel/core/address.ts';
import type { CharBackend } from '../../../devicemodel/core/char-backend.ts';
import type { VuartVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { VirtualFunction, VirtualFunctionHost } from '../virtual-function.ts';
import { PlacedBars } from './placed-bars.ts';

/** Simple communications, serial, 16550. */
const Id = {
  vendorId: 0x9710,
  deviceId: 0x9900,
  classCode: 0x070002,
  subsystemVendorId: 0xa000,
  subsystemId: 0x1000,
} as const;
const Bar = { Registers: 0, Msix: 1 } as const;
const BAR_BYTES = 4096;
const PBA_OFFSET = BAR_BYTES / 2;

/** Bytes on the wire that the receiver has not taken yet; ACRN's default for its FIFO. */
export const VUART_FIFO_BYTES = 256;
/** A sender is told to wait when fewer bytes than this are free: drivers send 16 for one THRE interrupt. */
export const VUART_FIFO_RESERVE = 64;

/** The far end of the wire. */
export interface VuartWire {
  /** Whether a vUART is at the other end. */
  readonly isConnected: boolean;
  /** Whether its FIFO has room. */
  readonly hasRoom: boolean;
  send(byte: number): void;
  /** The guest has taken a byte that came by the wire. */
  consumed(): void;
  /** Bytes from the other end; and the other end has room again, or appeared, or went. */
  attach(handlers: { receive(byte: number): void; changed(): void }): void;
  dispose(): void;
}

/** The wire as a 16550's back end: bytes wait here until its receiver has room. */
class WireBackend implements CharBackend {
  readonly name = 'vUART wire';
  onReadable: (() => void) | undefined;
  onRoom: (() => void) | undefined;
  readonly #wire: VuartWire;
  readonly #waiting = new Uint8Array(VUART_FIFO_BYTES);
  #first = 0;
  #count = 0;
  #hasOverrun = false;

  constructor(wire: VuartWire) {
    this.#wire = wire;
  }

  start(): void {
    this.#wire.attach({
      receive: (byte) => {
        this.#put(byte);
        this.onReadable?.();
      },
      changed: () => {
        if (this.hasRoom) this.onRoom?.();
      },
    });
  }

  stop(): void {
    this.#wire.dispose();
  }

  get hasRoom(): boolean {
    return !this.#wire.isConnected || this.#wire.hasRoom;
  }

  /** With nobody there it is gone, as on an open wire. */
  write(byte: number): void {
    if (this.#wire.isConnected) this.#wire.send(byte);
  }

  flush(): void {}

  read(): number {
    if (this.#count === 0) return -1;
    const byte = this.#waiting[this.#first] as number;
    this.#drop();
    return byte;
  }

  takeOverrun(): boolean {
    const had = this.#hasOverrun;
    this.#hasOverrun = false;
    return had;
  }

  /** The oldest byte makes room when the guest does not read and the sender does not wait. */
  #put(byte: number): void {
    if (this.#count === VUART_FIFO_BYTES) {
      this.#hasOverrun = true;
      this.#drop();
    }
    this.#waiting[(this.#first + this.#count) % VUART_FIFO_BYTES] = byte;
    this.#count++;
  }

  #drop(): void {
    this.#first = (this.#first + 1) % VUART_FIFO_BYTES;
    this.#count--;
    this.#wire.consumed();
  }
}

class Vuart implements VirtualFunction {
  readonly bdf: VuartVdev['bdf'];
  readonly #config = new ConfigSpace({ sizeBytes: 4096, otherRegisters: 'read-only' });
  readonly #bars = new PlacedBars(this.#config);
  readonly #uart: Ns16550;

  constructor(vdev: VuartVdev, wire: VuartWire, host: VirtualFunctionHost) {
    this.bdf = vdev.bdf;
    this.#config.setIdentity(Id);
    const msix = new Msix(1, Bar.Msix, host, PBA_OFFSET);
    msix.attach(this.#config);
    const uart = new Ns16550({
      // Compat: ACRN sends the message after every access while any reason stands, here a new reason or cause sends one.
      isMessageSignalled: true,
      irq: {
        gsi: 0,
        set: (asserted) => {
          if (asserted) msix.signal(0);
        },
      },
      backend: new WireBackend(wire),
    });
    this.#uart = uart;
    void uart.start();
    for (const [index, base, region] of [
      [Bar.Registers, vdev.registersBar, uart],
      [Bar.Msix, vdev.msixBar, msix],
    ] as const) {
      this.#bars.add({ index, kind: 'mem32', sizeBytes: BAR_BYTES }, base, (at) =>
        host.addRegisters(at, BAR_BYTES, region),
      );
    }
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {
    this.#bars.dispose();
    void this.#uart.stop();
  }
}

/** The function for a CREATE_VDEV whose vUART exists. */
export function createVuart(vdev: VuartVdev, wire: VuartWire, host: VirtualFunctionHost): VirtualFunction {
  return new Vuart(vdev, wire, host);
}
