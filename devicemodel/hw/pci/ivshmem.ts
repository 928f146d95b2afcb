/**
 * ivshmem: memory shared between VMs. Spec: QEMU docs/specs/ivshmem-spec.rst (revision 1).
 *
 * `hv:/NAME` is memory of the hypervisor, which emulates the whole function, interrupts too. `dm:/NAME` is POSIX
 * shared memory of the host, mapped into the guest by this process; interrupts between VMs are not supported there.
 */
import * as v from 'valibot';
import type { BarIndex, BarSpec, ConfigSpace } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Gpa, hex } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import { checkShmRoom, inspectShm } from '../../core/host/shm-room.ts';
import type { RamMapping } from '../../core/hsm/hsm.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import { integer, optionsFromText } from '../../core/options.ts';
import { isPowerOfTwo, MiB } from '../../core/units.ts';
import { definePciDriver, type PciEnv, type SharedMemory } from './driver.ts';
import type { EmulatedPciFunction, HypervisorPciFunction, PciIdentity, PciPlacement } from './function.ts';

const Id = { vendorId: 0x1af4, deviceId: 0x1110, revisionId: 1, subsystemVendorId: 0x8086 };
/** Memory controller, RAM. */
const CLASS_MEMORY = 0x050000;

const Bar = { Registers: 0, Msix: 1, Memory: 2 } as const;
const REGISTERS_BYTES = 256;
const MSIX_BYTES = 4096;
/** BAR0 registers; all dwords. */
const Reg = { InterruptMask: 0x00, InterruptStatus: 0x04, IvPosition: 0x08, Doorbell: 0x0c } as const;

const MIN_SIZE_MIB = 2;
const MAX_SIZE_MIB = 512;
const MAX_REGION_ID = 0xffff;
/** struct acrn_vdev args, as far as the hypervisor looks. */
const MAX_REGION_NAME_BYTES = 32;
/** A file name of the host's /dev/shm. */
const MAX_SHM_NAME_BYTES = 255;

export const IvshmemOptions = v.strictObject({
  name: v.pipe(
    v.string(),
    v.regex(/^(hv|dm):\/./, (issue) => `must be hv:/NAME or dm:/NAME, got "${issue.input}"`),
    v.check(
      (name) => name.startsWith('hv:') || isShmName(shmName(name)),
      (issue) => `must be a file name of at most ${MAX_SHM_NAME_BYTES} bytes after dm:/, got "${issue.input}"`,
    ),
    v.check((name) => !/\p{Cc}/u.test(name), 'has control characters in it'),
    v.metadata({ arg: '{hv|dm}:/NAME', help: 'hv: memory of the hypervisor; dm: of this host, /dev/shm/NAME' }),
  ),
  size: v.pipe(
    v.union([v.string(), v.number()]),
    v.check(
      (raw) => !/^0x/i.test(String(raw)),
      (issue) => `must be a decimal number, got "${issue.input}"`,
    ),
    // The unit may be written.
    v.transform((raw): string | number => (typeof raw === 'string' ? raw.replace(/^(\d+)M(i?B)?$/i, '$1') : raw)),
    integer({ min: MIN_SIZE_MIB, max: MAX_SIZE_MIB }),
    v.check(isPowerOfTwo, (issue) => `must be a power of two, ${MIN_SIZE_MIB} to ${MAX_SIZE_MIB}, got ${issue.input}`),
    v.metadata({ arg: 'SIZE_MIB', help: `a power of two, ${MIN_SIZE_MIB} to ${MAX_SIZE_MIB}` }),
  ),
  regionId: v.optional(
    v.pipe(
      v.union([v.string(), v.number()]),
      v.transform((raw) => (/^\d+$/.test(String(raw)) && Number(raw) <= MAX_REGION_ID ? Number(raw) : raw)),
      v.metadata({ arg: 'REGION_ID', help: 'subsystem id, 0 to 65535, for drivers to tell regions apart' }),
    ),
    0,
  ),
});
type Options = v.InferOutput<typeof IvshmemOptions>;

/**
 * Compat: the number the text begins with, cut to 16 bits, or 0: guests tell regions apart by what the C device model
 * made of such ids.
 */
export function regionIdOf(raw: string | number): number {
  const digits = /^\s*[+-]?\d+/.exec(String(raw))?.[0];
  if (digits === undefined) return 0;
  const value = BigInt.asIntN(64, BigInt(digits.trim().replace(/^\+/, '')));
  return Number(BigInt.asUintN(16, value));
}

function shmName(name: string): string {
  return name.slice('dm:/'.length);
}

const shmFile = ({ name, size }: Pick<Options, 'name' | 'size'>) => ({
  path: `/dev/shm/${shmName(name)}`,
  sizeBytes: size * MiB,
});

function isShmName(name: string): boolean {
  return name !== '.' && name !== '..' && !/[/\0]/.test(name) && Buffer.byteLength(name) <= MAX_SHM_NAME_BYTES;
}

function identityOf(regionId: number): PciIdentity {
  return { ...Id, classCode: CLASS_MEMORY, subsystemId: regionId };
}

function barsOf(sizeBytes: number): readonly BarSpec[] {
  return [
    { index: Bar.Registers, kind: 'mem32', sizeBytes: REGISTERS_BYTES },
    { index: Bar.Msix, kind: 'mem32', sizeBytes: MSIX_BYTES },
    { index: Bar.Memory, kind: 'mem64', sizeBytes },
  ];
}

/** Without interrupts the mask, status and position registers read as zero; the doorbell is write-only. */
function readRegister(offset: number, size: AccessSize): number {
  switch (offset) {
    case Reg.InterruptMask:
    case Reg.InterruptStatus:
    case Reg.IvPosition:
      return 0;
    default:
      return allOnes(size);
  }
}

class HypervisorIvshmem implements HypervisorPciFunction {
  readonly backing = 'hypervisor';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly #regionName: string;
  readonly #sizeBytes: number;

  constructor(options: { readonly name: string; readonly sizeBytes: number; readonly regionId: number }) {
    this.identity = identityOf(options.regionId);
    this.bars = barsOf(options.sizeBytes);
    this.#regionName = options.name;
    this.#sizeBytes = options.sizeBytes;
  }

  describe(at: PciPlacement): HvVdev {
    return {
      type: 'ivshmem',
      bdf: at.bdf,
      registersBar: at.barAddress(Bar.Registers),
      msixBar: at.barAddress(Bar.Msix),
      memoryBar: at.barAddress(Bar.Memory),
      regionName: this.#regionName,
      sizeBytes: this.#sizeBytes,
    };
  }

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    return index === Bar.Registers ? readRegister(offset, size) : allOnes(size);
  }
}

class HostIvshmem implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly #env: PciEnv;
  readonly #name: string;
  readonly #sizeBytes: number;
  #placement: PciPlacement | undefined;
  #shared: SharedMemory | undefined;
  #view: DataView | undefined;
  #stopWatching: (() => void) | undefined;
  /** Where the guest has it as RAM. */
  #mapping: RamMapping | undefined;

  constructor(options: { readonly name: string; readonly sizeBytes: number; readonly regionId: number }, env: PciEnv) {
    this.identity = identityOf(options.regionId);
    this.bars = barsOf(options.sizeBytes);
    this.#env = env;
    this.#name = options.name;
    this.#sizeBytes = options.sizeBytes;
  }

  configure(_config: ConfigSpace, placement: PciPlacement): void {
    this.#placement = placement;
  }

  /** Map the memory at BAR2. A mapping that is still there (system reset keeps RAM) is used on. */
  attach(): void {
    if (this.#placement === undefined) return;
    if (this.#shared === undefined) {
      const provider = this.#env.sharedMemory;
      if (provider === undefined) throw new ConfigError('dm:/ regions need shared memory of the host');
      const shared = provider.openSharedMemory(this.#name, this.#sizeBytes);
      this.#shared = shared;
      const { log } = this.#env;
      this.#stopWatching = shared.onCut((line) => log.rationed('warn', () => line));
      this.#view = new DataView(shared.bytes.buffer, shared.bytes.byteOffset, shared.bytes.byteLength);
    }
    this.#shared.mend();
    const gpa = this.#placement.barAddress(Bar.Memory);
    if (this.#mapping?.gpa !== gpa) this.#mapAt(gpa, this.#shared);
  }

  detach(): void {
    this.#mapping = undefined;
    this.#view = undefined;
    this.#stopWatching?.();
    this.#stopWatching = undefined;
    this.#shared?.dispose();
    this.#shared = undefined;
  }

  /**
   * The memory follows BAR2 where the hypervisor can take RAM away again. ACRN cannot: then the old place keeps it and
   * accesses to the new one come here, slow but right (see `readBar`).
   */
  barMoved(index: BarIndex, address: Gpa | undefined): void {
    const { hsm, log } = this.#env;
    const mapping = this.#mapping;
    const shared = this.#shared;
    if (index !== Bar.Memory || address === undefined || shared === undefined || address === mapping?.gpa) return;
    if (mapping !== undefined && hsm.unmapRam === undefined) {
      log.guest(() => `shared memory stays mapped at ${hex(mapping.gpa)}, BAR2 at ${hex(address)} is served slowly`);
      return;
    }
    try {
      // None, where the hypervisor did not take the place before this one.
      if (mapping !== undefined) hsm.unmapRam?.(mapping);
      this.#mapping = undefined;
      this.#mapAt(address, shared);
    } catch (error) {
      log.guest(
        () => `shared memory cannot move to ${hex(address)}: ${error instanceof Error ? error.message : error}`,
      );
    }
  }

  #mapAt(gpa: Gpa, shared: SharedMemory): void {
    const { bytes, hostAddress } = shared;
    const mapping = { gpa, sizeBytes: this.#sizeBytes, bytes, hostAddress, writable: true, executable: false };
    this.#env.hsm.mapRam(mapping);
    this.#mapping = mapping;
  }

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    if (index === Bar.Registers) return readRegister(offset, size);
    const view = this.#view;
    if (index !== Bar.Memory || view === undefined || offset + size > view.byteLength) return allOnes(size);
    if (size === 1) return view.getUint8(offset);
    return size === 2 ? view.getUint16(offset, true) : view.getUint32(offset, true);
  }

  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void {
    const view = this.#view;
    if (index === Bar.Registers && offset === Reg.Doorbell) {
      this.#env.log.guest(() => `doorbell ${hex(value)} ignored: dm:/ regions have no interrupts`);
    }
    if (index !== Bar.Memory || view === undefined || offset + size > view.byteLength) return;
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
  }

  reset(): void {}
}

export const ivshmem = definePciDriver({
  name: 'ivshmem',
  summary: 'memory shared between VMs',
  options: IvshmemOptions,
  // Compat: what follows the region id is not looked at; the warning about the id shows it.
  parseText(text) {
    const [name, size, ...rest] = text.split(',');
    if (rest.length < 2 || text.includes('=')) return optionsFromText(IvshmemOptions, text);
    return { name, size, regionId: rest.join(',') };
  },
  passedOver: ({ regionId: raw }) => {
    const regionId = regionIdOf(raw);
    if (String(raw) === String(regionId)) return [];
    return [`region id "${raw}" is not 0 to ${MAX_REGION_ID}, ${regionId} is used`];
  },
  inspectHost: ({ name, size }) => {
    if (name.startsWith('dm:')) inspectShm(`shared memory ${shmName(name)}`, shmFile({ name, size }));
  },
  inspectAll: (all) => checkShmRoom(all.filter(({ name }) => name.startsWith('dm:')).map(shmFile)),
  claims: ({ name, size }) => {
    if (name.startsWith('hv:')) return [{ what: `the region ${name}`, key: `region ${name}` }];
    return [
      {
        what: `the shared memory ${name}`,
        key: `shm ${name}`,
        consequence: 'both show the same memory',
        // Memory that is there with another size is refused.
        variant: `${size} MiB`,
        hint: 'give both the same size, or each a name of its own',
      },
    ];
  },
  create(options: Options, env) {
    const regionId = regionIdOf(options.regionId);
    if (options.name.startsWith('hv:') && Buffer.byteLength(options.name) > MAX_REGION_NAME_BYTES) {
      env.log.warn(`region "${options.name}": the hypervisor compares the first ${MAX_REGION_NAME_BYTES} bytes only`);
    }
    const sizeBytes = options.size * MiB;
    return options.name.startsWith('hv:')
      ? new HypervisorIvshmem({ name: options.name, sizeBytes, regionId })
      : new HostIvshmem({ name: shmName(options.name), sizeBytes, regionId }, env);
  },
});
