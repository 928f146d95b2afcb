import { native } from '../../devicemodel/core/host/libc.ts';

/** <bits/resource.h>. */
const RLIMIT_NOFILE = 7;

/** How many descriptors this process may have. @returns how to take it back. */
export function limitDescriptors(count: number): () => void {
  const prlimit = native('int prlimit(int, int, const void *, void *)');
  const before = new BigUint64Array(2);
  prlimit(0, RLIMIT_NOFILE, null, before);
  prlimit(0, RLIMIT_NOFILE, new BigUint64Array([BigInt(count), before[1] as bigint]), null);
  return () => void prlimit(0, RLIMIT_NOFILE, before, null);
}
