/** Command lines of ahci. */
import { expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { AhciOptions, ahciCdInfo, ahciInfo, parseAhciText } from '../../../../devicemodel/hw/pci/ahci/options.ts';

const parse = (text: string, info = ahciInfo) => checkOptions(AhciOptions, info.parseText?.(text) ?? {}).ports;

test('a port for each image; a prefix counts for the ports after it', () => {
  const ports = parse('a.img,ro,cd:b.iso,hd:c.img,writeback,sectorsize=512/4096,discard');
  expect(ports.map(({ drive, image }) => [drive, image?.path])).toEqual([
    ['hd', 'a.img'],
    ['cd', 'b.iso'],
    ['hd', 'c.img'],
  ]);
  expect(ports[0]?.image).toMatchObject({ ro: true, writeback: false });
  expect(ports[2]?.image).toMatchObject({ writeback: true, sectorSize: { logical: 512, physical: 4096 }, discard: {} });
});

test('the serial number is made of the text of the port alone', () => {
  expect(parse('hd:a.img,ro,cd:b.iso').map((p) => p.text)).toEqual(['a.img,ro', 'b.iso']);
});

test('aio= is said for each port, and without a value says nothing', () => {
  const ports = parse('hd:a.img,aio=threads,hd:b.img,aio=io_uring,cd:c.iso,aio');
  expect(ports.map(({ image }) => image?.aio)).toEqual(['threads', 'io_uring', undefined]);
  expect(() => parse('hd:a.img,aio=fast')).toThrow(/aio/);
});

test('ahci-cd: without a prefix it is a drive; ahci-hd is another name of ahci', () => {
  expect(parse('b.iso', ahciCdInfo)[0]?.drive).toBe('cd');
  expect(ahciInfo.aliases).toEqual(['ahci-hd']);
});

test('an empty path is a port with nothing behind it, nodisk a drive without a medium', () => {
  expect(parse('hd:,cd:nodisk,hd:c.img').map((p) => [p.drive, p.image?.path])).toEqual([
    [undefined, undefined],
    ['cd', undefined],
    ['hd', 'c.img'],
  ]);
  // A disk of that name is a disk.
  expect(parse('hd:nodisk')[0]?.image?.path).toBe('nodisk');
  expect(parse('')).toEqual([]);
});

test.each([
  ['hd:a.img,wrong', 'ahci: unknown option "wrong"'],
  ['hd:a.img,mq=2', 'ahci: "mq=2": is an option of virtio-blk'],
  ['hd:a.img,sectorsize=333', /powers of two/],
  ['hd:,ro', /the path is missing/],
  [Array.from({ length: 33 }, (_, i) => `hd:${i}`).join(','), /at most 32 ports/],
])('%s is refused', (text, message) => {
  expect(() => parse(text)).toThrow(message);
});

test('a configuration file can ask for a disk without an image, and is refused', () => {
  expect(() => checkOptions(AhciOptions, { ports: [{ drive: 'hd' }] })).toThrow(/a disk needs an image/);
});

test('what has to be on the host', () => {
  const options = checkOptions(AhciOptions, parseAhciText('ahci', 'hd', 'a.img,cd:nodisk,cd:b.iso'));
  expect(ahciInfo.hostPaths?.(options)).toEqual(['a.img', 'b.iso']);
});
