/**
 * SDL, and Xlib's handlers of what goes wrong, are there once in a process: the end of one window would take the display
 * server's connection from another. Whoever lets VMs have windows keeps one of these.
 */
import { HostError } from '../../../core/errors.ts';
import { Errno } from '../../../core/host/errno.ts';

export class WindowClaim {
  #holder: Holder | undefined;

  /**
   * @param user the VM's name. @returns undefined when SDL was left behind, with a display server that is gone or stands
   *   still: then there is no window for anybody
   * @throws HostError when another VM has its window
   */
  take(user: string): WindowHold | undefined {
    if (this.#holder?.isLeft) return undefined;
    if (this.#holder !== undefined) {
      throw new HostError(
        `--display sdl: no window: this process shows the screens of ${this.#holder.user} in one already`,
        Errno.EBUSY,
        { hint: 'a process has one window: --display vnc=…, or another process for this VM' },
      );
    }
    const holder: Holder = { user, isLeft: false };
    this.#holder = holder;
    return {
      leave: () => {
        holder.isLeft = true;
      },
      giveBack: () => {
        if (this.#holder === holder) this.#holder = undefined;
      },
    };
  }
}

/** Of the VM that took it. Both may be called at any time, and twice. */
export interface WindowHold {
  /** The VM has no use for SDL any more, whose thread may be about to end, or never will. */
  leave(): void;
  /** The window is gone, and SDL has ended as it should. */
  giveBack(): void;
}

interface Holder {
  readonly user: string;
  isLeft: boolean;
}
