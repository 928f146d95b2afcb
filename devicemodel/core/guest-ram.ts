/**
 * Guest RAM from the host: huge pages of 1 GiB and 2 MiB as ACRN wants them (EPT mappings stay large, page tables small),
 * taken from memfds that no other process can open. 4 KiB pages are the fallback, with a warning.
 *
 * All segments share one reservation of address space, so that host address minus guest address is one constant.
 * Pages are not touched here: a shared hugetlb mapping reserves its pages at mmap, the kernel clears each at its first
 * use, and the HSM faults all of them in when it pins a segment.
 */
import type { Gpa } from './address.ts';
import { HostError } from './errors.ts';
import { Errno } from './host/errno.ts';
import { closeFd } from './host/files.ts';
import { HUGE_1G, HUGE_2M, HugePages, type PagePool, withPools } from './host/huge-pages.ts';
import { type AddressSpace, mapFileAt, mapZeroAt, reserveAddressSpace, viewOf } from './host/mapping.ts';
import { createHugeMemfd } from './host/memfd.ts';
import type { RamMapping } from './hsm/hsm.ts';
import type { Log } from './log.ts';
import type { RamChunk } from './memory.ts';
import { Progress } from './progress.ts';
import { alignUp, formatSize, GiB, MiB } from './units.ts';

export interface RamRequest {
  readonly base: Gpa;
  readonly sizeBytes: number;
}

/** RAM of one VM, mapped in this process until it is disposed of. */
export interface RamAllocation {
  /** For the device model: views of at most 1 GiB. */
  readonly chunks: readonly RamChunk[];
  /** For the hypervisor: one per region, or several where pages are small. */
  readonly segments: readonly RamMapping[];
  dispose(): void;
}

const SMALL_PAGE = 4096;
/** A typed array on Node 20 ends at 4 GiB; 1 GiB leaves room and matches the largest page. */
const CHUNK_BYTES = GiB;
/** With 4 KiB pages the HSM's page list is one kmalloc: segments must stay well below 512 MiB. */
const SMALL_PAGE_SEGMENT_BYTES = 256 * MiB;

/** How many bytes of each region each kind of page backs; large pages first, from the region's base. */
export interface Backing {
  readonly base: Gpa;
  readonly gigabyteBytes: number;
  readonly megabyteBytes: number;
}

/**
 * Map the regions. They must not overlap, and be multiples of 2 MiB.
 * @param allowSmallPages 4 KiB pages when there are not enough huge ones
 * @throws HostError with the command that makes room
 */
export function allocateGuestRam(regions: readonly RamRequest[], allowSmallPages: boolean, log: Log): RamAllocation {
  const pages = new HugePages();
  const locked = <T>(work: () => T) => withPools(work, (why) => log.debug(`huge pages are not locked: ${why}`));
  const ram = locked(() => {
    try {
      const plan = planHugePages(regions, pages);
      if (plan !== undefined) return mapHuge(plan, regions);
    } catch (error) {
      pages.giveBack();
      // ENOMEM here is a race for the pages with another process; anything else is not about pages at all.
      if (!(error instanceof HostError) || error.errno !== Errno.ENOMEM || !allowSmallPages) throw error;
    }
    pages.giveBack();
    return undefined;
  });
  if (ram !== undefined) {
    return {
      ...ram,
      dispose: () => {
        ram.dispose();
        if (pages.isInDebt) locked(() => pages.giveBack());
      },
    };
  }
  const total = regions.reduce((sum, r) => sum + r.sizeBytes, 0);
  const count = Math.ceil(total / HUGE_2M);
  const hint = `sysctl vm.nr_hugepages=${count}`;
  const free = Math.max(0, pages.megabytes.available);
  const what = `${formatSize(total)} of guest memory need ${count} huge pages of 2 MiB, ${free} are free`;
  if (!allowSmallPages) throw new HostError(what, Errno.ENOMEM, { hint });
  log.warn(`${what}: using 4 KiB pages, the guest will be slower (${hint})`);
  return mapSmall(regions);
}

/** Asked for at once: for more than this the kernel may need seconds, in which nothing would be heard of it. */
const STEP_BYTES = 512 * MiB;

/** @param onGrown after each step: a process that is killed now has that much to give back. */
function growInSteps(pool: PagePool, pages: number, onGrown: () => void): void {
  const step = Math.max(1, STEP_BYTES / pool.pageBytes);
  const progress = pages > step ? new Progress('huge pages', pages * pool.pageBytes) : undefined;
  const before = pool.added;
  for (let left = pages; left > 0; ) {
    const had = pool.added;
    pool.grow(Math.min(left, step));
    onGrown();
    const got = pool.added - had;
    // The kernel has no more only where a step adds nothing: it ends one, with success, at any signal to this thread, too.
    if (got <= 0) break;
    left -= got;
    progress?.at((pool.added - before) * pool.pageBytes);
  }
  progress?.end();
}

/**
 * Which pages back what; the pools are made larger for it, and what was added is noted.
 * @returns undefined when even after asking the kernel there are too few pages.
 */
export function planHugePages(regions: readonly RamRequest[], pages: HugePages): Backing[] | undefined {
  const { gigabytes, megabytes } = pages;
  const grow = (pool: PagePool, by: number) => growInSteps(pool, by, () => pages.noteDebt());
  let wantGigabytes = regions.reduce((sum, r) => sum + Math.floor(r.sizeBytes / HUGE_1G), 0);
  // Each look at a pool is two files of sysfs: none at pages that nobody wants.
  if (wantGigabytes > 0) {
    const lacking = wantGigabytes - gigabytes.available;
    if (lacking > 0) grow(gigabytes, lacking);
    if (lacking > 0) wantGigabytes = Math.min(wantGigabytes, Math.max(0, gigabytes.available));
  }

  const plan: Backing[] = [];
  let wantMegabytes = 0;
  for (const region of regions) {
    const large = Math.min(Math.floor(region.sizeBytes / HUGE_1G), wantGigabytes);
    wantGigabytes -= large;
    const rest = region.sizeBytes - large * HUGE_1G;
    plan.push({ base: region.base, gigabyteBytes: large * HUGE_1G, megabyteBytes: rest });
    wantMegabytes += rest / HUGE_2M;
  }
  let lacking = wantMegabytes - megabytes.available;
  if (lacking <= 0) return plan;
  grow(megabytes, lacking);
  lacking = wantMegabytes - megabytes.available;
  // Idle gigabyte pages are memory, too: turn them into small huge pages one by one.
  const neededGigabytes = plan.reduce((sum, b) => sum + b.gigabyteBytes / HUGE_1G, 0);
  while (lacking > 0) {
    const before = gigabytes.available;
    if (before <= neededGigabytes) break;
    gigabytes.grow(-1);
    pages.noteDebt();
    grow(megabytes, lacking);
    lacking = wantMegabytes - megabytes.available;
    if (gigabytes.available >= before) break;
  }
  return lacking <= 0 ? plan : undefined;
}

function mapHuge(plan: readonly Backing[], regions: readonly RamRequest[]): RamAllocation {
  const usesGigabytes = plan.some((b) => b.gigabyteBytes > 0);
  const space = reserveFor(regions, usesGigabytes ? HUGE_1G : HUGE_2M);
  const kinds = [
    { pageBytes: HUGE_1G, bytesOf: (b: Backing) => b.gigabyteBytes, offsetOf: (_: Backing) => 0 },
    { pageBytes: HUGE_2M, bytesOf: (b: Backing) => b.megabyteBytes, offsetOf: (b: Backing) => b.gigabyteBytes },
  ];
  try {
    for (const kind of kinds) {
      const total = plan.reduce((sum, b) => sum + kind.bytesOf(b), 0);
      if (total === 0) continue;
      const fd = createHugeMemfd('acrn_memfd', kind.pageBytes, total, 'guest memory');
      try {
        let fileOffset = 0;
        for (const backing of plan) {
          const size = kind.bytesOf(backing);
          if (size === 0) continue;
          mapFileAt(space.base + BigInt(backing.base + kind.offsetOf(backing)), size, fd, fileOffset, 'guest memory');
          fileOffset += size;
        }
      } finally {
        closeFd(fd); // the mappings keep the memory
      }
    }
  } catch (error) {
    space.dispose();
    throw error;
  }
  return describe(regions, space, Number.POSITIVE_INFINITY);
}

function mapSmall(regions: readonly RamRequest[]): RamAllocation {
  const space = reserveFor(regions, HUGE_2M);
  try {
    for (const region of regions) {
      mapZeroAt(space.base + BigInt(region.base), region.sizeBytes, 'guest memory');
    }
  } catch (error) {
    space.dispose();
    throw error;
  }
  return describe(regions, space, SMALL_PAGE_SEGMENT_BYTES);
}

/** Addresses for guest addresses 0 to the end of the last region, aligned for its pages. */
function reserveFor(regions: readonly RamRequest[], alignment: number): AddressSpace {
  const end = Math.max(...regions.map((r) => r.base + r.sizeBytes));
  return reserveAddressSpace(alignUp(end, SMALL_PAGE), alignment, 'address space for guest memory');
}

function describe(regions: readonly RamRequest[], space: AddressSpace, segmentBytes: number): RamAllocation {
  const cut = (limit: number): RamMapping[] =>
    regions.flatMap((region) => {
      const parts: RamMapping[] = [];
      for (let offset = 0; offset < region.sizeBytes; offset += limit) {
        const sizeBytes = Math.min(limit, region.sizeBytes - offset);
        const gpa = region.base + offset;
        const hostAddress = space.base + BigInt(gpa);
        // A segment of more than a chunk shows its first chunk: its hypervisor maps it by address.
        const bytes = viewOf(hostAddress, Math.min(sizeBytes, CHUNK_BYTES));
        parts.push({ gpa, sizeBytes, hostAddress, bytes, writable: true });
      }
      return parts;
    });
  return {
    chunks: cut(CHUNK_BYTES).map((m) => ({ base: m.gpa, bytes: m.bytes, hostAddress: m.hostAddress })),
    segments: cut(segmentBytes),
    dispose: () => space.dispose(),
  };
}
