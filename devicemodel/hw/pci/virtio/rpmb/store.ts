/** Where the blocks of a replay protected memory are. One call at a time. */
export interface RpmbStore {
  /** @throws HostError. @returns how many blocks there are, and where the guest's counter stands. */
  open(): Promise<{ readonly blockCount: number; readonly counter: number }>;
  /** @returns the blocks, or a {@link Result} that is not Ok. Rejected if the store does not answer. */
  read(address: number, count: number): Promise<Uint8Array | number>;
  /**
   * All of it, or nothing; settled once it outlives a loss of power.
   * @param counter the guest's, after this write. @returns a {@link Result}. Rejected if the store does not answer.
   */
  write(address: number, blocks: Uint8Array, counter: number): Promise<number>;
  /** Safe twice, and without `open`. */
  close(): Promise<void>;
}
