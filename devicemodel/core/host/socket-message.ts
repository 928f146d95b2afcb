/**
 * What sendmsg(2) and recvmsg(2) are given: struct msghdr with one piece of data and room for control messages, as on x86-64,
 * in memory that does not move.
 */
import { type Mapping, mapForThread } from './mapping.ts';

const Header = { iov: 16, iovCount: 24, control: 32, controlBytes: 40, flags: 48 } as const;
/** struct iovec behind the header, control messages behind that; data begins with a cache line. */
const [IOV_AT, CONTROL_AT, DATA_ALIGNMENT] = [64, 80, 64];

/** The next use overwrites what the one before has brought. Made at its first use. */
export class SocketMessage {
  readonly #what: string;
  readonly #dataAt: number;
  readonly #sizeBytes: number;
  #memory: { readonly mapping: Mapping; readonly view: DataView } | undefined;

  /** @param what for the error of a host without memory. */
  constructor(what: string, controlRoomBytes: number, dataRoomBytes: number) {
    this.#what = what;
    this.#dataAt = Math.ceil((CONTROL_AT + controlRoomBytes) / DATA_ALIGNMENT) * DATA_ALIGNMENT;
    this.#sizeBytes = this.#dataAt + dataRoomBytes;
  }

  /** Zeros but for the data. @returns the address of the header. @throws HostError */
  prepare(dataBytes: number, controlBytes: number): bigint {
    const { mapping, view } = this.#need();
    const at = (place: number) => mapping.address + BigInt(place);
    mapping.bytes.fill(0, 0, this.#dataAt);
    view.setBigUint64(Header.iov, at(IOV_AT), true);
    view.setBigUint64(Header.iovCount, 1n, true);
    view.setBigUint64(IOV_AT, at(this.#dataAt), true);
    view.setBigUint64(IOV_AT + 8, BigInt(dataBytes), true);
    view.setBigUint64(Header.control, controlBytes === 0 ? 0n : at(CONTROL_AT), true);
    view.setBigUint64(Header.controlBytes, BigInt(controlBytes), true);
    return at(0);
  }

  get data(): Uint8Array {
    return this.#need().mapping.bytes.subarray(this.#dataAt, this.#sizeBytes);
  }

  get control(): DataView {
    const { view } = this.#need();
    return new DataView(view.buffer, view.byteOffset + CONTROL_AT, this.#dataAt - CONTROL_AT);
  }

  /** After a call: how much of the control messages there is, and MSG_ flags. */
  get controlBytes(): number {
    return Number(this.#need().view.getBigUint64(Header.controlBytes, true));
  }
  get flags(): number {
    return this.#need().view.getInt32(Header.flags, true);
  }

  #need() {
    if (this.#memory === undefined) {
      const mapping = mapForThread(this.#sizeBytes, this.#what);
      this.#memory = { mapping, view: new DataView(mapping.bytes.buffer, mapping.bytes.byteOffset, this.#dataAt) };
    }
    return this.#memory;
  }
}
