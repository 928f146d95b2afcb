/** Pages shared with the hypervisor: struct shared_buf (acrn_common.h), a ring of fixed-size elements behind a header. */
import { SHARED_BUF_MAGIC, SharedBuf } from './abi.ts';

/** Make an empty ring of the whole page; the hypervisor writes `tail`, we write `head`. No overwriting when full. */
export function initSharedBuffer(page: Uint8Array, elementBytes: number): void {
  const count = Math.floor((page.length - SharedBuf.size) / elementBytes);
  page.fill(0);
  page.set(
    SharedBuf.encode({ magic: SHARED_BUF_MAGIC, eleNum: count, eleSize: elementBytes, size: count * elementBytes }),
  );
}
