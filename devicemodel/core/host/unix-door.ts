/** Where others call by a Unix socket (wary-socket.ts). Its file goes with it, and with the process. */
import { rmSync } from 'node:fs';
import { onProcessExit } from './exit-hooks.ts';
import { watchFdFor } from './fd-watch.ts';
import { acceptCaller, closeDoor, isFullOfKept, listenAt, type SocketKind } from './wary-socket.ts';

/** Who cannot be let in for want of a descriptor is looked at again after this time. */
const FULL_PAUSE_MS = 1000;

export interface UnixDoorOptions {
  /** A file of that name must not be there. */
  readonly path: string;
  readonly kind: SocketKind;
  /** What the mode of the file does not have. */
  readonly mask: number;
  /** The descriptor is the callee's. */
  readonly onCaller: (fd: number) => void;
  /** Why nobody is let in for a while. */
  readonly onRest: (why: string) => void;
}

export class UnixDoor {
  readonly #options: UnixDoorOptions;
  readonly #listener: number;
  readonly #forgetAtExit: () => void;
  #unwatch: (() => void) | undefined;
  #pause: NodeJS.Timeout | undefined;
  #isOpen = true;

  /** @throws HostError */
  constructor(options: UnixDoorOptions) {
    const { path, kind, mask } = (this.#options = options);
    this.#listener = listenAt(path, kind, mask);
    this.#forgetAtExit = onProcessExit(() => rmSync(path, { force: true }));
    try {
      this.#watch();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** @throws HostError */
  #watch(): void {
    this.#unwatch = watchFdFor(this.#listener, 'readable', () => this.#letIn(), false);
  }

  #letIn(): void {
    if (isFullOfKept()) {
      this.#turnAway('too many connections brought descriptors that nobody asked for: no more are let in');
      return;
    }
    try {
      const fd = acceptCaller(this.#listener);
      if (fd !== undefined) this.#options.onCaller(fd);
    } catch (error) {
      this.#rest((error as Error).message);
    }
  }

  /** Who cannot be let in stays readable, and would be looked at without end. */
  #turnAway(why: string): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#options.onRest(why);
  }

  #rest(why: string): void {
    this.#turnAway(why);
    this.#pause = setTimeout(() => {
      try {
        this.#watch();
      } catch (error) {
        this.#rest((error as Error).message);
      }
    }, FULL_PAUSE_MS);
    this.#pause.unref();
  }

  /** Safe twice. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    clearTimeout(this.#pause);
    this.#unwatch?.();
    this.#forgetAtExit();
    // While nobody else can have the name.
    try {
      rmSync(this.#options.path, { force: true });
    } catch {
      // Another's by now, or on a file system that nothing is removed from: nobody listens there any more.
    }
    closeDoor(this.#listener, this.#options.kind);
  }
}
