/** /dev/rpmbmux: the replay protected memory of this host's storage, shared between VMs (ACRN's <linux/rpmb.h>). */
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlAsync } from './ioctl.ts';
import { map } from './mapping.ts';

const PATH = '/dev/rpmbmux';
/** RPMB_IOC_SEQ_CMD: _IOWR(0xB5, 82, u64). */
const SEQUENCE = 0xc008b552;
/** struct rpmb_ioc_cmd: u32 flags, u32 frames, u64 address; a u64 with their number is before them. */
const COMMAND_BYTES = 16;
const FRAME_BYTES = 512;

export const RpmbFlag = { Read: 0, Write: 1, ReliableWrite: 3 } as const;

export interface RpmbCommand {
  readonly flags: number;
  /** Whole frames; those to be read are filled. */
  readonly frames: Uint8Array;
}

/** One sequence, on a thread of its own. Rejected with HostError if the device is not there or refuses it. */
export async function rpmbSequence(commands: readonly RpmbCommand[]): Promise<void> {
  const fd = openFile(PATH, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  const framesAt = 8 + commands.length * COMMAND_BYTES;
  const memory = map(framesAt + commands.reduce((sum, { frames }) => sum + frames.length, 0), PATH);
  try {
    const view = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.byteLength);
    view.setBigUint64(0, BigInt(commands.length), true);
    let at = framesAt;
    for (const [i, { flags, frames }] of commands.entries()) {
      view.setUint32(8 + i * COMMAND_BYTES, flags, true);
      view.setUint32(8 + i * COMMAND_BYTES + 4, frames.length / FRAME_BYTES, true);
      view.setBigUint64(8 + i * COMMAND_BYTES + 8, memory.address + BigInt(at), true);
      memory.bytes.set(frames, at);
      at += frames.length;
    }
    const result = await ioctlAsync(fd, SEQUENCE, memory.address);
    if (result < 0) throw new HostError(`${PATH}: ${describeErrno(-result)}`, -result);
    at = framesAt;
    for (const { flags, frames } of commands) {
      if (flags === RpmbFlag.Read) frames.set(memory.bytes.subarray(at, at + frames.length));
      at += frames.length;
    }
  } finally {
    memory.dispose();
    closeFd(fd);
  }
}
