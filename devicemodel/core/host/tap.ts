/** Network interfaces of the host: tap by name (attached or created) and macvtap. */
import { existsSync, readFileSync } from 'node:fs';
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';

/** <linux/if_tun.h>. */
const Tun = { SetIff: 0x400454ca, SetOffload: 0x400454d0, SetVnetHeaderSize: 0x400454d8 } as const;
const IffFlag = { Tap: 0x0002, NoPacketInfo: 0x1000, VnetHeader: 0x4000 } as const;
/** Offloads the reader of the tap can deal with. */
export const TunOffload = { Csum: 0x01, Tso4: 0x02, Tso6: 0x04, TsoEcn: 0x08 } as const;
/** struct ifreq: name[16], then a union of 24 bytes. */
const IFREQ_BYTES = 40;
const NAME_BYTES = 16;

/** `/dev/tapN` of a macvtap interface, or undefined for any other. */
function macvtapNode(name: string): string | undefined {
  try {
    const index = readFileSync(`/sys/class/net/${name}/ifindex`, 'latin1').trim();
    const node = `/dev/tap${index}`;
    return existsSync(node) ? node : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Open the host's end of an interface; a tap of that name is made if there is none and we may.
 * @param withHeader frames carry a struct virtio_net_hdr.
 * @returns a non-blocking descriptor: one frame a read or write.
 * @throws HostError
 */
export function openTap(name: string, withHeader: boolean): number {
  const node = macvtapNode(name) ?? '/dev/net/tun';
  const fd = openFile(node, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  const ifreq = new Uint8Array(IFREQ_BYTES);
  ifreq.set(Buffer.from(name).subarray(0, NAME_BYTES - 1));
  const flags = IffFlag.Tap | IffFlag.NoPacketInfo | (withHeader ? IffFlag.VnetHeader : 0);
  new DataView(ifreq.buffer).setUint16(NAME_BYTES, flags, true);
  const result = ioctlBytes(fd, Tun.SetIff, ifreq);
  if (result < 0) {
    const errno = -result;
    closeFd(fd);
    throw new HostError(`tap ${name}: ${describeErrno(errno)}`, errno, {
      hint: `is it in use, or may this user not open it? "ip tuntap add dev ${name} mode tap" makes one`,
    });
  }
  return fd;
}

/** @returns whether the tap now puts this many header bytes before each frame. */
export function setHeaderSize(fd: number, sizeBytes: number): boolean {
  const size = new Uint8Array(4);
  new DataView(size.buffer).setInt32(0, sizeBytes, true);
  return ioctlBytes(fd, Tun.SetVnetHeaderSize, size) === 0;
}

/** @returns whether the tap took the offloads. */
export function setOffload(fd: number, offloads: number): boolean {
  return ioctlNumber(fd, Tun.SetOffload, offloads) === 0;
}

/** "File descriptor in bad state": what tun says once the interface was deleted. */
const EBADFD = 77;

/** Whether the descriptor is of no more use. Other failures, such as EIO of an interface that is down, pass by themselves. */
export function isTapGone(errno: number): boolean {
  return errno === Errno.EBADF || errno === EBADFD || errno === Errno.ENODEV || errno === Errno.ENXIO;
}

/** One line for the log. */
export function tapFailure(name: string, what: 'send' | 'receive', errno: number): string {
  return `tap ${name}: ${what}: ${describeErrno(errno)}`;
}
