/** Which caches the regions of an option are in, and where a guest finds them. */
import type { Gpa } from '../../../core/address.ts';
import { ConfigError } from '../../../core/errors.ts';
import type { SsramOptions } from './options.ts';

/** What the caches of this machine are: CPUs of one share the local APIC ids above so many bits. */
export interface CacheHierarchy {
  readonly l2Shift: number;
  readonly l3Shift: number;
  /** What is in an L2 cache is in its L3 cache, too. */
  readonly isL3Inclusive: boolean;
}

/** Where a vCPU runs. */
export interface SsramVcpu {
  readonly lapicId: number;
  readonly pcpu: number;
}

/** A part of one cache. */
export interface SsramBuffer {
  readonly level: 2 | 3;
  readonly cacheId: number;
  /** 0: only there since it has what is in the L2 caches below it. */
  sizeBytes: number;
  /** Of L2 buffers that this L3 buffer has, too. */
  inclusiveBytes: number;
  readonly pcpus: Set<number>;
  gpa: Gpa;
}

/** CPUID leaf 4: types of caches, and what it says of the last level (SDM vol. 2A, CPUID). */
const CACHE_NONE = 0;
const FIRST_UNKNOWN_TYPE = 4;

/** @param leaf4 as CPUID gives it, by subleaf. */
export function cacheHierarchy(
  leaf4: (subleaf: number) => { readonly eax: number; readonly edx: number },
): CacheHierarchy {
  let [l2Shift, l3Shift, isL3Inclusive] = [0, 0, false];
  for (let subleaf = 0; subleaf < 16; subleaf++) {
    const { eax, edx } = leaf4(subleaf);
    const type = eax & 0x1f;
    if (type === CACHE_NONE || type >= FIRST_UNKNOWN_TYPE) break;
    const level = (eax >>> 5) & 7;
    const shift = Math.ceil(Math.log2(((eax >>> 14) & 0xfff) + 1));
    if (level === 2) l2Shift = shift;
    if (level === 3) [l3Shift, isL3Inclusive] = [shift, (edx & 2) !== 0];
  }
  return { l2Shift, l3Shift, isL3Inclusive };
}

/**
 * One buffer for each cache, in the order they were named.
 * @throws ConfigError for vCPUs that do not exist, or have no cache in common.
 */
export function ssramBuffers(
  regions: SsramOptions['regions'],
  vcpus: readonly SsramVcpu[],
  caches: CacheHierarchy,
): SsramBuffer[] {
  const buffers: SsramBuffer[] = [];
  const at = (level: 2 | 3, cacheId: number): SsramBuffer => {
    const there = buffers.find((each) => each.level === level && each.cacheId === cacheId);
    if (there !== undefined) return there;
    const made = { level, cacheId, sizeBytes: 0, inclusiveBytes: 0, pcpus: new Set<number>(), gpa: 0 };
    buffers.push(made);
    return made;
  };
  for (const { cacheLevel, vcpus: wanted, sizeBytes } of regions) {
    const level = cacheLevel as 2 | 3;
    const numbers = wanted === 'all' ? vcpus.map((_, i) => i) : wanted;
    const users = numbers.map((number) => {
      const vcpu = vcpus[number];
      if (vcpu === undefined) throw new ConfigError(`--ssram: there is no vCPU ${number}, the VM has ${vcpus.length}`);
      return vcpu;
    });
    const shift = level === 2 ? caches.l2Shift : caches.l3Shift;
    const ids = new Set(users.map(({ lapicId }) => lapicId >>> shift));
    const [cacheId] = ids;
    if (cacheId === undefined || ids.size > 1) {
      throw new ConfigError(`--ssram: vCPUs ${numbers.join(', ')} do not share an L${level} cache`);
    }
    const buffer = at(level, cacheId);
    buffer.sizeBytes += sizeBytes;
    for (const { pcpu } of users) buffer.pcpus.add(pcpu);
  }
  if (caches.isL3Inclusive) {
    for (const buffer of buffers.filter(({ level }) => level === 2)) {
      at(3, l3Of(buffer, caches)).inclusiveBytes += buffer.sizeBytes;
    }
  }
  return buffers;
}

function l3Of({ cacheId }: SsramBuffer, { l2Shift, l3Shift }: CacheHierarchy): number {
  return (cacheId << l2Shift) >>> l3Shift;
}

/** Give them their places from `base` on: an inclusive L3 cache's behind what it has of its L2 caches, else L2 first. */
export function placeBuffers(buffers: readonly SsramBuffer[], base: Gpa, caches: CacheHierarchy): void {
  let next = base;
  const place = (buffer: SsramBuffer) => {
    buffer.gpa = next;
    next += buffer.sizeBytes;
  };
  const of = (level: number) => buffers.filter((each) => each.level === level);
  if (!caches.isL3Inclusive) {
    for (const buffer of [...of(2), ...of(3)]) place(buffer);
    return;
  }
  for (const l3 of of(3)) {
    for (const l2 of of(2)) if (l3Of(l2, caches) === l3.cacheId) place(l2);
    place(l3);
  }
}
