/**
 * Only core/host calls the C library: outside of it there is no prototype, no number of an ioctl and no koffi. The
 * linter forbids the imports; this finds what is spelled out. ACRN's own ioctls are hypervisor/acrn's subject.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

const root = join(import.meta.dirname, '../../..');

const signs: ReadonlyArray<{ readonly what: string; readonly pattern: RegExp }> = [
  {
    what: 'a C prototype',
    pattern: /['"`](?:unsigned |const )?(?:int|long|void|u?int\w*_t|s?size_t|char)\b[ *]+\w+\([^'"`)]*\)['"`]/,
  },
  { what: 'a call of native()', pattern: /\b(?:native|hostCall|interruptibleCall|asyncCall)(?:<.*>)?\(/ },
  // Direction and size above, a type in the second byte: 0x4004af61; or a bare number of an order.
  { what: 'the number of an ioctl', pattern: /\b0x[48c]0[0-9a-f]{2}(?:af|b4|54|12|45)[0-9a-f]{2}\b/i },
  { what: 'koffi', pattern: /from 'koffi'|require\(['"]koffi['"]\)|load\(koffiPath\)/ },
  { what: 'an errno of the C library', pattern: /\blastErrno\(/ },
];

function sourcesIn(directory: string): string[] {
  return readdirSync(join(root, directory), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(directory, name));
}

function findings(text: string): string[] {
  return text.split('\n').flatMap((line) => {
    if (/^\s*(?:\*|\/\/|\/\*\*)/.test(line)) return [];
    return signs.filter(({ pattern }) => pattern.test(line)).map(({ what }) => `${what}: ${line.trim()}`);
  });
}

/** Threads whose source text is all they have: they cannot import core/host. */
const exceptions = ['hypervisor/blocking-loop/watcher-thread.ts', 'hypervisor/kvm/vcpu-thread.ts'];

test.each(['cmd', 'control', 'devicemodel', 'hypervisor'])('%s calls the host through core/host', (directory) => {
  const files = sourcesIn(directory).filter(
    (path) => !path.startsWith('devicemodel/core/host/') && !exceptions.includes(path),
  );
  expect(files.length).toBeGreaterThan(3);
  const found = files.flatMap((path) => findings(readFileSync(join(root, path), 'utf8')).map((f) => `${path}: ${f}`));
  expect(found).toEqual([]);
});

// The bundler renames `require`, and the thread, which has only this text, ends with a ReferenceError.
test.each(exceptions)('%s does without require', (path) => {
  const code = readFileSync(join(root, path), 'utf8').replace(/^\s*(?:\*|\/\/|\/\*\*).*$/gm, '');
  expect(code).not.toMatch(/\brequire\b/);
});

describe('what would be found', () => {
  test.each([
    "const got = native('int64_t pread(int, uintptr_t, size_t, int64_t)')(fd, address, span, from);",
    "  preadvFn ??= declare('int64_t preadv(int, const void *, int, int64_t)');",
    "const poll = library.func('int poll(void *, unsigned long, int)');",
    "const loop = (call('uintptr_t uv_default_loop()'))();",
    "const tell = hostCall<[fd: number]>('int fdatasync(int)');",
    'const Request = { SetFeatures: 0x4008af00 };',
    'const Tun = { SetIff: 0x400454ca };',
    'const Line = { GetValues: 0xc010b40e };',
    'const GRAB = 0x40044590;',
    "import koffi from 'koffi';",
    'if (got < 0) return lastErrno();',
  ])('%s', (line) => {
    expect(findings(line)).not.toEqual([]);
  });

  test.each([
    "const what = 'a disk (4 KiB)';",
    'const mask = 0xc0100000;',
    '/** ioctl 0x4008af00 is VHOST_SET_FEATURES. */',
    "log.info('int the loop (again)');",
  ])('and what not: %s', (line) => {
    expect(findings(line)).toEqual([]);
  });
});
