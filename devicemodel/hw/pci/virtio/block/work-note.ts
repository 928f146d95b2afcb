/** What a disk's data thread waits for, in words that the device thread reads when it does not come back from it. */

/** Words of a note. */
const Note = { Work: 0, Bytes: 1, SectorLow: 2, SectorHigh: 3 } as const;
export const NOTE_WORDS = 4;

export const Work = { Read: 1, Write: 2, Flush: 3, Discard: 4 } as const;
const names: Readonly<Record<number, string>> = {
  [Work.Read]: 'read',
  [Work.Write]: 'write',
  [Work.Flush]: 'flush',
  [Work.Discard]: 'discard',
};

const TWO_32 = 0x1_0000_0000;

export class WorkNote {
  readonly #words: Int32Array;

  /** @param words NOTE_WORDS of them, shared. */
  constructor(words: Int32Array) {
    this.#words = words;
  }

  /** Plain stores: the system call that follows is long enough for the other side to see them. */
  set(work: number, sector: number, bytes: number): void {
    const words = this.#words;
    words[Note.Work] = work;
    words[Note.Bytes] = bytes;
    words[Note.SectorLow] = sector;
    words[Note.SectorHigh] = sector / TWO_32;
  }

  /** `write of 4096 bytes at sector 8`; undefined: nothing was begun yet. */
  describe(): string | undefined {
    const word = (index: number) => (this.#words[index] as number) >>> 0;
    const name = names[word(Note.Work)];
    if (name === undefined || word(Note.Work) === Work.Flush) return name;
    return `${name} of ${word(Note.Bytes)} bytes at sector ${word(Note.SectorHigh) * TWO_32 + word(Note.SectorLow)}`;
  }
}
