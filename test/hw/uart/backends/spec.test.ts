import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { describeCharBackend, parseCharBackend } from '../../../../devicemodel/hw/uart/backends/spec.ts';

describe('option text of a character back end', () => {
  test.each([
    [undefined, { kind: 'null' }],
    ['', { kind: 'null' }],
    ['null', { kind: 'null' }],
    ['stdio', { kind: 'stdio' }],
    ['pty', { kind: 'pty', linkPath: undefined }],
    ['pty:/run/vm1/com1', { kind: 'pty', linkPath: '/run/vm1/com1' }],
    ['/dev/ttyS0', { kind: 'tty', path: '/dev/ttyS0' }],
    ['./tty', { kind: 'tty', path: './tty' }],
    ['tty:ttyUSB0', { kind: 'tty', path: 'ttyUSB0' }],
    ['tcp:4555', { kind: 'tcp', address: '127.0.0.1', port: 4555 }],
    ['tcp:0.0.0.0:4555', { kind: 'tcp', address: '0.0.0.0', port: 4555 }],
    ['tcp:[::1]:22', { kind: 'tcp', address: '::1', port: 22 }],
    ['unix:/run/com1.sock', { kind: 'unix', path: '/run/com1.sock', role: 'server' }],
    ['file:/var/log/com1', { kind: 'file', path: '/var/log/com1' }],
  ])('%s', (text, spec) => {
    expect(parseCharBackend(text)).toEqual(spec);
  });

  test.each([
    'ttyS0',
    'tcp',
    'tcp:',
    'tcp:65536',
    'tcp:-1',
    'tcp:12x',
    'tcp:nohost.example:1',
    'tcp:::1:22',
    'unix:',
    'file:',
    'pty:',
    `unix:/${'x'.repeat(107)}`,
  ])('%s is refused', (text) => {
    expect(() => parseCharBackend(text)).toThrow(ConfigError);
  });

  test('the message names the text and lists what there is', () => {
    expect(() => parseCharBackend('vuart_idx:x')).toThrow(/vuart_idx:x/);
    try {
      parseCharBackend('vuart_idx:x');
    } catch (error) {
      expect((error as ConfigError).hint).toMatch(/stdio.*tcp:.*file:/);
    }
  });

  test('the description of a TCP port shows that it is local', () => {
    expect(describeCharBackend(parseCharBackend('tcp:4555'))).toBe('tcp 127.0.0.1:4555');
  });

  test('any text parses or is refused with a ConfigError, and what parses can be described', () => {
    const text = fc.oneof(
      fc.string(),
      fc.constantFrom('tcp:', 'pty:', 'unix:', 'file:', 'tty:').chain((p) => fc.string().map((s) => p + s)),
    );
    fc.assert(
      fc.property(text, (t) => {
        try {
          expect(describeCharBackend(parseCharBackend(t))).not.toBe('');
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
    );
  });
});
