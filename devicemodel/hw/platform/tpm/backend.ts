/** What a command response buffer needs of the TPM behind it. */
export interface TpmBackend {
  /** Whether a dynamic launch was measured (TPM_ESTABLISHED, TCG PTP 1.05 §6.5.3.3). */
  readonly isEstablished: boolean;
  /**
   * Run a command of locality 0. Commands are answered in their order.
   * @returns the response: always a whole one, of a TPM in failure mode where there is none.
   */
  execute(command: Uint8Array): Promise<Uint8Array>;
  /** The command that runs is to end soon, if it can. Its response comes all the same. */
  cancel(): void;
  /** The machine was reset: the TPM loses what it does not keep without power. Later commands come after it. */
  powerCycle(): void;
}

/** TPM_ST_NO_SESSIONS, and responses of the TPM as such (TPM 2.0 part 2, §6.9, §6.6.2). */
const ST_NO_SESSIONS = 0x8001;
export const ResponseCode = { Failure: 0x101, CommandSize: 0x142 } as const;
/** Tag, size and command or response code. */
export const HEADER_BYTES = 10;

/** Tag, size and code of a command or response; size counts the header, too (part 1, §18). */
export function sizeOf(message: Uint8Array): number {
  return Buffer.from(message.buffer, message.byteOffset, message.byteLength).readUInt32BE(2);
}

/** A response that is nothing but a code. */
export function plainResponse(code: number): Uint8Array {
  const response = Buffer.alloc(HEADER_BYTES);
  response.writeUInt16BE(ST_NO_SESSIONS, 0);
  response.writeUInt32BE(HEADER_BYTES, 2);
  response.writeUInt32BE(code, 6);
  return response;
}
