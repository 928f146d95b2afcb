/**
 * KVM_RUN of one vCPU as instructions: a function without arguments. Each exit of the guest is such a call, and to make a C
 * call from JavaScript of arguments takes longer than what the kernel does before the guest runs.
 */
import { KvmIoctl } from './kvm-abi.ts';
import { nativeAt } from './libc.ts';
import { mapCode } from './mapping.ts';

const SYS_IOCTL = 16;

export interface KvmRun {
  /** On the calling thread. @returns 0 or a negative errno. */
  readonly enter: () => number;
  /** Nobody enters any more. */
  dispose(): void;
}

/** @throws HostError */
export function kvmRun(vcpuFd: number, what: string): KvmRun {
  const code = mapCode(ioctlOf(vcpuFd, KvmIoctl.RUN), `KVM_RUN of ${what}`);
  return { enter: nativeAt(code.address), dispose: () => code.dispose() };
}

/** int (void): ioctl(fd, request, 0) as the kernel answers it, 0 or a negative errno. */
function ioctlOf(fd: number, request: number): Uint8Array {
  const u32 = (value: number) => Buffer.from(Uint32Array.of(value).buffer).toString('hex');
  return Buffer.from(
    [
      `bf${u32(fd)}`, //         mov edi, fd
      `be${u32(request)}`, //    mov esi, request
      '31d2', //                 xor edx, edx
      `b8${u32(SYS_IOCTL)}`, //  mov eax, SYS_ioctl
      '0f05', //                 syscall
      'c3', //                   ret
    ].join(''),
    'hex',
  );
}
