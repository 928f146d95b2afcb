/**
 * Mapped files that another process may cut while they are mapped. An access to a page that the file no longer has is a
 * SIGBUS, in whatever thread and code it happens, and JavaScript never gets to handle that: a few instructions of x86-64
 * do. They give the file its length back, so that all who share it go on sharing it, with zeros where it was cut. If the
 * file cannot have it, what is missing becomes memory of this process alone. The access is then made again.
 *
 * Any other SIGBUS ends the process as ever; one that somebody sends is ignored (signals.ts).
 *
 * A process has one handler for all of its threads, and JavaScript has variables for each: the first thread of
 * JavaScript that guards something makes the table, others find it by the handler that is there.
 */
import { createEventfd, takeEventfd } from './eventfd.ts';
import { watchFd } from './fd-watch.ts';
import { addressOf, type Mapping, map, mapCode, viewOf } from './mapping.ts';
import { faultHandler, handleFaults } from './signals.ts';

/** What became of a file that was cut. */
export type CutOutcome = 'restored' | 'replaced';

/** The table that the instructions read: a header, then a row for each mapping. Times 64 bytes. */
const ROW_BYTES = 64;
const ROWS = 1023;
const TABLE_BYTES = ROW_BYTES * (1 + ROWS);
const Header = { one: 0x10, defaultAction: 0x20 } as const;
const Row = {
  start: 0x00,
  end: 0x08,
  fileBytes: 0x10,
  fd: 0x18,
  eventfd: 0x1c,
  faultsOfWholeFile: 0x20,
  lock: 0x24,
  restored: 0x28,
  replaced: 0x2c,
  privateFrom: 0x30,
  isTaken: 0x38,
} as const;
const NO_FD = 0xffff_ffff;
const PAGE_BYTES = 4096;
/** In the handler: the address of the first row. */
const FIRST_ROW_AT = 0x14;

/** A file that has its length and faults all the same this often, with no cut in between, cannot be read back. */
const MAX_FAULTS_OF_WHOLE_FILE = 64;

/**
 * The handler, void (int signal, siginfo_t *, void *): nothing but system calls, the table and its own stack.
 *
 * Threads that fault at once come one after another, by a lock for each row: the first gives the file its length, the
 * others find it and make their access again. Who waits sleeps; yielding would not do where a real-time thread waits. A
 * file that faults on with its whole length (the medium cannot read it back) is replaced, so that no fault comes for ever.
 */
function handlerCode(tableAddress: bigint): Uint8Array {
  const at = (offset: number) => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, tableAddress + BigInt(offset), true);
    return Buffer.from(bytes).toString('hex');
  };
  return Buffer.from(
    [
      '8b4608', //               mov eax, [rsi+8]       si_code
      '85c0', //                 test eax, eax
      '7e48', //                 jle out                somebody sent it
      '83f802', //               cmp eax, 2             BUS_ADRERR
      '752a', //                 jne fatal
      '488b5610', //             mov rdx, [rsi+16]      si_addr
      '53', //                   push rbx
      '57', //                   push rdi
      `48bb${at(ROW_BYTES)}`, // mov rbx, first row
      'b9ff030000', //           mov ecx, ROWS
      '483b13', //         next: cmp rdx, [rbx+start]
      '7206', //                 jb 1f
      '483b5308', //             cmp rdx, [rbx+end]
      '7224', //                 jb found
      '4883c340', //          1: add rbx, ROW_BYTES
      'ffc9', //                 dec ecx
      '75ed', //                 jnz next
      '5f', //          unknown: pop rdi
      '5b', //                   pop rbx
      'b80d000000', //    fatal: mov eax, SYS_rt_sigaction
      `48be${at(Header.defaultAction)}`, // mov rsi, defaultAction
      '31d2', //                 xor edx, edx
      '41ba08000000', //         mov r10d, 8
      '0f05', //                 syscall                the fault comes again, and ends the process
      'c3', //              out: ret
      '4881e200f0ffff', // found: and rdx, -4096
      'b801000000', //     lock: mov eax, 1
      '874324', //               xchg [rbx+lock], eax
      '85c0', //                 test eax, eax
      '7419', //                 jz locked
      '6800000100', //           push 65536             ns
      '6a00', //                 push 0                 s
      '4889e7', //               mov rdi, rsp
      '31f6', //                 xor esi, esi
      'b823000000', //           mov eax, SYS_nanosleep
      '0f05', //                 syscall
      '4883c410', //             add rsp, 16
      'ebdb', //                 jmp lock
      '483b5330', //     locked: cmp rdx, [rbx+privateFrom]
      '0f83a7000000', //         jae done               another thread has replaced it
      '4881ec90000000', //       sub rsp, sizeof(struct stat)
      '8b7b18', //               mov edi, [rbx+fd]
      '4889e6', //               mov rsi, rsp
      'b805000000', //           mov eax, SYS_fstat
      '0f05', //                 syscall
      '488b442430', //           mov rax, [rsp+48]      st_size
      '4881c490000000', //       add rsp, sizeof(struct stat)
      '4c8b5310', //             mov r10, [rbx+fileBytes]
      '4c39d0', //               cmp rax, r10
      '720b', //                 jb isCut
      'ff4320', //               inc dword [rbx+faultsOfWholeFile]
      `837b20${MAX_FAULTS_OF_WHOLE_FILE.toString(16)}`, // cmp dword [rbx+faultsOfWholeFile], MAX_FAULTS_OF_WHOLE_FILE
      '7275', //                 jb done
      'eb1c', //                 jmp replace
      '83632000', //      isCut: and dword [rbx+faultsOfWholeFile], 0
      '52', //                   push rdx
      '31f6', //                 xor esi, esi           mode
      '31d2', //                 xor edx, edx           offset
      'b81d010000', //           mov eax, SYS_fallocate r10: length
      '0f05', //                 syscall
      '5a', //                   pop rdx
      '4885c0', //               test rax, rax
      '7441', //                 jz restored
      '4883f8fc', //             cmp rax, -EINTR
      '7457', //                 je done
      '4889d7', //      replace: mov rdi, rdx
      '488b7330', //             mov rsi, [rbx+privateFrom]
      '4829d6', //               sub rsi, rdx
      'ba03000000', //           mov edx, PROT_READ | PROT_WRITE
      '41ba32000000', //         mov r10d, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
      '49c7c0ffffffff', //       mov r8, -1
      '4531c9', //               xor r9d, r9d
      'b809000000', //           mov eax, SYS_mmap
      '0f05', //                 syscall
      '483d01f0ffff', //         cmp rax, -4095
      '0f832cffffff', //         jae unknown
      '48894330', //             mov [rbx+privateFrom], rax
      'ff432c', //               inc dword [rbx+replaced]
      'eb03', //                 jmp tell
      'ff4328', //     restored: inc dword [rbx+restored]
      `48be${at(Header.one)}`, // tell: mov rsi, one
      '8b7b1c', //               mov edi, [rbx+eventfd]
      'ba08000000', //           mov edx, 8
      'b801000000', //           mov eax, SYS_write
      '0f05', //                 syscall
      '83632400', //       done: and dword [rbx+lock], 0
      '5f', //                   pop rdi
      '5b', //                   pop rbx
      'c3', //                   ret
    ].join(''),
    'hex',
  );
}

interface Guarded {
  readonly row: number;
  readonly bytes: Uint8Array;
  readonly listeners: Set<(outcome: CutOutcome) => void>;
}

let table: DataView | undefined;
let isInstalled = false;
const guarded = new Set<Guarded>();
/** Written to by the handler. Made once a thread: its number must never be another descriptor's while one may fault. */
let noticeFd = -1;
let stopWatching: (() => void) | undefined;

export interface FaultGuard {
  /** Bring back now what was cut, before somebody else than this process reads it: a hypervisor, the kernel. */
  mend(): void;
  /** Whether any of it became memory of this process alone: it stays so as long as it is mapped. */
  isReplaced(): boolean;
  /**
   * Be told, on the event loop, of what was done. @returns how to stop; as long as somebody listens the process lives.
   * @throws HostError
   */
  onCut(listener: (outcome: CutOutcome) => void): () => void;
  /** Before the memory is unmapped and the file is closed. */
  dispose(): void;
}

/** @param fd a regular file, mapped from its beginning; it stays open as long as the guard. @throws HostError */
export function guardMapping(mapping: Mapping, fd: number): FaultGuard {
  const rows = install();
  const row = takeRow(rows);
  const sizeBytes = mapping.bytes.length;
  const guard: Guarded = { row, bytes: mapping.bytes, listeners: new Set() };
  const isRow = row < TABLE_BYTES;
  if (isRow) {
    for (let at = 0; at < Row.isTaken; at += 8) rows.setBigUint64(row + at, 0n, true);
    rows.setUint32(row + Row.fd, fd, true);
    rows.setUint32(row + Row.eventfd, noticeFd < 0 ? NO_FD : noticeFd, true);
    rows.setBigUint64(row + Row.fileBytes, BigInt(sizeBytes), true);
    rows.setBigUint64(row + Row.start, mapping.address, true);
    rows.setBigUint64(row + Row.privateFrom, mapping.address + BigInt(sizeBytes), true);
    rows.setBigUint64(row + Row.end, mapping.address + BigInt(sizeBytes), true);
    guarded.add(guard);
  }
  return {
    mend: () => {
      if (isInstalled && isRow) touch(guard.bytes);
    },
    isReplaced: () =>
      isRow && rows.getBigUint64(row + Row.privateFrom, true) !== rows.getBigUint64(row + Row.end, true),
    onCut: (listener) => {
      watch();
      guard.listeners.add(listener);
      return () => {
        guard.listeners.delete(listener);
        unwatch();
      };
    },
    dispose: () => {
      guard.listeners.clear();
      unwatch();
      if (!guarded.delete(guard)) return;
      rows.setBigUint64(row + Row.end, 0n, true);
      Atomics.store(wordsOf(rows), (row + Row.isTaken) / 4, 0);
    },
  };
}

/** @returns where it is; the end of the table if there is none left. */
function takeRow(rows: DataView): number {
  const words = wordsOf(rows);
  let row = ROW_BYTES;
  while (row < TABLE_BYTES && Atomics.compareExchange(words, (row + Row.isTaken) / 4, 0, 1) !== 0) row += ROW_BYTES;
  return row;
}

function wordsOf({ buffer, byteOffset, byteLength }: DataView): Int32Array {
  return new Int32Array(buffer, byteOffset, byteLength / 4);
}

/**
 * Of every guarded mapping. For who got EFAULT from the kernel about memory of this process.
 * @returns whether anything was cut.
 */
export function mendAll(): boolean {
  if (!isInstalled || table === undefined) return false;
  const rows = table;
  const count = () =>
    [...guarded].reduce(
      (sum, { row }) => sum + rows.getUint32(row + Row.restored, true) + rows.getUint32(row + Row.replaced, true),
      0,
    );
  const before = count();
  for (const { bytes } of guarded) touch(bytes);
  const isCut = count() !== before;
  if (isCut) report();
  return isCut;
}

/** Whether any memory is there that another process may cut, and give back, at any time. */
export function hasGuardedMappings(): boolean {
  return guarded.size > 0;
}

/** Every page is read once: one that is missing faults here, where the handler sees it. */
function touch(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) Atomics.load(bytes, at);
}

/** Once for the process: nothing of it can be given back while other threads may be in it. @throws HostError */
function install(): DataView {
  if (table !== undefined) return table;
  const present = faultHandler('SIGBUS');
  const ofOtherThread = present === undefined ? undefined : tableOf(present);
  const memory = ofOtherThread ?? map(TABLE_BYTES, 'table of shared memory').bytes;
  const view = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  if (ofOtherThread === undefined) {
    view.setBigUint64(Header.one, 1n, true);
    isInstalled = handleFaults('SIGBUS', mapCode(handlerCode(addressOf(memory)), 'handler of SIGBUS').address);
  } else {
    isInstalled = true;
  }
  table = view;
  return view;
}

/** The table of a handler, if it is this code: then it is alone in its pages. */
function tableOf(handler: bigint): Uint8Array<ArrayBuffer> | undefined {
  if (handler % BigInt(PAGE_BYTES) !== 0n) return undefined;
  const code = Buffer.from(viewOf(handler, handlerCode(0n).length));
  const address = code.readBigUInt64LE(FIRST_ROW_AT) - BigInt(ROW_BYTES);
  if (address < 0n || !code.equals(handlerCode(address))) return undefined;
  return viewOf(address, TABLE_BYTES);
}

function watch(): void {
  if (stopWatching !== undefined) return;
  if (noticeFd < 0) {
    noticeFd = createEventfd();
    for (const { row } of guarded) table?.setUint32(row + Row.eventfd, noticeFd, true);
  }
  stopWatching = watchFd(noticeFd, () => {
    takeEventfd(noticeFd);
    report();
  });
}

function unwatch(): void {
  if ([...guarded].some(({ listeners }) => listeners.size > 0)) return;
  stopWatching?.();
  stopWatching = undefined;
}

/** Tell of what the handler did since the last time. */
function report(): void {
  if (table === undefined) return;
  for (const { row, listeners } of guarded) {
    const isRestored = take(table, row + Row.restored);
    const isReplaced = take(table, row + Row.replaced);
    if (!isRestored && !isReplaced) continue;
    for (const listener of listeners) listener(isReplaced ? 'replaced' : 'restored');
  }
}

function take(rows: DataView, at: number): boolean {
  const count = rows.getUint32(at, true);
  rows.setUint32(at, 0, true);
  return count > 0;
}
