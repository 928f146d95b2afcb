/**
 * The contracts of docs/architecture.md: for each a mutation that takes its owner away, and the test that notices. Here it
 * is only checked that the list is true of the sources; `npm run contracts` makes the mutations and runs the tests.
 */
import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { type Contract, contracts } from '../tools/contracts.mjs';

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8');

test.each(contracts)('$contract: $mutation', ({ file, from, to, test: path }) => {
  expect(read(file).split(from).length - 1).toBe(1);
  expect(to).not.toBe(from);
  expect(existsSync(new URL(`../${path}`, import.meta.url))).toBe(true);
});

test('docs/architecture.md shows the list', () => {
  const row = ({ contract, owner, mutation, test: path }: Contract) =>
    `| ${contract} | ${owner} | ${mutation} | \`${path.replace(/^test\//, '')}\` |`;
  const inDocs = read('docs/architecture.md').split('\n');
  expect(contracts.map(row).filter((line) => !inDocs.includes(line))).toEqual([]);
});
