/** Parts of a cache that the kernel module tcc_buffer (Intel's Time Coordinated Computing) gives away. x86-64 layouts. */
import { writeFileSync } from 'node:fs';
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes } from './ioctl.ts';
import { type Mapping, map, mapUntouched } from './mapping.ts';

const NODE = '/dev/tcc/tcc_buffer';
const AFFINITY_CHECK = '/sys/module/tcc_buffer/parameters/strict_affinity_check';
/** Numbers with the size of a pointer in them, whatever is behind it. */
const Ioctl = { RegionCount: 0x80085401, RegionConfig: 0xc0085402, Request: 0xc0085403, Rtct: 0x80085405 } as const;
/** struct tcc_mem_region_config: u32 id, u32 latency, u64 size, s32 level, u32 ways, cpu_set_t *cpus. */
const CONFIG_BYTES = 32;
const CPU_SET_BYTES = 128;
/** struct tcc_buf_mem_req: u32 id, u64 size, u32 number of the node. */
const REQUEST_BYTES = 24;
const RTCT_BYTES = 4096;

/** A part of a cache. */
export interface TccRegion {
  readonly id: number;
  readonly level: number;
  readonly sizeBytes: number;
  /** Ways of the cache, a bit each. */
  readonly ways: number;
  readonly hasCpu: (cpu: number) => boolean;
}

/** Some of one, at an address of this process where nothing touches it. */
export interface TccBuffer {
  readonly address: bigint;
  dispose(): void;
}

export interface TccDriver {
  regions(): TccRegion[];
  /** @throws HostError if the region has no room, among others. */
  request(region: TccRegion, sizeBytes: number): TccBuffer;
  /** The host's table of real-time configuration (ACPI RTCT). @throws HostError */
  rtct(): Uint8Array;
  close(): void;
}

/** @throws HostError where there is no such module. */
export function openTcc(): TccDriver {
  const fd = openFile(NODE, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  try {
    // vCPUs run elsewhere than this process.
    writeFileSync(AFFINITY_CHECK, '0');
  } catch (error) {
    closeFd(fd);
    const { errno = 0, code } = error as NodeJS.ErrnoException;
    throw new HostError(`${AFFINITY_CHECK}: ${code}`, Math.abs(errno));
  }
  return {
    regions: () => regionsOf(fd),
    request: (region, sizeBytes) => requestBuffer(fd, region, sizeBytes),
    rtct: () => {
      const table = new Uint8Array(RTCT_BYTES);
      order(fd, 'Rtct', table);
      return table;
    },
    close: () => closeFd(fd),
  };
}

function order(fd: number, name: keyof typeof Ioctl, argument: Uint8Array): void {
  const result = ioctlBytes(fd, Ioctl[name], argument);
  if (result < 0) throw new HostError(`${NODE}: ${name}: ${describeErrno(-result)}`, -result);
}

function regionsOf(fd: number): TccRegion[] {
  const count = Buffer.alloc(4);
  order(fd, 'RegionCount', count);
  return Array.from({ length: Math.max(0, count.readInt32LE()) }, (_, id) => {
    const memory = map(CPU_SET_BYTES, NODE);
    try {
      const config = Buffer.alloc(CONFIG_BYTES);
      config.writeUInt32LE(id, 0);
      config.writeBigUInt64LE(memory.address, 24);
      order(fd, 'RegionConfig', config);
      const cpus = memory.bytes.slice();
      return {
        id,
        sizeBytes: Number(config.readBigUInt64LE(8)),
        level: config.readInt32LE(16),
        ways: config.readUInt32LE(20),
        hasCpu: (cpu: number) => (((cpus[cpu >>> 3] ?? 0) >>> (cpu & 7)) & 1) !== 0,
      };
    } finally {
      memory.dispose();
    }
  });
}

function requestBuffer(fd: number, region: TccRegion, sizeBytes: number): TccBuffer {
  const request = Buffer.alloc(REQUEST_BYTES);
  request.writeUInt32LE(region.id, 0);
  request.writeBigUInt64LE(BigInt(sizeBytes), 8);
  request.writeUInt32LE(0xffff_ffff, 16);
  order(fd, 'Request', request);
  const path = `${NODE}${request.readUInt32LE(16)}`;
  const node = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  let mapping: Pick<Mapping, 'address' | 'dispose'>;
  try {
    mapping = mapUntouched(sizeBytes, path, node);
  } catch (error) {
    closeFd(node);
    throw error;
  }
  return {
    address: mapping.address,
    dispose: () => {
      mapping.dispose();
      closeFd(node);
    },
  };
}
