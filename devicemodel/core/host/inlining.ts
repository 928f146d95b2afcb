/**
 * How much V8 inlines. An access of a guest to a device and back is a dozen small functions, three times as many bytecodes
 * as V8 inlines into one by itself, and each call that is left costs thirty instructions.
 *
 * V8 refuses a code cache that was made with other flags, Node's own for its modules and threads included: a thread would be
 * up in twice the time. So it is done for guests that need it, and undone while a thread starts.
 */
import { createRequire } from 'node:module';

const NODES_OWN_BYTES = 920;
const WANTED_BYTES = 3000;

let isWanted = false;
let starting = 0;

/** From now on. Loading the module of Node that does it takes 3 ms. */
export function letCompilerInline(): void {
  if (isWanted) return;
  isWanted = true;
  if (starting === 0) setMost(WANTED_BYTES);
}

/** A thread starts, which takes Node's code caches, until the returned function is called. Safe twice. */
export function whileThreadStarts(): () => void {
  if (starting++ === 0 && isWanted) setMost(NODES_OWN_BYTES);
  let isOver = false;
  return () => {
    if (isOver) return;
    isOver = true;
    if (--starting === 0 && isWanted) setMost(WANTED_BYTES);
  };
}

function setMost(bytes: number): void {
  const { setFlagsFromString } = createRequire(import.meta.url)('node:v8') as typeof import('node:v8');
  setFlagsFromString(`--max-inlined-bytecode-size-cumulative=${bytes}`);
}
