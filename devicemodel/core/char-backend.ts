/**
 * What a serial device talks to. Pull model: the device takes a byte when its receiver has room, so input is bounded
 * by the back end and never by the guest's memory of it.
 */
export interface CharBackend {
  /** For messages and --dry-run: `stdio`, `pty /dev/pts/3`, `tcp 127.0.0.1:4555`. */
  readonly name: string;
  /** Next received byte, or -1. */
  read(): number;
  /**
   * One byte out; kept until `flush` at the end of the turn. Never blocks the guest: what the host does not take is
   * dropped once a bounded buffer is full.
   */
  write(byte: number): void;
  flush(): void;
  /** Whether a byte written now would be kept. Without it the device need not wait, whatever becomes of the byte. */
  readonly hasRoom?: boolean;
  /** There is room again; called on the device thread. */
  onRoom?: (() => void) | undefined;
  /** Whether input was lost since the last call. */
  takeOverrun?(): boolean;
  /** The device's wish to hear of new input; called on the device thread. */
  onReadable: (() => void) | undefined;
  start(): void | Promise<void>;
  stop(): void | Promise<void>;
}

/** One more who reads and writes on a line, beside its back end. */
export interface LineTap {
  /** @returns how many bytes were taken: less than all while the guest does not read. */
  type(data: Uint8Array): number;
  /** Nothing more is told. Safe twice. */
  detach(): void;
}

/** A console or serial line of a VM, as those see it who look on from outside. */
export interface TappableLine {
  /** One word: `com1`, `virtio-console-00:02.0-port-0`. */
  readonly id: string;
  /** What it is connected to: `pty /dev/pts/3`. */
  readonly backend: string;
  /** The newest output, before anybody looked on. */
  history(): Uint8Array;
  /** @param onOutput told at the end of each turn; the bytes are its own. */
  tap(onOutput: (data: Uint8Array) => void): LineTap;
}

/** Opens character back ends by what the command line says: `stdio`, `pty`, `unix:PATH`. */
export interface CharBackends {
  /** @param user who asks, for messages. @throws ConfigError if another has it. */
  open(user: string, spec: string): CharBackend;
}
