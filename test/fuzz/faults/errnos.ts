/** With which errors each call of the host may plausibly fail (their manual pages, and what file systems and drivers add). */
import { constants } from 'node:os';

type ErrnoName = keyof typeof constants.errno;

const OPEN =
  'EACCES EINTR EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODEV ENOENT ENOMEM ENOSPC ENOTDIR ENXIO EPERM EROFS EBUSY';
const READ = 'EAGAIN EINTR EINVAL EIO EISDIR ENOMEM ESTALE';
const WRITE = 'EAGAIN EDQUOT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE EROFS ESTALE';
const SYNC = 'EINTR EIO ENOSPC EDQUOT EROFS ESTALE';
const PATH = 'EACCES EIO ELOOP ENOENT ENOMEM ENOTDIR EROFS';
const MAKE = `${PATH} EEXIST EMLINK ENOSPC EPERM`;
const DESCRIPTOR = 'EMFILE ENFILE ENOMEM';
const LISTEN = 'EACCES EADDRINUSE EADDRNOTAVAIL EMFILE ENOMEM EROFS';

/** Of libuv's calls only a read is given back when a signal interrupts it. */
const withoutEintr = (names: string) => names.replace(' EINTR', '');

/** By the name of the call; of `ioctl:NAME` and `fcntl:N` the whole, or what is before the colon. */
const table: Readonly<Record<string, string>> = {
  open: OPEN,
  openSync: withoutEintr(OPEN),
  shm_open: 'EACCES EINTR EMFILE ENFILE ENOENT ENOSPC',
  read: READ,
  'read:eventfd': 'EAGAIN EINTR',
  'read:timerfd': 'EAGAIN EINTR',
  'write:eventfd': 'EINTR',
  readv: READ,
  pread: READ,
  preadv: READ,
  preadv2: `${READ} EOPNOTSUPP`,
  readSync: READ,
  readFileSync: withoutEintr(OPEN),
  readFile: withoutEintr(OPEN),
  write: WRITE,
  writev: WRITE,
  pwrite: WRITE,
  pwritev: WRITE,
  writeSync: withoutEintr(WRITE),
  writeFileSync: withoutEintr(withoutEintr(`${OPEN} ${WRITE}`)),
  fdatasync: SYNC,
  ftruncateSync: 'EFBIG EIO EPERM EROFS',
  fsyncSync: withoutEintr(SYNC),
  fallocate: 'EINTR EIO ENODEV ENOSPC EOPNOTSUPP EPERM',
  ftruncate: 'EFBIG EINTR EIO EPERM EROFS',
  fstatSync: 'EIO ENOMEM',
  statfsSync: `${PATH} ENOSYS`,
  statSync: PATH,
  lstatSync: PATH,
  readdirSync: `${PATH} EMFILE`,
  readlinkSync: PATH,
  accessSync: PATH,
  mkdirSync: MAKE,
  mkdtempSync: MAKE,
  symlinkSync: MAKE,
  renameSync: `${MAKE} EXDEV`,
  chmodSync: `${PATH} EPERM`,
  fchmodSync: 'EIO EPERM EROFS',
  chownSync: `${PATH} EPERM`,
  rmdirSync: `${PATH} EBUSY ENOTEMPTY EPERM`,
  rmSync: `${PATH} EBUSY EPERM`,
  unlinkSync: `${PATH} EBUSY EPERM`,
  closeSync: 'EIO',
  close: 'EINTR EIO',
  memfd_create: 'EMFILE ENFILE ENOMEM ENOSYS',
  mmap: 'EACCES EAGAIN ENFILE ENODEV ENOMEM',
  munmap: 'ENOMEM',
  mprotect: 'EACCES ENOMEM',
  eventfd: DESCRIPTOR,
  timerfd_create: DESCRIPTOR,
  timer_create: 'EAGAIN ENOMEM',
  socketpair: DESCRIPTOR,
  dup3: 'EBUSY EINTR EMFILE',
  fcntl: 'EINTR EMFILE ENOLCK EINVAL',
  poll: 'EINTR ENOMEM',
  sigaction: 'EINVAL',
  setpriority: 'EACCES EPERM',
  sched_setaffinity: 'EINVAL EPERM',
  tcgetattr: 'EIO ENOTTY',
  tcsetattr: 'EINTR EIO ENOTTY',
  grantpt: 'EACCES EINVAL',
  unlockpt: 'EINVAL ENOTTY',
  syscall: 'EAGAIN ENOMEM ENOSYS EPERM',
  getgrnam: 'EIO',
  ioctl: 'EINTR EINVAL EIO ENODEV ENOTTY EPERM',
  'ioctl:CREATE_VM': 'EBUSY EINTR EINVAL EIO ENOMEM',
  'ioctl:ATTACH_IOREQ_CLIENT': 'EINTR EIO ENODEV',
  'ioctl:SET_MEMSEG': 'EINTR EFAULT EINVAL ENOMEM',
  'ioctl:IOEVENTFD': 'EEXIST EINTR EINVAL ENOENT ENOMEM',
  'ioctl:IRQFD': 'EBUSY EINTR EINVAL ENOENT ENOMEM',
  listen: LISTEN,
  connect: 'EACCES EAGAIN ECONNREFUSED EMFILE ENOENT',
  'socket write': 'ECONNRESET EPIPE',
  thread: 'EAGAIN ENOMEM',
  watch: DESCRIPTOR,
};

/** @returns the numbers; none for calls that do not fail. */
export function plausibleErrnos(call: string): number[] {
  const names = table[call] ?? table[call.split(':')[0] as string] ?? '';
  return [...new Set(names.split(' '))].flatMap((name) => constants.errno[name as ErrnoName] ?? []);
}

export function errnoName(errno: number): string {
  return Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? String(errno);
}
