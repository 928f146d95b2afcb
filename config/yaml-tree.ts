/** YAML → a tree with places. By the package `yaml`, which comes with its user: most VMs have no YAML file. */
import { createRequire } from 'node:module';
import type { Document, LineCounter as LineCounterClass, Node } from 'yaml';
import { ConfigError, ExitCode } from '../devicemodel/core/errors.ts';
import { fileError, type MapEntry, type Place, type TreeNode } from './text-tree.ts';

type Yaml = typeof import('yaml');

/** @throws ConfigError when the package is not there. */
function loadYaml(path: string, load: (name: string) => unknown): Yaml {
  try {
    return load('yaml') as Yaml;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
    throw new ConfigError(`${path}: the package "yaml", which reads YAML, is not installed`, {
      exitCode: ExitCode.Unavailable,
      hint: 'npm install yaml, or write the file as JSON',
    });
  }
}

/**
 * @param path for messages.
 * @param load how the package is found; for tests.
 * @throws ConfigError with file, line and column.
 */
export function parseYamlTree(
  path: string,
  text: string,
  load: (name: string) => unknown = createRequire(import.meta.url),
): TreeNode {
  const yaml = loadYaml(path, load);
  const lines = new yaml.LineCounter();
  const document = yaml.parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false });
  const [error] = document.errors;
  if (error !== undefined) {
    const text = error.code === 'MULTIPLE_DOCS' ? 'a second document: a file describes one VM' : error.message;
    throw fileError(path, placeAt(lines, error.pos[0]), text);
  }
  return treeOf(path, yaml, document, lines, document.contents);
}

function placeAt(lines: LineCounterClass, offset: number): Place {
  const { line, col } = lines.linePos(offset);
  return { line: Math.max(line, 1), column: Math.max(col, 1) };
}

function treeOf(
  path: string,
  yaml: Yaml,
  document: Document,
  lines: LineCounterClass,
  node: Node | null,
  seen: readonly Node[] = [],
): TreeNode {
  const place = placeAt(lines, node?.range?.[0] ?? 0);
  if (node === null) return { kind: 'scalar', place, value: null };
  const below = (next: unknown) => treeOf(path, yaml, document, lines, next as Node | null, [...seen, node]);
  if (yaml.isAlias(node)) {
    const target = node.resolve(document);
    // A few aliases of aliases would make billions of values: one level does for a configuration.
    if (target === undefined || seen.some((other) => yaml.isAlias(other))) {
      throw fileError(path, place, 'an alias that leads nowhere, or to another alias');
    }
    return below(target);
  }
  if (yaml.isMap(node)) {
    const entries = node.items.map(({ key, value }): MapEntry => {
      const keyNode = key as Node | null;
      const where = placeAt(lines, keyNode?.range?.[0] ?? 0);
      if (!yaml.isScalar(keyNode)) throw fileError(path, where, 'a member is a word');
      return { key: String(keyNode.value), place: where, value: below(value) };
    });
    return { kind: 'map', place, entries };
  }
  if (yaml.isSeq(node)) return { kind: 'list', place, items: node.items.map(below) };
  const value: unknown = yaml.isScalar(node) ? node.value : undefined;
  if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean' || value === null) {
    return { kind: 'scalar', place, value };
  }
  throw fileError(path, place, 'a value that is no text, number or boolean');
}
