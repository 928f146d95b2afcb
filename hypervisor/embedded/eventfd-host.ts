/** What the ioeventfd and irqfd tables need of the host's eventfds. Tests put their own in place. */
export interface EventfdHost {
  /** 0, or EBADF for a closed descriptor, EINVAL for one that is not an eventfd. */
  check(fd: number): number;
  /** Add 1 to the counter. */
  signal(fd: number): void;
  /** Call back whenever the counter is not 0, after taking it. */
  watch(fd: number, onSignal: () => void): { dispose(): void };
}
