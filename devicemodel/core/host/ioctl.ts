/** ioctl(2) for drivers whose requests are somebody's subject: /dev/acrn_hsm and the character devices beside this file. */
import { asyncCall, hostCall, interruptibleCall } from './libc.ts';

/** The argument is memory. @returns the driver's result, or a negative errno. */
export const ioctlBytes = hostCall<[fd: number, request: number, argument: ArrayBufferView]>(
  'int ioctl(int, unsigned long, void *)',
);
/** The argument is a number or an address. */
export const ioctlNumber = hostCall<[fd: number, request: number, argument: number | bigint]>(
  'int ioctl(int, unsigned long, uintptr_t)',
);
/** As {@link ioctlNumber}, for a request that waits and that a signal is meant to end: -EINTR is given back. */
export const ioctlWait = interruptibleCall<[fd: number, request: number, argument: number | bigint]>(
  'int ioctl(int, unsigned long, uintptr_t)',
);
/** As {@link ioctlBytes}, with -EINTR given back. */
export const ioctlBytesOnce = interruptibleCall<[fd: number, request: number, argument: ArrayBufferView]>(
  'int ioctl(int, unsigned long, void *)',
);

/** As {@link ioctlWait}, on a thread of Node's: for a wait that nothing can interrupt. */
export const ioctlAsync = asyncCall<[fd: number, request: number, argument: number | bigint]>(
  'int ioctl(int, unsigned long, uintptr_t)',
);
/** As {@link ioctlAsync}, where the argument is memory. */
export const ioctlBytesAside = asyncCall<[fd: number, request: number, argument: ArrayBufferView]>(
  'int ioctl(int, unsigned long, void *)',
);
