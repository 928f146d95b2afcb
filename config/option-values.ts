/**
 * The values of single options. Each function takes the text behind an option and returns what VmConfig holds, or
 * throws a ConfigError whose message goes on after "--option: ". Nothing on the host is looked at.
 */
import type {
  ApiSocket,
  EventMonitorTarget,
  IntrMonitorConfig,
  LoggerConfig,
  OvmfImage,
  VmConfig,
} from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { Layout } from '../devicemodel/core/layout.ts';
import { LogLevel } from '../devicemodel/core/log.ts';
import { parseSocketPath } from '../devicemodel/core/options.ts';
import { alignDown, alignUp, formatSize, GiB, KiB, MiB } from '../devicemodel/core/units.ts';
import { didYouMean } from './suggest.ts';

/** Something to tell the user that does not stop the VM from starting. */
export interface Notice {
  readonly level: 'warn' | 'info';
  readonly text: string;
}
export type Notify = (notice: Notice) => void;

const MIN_MEMORY_BYTES = 128 * MiB;
const DEFAULT_MEMORY_BYTES = 256 * MiB;
/** Guest memory is mapped in huge pages. */
const MEMORY_UNIT_BYTES = 2 * MiB;
/** Where RAM above 4 GiB would reach the 64-bit PCI window. */
const MAX_MEMORY_BYTES = Layout.lowRamLimit + (Layout.pciMem64.base - Layout.highRamBase);

export { DEFAULT_MEMORY_BYTES };

/**
 * `256M`, `1g`, `262144k`, `0x100M`.
 * Compat: C means to take a plain number as bytes and `b` as a unit, but refuses both by a missing `break`; a plain
 * number is refused here too, since scripts that have one mean MiB as often as bytes.
 */
export function parseMemsize(text: string): number {
  const match = /^\s*(0[xX][0-9a-fA-F]+|[1-9]\d*|0)([a-zA-Z]*)$/.exec(text);
  if (match === null) {
    throw new ConfigError(`"${text}" is not a size`, { hint: 'write a whole number and a unit, as in 512m or 4g' });
  }
  const number = Number(match[1]);
  const unitBytes = { k: KiB, m: MiB, g: GiB }[/^([kmg])(i?b)?$/i.exec(match[2] as string)?.[1]?.toLowerCase() ?? ''];
  if (unitBytes === undefined) {
    if (match[2] !== '' && match[2]?.toLowerCase() !== 'b') {
      throw new ConfigError(`"${match[2]}" is not a unit`, { hint: 'the units are k, m and g' });
    }
    // Bytes or MiB? Whichever could be meant.
    const inBytes = number >= MIN_MEMORY_BYTES ? number : number * MiB;
    const mebibytes = alignUp(inBytes, MEMORY_UNIT_BYTES) / MiB;
    const isPossible = inBytes >= MIN_MEMORY_BYTES && inBytes <= MAX_MEMORY_BYTES;
    const hint = isPossible ? `write ${mebibytes}m` : 'write it as in 512m';
    throw new ConfigError(`"${text}" has no unit`, { hint: `${hint} (the units are k, m and g)` });
  }
  const bytes = number * unitBytes;
  if (bytes < MIN_MEMORY_BYTES) {
    throw new ConfigError(`${text} is too little, a VM has at least ${formatSize(MIN_MEMORY_BYTES)}`);
  }
  if (bytes > MAX_MEMORY_BYTES) {
    throw new ConfigError(`${text} is too much, memory above ${formatSize(MAX_MEMORY_BYTES)} has no room`);
  }
  if (bytes % MEMORY_UNIT_BYTES !== 0) {
    const below = alignDown(bytes, MEMORY_UNIT_BYTES) / MiB;
    const above = alignUp(bytes, MEMORY_UNIT_BYTES) / MiB;
    throw new ConfigError(`${text} is not a multiple of 2 MiB`, { hint: `write ${below}m or ${above}m` });
  }
  return bytes;
}

/** CPUs the hypervisor can name in an affinity bitmap. */
const MAX_AFFINITY_IDS = 64;

/**
 * `0,2,4-7` → local APIC ids, in the order given, each once, behind those of an earlier option. Compat: C has no ranges,
 * which libvirt's driver writes.
 * Compat: C stops at the first thing that is not a digit and starts the VM on the CPUs it has seen so far.
 */
export function parseCpuAffinity(text: string, notify: Notify, earlier: readonly number[] = []): number[] {
  const words = text.split(',');
  // A list built by a shell loop ends in a comma.
  if (words.length > 1 && words.at(-1) === '') words.pop();
  const ids = [...earlier];
  for (const id of words.flatMap((word) => idsOf(word, text))) {
    if (ids.includes(id)) notify({ level: 'warn', text: `local APIC id ${id} is given twice, it counts once` });
    else ids.push(id);
  }
  if (ids.length > MAX_AFFINITY_IDS)
    throw new ConfigError(`${ids.length} CPUs, at most ${MAX_AFFINITY_IDS} are possible`);
  return ids;
}

/** `2` or `2-5`. */
function idsOf(word: string, text: string): number[] {
  const [, first, last = first] = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(word) ?? [];
  if (first === undefined) {
    const what = word === '' ? 'an id is missing' : `"${word}" is not a local APIC id`;
    throw new ConfigError(`${what} in "${text}"`, {
      hint: 'write decimal ids without spaces, as in 0,2 or 0-3; grep apicid /proc/cpuinfo shows them',
    });
  }
  const count = Number(last) - Number(first) + 1;
  if (count < 1) throw new ConfigError(`the range ${word} in "${text}" is empty`);
  if (count > MAX_AFFINITY_IDS) throw new ConfigError(`${count} CPUs, at most ${MAX_AFFINITY_IDS} are possible`);
  return Array.from({ length: count }, (_, i) => Number(first) + i);
}

export function parseHypervisor(text: string): VmConfig['hypervisor'] {
  if (text === 'auto' || text === 'acrn' || text === 'kvm' || text === 'soft') return text;
  const guess = didYouMean(text, ['auto', 'acrn', 'kvm', 'soft']);
  throw new ConfigError(`"${text}" is not a hypervisor`, {
    hint: guess === undefined ? 'it is auto, acrn, kvm or soft' : `did you mean ${guess}?`,
  });
}

/** Bytes of a kernel command line, without its end. [BOOT_ARG_LEN] */
const MAX_BOOTARGS_BYTES = 2047;

export function parseBootargs(text: string): string {
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes > MAX_BOOTARGS_BYTES) {
    throw new ConfigError(`${sizeBytes} bytes, a kernel command line has at most ${MAX_BOOTARGS_BYTES}`);
  }
  return text;
}

/** Longest path of an image. [STR_LEN] */
const MAX_PATH_BYTES = 1023;

export function parsePath(text: string): string {
  if (text === '') throw new ConfigError('the file name is empty');
  if (Buffer.byteLength(text) > MAX_PATH_BYTES)
    throw new ConfigError(`the path is longer than ${MAX_PATH_BYTES} bytes`);
  return text;
}

const ovmfForm = 'write --ovmf [w,]FILE or --ovmf [w,]code=FILE,vars=FILE';

/**
 * `[w,]FILE` or `[w,]code=FILE,vars=FILE`, in any order.
 * Compat: C takes the last of several images, and an image next to one half of a pair.
 */
export function parseOvmf(text: string): OvmfImage {
  let writeBack = false;
  const found: { path?: string; code?: string; vars?: string } = {};
  const set = (key: 'path' | 'code' | 'vars', value: string) => {
    if (found[key] !== undefined) {
      const what = { path: 'images', code: 'code= files', vars: 'vars= files' }[key];
      throw new ConfigError(`two ${what} in "${text}"`, { hint: ovmfForm });
    }
    found[key] = parsePath(value);
  };
  for (const word of text.split(',')) {
    if (word === 'w') writeBack = true;
    else if (word.startsWith('code=')) set('code', word.slice('code='.length));
    else if (word.startsWith('vars=')) set('vars', word.slice('vars='.length));
    else set('path', word);
  }
  const { path, code, vars } = found;
  if (path !== undefined) {
    if (code !== undefined || vars !== undefined) {
      throw new ConfigError(`"${text}" has an image and a code= or vars= file`, {
        hint: 'give either one image or the pair',
      });
    }
    return { form: 'single', path, writeBack };
  }
  if (code !== undefined && vars !== undefined) return { form: 'split', codePath: code, varsPath: vars, writeBack };
  const missing = code !== undefined ? 'vars=FILE' : vars !== undefined ? 'code=FILE' : 'the image';
  throw new ConfigError(`${missing} is missing in "${text}"`, { hint: ovmfForm });
}

const logSinks = ['console', 'kmsg', 'disk'] as const;

/**
 * `console,level=4;kmsg,level=3;disk,level=5`. Level 0 silences a sink. Quotes around the whole are dropped: libvirt
 * passed them on. Sinks of an earlier option stay, a sink that is named again is set anew.
 */
export function parseLoggerSetting(
  text: string,
  notify: Notify,
  earlier: readonly LoggerConfig[] = [],
): LoggerConfig[] {
  const hint = `write SINK,level=N[;SINK,level=N...], SINK one of ${logSinks.join(', ')}, N from 1 to 5`;
  const bare = /^(["'])(.*)\1$/s.exec(text)?.[2] ?? text;
  const elements = bare.split(';').filter((element) => element !== '');
  if (elements.length === 0) throw new ConfigError('no log sink is given', { hint });
  const settings = [...earlier];
  const named = new Set<string>();
  for (const element of elements) {
    const comma = element.indexOf(',');
    const name = comma < 0 ? element : element.slice(0, comma);
    const sink = logSinks.find((s) => s === name);
    if (sink === undefined) {
      const guess = didYouMean(name, logSinks);
      throw new ConfigError(`"${name}" is not a log sink`, {
        hint: guess === undefined ? hint : `did you mean ${guess}?`,
      });
    }
    const level = /^level=(\d{1,9})$/.exec(comma < 0 ? '' : element.slice(comma + 1))?.[1];
    if (level === undefined) throw new ConfigError(`level=N is missing in "${element}"`, { hint });
    let maxLevel = Number(level);
    if (maxLevel > LogLevel.debug) {
      notify({ level: 'warn', text: `${sink}: level ${maxLevel} does not exist, taken as ${LogLevel.debug} (all)` });
      maxLevel = LogLevel.debug;
    }
    if (named.has(sink)) notify({ level: 'warn', text: `${sink} is given twice in "${bare}", the last counts` });
    named.add(sink);
    const known = settings.findIndex((s) => s.sink === sink);
    if (known >= 0) settings.splice(known, 1);
    settings.push({ sink, level: maxLevel });
  }
  return settings;
}

/**
 * `10000,10,1,100`.
 * Compat: C takes a probe period of 0 and then probes without a pause, and a threshold of 0, which any interrupt passes.
 */
export function parseIntrMonitor(text: string): IntrMonitorConfig {
  const match = /^\s*(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9})$/.exec(text);
  const [thresholdPerSecond, probePeriodS, delayMs, delayDurationMs] = (match ?? []).slice(1).map(Number);
  if (
    thresholdPerSecond === undefined ||
    probePeriodS === undefined ||
    delayMs === undefined ||
    delayDurationMs === undefined
  ) {
    throw new ConfigError(`"${text}" is not four numbers with commas`, {
      hint: 'write interrupts per second, probe period in s, delay in ms, duration in ms: 10000,10,1,100',
    });
  }
  if (thresholdPerSecond === 0 || probePeriodS === 0) {
    throw new ConfigError(`${thresholdPerSecond === 0 ? 'the threshold' : 'the probe period'} must not be 0`);
  }
  return { thresholdPerSecond, probePeriodS, delayMs, delayDurationMs };
}

const DESCRIPTOR = /^fd=(\d{1,9})$/;

/** `off`, `PATH`, `path=PATH` or `fd=N`. @throws ConfigError */
export function parseApiSocket(text: string): ApiSocket {
  if (text === 'off') return { kind: 'off' };
  const [, fd] = DESCRIPTOR.exec(text) ?? [];
  if (fd !== undefined) return { kind: 'fd', fd: Number(fd) };
  if (/^fd=/.test(text)) throw new ConfigError(`"${text}" is not fd=N, the number of a listening socket`);
  if (/^(on|off|yes|no)$/i.test(text)) {
    throw new ConfigError(`"${text}" is neither off nor the path of a socket`, { hint: `write off, or ./${text}` });
  }
  return { kind: 'path', path: parseSocketPath(text.startsWith('path=') ? text.slice('path='.length) : text) };
}

/** `path=PATH` or `fd=N`. @throws ConfigError */
export function parseEventMonitor(text: string): EventMonitorTarget {
  const [, fd] = DESCRIPTOR.exec(text) ?? [];
  if (fd !== undefined) return { fd: Number(fd) };
  if (text.startsWith('path=')) return { path: parsePath(text.slice('path='.length)) };
  throw new ConfigError(`"${text}" is neither path=PATH nor fd=N`);
}

/** One of some words. @throws ConfigError */
export function parseWord<const W extends string>(text: string, words: readonly W[]): W {
  const word = words.find((candidate) => candidate === text);
  if (word !== undefined) return word;
  const guess = didYouMean(text, words);
  throw new ConfigError(
    `"${text}" is not one of ${words.join(', ')}`,
    guess === undefined ? {} : { hint: `did you mean ${guess}?` },
  );
}

/** A day: whoever wants to wait for ever wants no end either. */
const MAX_TIMEOUT_S = 86_400;

/** A group's name, or its number; whether there is one shows on the host. @throws ConfigError */
export function parseSocketGroup(text: string): string {
  if (/^[a-z_][a-z0-9_.-]{0,31}\$?$/i.test(text) || /^\d{1,10}$/.test(text)) return text;
  throw new ConfigError(`"${text.slice(0, 64)}" cannot be the name or number of a group`);
}

/** Seconds, 1 to a day. @returns milliseconds. */
export function parseTimeout(text: string): number {
  const seconds = parseCNumber(text);
  if (seconds === undefined || seconds < 1 || seconds > MAX_TIMEOUT_S) {
    throw new ConfigError(`"${text}" is not a time from 1 to ${MAX_TIMEOUT_S} s`);
  }
  return seconds * 1000;
}

/** 1 ns to 10 ms. */
export function parseVirtioPoll(text: string): number {
  const pollNs = parseCNumber(text);
  if (pollNs === undefined || pollNs < 1 || pollNs > 10_000_000) {
    throw new ConfigError(`"${text}" is not an interval from 1 to 10000000 ns`);
  }
  return pollNs;
}

/** Compat: C 3.4 takes `uart` and aborts; here the guest is told on the line of --pm_by_vuart, or by its power button. */
export function parsePmNotifyChannel(text: string): NonNullable<VmConfig['pmNotifyChannel']> {
  const channels = ['ioc', 'power_button', 'uart', 'uart,allow_trigger_s5'] as const;
  const channel = channels.find((c) => c === text);
  if (channel !== undefined) return channel;
  const guess = didYouMean(text, channels);
  throw new ConfigError(`"${text}" is not a channel`, {
    hint: guess === undefined ? `the channels are ${channels.join(' | ')}` : `did you mean ${guess}?`,
  });
}

/** `pty,LINK` or `tty,PATH`, as back end text: a pseudo terminal linked as LINK, or a device. */
export function parsePmByVuart(text: string): string {
  const [, kind, path] = /^(pty|tty),(.+)$/is.exec(text) ?? [];
  if (kind === undefined) throw new ConfigError(`"${text}" must be pty,LINK or tty,PATH`);
  return `${kind.toLowerCase()}:${path}`;
}

/** Bytes of a VM name; the hypervisor's field has 16 with its end. [MAX_VM_NAME_LEN] */
const MAX_VM_NAME_BYTES = 15;

export function parseVmName(text: string): string {
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes === 0) throw new ConfigError('the VM name is empty');
  // It is part of the name of the control socket, and the name of a folder.
  if (/\p{Cc}/u.test(text)) throw new ConfigError('the VM name has control characters in it');
  if (text.includes('/')) throw new ConfigError(`VM name "${text}": "/" is not possible in it`);
  if (text === '.' || text === '..') throw new ConfigError(`VM name "${text}": its folder would be another's`);
  if (sizeBytes > MAX_VM_NAME_BYTES) {
    throw new ConfigError(`VM name "${text}": ${sizeBytes} bytes, at most ${MAX_VM_NAME_BYTES} are possible`, {
      hint: 'on ACRN it is the name of the VM in the hypervisor scenario',
    });
  }
  return text;
}

/** A number as strtoul(…, 0) reads it, without the octal form: decimal or 0x. */
export function parseCNumber(text: string): number | undefined {
  if (!/^(0[xX][0-9a-fA-F]{1,13}|[1-9]\d{0,14}|0)$/.test(text)) return undefined;
  return Number(text);
}
