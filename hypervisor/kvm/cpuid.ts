/**
 * What CPUID shows: the host's CPU as far as KVM can give it, below ACRN's hypervisor leaves. A guest finds the frequency
 * of its TSC there and needs no timer to measure it. Leaves: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; ACRN
 * arch/x86/guest/vcpuid.c.
 */
import type { CpuidEntry } from '../../devicemodel/core/host/kvm-abi.ts';

const Leaf = {
  features: 1,
  extendedTopology: 0xb,
  extendedTopologyV2: 0x1f,
  hypervisor: 0x4000_0000,
  hypervisorFeatures: 0x4000_0001,
  hypervisorTiming: 0x4000_0010,
  hypervisorEnd: 0x4000_ffff,
  extendedFeatures: 0x8000_0001,
  svm: 0x8000_000a,
  amdTopology: 0x8000_001e,
} as const;
/** Leaf 1, ECX. */
const Feature = { monitor: 1 << 3, vmx: 1 << 5, smx: 1 << 6, tscDeadline: 1 << 24, hypervisor: 1 << 31 } as const;
/** Leaf 0x80000001, ECX. */
const ExtendedFeature = { svm: 1 << 2 } as const;
/** "ACRNACRNACRN", in EBX, ECX and EDX. */
const SIGNATURE = 0x4e52_4341;
const INITIAL_APIC_ID_SHIFT = 24;
const LOGICAL_CPUS_SHIFT = 16;

export interface CpuidFacts {
  readonly supported: readonly CpuidEntry[];
  readonly apicId: number;
  readonly vcpuCount: number;
  readonly tscKhz: number;
  readonly hasTscDeadline: boolean;
}

/** The leaves of one vCPU. */
export function guestCpuid(facts: CpuidFacts): CpuidEntry[] {
  const isOwn = (leaf: number) => (leaf < Leaf.hypervisor || leaf > Leaf.hypervisorEnd) && leaf !== Leaf.svm;
  const own = facts.supported.filter(({ leaf }) => isOwn(leaf));
  const none = { subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
  return [
    ...own.map((entry) => ofVcpu(entry, facts)),
    {
      ...none,
      leaf: Leaf.hypervisor,
      eax: Leaf.hypervisorTiming,
      ebx: SIGNATURE,
      ecx: SIGNATURE,
      edx: SIGNATURE,
    },
    { ...none, leaf: Leaf.hypervisorFeatures },
    { ...none, leaf: Leaf.hypervisorTiming, eax: facts.tscKhz },
  ];
}

function ofVcpu(entry: CpuidEntry, { apicId, vcpuCount, hasTscDeadline }: CpuidFacts): CpuidEntry {
  switch (entry.leaf) {
    case Leaf.features: {
      const ebx = (entry.ebx & 0xffff) | (vcpuCount << LOGICAL_CPUS_SHIFT) | (apicId << INITIAL_APIC_ID_SHIFT);
      // A User VM of ACRN has no virtualization of its own, and KVM cannot reset a vCPU that has turned it on.
      const kept = entry.ecx & ~(Feature.monitor | Feature.vmx | Feature.smx | Feature.tscDeadline);
      const ecx = kept | Feature.hypervisor | (hasTscDeadline ? Feature.tscDeadline : 0);
      return { ...entry, ebx: ebx >>> 0, ecx: ecx >>> 0 };
    }
    case Leaf.extendedFeatures:
      return { ...entry, ecx: (entry.ecx & ~ExtendedFeature.svm) >>> 0 };
    case Leaf.extendedTopology:
    case Leaf.extendedTopologyV2:
      return { ...entry, edx: apicId };
    case Leaf.amdTopology:
      // Of KVM it has the id of whichever CPU was asked, or 0, for all: one core each, one thread a core, one node.
      return { ...entry, eax: apicId, ebx: apicId, ecx: 0 };
    default:
      return entry;
  }
}
