/**
 * `--testdev`: the test device that QEMU has for kvm-unit-tests (`-device pc-testdev -device isa-debug-exit,iobase=0xf4`).
 * ACRN has none. Spec: QEMU hw/misc/pc-testdev.c and hw/misc/debugexit.c.
 */
import * as v from 'valibot';
import { type AccessSize, allOnes, hex } from '../../core/address.ts';
import type { IoRegion, PowerControl } from '../../core/device.ts';
import type { Hsm } from '../../core/hsm/hsm.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { definePlatformDriver } from './driver.ts';
import type { PlatformDevice } from './platform-device.ts';

/** Ports: four bytes that are kept; a page to flush, by its address; the same bytes again; the end; a line each. */
const Port = { bytes: 0xe0, flush: 0xe4, bytesAgain: 0xe8, exit: 0xf4, irqLines: 0x2000 } as const;
const EXIT_PORTS = 4;
const IRQ_LINES = 24;
/** Memory that is served access by access. */
const Ram = { base: 0xff00_0000, sizeBytes: 0x1_0000 } as const;
const KEPT_BYTES = 4;

interface TestDeviceEnv {
  readonly hsm: Pick<Hsm, 'setIrqLine'>;
  readonly power: PowerControl;
}

class TestDevice implements PlatformDevice {
  readonly #env: TestDeviceEnv;
  readonly #bytes = new Bytes(KEPT_BYTES);
  readonly #ram = new Bytes(Ram.sizeBytes);

  constructor(env: TestDeviceEnv) {
    this.#env = env;
  }

  attach(pio: IoBus, mmio: IoBus): Registration[] {
    const { hsm, power } = this.#env;
    const exit = writeOnly((_offset, value) => {
      power.request({ kind: 'poweroff', reason: `test device, value ${hex(value)}`, status: (value << 1) | 1 });
    });
    // Nothing keeps a page of the guest that could be flushed: the hypervisor has them all mapped.
    const flush = writeOnly(() => {});
    const lines = writeOnly((line, value) => hsm.setIrqLine(line, (value & 0xff) === 0 ? 'low' : 'high'));
    return [
      pio.register({ base: Port.bytes, size: KEPT_BYTES, name: 'test device' }, this.#bytes),
      pio.register({ base: Port.flush, size: 4, name: 'test device flush' }, flush),
      pio.register({ base: Port.bytesAgain, size: KEPT_BYTES, name: 'test device' }, this.#bytes),
      pio.register({ base: Port.exit, size: EXIT_PORTS, name: 'test device exit' }, exit),
      pio.register({ base: Port.irqLines, size: IRQ_LINES, name: 'test device lines' }, lines),
      mmio.register({ base: Ram.base, size: Ram.sizeBytes, name: 'test device memory' }, this.#ram),
    ];
  }

  reset(): void {
    this.#bytes.clear();
    this.#ram.clear();
  }
}

/** Bytes behind registers; an access over their end is cut off. */
class Bytes implements IoRegion {
  readonly #view: DataView;

  constructor(sizeBytes: number) {
    this.#view = new DataView(new ArrayBuffer(sizeBytes + 4));
  }

  clear(): void {
    new Uint8Array(this.#view.buffer).fill(0);
  }

  read(offset: number, size: AccessSize): number {
    if (size === 1) return this.#view.getUint8(offset);
    return size === 2 ? this.#view.getUint16(offset, true) : this.#view.getUint32(offset, true);
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 1) this.#view.setUint8(offset, value);
    else if (size === 2) this.#view.setUint16(offset, value, true);
    else this.#view.setUint32(offset, value, true);
  }
}

function writeOnly(onWrite: (offset: number, value: number) => void): IoRegion {
  return { read: (_offset, size) => allOnes(size), write: (offset, _size, value) => onWrite(offset, value) };
}

export const testdev = definePlatformDriver({
  name: 'testdev',
  group: 'Devices',
  summary: 'the test device of kvm-unit-tests: value N at port 0xf4 ends the VM with status 2*N+1',
  options: v.strictObject({}),
  parseText: () => ({}),
  create: (_options, env) => new TestDevice(env),
});
