/**
 * A VM in a file: `--config vm.yaml|json`. Its members are those of the option table, so that a file says exactly what a
 * command line can say; both go through the same draft. Also the way back: a command line as a file, a file as a command
 * line.
 */
import { isUtf8 } from 'node:buffer';
import { readRegularFile } from '../devicemodel/core/host/read-file.ts';
import { type OptionSpec, optionTable, type VmOption } from './option-table.ts';
import { didYouMean } from './suggest.ts';
import { fileError, type MapEntry, type Place, parseJsonTree, type TreeNode } from './text-tree.ts';
import { parseYamlTree } from './yaml-tree.ts';

/** One option, as the file has it. */
export interface ConfigItem {
  readonly option: VmOption;
  /** What the command line would have as its value; empty for a flag. */
  readonly text: string;
  /** `vm.yaml:3:5` */
  readonly where: string;
}

export interface ConfigFile {
  readonly name: string | undefined;
  /** In the order of the file. */
  readonly items: readonly ConfigItem[];
  /** Flags that the file says are not set, whatever a file before it says. */
  readonly unset: readonly VmOption[];
}

/** Members that are no options. */
const NAME = 'name';
const SCHEMA = '$schema';

const vmOptions = optionTable.filter((option): option is VmOption => 'key' in option);

/** @throws HostError when it cannot be read; ConfigError: with file, line and column for what is wrong in the file. */
export function readConfigFile(path: string): ConfigFile {
  // A device without an end, or a pipe that nobody writes to, would keep the reader for ever.
  const bytes = readRegularFile(path, `--config: ${path}`);
  const text = bytes.toString('utf8');
  if (!isUtf8(bytes)) throw fileError(path, placeOf(text, text.indexOf(REPLACEMENT)), 'a character that is not UTF-8');
  return parseConfigFile(path, text);
}

/** What decoding makes of bytes that are no UTF-8. */
const REPLACEMENT = '\ufffd';

function placeOf(text: string, at: number): Place {
  const before = text.slice(0, at).split('\n');
  return { line: before.length, column: (before.at(-1) ?? '').length + 1 };
}

/** @param path for messages; its ending says whether it is YAML or JSON. */
export function parseConfigFile(path: string, text: string): ConfigFile {
  const tree = /\.ya?ml$/i.test(path) ? parseYamlTree(path, text) : parseJsonTree(path, text);
  if (tree.kind !== 'map') throw fileError(path, tree.place, 'a configuration is an object with members');
  const seen = new Set<string>();
  let name: string | undefined;
  const items: ConfigItem[] = [];
  const unset: VmOption[] = [];
  for (const entry of tree.entries) {
    const { key, value, place } = entry;
    if (seen.has(key)) throw fileError(path, place, `"${key}" is there twice`);
    seen.add(key);
    if (key === SCHEMA) continue;
    if (key === NAME) name = textOf(path, key, value);
    else {
      const option = optionOf(path, entry);
      const given = itemsOf(path, option, value);
      items.push(...given);
      if (option.shape === 'flag' && given.length === 0) unset.push(option);
    }
  }
  return { name, items, unset };
}

/** @throws ConfigError for a member that is none. */
function optionOf(path: string, { key, place }: MapEntry): VmOption {
  const option = vmOptions.find((candidate) => candidate.key === key);
  if (option === undefined) {
    const known = [NAME, ...vmOptions.map((candidate) => candidate.key)];
    const named: OptionSpec | undefined = optionTable.find((candidate) => 'key' in candidate && candidate.name === key);
    const guess = named?.key ?? didYouMean(key, known);
    const hint = guess === undefined ? `the members are ${known.join(', ')}` : `did you mean "${guess}"?`;
    throw fileError(path, place, `"${key}" is no member of a configuration`, hint);
  }
  return option;
}

function itemsOf(path: string, option: VmOption, value: TreeNode): ConfigItem[] {
  return wordsOf(path, option, value).map(({ text, node }) => ({
    option,
    text,
    where: `${path}:${node.place.line}:${node.place.column}`,
  }));
}

interface Word {
  readonly text: string;
  readonly node: TreeNode;
}

/** The values the command line would have. @throws ConfigError for a value of another kind. */
function wordsOf(path: string, { key, shape, id }: VmOption, node: TreeNode): Word[] {
  switch (shape) {
    case 'flag':
      if (node.kind !== 'scalar' || typeof node.value !== 'boolean') {
        throw fileError(path, node.place, `${key}: expected true or false`);
      }
      return node.value ? [{ text: '', node }] : [];
    case 'number':
      return [{ text: String(numberOf(path, key, node)), node }];
    case 'numbers': {
      if (node.kind !== 'list') throw fileError(path, node.place, `${key}: expected a list of numbers, as in [0, 2]`);
      const numbers = node.items.map((item) => numberOf(path, key, item));
      return numbers.length === 0 ? [] : [{ text: numbers.join(','), node }];
    }
    case 'texts':
      if (node.kind !== 'list') {
        // One element needs no list where one option could be given several times.
        if (node.kind === 'scalar' && typeof node.value === 'string') return [{ text: node.value, node }];
        throw fileError(path, node.place, `${key}: expected a list of texts`, `each as --${id} has it`);
      }
      return node.items.map((item) => ({ text: textOf(path, key, item), node: item }));
    default:
      return [{ text: textOf(path, key, node), node }];
  }
}

function numberOf(path: string, key: string, node: TreeNode): number {
  if (node.kind === 'scalar' && typeof node.value === 'number') return node.value;
  throw fileError(path, node.place, `${key}: expected a number`);
}

function textOf(path: string, key: string, node: TreeNode): string {
  if (node.kind === 'scalar' && typeof node.value === 'string') return node.value;
  const hint = node.kind === 'scalar' && node.value !== null ? `write "${node.value}", in quotes` : undefined;
  throw fileError(path, node.place, `${key}: expected text`, hint);
}

/** The command line that says what the file says, without the program's name. */
export function argvOfFile({ name, items }: ConfigFile): string[] {
  const argv = items.flatMap(({ option, text }) => {
    const { name: long, arg, argPattern }: OptionSpec = option;
    if (arg === 'none') return [`--${long}`];
    return text === '' && argPattern !== undefined ? [`--${long}`] : [`--${long}`, text];
  });
  if (name === undefined) return argv;
  return name.startsWith('-') ? [...argv, '--', name] : [...argv, name];
}

/** Members in the order in which they came first. */
export type ConfigMembers = Record<string, string | number | boolean | readonly (string | number)[]>;

/** One option of a command line as a member; lists go on, anything else is replaced. */
export function addMember(into: ConfigMembers, option: VmOption, text: string): void {
  const { key, shape } = option;
  const earlier = into[key];
  const list = Array.isArray(earlier) ? (earlier as (string | number)[]) : [];
  if (shape === 'flag') into[key] = true;
  else if (shape === 'number') into[key] = Number(text);
  else if (shape === 'texts') into[key] = [...list, text];
  else if (shape === 'numbers') {
    const numbers = text.split(',').flatMap(rangeOf);
    into[key] = option.id === 'cpu_affinity' ? [...new Set([...list, ...numbers])] : numbers;
  } else into[key] = text;
}

/** `3` or `3-5`; a comma at the end of a list is nothing. */
function rangeOf(word: string): number[] {
  if (word.trim() === '') return [];
  const [first, last = first] = word.split('-').map(Number) as [number, number?];
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

/** As JSON, or as YAML that needs no quotes but those of JSON. */
export function formatConfig(members: ConfigMembers, format: 'json' | 'yaml'): string {
  if (format === 'json') return `${JSON.stringify(members, undefined, 2)}\n`;
  const lines = Object.entries(members).flatMap(([key, value]) => {
    if (!Array.isArray(value)) return [`${key}: ${JSON.stringify(value)}`];
    if (value.length === 0 || typeof value[0] === 'number') return [`${key}: ${JSON.stringify(value)}`];
    return [`${key}:`, ...value.map((item) => `  - ${JSON.stringify(item)}`)];
  });
  return `${lines.join('\n')}\n`;
}

/** The file's JSON Schema, for editors: docs/config.schema.json. */
export function configJsonSchema(): object {
  const properties = Object.fromEntries(
    vmOptions.map((option) => [option.key, { description: option.help, ...typeOf(option) }]),
  );
  return {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    title: 'A User VM of acrn-dm',
    description: 'For acrn-dm --config FILE. Values are those of the options of the command line.',
    type: 'object',
    additionalProperties: false,
    properties: {
      [SCHEMA]: { type: 'string' },
      [NAME]: { description: 'of the VM, at most 15 bytes', type: 'string', minLength: 1, maxLength: 15 },
      ...properties,
    },
  };
}

function typeOf({ shape }: VmOption): object {
  switch (shape) {
    case 'flag':
      return { type: 'boolean' };
    case 'number':
      return { type: 'number' };
    case 'numbers':
      return { type: 'array', items: { type: 'integer', minimum: 0 } };
    case 'texts':
      return { anyOf: [{ type: 'array', items: { type: 'string' } }, { type: 'string' }] };
    case 'text':
      return { type: 'string' };
    default:
      return { type: 'string', enum: shape };
  }
}
