/** What the kernel says of devices that come and go, without udev: netlink(7), NETLINK_KOBJECT_UEVENT. */
import { Errno } from './errno.ts';
import { watchFd } from './fd-watch.ts';
import { closeFd, OpenFlag, readBytes } from './files.ts';
import { hostCall, must } from './libc.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const NETLINK_KOBJECT_UEVENT = 15;
/** Group of the kernel's own messages; those of udev are group 2. */
const KERNEL_GROUP = 1;
/** struct sockaddr_nl: family, padding, port id, groups. */
const SOCKADDR_BYTES = 12;
const MAX_MESSAGE_BYTES = 8192;
/** Messages taken at once. */
const MAX_MESSAGES = 64;

const socket = hostCall<[domain: number, type: number, protocol: number]>('int socket(int, int, int)');
const bind = hostCall<[fd: number, address: Uint8Array, sizeBytes: number]>(
  'int bind(int, const void *, unsigned int)',
);

/**
 * Call back after devices of a subsystem came or went: once for all that the kernel had to say.
 * @returns how to stop. @throws HostError where the kernel has no such socket.
 */
export function watchUevents(subsystem: string, onChange: () => void): () => void {
  const what = 'uevents of the kernel';
  const fd = must(
    socket(AF_NETLINK, SOCK_RAW | OpenFlag.CloseOnExec | OpenFlag.NonBlock, NETLINK_KOBJECT_UEVENT),
    'socket',
    what,
  );
  const address = new DataView(new ArrayBuffer(SOCKADDR_BYTES));
  address.setUint16(0, AF_NETLINK, true);
  address.setUint32(8, KERNEL_GROUP, true);
  const message = Buffer.alloc(MAX_MESSAGE_BYTES);
  const wanted = `\0SUBSYSTEM=${subsystem}\0`;
  const listen = () => {
    let isOurs = false;
    for (let count = 0; count < MAX_MESSAGES; count++) {
      const sizeBytes = readBytes(fd, message, MAX_MESSAGE_BYTES);
      // Whatever was lost in a full socket (ENOBUFS) may have been ours.
      if (sizeBytes <= 0) {
        isOurs ||= sizeBytes < 0 && sizeBytes !== -Errno.EAGAIN;
        break;
      }
      isOurs ||= message.includes(wanted) && sizeBytes > 0;
      message.fill(0, 0, sizeBytes);
    }
    if (isOurs) onChange();
  };
  try {
    must(bind(fd, new Uint8Array(address.buffer), SOCKADDR_BYTES), 'bind', what);
    const stop = watchFd(fd, listen);
    return () => {
      stop();
      closeFd(fd);
    };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}
