/**
 * Serves the guest's accesses: looks at every slot of the request page that waits for the device model, gives the access
 * to the bus it belongs to, and tells the hypervisor that it is done.
 */
import { type AccessSize, allOnes, type Bdf, hex } from './address.ts';
import { AccessCount, type CounterPage, newPage, tally } from './counters.ts';
import type { PciConfigAccess } from './device.ts';
import type { Hsm } from './hsm/hsm.ts';
import type { MmioBus, PioBus } from './io-bus.ts';
import { IoreqPage, IoreqType } from './ioreq-page.ts';
import type { Log } from './log.ts';
import { RequestHolds } from './request-holds.ts';

export interface IoreqServerParts {
  readonly hsm: Hsm;
  readonly pio: PioBus;
  readonly mmio: MmioBus;
  readonly pci: PciConfigAccess;
  readonly vcpuCount: number;
  /** Of the devices behind the buses. Default: none of them ever makes a vCPU wait. */
  readonly holds?: RequestHolds;
  /** Of kind `accesses`. */
  readonly counts?: CounterPage;
  readonly log: Log;
}

const ALL_ONES_U64 = 0xffff_ffff_ffff_ffffn;
const CONFIG_SPACE_BYTES = 4096;

export class IoreqServer {
  readonly #page: IoreqPage;
  readonly #hsm: Hsm;
  readonly #pio: PioBus;
  readonly #mmioBus: MmioBus;
  readonly #pci: PciConfigAccess;
  readonly #vcpuCount: number;
  readonly #log: Log;
  /** Reused for every config access. */
  readonly #bdf: { bus: number; device: number; function: number } = { bus: 0, device: 0, function: 0 };
  readonly #holds: RequestHolds;
  readonly #counts: CounterPage;
  #keepsOpen = false;

  constructor(parts: IoreqServerParts) {
    this.#page = new IoreqPage(parts.hsm.ioreqPage);
    this.#hsm = parts.hsm;
    this.#pio = parts.pio;
    this.#mmioBus = parts.mmio;
    this.#pci = parts.pci;
    this.#vcpuCount = parts.vcpuCount;
    this.#log = parts.log;
    this.#holds = parts.holds ?? new RequestHolds();
    this.#counts = parts.counts ?? newPage('accesses');
    this.#holds.onComplete = (vcpu) => {
      if (!this.#keepsOpen) parts.hsm.notifyIoreqDone(vcpu);
    };
  }

  /** True once a reset, a suspend or the end is asked for: no vCPU must run on, so their requests stay open and are dropped then. */
  get holdCompletions(): boolean {
    return this.#keepsOpen;
  }
  set holdCompletions(isWanted: boolean) {
    if (this.#keepsOpen && !isWanted) this.#holds.forget();
    this.#keepsOpen = isWanted;
  }

  /** Serve every pending slot once, but for those whose vCPU a device makes wait. @returns how many were served. */
  readonly serve = (): number => {
    const page = this.#page;
    const holds = this.#holds;
    let served = 0;
    for (let vcpu = 0; vcpu < this.#vcpuCount; vcpu++) {
      // What stays open was served, or never will be: a second time would be a second access.
      if (this.#keepsOpen) break;
      if (!page.isPending(vcpu) || holds.states[vcpu] !== 0) continue;
      served++;
      holds.serving = vcpu;
      switch (page.type(vcpu)) {
        case IoreqType.PortIo:
          this.#portIo(vcpu);
          break;
        case IoreqType.Mmio:
          this.#mmio(vcpu);
          break;
        case IoreqType.PciConfig:
          this.#pciConfig(vcpu);
          break;
        default:
          // Compat: the C device model exits here. A request nobody understands is completed as if nobody answered.
          tally(this.#counts, AccessCount.unknown, 1);
          this.#log.guest(() => `request of unknown type ${page.type(vcpu)} from vCPU ${vcpu}`);
          page.setValueU64(vcpu, ALL_ONES_U64);
      }
      if (!holds.served(vcpu) && !this.#keepsOpen) this.#hsm.notifyIoreqDone(vcpu);
    }
    return served;
  };

  /** Whether anything waits, without serving it. */
  get hasPending(): boolean {
    for (let vcpu = 0; vcpu < this.#vcpuCount; vcpu++) {
      if (this.#page.isPending(vcpu) && this.#holds.states[vcpu] === 0) return true;
    }
    return false;
  }

  #portIo(vcpu: number): void {
    const page = this.#page;
    const port = page.port(vcpu);
    const size = page.size(vcpu) as AccessSize;
    const inRange = (size === 1 || size === 2 || size === 4) && port + size <= 0x1_0000;
    if (page.isWrite(vcpu)) {
      tally(this.#counts, AccessCount.pioWrites, 1);
      if (!inRange || !this.#pio.write(port, size, mask(page.value(vcpu), size))) {
        this.#log.debug(() => `nobody at port ${hex(port)} takes a write`);
      }
    } else {
      tally(this.#counts, AccessCount.pioReads, 1);
      page.setValue(vcpu, inRange ? (this.#pio.read(port, size) ?? allOnes(size)) : 0xffffffff);
    }
  }

  #mmio(vcpu: number): void {
    const page = this.#page;
    const address = page.address(vcpu);
    const size = page.size(vcpu);
    const mmio = this.#mmioBus;
    tally(this.#counts, page.isWrite(vcpu) ? AccessCount.mmioWrites : AccessCount.mmioReads, 1);
    if (size === 8) {
      if (page.isWrite(vcpu)) mmio.writeU64(address, page.valueU64(vcpu));
      else page.setValueU64(vcpu, mmio.readU64(address) ?? ALL_ONES_U64);
    } else if (size === 1 || size === 2 || size === 4) {
      if (page.isWrite(vcpu)) mmio.write(address, size, mask(page.value(vcpu), size));
      else page.setValue(vcpu, mmio.read(address, size) ?? allOnes(size));
    } else if (!page.isWrite(vcpu)) {
      page.setValueU64(vcpu, ALL_ONES_U64);
    }
  }

  #pciConfig(vcpu: number): void {
    const page = this.#page;
    const bdf = this.#bdf;
    bdf.bus = page.pciBus(vcpu);
    bdf.device = page.pciDevice(vcpu);
    bdf.function = page.pciFunction(vcpu);
    const offset = page.pciRegister(vcpu);
    const size = page.size(vcpu) as AccessSize;
    const valid =
      (size === 1 || size === 2 || size === 4) && offset >= 0 && offset + size <= CONFIG_SPACE_BYTES && isBdf(bdf);
    if (page.isWrite(vcpu)) {
      tally(this.#counts, AccessCount.pciWrites, 1);
      if (valid) this.#pci.writeConfig(bdf, offset, size, mask(page.value(vcpu), size));
    } else {
      tally(this.#counts, AccessCount.pciReads, 1);
      page.setValue(vcpu, valid ? this.#pci.readConfig(bdf, offset, size) : 0xffffffff);
    }
  }
}

function isBdf(bdf: Bdf): boolean {
  return (bdf.bus & ~0xff) === 0 && (bdf.device & ~0x1f) === 0 && (bdf.function & ~7) === 0;
}

/** The bytes of an access; the rest of the field is whatever the register held. */
function mask(value: number, size: AccessSize): number {
  return size === 4 ? value : size === 2 ? value & 0xffff : value & 0xff;
}
