import { expect, test } from 'vitest';
import { parseDisplay } from '../../config/display-option.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';

test.each([
  ['none', { kind: 'none' }],
  ['sdl', { kind: 'sdl' }],
  ['vnc=unix:/run/vm1/vnc', { kind: 'vnc', path: '/run/vm1/vnc' }],
  ['vnc=unix:vnc,password-file=/etc/p', { kind: 'vnc', path: 'vnc', passwordFile: '/etc/p' }],
  ['vnc=127.0.0.1:5901,password-file=p', { kind: 'vnc', host: '127.0.0.1', port: 5901, passwordFile: 'p' }],
  ['vnc=[::1]:5901,password-file=p', { kind: 'vnc', host: '::1', port: 5901, passwordFile: 'p' }],
  ['vnc=localhost:1,password-file=p', { kind: 'vnc', host: 'localhost', port: 1, passwordFile: 'p' }],
])('--display %s', (text, config) => {
  expect(parseDisplay(text)).toEqual(config);
});

test.each([
  ['', /^"" is no display: vnc=unix:PATH, /],
  ['sdl,gl=on', /^"sdl,gl=on" is no display/],
  ['gtk', /^"gtk" is no display/],
  ['vnc', /^"vnc" is no display/],
  ['vnc=', /^"" is no place for a VNC server/],
  ['vnc=unix:', /the path of the socket is empty/],
  ['vnc=5901,password-file=p', /^"5901" is no place/],
  ['vnc=127.0.0.1:0,password-file=p', /is no place/],
  ['vnc=127.0.0.1:65536,password-file=p', /is no place/],
  ['vnc=::1:5901,password-file=p', /is no place/],
  ['vnc=127.0.0.1:5901', /^127.0.0.1:5901 is for everybody on this host: it needs password-file=FILE$/],
  ['vnc=127.0.0.1:5901,password-file=', /"password-file=" is unexpected/],
  ['vnc=unix:/p,passwd=x', /"passwd=x" is unexpected/],
  ['vnc=unix:/p,password-file=a,password-file=b', /is unexpected/],
])('--display %s is refused', (text, message) => {
  expect(() => parseDisplay(text)).toThrow(message);
  expect(() => parseDisplay(text)).toThrow(ConfigError);
});
