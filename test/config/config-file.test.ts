import { existsSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import * as fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { isConfigCommand, runConfigCommand } from '../../cmd/config-command.ts';
import { configJsonSchema, parseConfigFile, readConfigFile } from '../../config/config-file.ts';
import { optionTable } from '../../config/option-table.ts';
import { parseJsonTree, type TreeNode } from '../../config/text-tree.ts';
import { parseYamlTree } from '../../config/yaml-tree.ts';
import { ConfigError, DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { scratchDirectory } from '../support/pty.ts';

const scratch = scratchDirectory();
afterAll(() => scratch.remove());

function written(name: string, text: string): string {
  writeFileSync(scratch.file(name), text);
  return scratch.file(name);
}
function orderOf(argv: readonly string[]) {
  const order = parseCommandLine(argv, pciDrivers, readConfigFile);
  if (!('config' in order)) throw new Error('no VM');
  return order;
}
function errorOf(work: () => unknown): DmError {
  try {
    work();
  } catch (error) {
    if (error instanceof DmError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}
function plain(node: TreeNode): unknown {
  if (node.kind === 'scalar') return node.value;
  if (node.kind === 'list') return node.items.map(plain);
  return Object.fromEntries(node.entries.map(({ key, value }) => [key, plain(value)]));
}

const yaml = `# a VM
name: vm1
memory: 512M
pci:
  - 0:0,hostbridge
  - 1:0,lpc
  - 3,virtio-blk,disk.img
com: [ "com1,stdio" ]
kernel: bzImage
cpuAffinity: [0, 2]
`;

describe('JSON with places', () => {
  test('is what JSON.parse makes of it, for anything', () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 6 }), (text) => {
        expect(plain(parseJsonTree('f', text))).toEqual(JSON.parse(text));
      }),
    );
  });
  test('is refused where JSON.parse refuses it', () => {
    fc.assert(
      fc.property(
        fc.json({ maxDepth: 3 }),
        fc.nat(),
        fc.constantFrom('', '"', ',', '}', 'x', '\\'),
        (text, at, put) => {
          const where = at % (text.length + 1);
          const broken = text.slice(0, where) + put + text.slice(where + 1);
          let isGood = true;
          try {
            JSON.parse(broken);
          } catch {
            isGood = false;
          }
          if (isGood) expect(plain(parseJsonTree('f', broken))).toEqual(JSON.parse(broken));
          else expect(() => parseJsonTree('f', broken)).toThrow(ConfigError);
        },
      ),
    );
  });
  test.each([
    ['{"a": 1,}', 'f:1:9: expected a member in double quotes'],
    ['{\n  "a" 1}', 'f:2:7: expected ":" behind "a"'],
    ['{\n "a": [1 2]}', 'f:2:10: expected "," or "]"'],
    ['{"a": yes}', 'f:1:7: expected a value, "yes" needs double quotes'],
    ['{"a": "x\n"}', 'f:1:7: this text does not end on its line'],
    ['{} {}', 'f:1:4: there is more behind the end'],
    ['', 'f:1:1: expected a value'],
    ['['.repeat(100), 'more than 32 levels'],
  ])('%j: %s', (text, message) => {
    const error = errorOf(() => parseJsonTree('f', text));
    expect(error.message).toContain(message);
    expect(error.exitCode).toBe(ExitCode.Config);
  });
});

// Mutation: count the lines before a value from the beginning of the text. Both took minutes, deaf to every signal.
test.each([
  ['on one line', ' '],
  ['on a line each', '\n'],
])('sixty thousand values %s are read in their places, and soon', (_how, separator) => {
  const text = `[${Array.from({ length: 60_000 }, () => '"0:3,virtio-rnd"').join(`,${separator}`)}]`;
  const startedMs = performance.now();
  const tree = parseJsonTree('f', text);
  expect(performance.now() - startedMs).toBeLessThan(10_000);
  const last = tree.kind === 'list' ? tree.items.at(-1)?.place : undefined;
  expect(last).toEqual(separator === ' ' ? { line: 1, column: 2 + 59_999 * 18 } : { line: 60_000, column: 1 });
});

describe('YAML with places', () => {
  test('is the same tree', () => {
    const tree = parseYamlTree('f', yaml);
    expect(plain(tree)).toEqual({
      name: 'vm1',
      memory: '512M',
      pci: ['0:0,hostbridge', '1:0,lpc', '3,virtio-blk,disk.img'],
      com: ['com1,stdio'],
      kernel: 'bzImage',
      cpuAffinity: [0, 2],
    });
    const pci = tree.kind === 'map' ? tree.entries[2] : undefined;
    expect(pci?.place).toEqual({ line: 4, column: 1 });
    expect(pci?.value.kind === 'list' && pci.value.items[2]?.place).toEqual({ line: 7, column: 5 });
  });
  test('that is none is refused with its place', () => {
    expect(errorOf(() => parseYamlTree('f', 'a: b\nc: [')).message).toMatch(/^f:2:\d+: /);
    expect(errorOf(() => parseYamlTree('f', 'a: *b\n')).message).toMatch(/^f:1:4: /);
  });
  test('aliases cannot make a file of a kilobyte into gigabytes', () => {
    const bomb = ['a: &a [x, x]', 'b: &b [*a, *a]', 'c: [*b, *b]'].join('\n');
    expect(() => parseYamlTree('f', bomb)).toThrow(ConfigError);
  });
  test('without its package names the command that brings it', () => {
    const load = (name: string) => createRequire(import.meta.url)(`${name}-that-is-not-installed`);
    const error = errorOf(() => parseYamlTree('vm.yaml', yaml, load));
    expect(error.message).toBe('vm.yaml: the package "yaml", which reads YAML, is not installed');
    expect(error.hint).toContain('npm install yaml');
    expect(error.exitCode).toBe(ExitCode.Unavailable);
  });
});

describe('--config', () => {
  test('says what a command line would', () => {
    const line =
      '-m 512M -s 0:0,hostbridge -s 1:0,lpc -s 3,virtio-blk,disk.img -l com1,stdio -k bzImage --cpu_affinity 0,2 vm1';
    const expected = orderOf(line.split(' '));
    expect(orderOf(['--config', written('vm.yaml', yaml)])).toEqual(expected);
    const json = JSON.stringify({ $schema: 'x', ...(plain(parseYamlTree('f', yaml)) as object) });
    expect(orderOf(['--config', written('vm.json', json)])).toEqual(expected);
  });
  test('options beside it win, wherever they stand, and lists add up', () => {
    const path = written('vm.yaml', yaml);
    const { config } = orderOf([
      '-m',
      '1g',
      '-s',
      '4,virtio-rnd',
      '-l',
      'com2,null',
      '--conf',
      path,
      '-k',
      'other',
      'vm2',
    ]);
    expect(config).toMatchObject({ name: 'vm2', memoryBytes: 1 << 30, boot: { kernelPath: 'other' } });
    expect(config.pci.map((slot) => slot.driver)).toEqual(['hostbridge', 'lpc', 'virtio-blk', 'virtio-rnd']);
    expect(config.com.map((com) => com.index)).toEqual([1, 2]);
  });
  test('a file that is not UTF-8 is refused where it is not', () => {
    const path = written('latin.json', '');
    writeFileSync(path, Buffer.from('{\n  "name": "M\xfcller"\n}', 'latin1'));
    const error = errorOf(() => readConfigFile(path));
    expect([error.message, error.exitCode]).toEqual([`${path}:2:13: a character that is not UTF-8`, ExitCode.Config]);
    writeFileSync(path, '\ufeff{ "name": "M\u00fcller\ufffd" }');
    expect(readConfigFile(path).name).toBe('M\u00fcller\ufffd');
  });

  test.each([
    ['name: 5', ':1:7: name: expected text', 'write "5", in quotes'],
    ['name: vm\nmemry: 5', ':2:1: "memry" is no member of a configuration', 'did you mean "memory"?'],
    ['name: vm\nmemsize: 5', ':2:1: "memsize" is no member', 'did you mean "memory"?'],
    ['name: vm\nmemory: "512"', ':2:9: memory: "512" has no unit', 'write 512m'],
    ['name: vm\nrtvm: 1', ':2:7: rtvm: expected true or false', undefined],
    ['name: vm\nrtvm: true\nrtvm: true', ':3:1: "rtvm" is there twice', undefined],
    ['name: vm\npci: {a: b}', ':2:6: pci: expected a list of texts', undefined],
    ['name: vm\npci:\n  - 3,virtio-blc,x', ':3:5: pci: -s 3,virtio-blc,x: unknown device', 'virtio-blk'],
    ['name: vm\ncpuAffinity: [0, x]', ':2:18: cpuAffinity: expected a number', undefined],
    ['name: vm\nioTimeoutS:', ':2:', undefined],
    ['- vm', ':1:1: a configuration is an object', undefined],
    ['name: vm\n---\nname: other', ':2:1: a second document', undefined],
    ['name: vm\n\tmemory: 1g', ':2:1: Tabs', undefined],
    ['name: *nobody', ':1:7: an alias that leads nowhere', undefined],
    ['name: [vm', ':1:', undefined],
    ['name: vm\nhypervisor: xen', ':2:13: hypervisor: "xen" is not a hypervisor', undefined],
  ])('%j is wrong at %s', (text, message, hint) => {
    const path = written('bad.yaml', text);
    const error = errorOf(() => orderOf(['--config', path]));
    expect(error.message).toContain(`${path}${message}`);
    if (hint !== undefined) expect(error.hint).toContain(hint);
    expect(error.exitCode).toBe(ExitCode.Config);
  });
  test('a file that is not there, or is a folder', () => {
    expect(errorOf(() => orderOf(['--config', '/nonexistent.json', 'vm']))).toMatchObject({
      exitCode: ExitCode.NoInput,
    });
    expect(errorOf(() => orderOf(['--config', scratch.path, 'vm'])).message).toContain('EISDIR');
    // A device without an end is not read until memory is full.
    expect(errorOf(() => orderOf(['--config', '/dev/zero', 'vm'])).message).toContain('is no regular file');
  });
  test('help and version do not read it', () => {
    expect(parseCommandLine(['--config', '/nonexistent', '--help'], pciDrivers, readConfigFile).action).toBe('help');
  });
});

describe('acrn-dm config', () => {
  const run = (...argv: string[]) => runConfigCommand(argv, pciDrivers);
  test('a VM may have that name', () => {
    expect([isConfigCommand(['config']), isConfigCommand(['config', '-m', '512m'])]).toEqual([false, false]);
    expect(isConfigCommand(['config', 'check', 'f'])).toBe(true);
  });
  test('argv is a line that a shell reads back', () => {
    const path = written('q.yaml', `${yaml}bootargs: it's "quoted" $HOME\n`);
    expect(run('argv', path)).toEqual([
      `acrn-dm --memsize 512M --pci_slot 0:0,hostbridge --pci_slot 1:0,lpc --pci_slot 3,virtio-blk,disk.img --lpc com1,stdio --kernel bzImage --cpu_affinity 0,2 --bootargs 'it'\\''s "quoted" $HOME' vm1`,
    ]);
  });
  test('convert leaves out what says nothing about the VM', () => {
    const members = JSON.parse(run('convert', '--', '--dry-run', '-A', '-k', 'k', '--ssram', 'vm').join('\n'));
    expect(members).toEqual({ name: 'vm', kernel: 'k', ssram: '' });
    expect(() => run('convert', '--help')).toThrow('starts no VM');
  });
  // Mutation: take the options of files where `--config` stands.
  test('convert says the VM that the line starts, wherever --config stands', () => {
    const path = written('o.json', '{"memory": "512M", "cpuAffinity": [3, 1], "pci": ["3,virtio-rnd"]}');
    const options = ['-m', '1g', '--cpu_affinity', '5', '-s', '4,virtio-rnd'];
    const expected = { name: 'vm', memory: '1g', cpuAffinity: [3, 1, 5], pci: ['3,virtio-rnd', '4,virtio-rnd'] };
    for (const line of [
      [...options, '--config', path, 'vm'],
      ['--config', path, ...options, 'vm'],
    ]) {
      expect(JSON.parse(run('convert', '--', ...line).join('\n'))).toEqual(expected);
      expect(orderOf(line).config).toMatchObject({ memoryBytes: 1 << 30, cpuAffinity: [3, 1, 5] });
    }
  });
  test('of several files the later one wins, also where it says that something is not so', () => {
    const on = written('on.json', '{"rtvm": true, "lapicPt": true, "memory": "1g"}');
    const off = written('off.yaml', 'rtvm: false\nlapicPt: false\n');
    const isRtvm = (...paths: string[]) => {
      const line = [...paths.flatMap((path) => ['--config', path]), 'vm'];
      const { rtvm, lapicPt } = JSON.parse(run('convert', '--', ...line).join('\n'));
      const { config } = orderOf(line);
      expect([rtvm ?? false, lapicPt ?? false]).toEqual([config.rtvm, config.rtvm]);
      return config.rtvm;
    };
    expect([isRtvm(on), isRtvm(on, off), isRtvm(off, on), isRtvm(on, off, on), isRtvm(off)]).toEqual([
      true,
      false,
      true,
      true,
      false,
    ]);
    // A flag of the command line is one that nothing takes back.
    expect(orderOf(['--rtvm', '--config', off, 'vm']).config.rtvm).toBe(true);
  });
  test('check says ok, or what is wrong', () => {
    expect(run('check', written('ok.json', '{"kernel": "k"}'))).toEqual([`${scratch.file('ok.json')}: ok`]);
    expect(() => run('check', written('no.json', '{"memory": "1"}'))).toThrow('no.json:1:12: memory');
    expect(() => run('check')).toThrow(ConfigError);
  });
});

test('the JSON Schema has every option of a VM, and stands in docs/ (else: node tools/make-option-reference.mjs)', async () => {
  const { properties } = configJsonSchema() as { properties: Record<string, { description?: string }> };
  for (const option of optionTable) {
    if ('key' in option) expect(properties[option.key]?.description).toBe(option.help);
  }
  const path = new URL('../../docs/config.schema.json', import.meta.url);
  expect(existsSync(path)).toBe(true);
  const { default: inDocs } = (await import('../../docs/config.schema.json', { with: { type: 'json' } })) as {
    default: unknown;
  };
  expect(inDocs).toEqual(JSON.parse(JSON.stringify(configJsonSchema())));
});

test('a file is at most what a path and a text make of it', () => {
  expect(parseConfigFile('x.json', '\ufeff{"name": "vm"}')).toEqual({ name: 'vm', items: [], unset: [] });
});
