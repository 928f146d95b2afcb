/**
 * Limits of this process (`ulimit`) that no VM like this one gets along with. What Node and V8 do not get of threads and
 * memory ends the process at once, without a word and with sockets left behind: said before there is anything.
 */
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError, type DmError, ExitCode } from '../devicemodel/core/errors.ts';
import { processLimit, processLimitsText } from '../devicemodel/core/host/process-limits.ts';

const MIB = 1 << 20;
/** What the process and a VM without devices have open: code that is loaded, the event loop, the hypervisor, control sockets. */
const BASE_DESCRIPTORS = 28;
/** The main thread, V8's and the one that listens to signals; beside them Node's pool. */
const BASE_THREADS = 7;
/** As libuv takes UV_THREADPOOL_SIZE. */
const PoolThreads = { default: 4, most: 1024 } as const;
/** Code and heap, and the stacks of threads. */
const BASE_DATA_BYTES = 96 * MIB;
/**
 * The software CPU: beside the guest's memory, which is part of it, what its compiler makes. (With 128 MiB of memory
 * 293 MiB were too little, 342 enough.)
 */
const SOFT_DATA_BYTES = 72 * MIB;
/** What is mapped of programs and libraries, and kept free around them. */
const BASE_ADDRESS_BYTES = 700 * MIB;
/** What WebAssembly keeps free for one memory, in which the guest's is, too. */
const WASM_ADDRESS_BYTES = 10 * 1024 * MIB;
/** From this one on Node does without, where address space is short. */
const MODEST_NODE = 24;
const MODEST_FLAG = '--disable-wasm-trap-handler';

interface Limit {
  /** In /proc/self/limits. */
  readonly name: string;
  readonly need: number;
  readonly describe: (amount: number) => string;
  readonly hint: string;
}

const inMib = (bytes: number) => `${Math.floor(bytes / MIB)} MiB`;

function limitsFor({ pci, com, hypervisor, memoryBytes }: LimitedConfig): Limit[] {
  const isSoft = hypervisor === 'soft';
  return [
    {
      name: 'Max open files',
      need: BASE_DESCRIPTORS + pci.length + com.length,
      describe: (count) => `${count} open files`,
      hint: '`ulimit -n` sets the limit',
    },
    {
      name: 'Max processes',
      need: BASE_THREADS + poolThreads(process.env['UV_THREADPOOL_SIZE']),
      describe: (count) => `${count} threads`,
      hint: '`ulimit -u` sets the limit, for all processes of this user together',
    },
    {
      name: 'Max data size',
      need: BASE_DATA_BYTES + (isSoft ? SOFT_DATA_BYTES + memoryBytes : 0),
      describe: (bytes) => `${inMib(bytes)} of memory of its own`,
      hint: '`ulimit -d` sets the limit',
    },
    {
      name: 'Max address space',
      need: BASE_ADDRESS_BYTES + (isSoft && keepsAddressesFree() ? WASM_ADDRESS_BYTES : memoryBytes),
      describe: (bytes) => `${inMib(bytes)} of address space`,
      hint: `\`ulimit -v\` sets the limit${isSoft ? `; most of it is only kept free, and not with \`node ${MODEST_FLAG}\`` : ''}`,
    },
  ];
}

function poolThreads(asked: string | undefined): number {
  if (asked === undefined) return PoolThreads.default;
  return Math.min(PoolThreads.most, Math.max(1, Number.parseInt(asked, 10) || 1));
}

function keepsAddressesFree(): boolean {
  return Number.parseInt(process.versions.node, 10) < MODEST_NODE && !process.execArgv.includes(MODEST_FLAG);
}

/** Nobody counts the threads of root. */
const isExempt = (name: string) => name === 'Max processes' && process.geteuid?.() === 0;

type LimitedConfig = Pick<VmConfig, 'pci' | 'com' | 'hypervisor' | 'memoryBytes'>;

/**
 * Less than any VM like this one gets along with: the start would fail halfway, wherever the last one went. More than
 * this is no promise: what a device takes shows when it does.
 * @param text of /proc/self/limits
 */
export function limitProblems(config: LimitedConfig, text = processLimitsText()): DmError[] {
  return limitsFor(config).flatMap(({ name, need, describe, hint }) => {
    const limit = processLimit(name, text);
    if (limit >= need || isExempt(name)) return [];
    const message = `this process may have ${describe(limit)}, and a VM like this one needs ${describe(need)} or more`;
    return [new ConfigError(message, { exitCode: ExitCode.OsError, hint })];
  });
}
