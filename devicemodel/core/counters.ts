/**
 * What devices count, for whoever looks at a running VM. A block of counters belongs to one device for all lives of its
 * VM. Each thread that serves the device has a page of the block in shared memory, and is the only one that adds there:
 * a plain addition, no message. Who asks adds the pages up, so that a sum may be a request behind and never loses one.
 */

/** Requests that were answered with success, bytes of them, and those that failed. */
export const DiskCount = {
  reads: 0,
  readBytes: 1,
  writes: 2,
  writeBytes: 3,
  flushes: 4,
  discards: 5,
  errors: 6,
} as const;

/** `tx` is what the guest sends. Bytes are those of the frames, as the guest counts them: without virtio's header. */
export const NetCount = { rxFrames: 0, rxBytes: 1, rxDrops: 2, txFrames: 3, txBytes: 4, txDrops: 5 } as const;

/** `out` is what the guest wrote. */
export const ConsoleCount = { outBytes: 0, inBytes: 1 } as const;

/** Accesses of the guest that came to the device model, by where they went. */
export const AccessCount = {
  pioReads: 0,
  pioWrites: 1,
  mmioReads: 2,
  mmioWrites: 3,
  pciReads: 4,
  pciWrites: 5,
  unknown: 6,
} as const;

export const countersOf = { disk: DiskCount, net: NetCount, console: ConsoleCount, accesses: AccessCount } as const;
export type CounterKind = keyof typeof countersOf;
export type CounterName<K extends CounterKind> = Extract<keyof (typeof countersOf)[K], string>;

/** Counts of one thread. Whole numbers, exact up to 2^53. */
export type CounterPage = Float64Array<ArrayBufferLike>;

/** Add to a counter of a page that is this thread's. */
export function tally(page: CounterPage, counter: number, by: number): void {
  page[counter] = (page[counter] as number) + by;
}

/** A read of a disk is done. */
export function tallyRead(page: CounterPage, bytes: number): void {
  tally(page, DiskCount.reads, 1);
  tally(page, DiskCount.readBytes, bytes);
}

export function tallyWrite(page: CounterPage, bytes: number): void {
  tally(page, DiskCount.writes, 1);
  tally(page, DiskCount.writeBytes, bytes);
}

/** For what is not part of a VM. */
export function newPage(kind: CounterKind): CounterPage {
  return new Float64Array(new SharedArrayBuffer(Object.keys(countersOf[kind]).length * Float64Array.BYTES_PER_ELEMENT));
}

/** The device thread's page; those of data threads follow. */
const DEVICE_THREAD = 0;

/** The counters of one device. */
export class Counters<K extends CounterKind = CounterKind> {
  readonly kind: K;
  /** One word: `00:03.0`, `00:04.0@1` for a port of it, `com1`. */
  readonly id: string;
  readonly #pages: CounterPage[] = [];

  constructor(kind: K, id: string) {
    this.kind = kind;
    this.id = id;
  }

  /** Of the device thread. */
  get own(): CounterPage {
    return this.#page(DEVICE_THREAD);
  }

  /** Of the device's `index`th data thread: the one that takes the place of another goes on with its page. */
  ofThread(index: number): CounterPage {
    return this.#page(DEVICE_THREAD + 1 + index);
  }

  #page(index: number): CounterPage {
    return (this.#pages[index] ??= newPage(this.kind));
  }

  values(): Readonly<Record<CounterName<K>, number>> {
    const sums: Record<string, number> = {};
    for (const [name, at] of Object.entries(countersOf[this.kind])) {
      sums[name] = this.#pages.reduce((sum, page) => sum + (page?.[at] ?? 0), 0);
    }
    return sums as Record<CounterName<K>, number>;
  }
}

/** All counters of a VM. */
export class CounterBook {
  readonly #all = new Map<string, Counters>();

  /** The same block for the same device, in whatever life of the VM. */
  of<K extends CounterKind>(kind: K, id: string): Counters<K> {
    const key = `${kind} ${id}`;
    let counters = this.#all.get(key);
    if (counters === undefined) {
      counters = new Counters(kind, id) as unknown as Counters;
      this.#all.set(key, counters);
    }
    // A key stands for one kind.
    return counters as unknown as Counters<K>;
  }

  get all(): readonly Counters[] {
    return [...this.#all.values()];
  }
}
