/**
 * The hypervisor's virtual PCIe root port, there for precision time measurement. Registers as ACRN's
 * dm/vpci/vroot_port.c sets them; PCI-to-PCI Bridge 1.2 §3.2, PCIe 5.0 §7.5.3 and §7.9.15.
 */
import type { AccessSize } from '../../../devicemodel/core/address.ts';
import type { RootPortVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { VirtualFunction } from '../virtual-function.ts';
import { ConfigSpace, Register } from './config-space.ts';

const Id = { vendor: 0x8086, device: 0x9d14, revision: 1, class: 0x06, subclass: 0x04 } as const;
const HEADER_BRIDGE = 1;

/** Type 1 header. */
const Bridge = { PrimaryBus: 0x18, SecondaryBus: 0x19, SubordinateBus: 0x1a, IoBase: 0x1c, MemoryBase: 0x20 } as const;
const BRIDGE_CONTROL = 0x3e;

/** PCI Express capability, from its own start. */
const Express = { id: 0x10, capabilities: 2, deviceCapabilities: 4, deviceControl: 8, bytes: 0x3c } as const;
/** Version 2, root port, slot implemented. */
const EXPRESS_ROOT_PORT = 0x0142;
const MAX_PAYLOAD_SHIFT = 5;
const MAX_PAYLOAD_MASK = 0xe0;

/** Precision Time Measurement extended capability, from the start of extended config space. */
const Ptm = { at: 0x100, header: 0x0001_001f, capability: 0x406, control: 0x3 } as const;

class RootPort implements VirtualFunction {
  readonly bdf: RootPortVdev['bdf'];
  readonly bridge: NonNullable<VirtualFunction['bridge']>;
  readonly #config = new ConfigSpace();

  constructor(vdev: RootPortVdev) {
    this.bdf = vdev.bdf;
    const config = this.#config;
    this.bridge = {
      firstSecondaryBus: vdev.secondaryBus,
      get secondaryBus() {
        return config.read(Bridge.SecondaryBus, 1);
      },
    };
    config.set(Register.VendorId, 2, Id.vendor);
    config.set(Register.DeviceId, 2, Id.device);
    config.set(Register.RevisionId, 1, Id.revision);
    config.set(Register.Subclass, 1, Id.subclass);
    config.set(Register.Class, 1, Id.class);
    config.set(Register.HeaderType, 1, HEADER_BRIDGE);
    // A port of this kind is always on bus 0, whatever the request says.
    config.set(Bridge.PrimaryBus, 1, 0);
    config.set(Bridge.SecondaryBus, 1, vdev.secondaryBus);
    config.set(Bridge.SubordinateBus, 1, vdev.subordinateBus);
    for (let at: number = Bridge.PrimaryBus; at < Bridge.IoBase; at += 4) config.allow(at, 4, 0xffff_ffff);
    config.allow(Bridge.IoBase, 2, 0xffff);
    for (let at: number = Bridge.MemoryBase; at < Register.CapabilityPointer; at += 4) {
      config.allow(at, 4, 0xffff_ffff);
    }
    config.allow(BRIDGE_CONTROL, 2, 0xffff);

    const express = new DataView(new ArrayBuffer(Express.bytes));
    express.setUint8(0, Express.id);
    express.setUint16(Express.capabilities, EXPRESS_ROOT_PORT, true);
    express.setUint32(Express.deviceCapabilities, vdev.maxPayload, true);
    express.setUint16(Express.deviceControl, (vdev.maxPayload << MAX_PAYLOAD_SHIFT) & MAX_PAYLOAD_MASK, true);
    const at = config.addCapability(new Uint8Array(express.buffer));
    config.allow(at + Express.deviceControl, 2, 0xffff);

    if (vdev.ptmCapOffset !== undefined) {
      config.set(Ptm.at, 4, Ptm.header);
      config.set(Ptm.at + 4, 4, Ptm.capability);
      config.set(Ptm.at + 8, 4, Ptm.control);
      config.allow(Ptm.at + 8, 4, Ptm.control);
    }
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {
    this.#config.dispose();
  }
}

export function createRootPort(vdev: RootPortVdev): VirtualFunction {
  return new RootPort(vdev);
}
