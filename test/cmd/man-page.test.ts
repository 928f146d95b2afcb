import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { commands } from '../../cmd/acrnvm/commands.ts';
import { completionScript } from '../../cmd/acrnvm/completion.ts';
import { bashCompletion, clientManPage, manPage } from '../../cmd/man-page.ts';
import { optionTable } from '../../config/option-table.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { repository } from '../support/program.ts';
import { scratchDirectory } from '../support/pty.ts';

const scratch = scratchDirectory();
afterAll(() => scratch.remove());
const docs = (name: string) => readFileSync(join(repository, 'docs', name), 'utf8');

test('docs/acrn-dm.1 and docs/acrn-dm.bash are up to date (else: node tools/make-option-reference.mjs)', () => {
  expect(docs('acrn-dm.1')).toBe(manPage(pciDrivers));
  expect(docs('acrn-dm.bash')).toBe(bashCompletion(pciDrivers));
});

test('so are docs/acrnvm.1 and docs/acrnvm.bash, and the page has every command', () => {
  const page = clientManPage(commands);
  expect(docs('acrnvm.1')).toBe(page);
  expect(docs('acrnvm.bash')).toBe(completionScript('bash', commands));
  for (const { name } of commands) expect(page).toContain(`\n\\fB${name}\\fR`);
  for (const line of page.split('\n').filter((each) => /^[.']/.test(each)))
    expect(line).toMatch(/^\.(TH|SH|TP|\\")( |$)/);
});

test('the page has every option, and no line that roff would take for a request of its own', () => {
  const page = manPage(pciDrivers);
  for (const { name, group } of optionTable) {
    if (group !== 'Obsolete' && name !== undefined) expect(page).toContain(`\\-\\-${name.replaceAll('-', '\\-')}`);
  }
  const requests = page.split('\n').filter((line) => /^[.']/.test(line));
  for (const line of requests) expect(line).toMatch(/^\.(TH|SH|SS|TP|br|\\")( |$)/);
});

test.each([
  ['--shut', ['acrn-dm', '--shut'], '--shutdown-timeout'],
  ['a driver', ['acrn-dm', '-s', '3,virtio-b'], '3,virtio-blk'],
])('bash completes %s', (_, words, expected) => {
  const list = words.map((word) => `'${word}'`).join(' ');
  writeFileSync(
    scratch.file('c.sh'),
    `${bashCompletion(pciDrivers)}\nCOMP_WORDS=(${list}); COMP_CWORD=${words.length - 1}; _acrn_dm; echo "\${COMPREPLY[*]}"\n`,
  );
  expect(execFileSync('bash', [scratch.file('c.sh')], { encoding: 'utf8' })).toBe(`${expected}\n`);
});
