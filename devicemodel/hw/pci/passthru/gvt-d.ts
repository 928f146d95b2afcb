/**
 * Intel integrated graphics handed to the guest as a whole (GVT-d). Its driver looks for memory that firmware set aside:
 * stolen memory, and the OpRegion with what firmware knows of the displays. Both are mapped for the guest, and the
 * registers that name them show where. Registers: Intel graphics, Configuration Registers of the processor's datasheet
 * vol. 2; OpRegion: Intel Integrated Graphics OpRegion Specification 0.91.
 */
import { type AccessSize, type Gpa, hex } from '../../../core/address.ts';
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import type { MmioMapping } from '../../../core/hsm/hsm.ts';
import type { Log } from '../../../core/log.ts';
import { GiB, MiB } from '../../../core/units.ts';
import { parseHostAddress } from './address.ts';
import type { ConfigCopy } from './capabilities.ts';
import { type HostFunction, hostFunction } from './host-function.ts';

const INTEL = 0x8086;
const CLASS_DISPLAY = 0x03;
const GRAPHICS_DEVICE = 2;

/** Offsets in configuration space. */
const Reg = {
  /** Graphics control: stolen memory size in bits 15:8. */
  GraphicsControl: 0x50,
  /** Base of stolen memory up to generation 10, bits 31:20. */
  StolenBase: 0x5c,
  /** From generation 11 on, 64 bits wide, bits 63:20. */
  StolenBase64: 0xc0,
  StolenBase64High: 0xc4,
  /** Address of the OpRegion, bits 31:12. */
  OpRegion: 0xfc,
} as const;
const STOLEN_BASE_MASK = 0xfff0_0000;
const OPREGION_MASK = 0xffff_f000;
const OPREGION_BYTES = 0x5000;
/** Where stolen memory of generation 9 goes; it may be anywhere, the driver reads the register. */
const GEN9_STOLEN_GPA = 0x7c00_0000;
const GEN_64BIT_STOLEN = 11;

type DeviceIds = readonly (number | readonly [first: number, last: number])[];

/** Skylake to Comet Lake, Apollo Lake, Gemini Lake. */
const GEN9: DeviceIds = [
  0x0a84,
  0x1902,
  0x1906,
  0x190a,
  0x190b,
  0x190e,
  0x1912,
  0x1913,
  [0x1915, 0x1917],
  0x191a,
  0x191b,
  0x191d,
  0x191e,
  0x1921,
  0x1923,
  0x1926,
  0x1927,
  0x192a,
  0x192b,
  0x192d,
  0x1932,
  0x193a,
  0x193b,
  0x193d,
  0x1a84,
  0x1a85,
  0x3184,
  0x3185,
  [0x3e90, 0x3e94],
  0x3e96,
  [0x3e98, 0x3e9c],
  [0x3ea0, 0x3ea9],
  0x5902,
  0x5906,
  0x5908,
  0x590a,
  0x590b,
  0x590e,
  0x5912,
  0x5913,
  [0x5915, 0x5917],
  [0x591a, 0x591e],
  0x5921,
  0x5923,
  0x5926,
  0x5927,
  0x593b,
  0x5a84,
  0x5a85,
  0x87c0,
  0x87ca,
  0x9b21,
  0x9b41,
  0x9ba2,
  0x9ba4,
  0x9ba5,
  0x9ba8,
  0x9baa,
  0x9bac,
  0x9bc2,
  [0x9bc4, 0x9bc6],
  0x9bc8,
  0x9bca,
  0x9bcc,
  0x9be6,
  0x9bf6,
];
/** Ice Lake to Raptor Lake: known to have the registers of generation 11. */
const GEN11_AND_12: DeviceIds = [
  [0x8a50, 0x8a54],
  [0x8a56, 0x8a5d],
  0x8a70,
  0x8a71,
  0x4541,
  0x4551,
  0x4555,
  0x4557,
  0x4570,
  0x4571,
  0x4626,
  0x4628,
  0x462a,
  0x4680,
  0x4682,
  0x4688,
  0x468a,
  0x468b,
  0x4690,
  0x4692,
  0x4693,
  [0x46a0, 0x46a3],
  0x46a6,
  0x46a8,
  0x46aa,
  [0x46b0, 0x46b3],
  [0x46c0, 0x46c3],
  [0x46d0, 0x46d4],
  0x4c80,
  [0x4c8a, 0x4c8c],
  0x4c90,
  0x4c9a,
  0x4e51,
  0x4e55,
  0x4e57,
  0x4e61,
  0x4e71,
  0x9a40,
  0x9a49,
  0x9a59,
  0x9a60,
  0x9a68,
  0x9a70,
  0x9a78,
  0x9ac0,
  0x9ac9,
  0x9ad9,
  0x9af8,
  0xa720,
  0xa721,
  [0xa780, 0xa783],
  [0xa788, 0xa78b],
  0xa7a0,
  0xa7a1,
  [0xa7a8, 0xa7ad],
];

/** The LPC bridge of the host, whose ids the graphics driver looks for. */
const LPC_BRIDGE = { domain: 0, bus: 0, device: 0x1f, function: 0 } as const;

export function igdLpcSource(root: string): HostFunction | undefined {
  return hostFunction(root, LPC_BRIDGE);
}

/** Whether this is the graphics function of an Intel processor. */
export function isIntelGraphics(fn: HostFunction): boolean {
  const { domain, bus, device, function: number } = fn.address;
  const isThere = domain === 0 && bus === 0 && device === GRAPHICS_DEVICE && number === 0;
  return isThere && fn.vendorId === INTEL && fn.classCode >>> 16 === CLASS_DISPLAY;
}

/** @param physical as `0000:00:02.0`. */
export function isIntelGraphicsAt(root: string, physical: string): boolean {
  const fn = hostFunction(root, parseHostAddress(physical));
  return fn !== undefined && isIntelGraphics(fn);
}

function isAmong(ids: DeviceIds, id: number): boolean {
  return ids.some((entry) => (typeof entry === 'number' ? entry === id : id >= entry[0] && id <= entry[1]));
}

/** @returns 9; 11 for everything later, which has the same registers; undefined for an id not known here. */
export function graphicsGeneration(deviceId: number): 9 | 11 | undefined {
  return isAmong(GEN9, deviceId) ? 9 : isAmong(GEN11_AND_12, deviceId) ? 11 : undefined;
}

/**
 * Graphics mode select, bits 15:8 of the graphics control register.
 * @returns bytes of stolen memory. @throws ConfigError for a value without a meaning.
 */
export function stolenMemoryBytes(graphicsControl: number): number {
  const gms = (graphicsControl >>> 8) & 0xff;
  if (gms <= 0x10) return gms * 32 * MiB;
  if (gms >= 0xf0 && gms <= 0xfe) return (gms - 0xef) * 4 * MiB;
  if (gms === 0x20) return 1 * GiB;
  if (gms === 0x30) return 1.5 * GiB;
  if (gms === 0x40) return 2 * GiB;
  throw new ConfigError(`graphics control ${hex(graphicsControl, 4)} has no meaning known here`, {
    exitCode: ExitCode.Unavailable,
  });
}

/** Memory and registers of one graphics function. */
export class GraphicsMemory {
  readonly stolen: MmioMapping;
  /** Undefined where firmware made none: there is no display it knows of. */
  readonly opRegion: MmioMapping | undefined;
  /** Registers that name them, by offset. */
  readonly #shadow = new Map<number, number>();

  /**
   * @returns undefined where firmware set no memory aside: then it is a function like any other.
   * @throws ConfigError for memory that firmware cannot have set aside: the guest would get something else of the host.
   */
  static of(fn: HostFunction, config: ConfigCopy, log: Log): GraphicsMemory | undefined {
    const sizeBytes = stolenMemoryBytes(config.get16(Reg.GraphicsControl));
    if (sizeBytes === 0) {
      log.warn(`graphics ${fn.name} has no stolen memory: set "DVMT Pre-Allocated" in the firmware's setup`);
      return undefined;
    }
    const generation = graphicsGeneration(fn.deviceId);
    if (generation === undefined) {
      log.warn(`graphics 8086:${fn.deviceId.toString(16).padStart(4, '0')} is not known here, taken for generation 11`);
    }
    const graphics = new GraphicsMemory(generation ?? GEN_64BIT_STOLEN, sizeBytes, config);
    const { physicalAddress } = graphics.stolen;
    if (physicalAddress === 0 || physicalAddress + sizeBytes > 4 * GiB) {
      throw new ConfigError(`stolen memory of graphics ${fn.name} cannot be at ${hex(physicalAddress)}`, {
        exitCode: ExitCode.Unavailable,
        hint: 'the firmware of the host has not set it up: enable the graphics of the processor in its setup',
      });
    }
    if (graphics.opRegion === undefined) log.warn(`graphics ${fn.name} has no OpRegion: the guest may find no display`);
    return graphics;
  }

  private constructor(generation: number, sizeBytes: number, config: ConfigCopy) {
    const is64 = generation >= GEN_64BIT_STOLEN;
    const register = config.get32(is64 ? Reg.StolenBase64 : Reg.StolenBase);
    const low = (register & STOLEN_BASE_MASK) >>> 0;
    const hpa = is64 ? config.get32(Reg.StolenBase64High) * 0x1_0000_0000 + low : low;
    // The Windows driver takes the address from a register in a BAR, where the hypervisor cannot show another one.
    const gpa = is64 ? hpa : GEN9_STOLEN_GPA;
    this.stolen = { gpa, physicalAddress: hpa, sizeBytes };
    const rest = (register & ~STOLEN_BASE_MASK) >>> 0;
    this.#shadow.set(
      is64 ? Reg.StolenBase64 : Reg.StolenBase,
      (((gpa % 0x1_0000_0000) & STOLEN_BASE_MASK) | rest) >>> 0,
    );
    if (is64) this.#shadow.set(Reg.StolenBase64High, Math.floor(gpa / 0x1_0000_0000));

    const asls = config.get32(Reg.OpRegion);
    // Compat: C then hands out the first pages of the host's memory.
    if ((asls & OPREGION_MASK) === 0) return;
    const opRegionGpa = gpa - OPREGION_BYTES;
    this.opRegion = {
      gpa: opRegionGpa,
      physicalAddress: (asls & OPREGION_MASK) >>> 0,
      sizeBytes: OPREGION_BYTES,
    };
    this.#shadow.set(Reg.OpRegion, ((opRegionGpa & OPREGION_MASK) | (asls & ~OPREGION_MASK)) >>> 0);
  }

  /** What the guest must not take for RAM: both, one behind the other. */
  get range(): { readonly base: Gpa; readonly size: number } {
    const { opRegion, stolen } = this;
    return { base: opRegion?.gpa ?? stolen.gpa, size: (opRegion?.sizeBytes ?? 0) + stolen.sizeBytes };
  }

  hasRegister(offset: number): boolean {
    return this.#shadow.has(offset & ~3);
  }

  /** @returns undefined for a register that is the device's own. */
  readRegister(offset: number, size: AccessSize): number | undefined {
    const value = this.#shadow.get(offset & ~3);
    if (value === undefined) return undefined;
    const shifted = value >>> (8 * (offset & 3));
    return size === 4 ? shifted : shifted & (size === 2 ? 0xffff : 0xff);
  }
}
