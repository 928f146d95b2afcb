/**
 * A copying thread: takes jobs and reads or writes what they ask for, each by a system call, and sleeps while there are none.
 * It knows nothing of whom a job is for, and touches guest memory and the image only between taking a job and writing its
 * state.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { endOfFile, readVectorAt } from '../../../core/host/files.ts';
import { viewOf } from '../../../core/host/mapping.ts';
import { MemoryWriter } from '../../../core/host/process-memory.ts';
import { QUEUE_CAPACITY } from '../image-queue.ts';
import { type CopyThreadMessage, type CopyThreadSetup, JobState, JobWord, takeJob, Word, wordOf } from './words.ts';

const TWO_32 = 0x1_0000_0000;

function tell(message: CopyThreadMessage): void {
  parentPort?.postMessage(message);
}

function run({ words: shared, fd, mapped, iovecs, iovecBytes }: CopyThreadSetup): void {
  const words = new Int32Array(shared);
  const pieces = Array.from({ length: QUEUE_CAPACITY }, (_, job) =>
    viewOf(iovecs + BigInt(job * iovecBytes), iovecBytes),
  );
  const writer = new MemoryWriter();
  /**
   * Memory behind the end of the file can be written up to the end of the page, and the file does not grow: such a write is
   * the device thread's. One that begins while the file is long enough is as if it came before whoever cuts it meanwhile.
   */
  const write = (iovec: Uint8Array, count: number, at: number, sizeBytes: number): number =>
    endOfFile(fd) < at + sizeBytes ? 0 : writer.write(iovec, count, mapped + BigInt(at), sizeBytes);
  const carryOut = (job: number): number => {
    const word = (index: number) => words[wordOf(job, index)] as number;
    const at = (word(JobWord.AtLow) >>> 0) + word(JobWord.AtHigh) * TWO_32;
    const iovec = pieces[job] as Uint8Array;
    const [count, sizeBytes] = [word(JobWord.Pieces), word(JobWord.Bytes)];
    const moved = word(JobWord.IsWrite) === 0 ? readVectorAt(fd, iovec, count, at) : write(iovec, count, at, sizeBytes);
    return moved === sizeBytes ? JobState.Done : JobState.Failed;
  };
  tell('ready');
  for (;;) {
    const bell = Atomics.load(words, Word.Bell);
    if (Atomics.load(words, Word.Quit) !== 0) break;
    Atomics.store(words, Word.Alive, Atomics.load(words, Word.Asked));
    const job = takeJob(words);
    if (job >= 0) {
      Atomics.store(words, wordOf(job, JobWord.State), carryOut(job));
      Atomics.add(words, Word.Done, 1);
      Atomics.notify(words, Word.Done);
      if (Atomics.exchange(words, Word.IsLate, 0) !== 0) tell('done');
      continue;
    }
    Atomics.store(words, Word.Sleeps, 1);
    Atomics.wait(words, Word.Bell, bell);
    Atomics.store(words, Word.Sleeps, 0);
  }
  Atomics.store(words, Word.HasQuit, 1);
  Atomics.notify(words, Word.HasQuit);
}

run(workerData as CopyThreadSetup);
