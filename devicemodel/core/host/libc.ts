/**
 * C functions of this process, through koffi. Only the files beside this one may import it: each of them is one
 * subsystem of the host, with typed functions, and everybody else calls those (a lint rule and a test say so).
 *
 * A call that a signal interrupts is made again, here and nowhere else. Functions are declared at first use: a
 * declaration costs about 50 us, and a run needs only some of them.
 */
import koffi from 'koffi';
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';

type NativeFunction = (...args: unknown[]) => number;

const processLibrary = koffi.load(null);
const declared = new Map<string, NativeFunction>();

/**
 * A C function of this process by its prototype, e.g. `int eventfd(unsigned int, int)`, as it is: for calls that do not
 * fail, or that must not be made again. Pointers may be given as typed arrays, addresses as bigint or safe integers
 * (`uintptr_t`).
 */
export function native(prototype: string): NativeFunction {
  let fn = declared.get(prototype);
  if (fn === undefined) {
    fn = processLibrary.func(prototype) as unknown as NativeFunction;
    declared.set(prototype, fn);
  }
  return fn;
}

/**
 * A system call that answers -1 on failure.
 * @returns a function that gives the result, or a negative errno; never -EINTR, as it then calls again.
 */
export function hostCall<Args extends readonly unknown[]>(prototype: string): (...args: Args) => number {
  let fn: NativeFunction | undefined;
  return (...args) => {
    fn ??= native(prototype);
    for (;;) {
      const result = fn(...args);
      if (result !== -1) return result;
      const errno = koffi.errno();
      if (errno !== Errno.EINTR) return -errno;
    }
  };
}

/**
 * As {@link hostCall}, for a call of three arguments whose EINTR means something: it is given back as any other errno.
 * Each access of the guest takes two of these; a list of arguments made for each call would show.
 */
export function interruptibleCall<Args extends readonly [unknown, unknown, unknown]>(
  prototype: string,
): (first: Args[0], second: Args[1], third: Args[2]) => number {
  let fn: NativeFunction | undefined;
  return (first, second, third) => {
    fn ??= native(prototype);
    const result = fn(first, second, third);
    return result === -1 ? -koffi.errno() : result;
  };
}

/** As {@link interruptibleCall}, on a thread of Node's: for a call that may block for long. */
export function asyncCall<Args extends readonly unknown[]>(prototype: string): (...args: Args) => Promise<number> {
  let fn: { async: (...args: unknown[]) => void } | undefined;
  return (...args) =>
    new Promise((resolve, reject) => {
      fn ??= native(prototype) as unknown as { async: (...args: unknown[]) => void };
      fn.async(...args, (error: unknown, result: number) => {
        // Until here: the call has nothing but the addresses of what it was given.
        void args;
        if (error) reject(error);
        else resolve(result === -1 ? -koffi.errno() : result);
      });
    });
}

/** The result of a host call, if it did not fail. @param what names the thing it was about. @throws HostError */
export function must(result: number, call: string, what: string): number {
  if (result >= 0) return result;
  throw new HostError(`${what}: ${call}: ${describeErrno(-result)}`, -result);
}

/** Instructions at an address as a function `int (void)`: without arguments a call takes half as long. */
export function nativeAt(address: bigint): () => number {
  return koffi.decode(address, koffi.proto('int', [])) as () => number;
}

/** The address of a C function, for a signal handler that need not do anything. */
export function nativeAddress(symbol: string): bigint {
  return koffi.address(processLibrary.symbol(symbol));
}

/** errno of the last native call of this thread; only right immediately after it. */
export function lastErrno(): number {
  return koffi.errno();
}

/** _exit(2): nothing of the process is tidied up, and no thread is waited for. */
export function exitAtOnce(status: number): void {
  native('void _exit(int)')(status);
}
