/**
 * The hypervisor's virtual PCIe root port, there for precision time measurement. Registers as ACRN's
 * dm/vpci/vroot_port.c sets them; PCI-to-PCI Bridge 1.2 §3.2, PCIe 5.0 §7.5.3 and §7.9.15.
 */
import { BridgeCfg, CapId, ConfigSpace } from '../../../devicemodel/chips/pci-config-space.ts';
import type { AccessSize } from '../../../devicemodel/core/address.ts';
import type { RootPortVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { VirtualFunction } from '../virtual-function.ts';

/** Bridge, PCI to PCI. */
const Id = { vendorId: 0x8086, deviceId: 0x9d14, revisionId: 1, classCode: 0x060400, headerType: 1 } as const;

/** PCI Express capability, from behind its id and link. */
const Express = { Capabilities: 0, DeviceCapabilities: 2, DeviceControl: 6, bytes: 0x3a } as const;
/** Version 2, root port, slot implemented. */
const EXPRESS_ROOT_PORT = 0x0142;
const MAX_PAYLOAD_SHIFT = 5;
const MAX_PAYLOAD_MASK = 0xe0;

/** Precision Time Measurement extended capability, from behind its header: root and responder, 4 ns; both enabled. */
const Ptm = { id: 0x1f, version: 1, Capability: 0, Control: 4, bytes: 8 } as const;
const PTM_CAPABILITY = 0x406;
const PTM_CONTROL = 0x3;

class RootPort implements VirtualFunction {
  readonly bdf: RootPortVdev['bdf'];
  readonly bridge: NonNullable<VirtualFunction['bridge']>;
  readonly #config = new ConfigSpace({ sizeBytes: 4096, headerType: 1, otherRegisters: 'read-only' });

  constructor(vdev: RootPortVdev) {
    this.bdf = vdev.bdf;
    const config = this.#config;
    this.bridge = {
      firstSecondaryBus: vdev.secondaryBus,
      get secondaryBus() {
        return config.get8(BridgeCfg.SecondaryBus);
      },
    };
    config.setIdentity(Id);
    // A port of this kind is always on bus 0, whatever the request says.
    config.set8(BridgeCfg.PrimaryBus, 0);
    config.set8(BridgeCfg.SecondaryBus, vdev.secondaryBus);
    config.set8(BridgeCfg.SubordinateBus, vdev.subordinateBus);
    config.setWritable(BridgeCfg.PrimaryBus, [0xff, 0xff, 0xff, 0xff]);
    config.setWritable(BridgeCfg.BridgeControl, [0xff, 0xff]);
    this.#addWindows();
    this.#addExpress(vdev.maxPayload);
    if (vdev.ptmCapOffset !== undefined) this.#addPtm();
  }

  /**
   * Windows of 4 KiB of ports, 1 MiB of memory and 1 MiB of prefetchable memory with 64-bit addresses. Nothing is held
   * back outside of them.
   * Compat: closed, and with the low bits of the registers fixed. ACRN's are zero, which is a window at address 0, and
   * keep what is written, which tells a guest that there is no memory above 4 GiB for it.
   */
  #addWindows(): void {
    const config = this.#config;
    config.setWritable(BridgeCfg.IoBase, [0xf0, 0xf0]);
    config.setWritable(BridgeCfg.MemoryBase, [0xf0, 0xff, 0xf0, 0xff]);
    config.setWritable(BridgeCfg.PrefetchableBase, [0xf0, 0xff, 0xf0, 0xff]);
    config.setWritable(BridgeCfg.PrefetchableBaseHigh, new Uint8Array(8).fill(0xff));
    const is64Bit = 1;
    config.set8(BridgeCfg.IoBase, 0xf0);
    config.set16(BridgeCfg.MemoryBase, 0xfff0);
    config.set16(BridgeCfg.PrefetchableBase, 0xfff0 | is64Bit);
    config.set16(BridgeCfg.PrefetchableLimit, is64Bit);
  }

  #addExpress(maxPayload: number): void {
    const body = new DataView(new ArrayBuffer(Express.bytes));
    body.setUint16(Express.Capabilities, EXPRESS_ROOT_PORT, true);
    body.setUint32(Express.DeviceCapabilities, maxPayload, true);
    body.setUint16(Express.DeviceControl, (maxPayload << MAX_PAYLOAD_SHIFT) & MAX_PAYLOAD_MASK, true);
    const writable = new Uint8Array(Express.bytes).fill(0xff, Express.DeviceControl, Express.DeviceControl + 2);
    this.#config.addCapability(CapId.PciExpress, new Uint8Array(body.buffer), { writable });
  }

  #addPtm(): void {
    const body = new DataView(new ArrayBuffer(Ptm.bytes));
    body.setUint32(Ptm.Capability, PTM_CAPABILITY, true);
    body.setUint32(Ptm.Control, PTM_CONTROL, true);
    const writable = new Uint8Array(Ptm.bytes);
    writable[Ptm.Control] = PTM_CONTROL;
    this.#config.addExtendedCapability(Ptm.id, Ptm.version, new Uint8Array(body.buffer), { writable });
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {}
}

export function createRootPort(vdev: RootPortVdev): VirtualFunction {
  return new RootPort(vdev);
}
