/** A configuration file as a tree that knows where in the text each of its values stands, and JSON → such a tree. */
import { ConfigError, ExitCode } from '../devicemodel/core/errors.ts';

/** Counted from 1, as editors do. */
export interface Place {
  readonly line: number;
  readonly column: number;
}

export interface MapEntry {
  readonly key: string;
  readonly place: Place;
  readonly value: TreeNode;
}

export type TreeNode =
  | { readonly kind: 'map'; readonly place: Place; readonly entries: readonly MapEntry[] }
  | { readonly kind: 'list'; readonly place: Place; readonly items: readonly TreeNode[] }
  | { readonly kind: 'scalar'; readonly place: Place; readonly value: string | number | boolean | null };

/** `vm.json:3:14: what is wrong` */
export function fileError(path: string, { line, column }: Place, what: string, hint?: string): ConfigError {
  return new ConfigError(`${path}:${line}:${column}: ${what}`, {
    exitCode: ExitCode.Config,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Deeper than anything a configuration has: a file must not use up the stack. */
const MAX_DEPTH = 32;

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
/** A string without line ends and control characters; what its escapes mean is JSON.parse's business. */
const STRING = /"(?:[^"\\\p{Cc}]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/uy;
const WORD = /[A-Za-z]+/y;
const BLANK = /[ \t\r\n]*/y;

function lineEndFrom(text: string, at: number): number {
  const end = text.indexOf('\n', at);
  return end < 0 ? text.length : end;
}

class JsonReader {
  readonly #path: string;
  readonly #text: string;
  #at = 0;
  /** Where the newest value that was placed stands: places only go on, so that no text is counted twice. */
  #line = 1;
  #lineStart = 0;
  #lineEnd: number;

  constructor(path: string, text: string) {
    this.#path = path;
    this.#text = text;
    this.#lineEnd = lineEndFrom(text, 0);
  }

  document(): TreeNode {
    const node = this.#value(0);
    this.#skipBlanks();
    if (this.#at < this.#text.length) this.#fail('there is more behind the end of the object');
    return node;
  }

  #value(depth: number): TreeNode {
    this.#skipBlanks();
    if (depth > MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} levels`);
    const place = this.#place();
    switch (this.#text[this.#at]) {
      case '{':
        return { kind: 'map', place, entries: this.#entries(depth) };
      case '[':
        return { kind: 'list', place, items: this.#items(depth) };
      case '"':
        return { kind: 'scalar', place, value: this.#string() };
      default:
        return { kind: 'scalar', place, value: this.#literal() };
    }
  }

  #entries(depth: number): MapEntry[] {
    const entries: MapEntry[] = [];
    this.#list('}', () => {
      const place = this.#place();
      if (this.#text[this.#at] !== '"') this.#fail('expected a member in double quotes');
      const key = this.#string();
      this.#skipBlanks();
      if (this.#text[this.#at] !== ':') this.#fail(`expected ":" behind "${key}"`);
      this.#at++;
      entries.push({ key, place, value: this.#value(depth + 1) });
    });
    return entries;
  }

  #items(depth: number): TreeNode[] {
    const items: TreeNode[] = [];
    this.#list(']', () => void items.push(this.#value(depth + 1)));
    return items;
  }

  /** From an opening bracket to behind its end, with commas between the elements. */
  #list(end: string, element: () => void): void {
    this.#at++;
    this.#skipBlanks();
    if (this.#text[this.#at] === end) {
      this.#at++;
      return;
    }
    for (;;) {
      this.#skipBlanks();
      element();
      this.#skipBlanks();
      const next = this.#text[this.#at];
      if (next !== ',' && next !== end) this.#fail(`expected "," or "${end}"`);
      this.#at++;
      if (next === end) return;
    }
  }

  #string(): string {
    const text = this.#match(STRING);
    if (text === undefined)
      this.#fail('this text does not end on its line, or has a backslash or control character in it');
    return JSON.parse(text) as string;
  }

  #literal(): number | boolean | null {
    const number = this.#match(NUMBER);
    if (number !== undefined) return Number(number);
    const before = this.#at;
    const word = this.#match(WORD);
    if (word === 'true' || word === 'false') return word === 'true';
    if (word === 'null') return null;
    this.#at = before;
    return this.#fail(word === undefined ? 'expected a value' : `expected a value, "${word}" needs double quotes`);
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const [text] = pattern.exec(this.#text) ?? [];
    this.#at += text?.length ?? 0;
    return text;
  }

  #skipBlanks(): void {
    this.#match(BLANK);
  }

  #place(): Place {
    while (this.#lineEnd < this.#at) {
      this.#line++;
      this.#lineStart = this.#lineEnd + 1;
      this.#lineEnd = lineEndFrom(this.#text, this.#lineStart);
    }
    return { line: this.#line, column: this.#at - this.#lineStart + 1 };
  }

  #fail(what: string): never {
    throw fileError(this.#path, this.#place(), what);
  }
}

/** @param path for messages. @throws ConfigError with file, line and column. */
export function parseJsonTree(path: string, text: string): TreeNode {
  return new JsonReader(path, text.charCodeAt(0) === 0xfeff ? text.slice(1) : text).document();
}
