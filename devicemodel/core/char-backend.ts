/**
 * What a serial device talks to. Pull model: the device takes a byte when its receiver has room, so input is bounded
 * by the back end and never by the guest's memory of it.
 */
export interface CharBackend {
  /** For messages and --dry-run: `stdio`, `pty /dev/pts/3`, `tcp 127.0.0.1:4555`. */
  readonly name: string;
  /** Next received byte, or -1. */
  read(): number;
  /** One byte out; kept until `flush` at the end of the turn. Never blocks the guest: what the host does not take is dropped once a bounded buffer is full. */
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

/** Opens character back ends by what the command line says: `stdio`, `pty`, `unix:PATH`. */
export interface CharBackends {
  /** @param user who asks, for messages. @throws ConfigError if another has it. */
  open(user: string, spec: string): CharBackend;
}
