/**
 * One valibot schema per driver, four uses: the text after `-s SLOT,driver,`, a config file's object, the usage line,
 * and the TypeScript type of the options.
 */
import * as v from 'valibot';
import { ConfigError } from './errors.ts';

/** What `v.metadata` of an option may carry. */
export interface OptionMeta {
  /** How the value is shown in the usage line; default: the key in capitals. */
  readonly arg?: string;
  readonly help?: string;
  /** Option is written `key=value` or as a bare word, never by position. */
  readonly named?: boolean;
  /** Everything behind it is its value, commas too. */
  readonly takesRest?: boolean;
  /** Of several the first counts, and not the last. */
  readonly firstCounts?: boolean;
  /** Not for people: neither shown nor written. */
  readonly isHidden?: boolean;
}

export type OptionSchema = v.StrictObjectSchema<v.ObjectEntries, undefined>;

/** Metadata of one entry, looking through optional and pipe wrappers. */
export function optionMeta(schema: unknown): OptionMeta {
  const s = schema as { type?: string; wrapped?: unknown; pipe?: readonly unknown[]; metadata?: OptionMeta };
  if (s.pipe !== undefined) {
    for (const part of s.pipe) {
      const p = part as { type?: string; metadata?: OptionMeta };
      if (p.type === 'metadata' && p.metadata !== undefined) return p.metadata;
    }
  }
  return s.wrapped === undefined ? {} : optionMeta(s.wrapped);
}

/** A word that no option of a device is. */
export class UnknownOption extends ConfigError {
  readonly word: string;
  /** What there is, where the schema's own words are not it. */
  readonly known: readonly string[] | undefined;
  /** @param device for the message, where the caller does not say it. */
  constructor(word: string, device?: string, known?: readonly string[]) {
    super(`${device === undefined ? '' : `${device}: `}unknown option "${word}"`);
    this.word = word;
    this.known = known;
  }
}

/** How an option is written on the command line: `sectorsize` for the key `sectorSize`. Positional ones have no word. */
function optionWordsOf(key: string, schema: unknown): string[] {
  const meta = optionMeta(schema);
  if (meta.named !== true || meta.isHidden === true) return [];
  const words = (meta.arg ?? key).replace(/\[.*$/, '').split(/[=,]/, 1)[0] ?? key;
  return words.split('|');
}

/** All words that options of the schema begin with. */
export function optionWords(schema: OptionSchema): string[] {
  return Object.entries(schema.entries).flatMap(([key, entry]) => optionWordsOf(key, entry));
}

/**
 * Options that stand in the text more than once, one line each: one of them counts, and who wrote both may have meant the
 * other. @param separator between two options.
 */
export function repeatedOptions(schema: OptionSchema, text: string, separator: RegExp = /,/): string[] {
  const words = optionWords(schema);
  const wordsWith = (mark: 'takesRest' | 'firstCounts') =>
    Object.entries(schema.entries).flatMap(([key, entry]) =>
      optionMeta(entry)[mark] === true ? optionWordsOf(key, entry) : [],
    );
  const restWords = wordsWith('takesRest');
  const firstWords = wordsWith('firstCounts');
  const items = new Map<string, string[]>();
  for (const item of text.split(separator)) {
    const word = item.split('=', 1)[0] as string;
    if (restWords.includes(word)) break;
    if (words.includes(word)) items.set(word, [...(items.get(word) ?? []), item]);
  }
  return [...items.entries()]
    .filter(([, same]) => same.length > 1)
    .map(([word, same]) => repetition(same, firstWords.includes(word) ? same[0] : same.at(-1)));
}

function repetition(items: readonly string[], counting: string | undefined): string {
  const [first, ...more] = [...new Set(items)];
  if (more.length === 0) return `"${first}" is given ${items.length === 2 ? 'twice' : `${items.length} times`}`;
  return `"${counting}" counts, of ${items.map((item) => `"${item}"`).join(' and ')}`;
}

function isOptional(schema: unknown): boolean {
  return (schema as { type?: string }).type === 'optional';
}

/**
 * `a,b,k=v,flag` → object for the schema: options without `=` fill the positional keys in schema order, a bare word
 * that names a `named` key is that flag set to `true`. An option goes by its key and by the word that help shows.
 */
export function optionsFromText(schema: OptionSchema, text: string): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  if (text === '') return out;
  const keys = Object.keys(schema.entries);
  const isNamed = (key: string) => optionMeta(schema.entries[key]).named === true;
  const keyOf = (word: string) =>
    keys.includes(word) ? word : keys.find((key) => optionWordsOf(key, schema.entries[key]).includes(word));
  const positional = keys.filter((key) => !isNamed(key));
  for (const item of text.split(',')) {
    const eq = item.indexOf('=');
    const key = keyOf(eq < 0 ? item : item.slice(0, eq));
    if (eq >= 0 && key !== undefined) {
      out[key] = item.slice(eq + 1);
    } else if (key !== undefined && isNamed(key)) {
      out[key] = true;
    } else {
      const next = positional.find((k) => !(k in out));
      if (next === undefined) throw new UnknownOption(item);
      out[next] = item;
    }
  }
  return out;
}

/** The schema's own words, or for what it only knows the type of: `must be threads or io_uring, got "uring"`. */
function issueText({ kind, message, expected, received }: v.BaseIssue<unknown>): string {
  if (kind !== 'schema' || expected === null || !message.startsWith('Invalid ')) return message;
  // On a command line a flag is there or it is not.
  if (expected === 'boolean') return `takes no value, got ${received}`;
  return `must be ${expected.replace(/[()"]/g, '').replaceAll(' | ', ' or ')}, got ${received}`;
}

/** Check an object against the schema. @throws ConfigError `key: what is wrong, got value`. */
export function checkOptions<S extends OptionSchema>(schema: S, input: Record<string, unknown>): v.InferOutput<S> {
  const result = v.safeParse(schema, input);
  if (result.success) return result.output;
  const issue = result.issues[0];
  const [first, ...deeper] = issue.path?.map((p) => String(p.key)) ?? [];
  const word = first === undefined ? [] : [optionWordsOf(first, schema.entries[first])[0] ?? first];
  const path = [...word, ...deeper].join('.');
  const missing = issue.input === undefined && path !== '';
  const what = missing ? 'is missing' : issueText(issue);
  throw new ConfigError(path === '' ? what : `${path}: ${what}`);
}

/** `ivshmem,{hv|dm}:/NAME,SIZE_MIB[,REGION_ID]` */
export function optionUsage(driver: string, schema: OptionSchema): string {
  let text = driver;
  for (const [key, entry] of Object.entries(schema.entries)) {
    const meta = optionMeta(entry);
    if (meta.isHidden === true) continue;
    const arg = meta.arg ?? (meta.named === true ? `${key}=${key.toUpperCase()}` : key.toUpperCase());
    text += isOptional(entry) ? `[,${arg}]` : `,${arg}`;
  }
  return text;
}

/** Of {@link optionHelp}: a longer option has a line of its own. */
const HELP_COLUMN = 27;

/** One entry per option that has a help text. */
export function optionHelp(schema: OptionSchema): string[] {
  return Object.entries(schema.entries).flatMap(([key, entry]) => {
    const meta = optionMeta(entry);
    if (meta.help === undefined) return [];
    const arg = `  ${meta.arg ?? key}`;
    return arg.length < HELP_COLUMN
      ? [`${arg.padEnd(HELP_COLUMN)}${meta.help}`]
      : [arg, `${' '.repeat(HELP_COLUMN)}${meta.help}`];
  });
}

/** A decimal (or 0x) whole number given as text or number. */
export function integer(range: { min?: number; max?: number } = {}) {
  const min = range.min ?? 0;
  const max = range.max ?? Number.MAX_SAFE_INTEGER;
  return v.pipe(
    v.union([v.string(), v.number()]),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const raw = dataset.value;
      const value = typeof raw === 'number' ? raw : /^(0x[0-9a-fA-F]+|\d+)$/.test(raw) ? Number(raw) : Number.NaN;
      if (!Number.isSafeInteger(value) || value < min || value > max) {
        const limit = range.max === undefined ? `${min} or more` : `${min} to ${max}`;
        addIssue({ message: `must be a whole number, ${limit}, got "${raw}"` });
        return NEVER;
      }
      return value;
    }),
  );
}

/** sockaddr_un has 108 bytes for a path and its end (unix(7)). */
const MAX_SOCKET_PATH_BYTES = 107;

/**
 * Compat: C takes paths of up to 1023 bytes and then fails, or not, when the socket is bound.
 * @throws ConfigError
 */
export function parseSocketPath(text: string): string {
  if (text === '') throw new ConfigError('the path of the socket is empty');
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes > MAX_SOCKET_PATH_BYTES) {
    throw new ConfigError(`the path has ${sizeBytes} bytes, a Unix socket allows ${MAX_SOCKET_PATH_BYTES}`);
  }
  return text;
}
