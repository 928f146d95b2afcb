/**
 * What happens to a guest's access below the request page: ports CF8 to CFF, the hypervisor's own functions and their
 * registers, eventfds; everything else waits for the device model. As ACRN's hypervisor and Linux
 * drivers/virt/acrn/ioreq.c do it.
 */
import {
  type AccessSize,
  allOnes,
  type Bdf,
  bdfToNumber,
  type Gpa,
  type Port,
} from '../../devicemodel/core/address.ts';
import type { IoRegion } from '../../devicemodel/core/device.ts';
import { type IoreqPage, IoreqState, IoreqType } from '../../devicemodel/core/ioreq-page.ts';
import { Layout } from '../../devicemodel/core/layout.ts';
import { type AccessMap, MapWord } from './access-map.ts';
import type { EventfdTable } from './eventfd-table.ts';
import type { VirtualFunction } from './virtual-function.ts';

/** PCI configuration mechanism 1. */
const ConfigPort = { Address: 0xcf8, Data: 0xcfc, End: 0xd00 } as const;
const CONFIG_ENABLE = 0x8000_0000;

interface RegisterRange {
  readonly base: Gpa;
  readonly end: Gpa;
  readonly region: IoRegion;
}

export interface AccessRouterOptions {
  /** Its first word is the register at port CF8, which other threads of the VM have, too; default: this one alone has it. */
  readonly words?: Int32Array;
  /** Where other threads see what is here. */
  readonly map?: AccessMap;
}

export class AccessRouter {
  /** No client is there to wait for: requests are completed with whatever is in them. */
  isUnattended = true;
  readonly #page: IoreqPage;
  readonly #eventfds: EventfdTable;
  readonly #words: Int32Array;
  readonly #map: AccessMap | undefined;
  /** By BDF as a number; the hypervisor's own functions. */
  readonly #functions = new Map<number, VirtualFunction>();
  #bridges: VirtualFunction[] = [];
  #registers: RegisterRange[] = [];
  #ports: RegisterRange[] = [];

  constructor(page: IoreqPage, eventfds: EventfdTable, { words, map }: AccessRouterOptions = {}) {
    this.#page = page;
    this.#eventfds = eventfds;
    this.#words = words ?? new Int32Array(1);
    this.#map = map;
  }

  /** The register at port CF8. */
  #configAddress(): number {
    return (this.#words[MapWord.configAddress] as number) >>> 0;
  }
  #setConfigAddress(value: number): void {
    this.#words[MapWord.configAddress] = value;
  }

  /** Power-on state of what the guest itself can change here. */
  reset(): void {
    this.#setConfigAddress(0);
  }

  functionAt(bdf: Bdf): VirtualFunction | undefined {
    return this.#functions.get(bdfToNumber(bdf));
  }

  addFunction(fn: VirtualFunction): void {
    if (fn.bridge !== undefined) this.#setBridges([...this.#bridges, fn]);
    this.#functions.set(bdfToNumber(fn.bdf), fn);
    this.#map?.addFunction(fn.bdf);
  }

  #setBridges(bridges: VirtualFunction[]): void {
    this.#map?.setBridges(bridges);
    this.#bridges = bridges;
  }

  /** Take a function off and let it go. */
  removeFunction(fn: VirtualFunction): void {
    this.#functions.delete(bdfToNumber(fn.bdf));
    this.#map?.removeFunction(fn.bdf);
    this.#setBridges(this.#bridges.filter((bridge) => bridge !== fn));
    fn.dispose();
  }

  removeAllFunctions(): void {
    for (const fn of [...this.#functions.values()]) this.removeFunction(fn);
  }

  /** Registers at a guest-physical range; where ranges overlap, the newest wins. */
  addRegisters(base: Gpa, sizeBytes: number, region: IoRegion): { dispose(): void } {
    const range: RegisterRange = { base, end: base + sizeBytes, region };
    const seen = this.#map?.addRange(base, sizeBytes);
    this.#registers = [range, ...this.#registers];
    return {
      dispose: () => {
        seen?.dispose();
        this.#registers = this.#registers.filter((r) => r !== range);
      },
    };
  }

  /** The same at I/O ports. */
  addPorts(base: Port, count: number, region: IoRegion): { dispose(): void } {
    const range: RegisterRange = { base, end: base + count, region };
    this.#ports = [range, ...this.#ports];
    return {
      dispose: () => {
        this.#ports = this.#ports.filter((r) => r !== range);
      },
    };
  }

  /** As `GuestBus.submit`. */
  submit(vcpu: number): boolean {
    const page = this.#page;
    const type = page.type(vcpu);
    if (type === IoreqType.PortIo) {
      const port = page.port(vcpu);
      if (port >= ConfigPort.Data && port < ConfigPort.End) return this.#configData(vcpu, port);
      if (port === ConfigPort.Address) {
        if (page.isWrite(vcpu)) this.#setConfigAddress(page.value(vcpu));
        else page.setValue(vcpu, this.#configAddress());
        return this.#completed(vcpu);
      }
      if (this.#ports.length > 0 && this.#rangeAccess(this.#ports, vcpu, port)) return this.#completed(vcpu);
      if (this.#eventfds.serve(page, vcpu, 'pio')) return this.#completed(vcpu);
    } else if (type === IoreqType.Mmio) {
      const address = page.address(vcpu);
      if (address >= Layout.ecam.base && address < Layout.ecam.base + Layout.ecam.size) {
        if (this.#ecam(vcpu, address)) return this.#completed(vcpu);
      } else if (this.#registers.length > 0 && this.#rangeAccess(this.#registers, vcpu, address)) {
        return this.#completed(vcpu);
      }
      if (this.#eventfds.serve(page, vcpu, 'mmio')) return this.#completed(vcpu);
    }
    return this.#passOn(vcpu);
  }

  /** As {@link submit}, of the hypervisor's own: nothing that the guest put at the address takes it. */
  submitToClient(vcpu: number): boolean {
    return this.#passOn(vcpu);
  }

  /** As `GuestBus.retire`. */
  retire(vcpu: number): boolean {
    if (!this.#page.isComplete(vcpu)) return false;
    this.#page.setState(vcpu, IoreqState.Free);
    return true;
  }

  #completed(vcpu: number): true {
    this.#page.setKernelHandled(vcpu, true);
    this.#page.setState(vcpu, IoreqState.Complete);
    return true;
  }

  #passOn(vcpu: number): boolean {
    if (this.isUnattended) return this.#completed(vcpu); // as the driver: completed, whatever is in it
    this.#page.setState(vcpu, IoreqState.Processing);
    return false;
  }

  // ---- configuration space

  /**
   * The function a configuration access is for. Bus 0 is itself; another bus is below the bridge whose secondary bus
   * register names it now, and there are the functions that were made for the number the bridge began with.
   * @returns undefined when no bridge passes the access on: nobody answers.
   */
  #target(bdf: number): number | undefined {
    if (bdf < 0x100 || this.#bridges.length === 0) return bdf;
    for (const { bridge } of this.#bridges) {
      if (bridge?.secondaryBus === bdf >>> 8) return (bridge.firstSecondaryBus << 8) | (bdf & 0xff);
    }
    return undefined;
  }

  /** The hypervisor's own function there, if it does not leave the register to the device model. */
  #answering(target: number, register: number): VirtualFunction | undefined {
    const fn = this.#functions.get(target);
    return fn?.leaves?.(register) === true ? undefined : fn;
  }

  /** Ports CFC..CFF: the hypervisor's own functions answer here, the others become a config request. */
  #configData(vcpu: number, port: number): boolean {
    const page = this.#page;
    const address = this.#configAddress();
    const size = page.size(vcpu) as AccessSize;
    // PCI 3.0 §3.2.2.3.2; bits 27:24 are the extended register number, as the driver takes them.
    const target = (address & CONFIG_ENABLE) === 0 ? undefined : this.#target((address >>> 8) & 0xffff);
    if (target === undefined) {
      if (!page.isWrite(vcpu)) page.setValue(vcpu, allOnes(size));
      return this.#completed(vcpu);
    }
    const register = (address & 0xfc) + ((address >>> 16) & 0xf00) + (port - ConfigPort.Data);
    const fn = this.#answering(target, register);
    if (fn !== undefined) {
      this.#configAccess(fn, vcpu, register, size);
      return this.#completed(vcpu);
    }
    page.fillPciConfig(vcpu, page.isWrite(vcpu), target, register, size, page.value(vcpu));
    return this.#passOn(vcpu);
  }

  /** @returns false for a function that is not the hypervisor's: the device model answers for it. */
  #ecam(vcpu: number, address: Gpa): boolean {
    const page = this.#page;
    const bdf = ((address - Layout.ecam.base) >>> 12) & 0xffff;
    const target = this.#target(bdf);
    const size = page.size(vcpu);
    const fn = target === undefined ? undefined : this.#answering(target, address & 0xfff);
    if (fn === undefined && target === bdf) return false;
    if (size === 8) {
      // PCI Express 4.0 §7.2.2.2: a dword at most.
      if (!page.isWrite(vcpu)) page.setValueU64(vcpu, 0xffff_ffff_ffff_ffffn);
    } else if (fn !== undefined) {
      this.#configAccess(fn, vcpu, address & 0xfff, size as AccessSize);
    } else if (target !== undefined) {
      page.fillPciConfig(vcpu, page.isWrite(vcpu), target, address & 0xfff, size as AccessSize, page.value(vcpu));
      return false;
    } else if (!page.isWrite(vcpu)) {
      page.setValue(vcpu, allOnes(size as AccessSize));
    }
    return true;
  }

  #configAccess(fn: VirtualFunction, vcpu: number, register: number, size: AccessSize): void {
    const page = this.#page;
    const isAligned = register % size === 0;
    if (page.isWrite(vcpu)) {
      if (!isAligned) return;
      fn.writeConfig(register, size, cut(page.value(vcpu), size));
      if (fn.bridge !== undefined) this.#map?.setBridges(this.#bridges);
    } else {
      page.setValue(vcpu, isAligned ? fn.readConfig(register, size) : allOnes(size));
    }
  }

  // ---- registers of the hypervisor's functions

  #rangeAccess(ranges: readonly RegisterRange[], vcpu: number, address: Gpa | Port): boolean {
    for (const { base, end, region } of ranges) {
      if (address < base || address >= end) continue;
      this.#accessRegion(region, vcpu, address - base);
      return true;
    }
    return false;
  }

  #accessRegion(region: IoRegion, vcpu: number, offset: number): void {
    const page = this.#page;
    const size = page.size(vcpu);
    if (size === 8) {
      if (page.isWrite(vcpu)) {
        region.write(offset, 4, page.value(vcpu));
        region.write(offset + 4, 4, Number(page.valueU64(vcpu) >> 32n));
      } else {
        const low = region.read(offset, 4);
        page.setValueU64(vcpu, BigInt(low) | (BigInt(region.read(offset + 4, 4)) << 32n));
      }
    } else if (page.isWrite(vcpu)) {
      region.write(offset, size as AccessSize, cut(page.value(vcpu), size));
    } else {
      page.setValue(vcpu, region.read(offset, size as AccessSize));
    }
  }
}

function cut(value: number, size: number): number {
  return size === 4 ? value : value & (size === 2 ? 0xffff : 0xff);
}
