import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { formatSlotText, parseLpc, parseSlots, parseSlotText } from '../../config/slot.ts';
import { wantsHypervisorDevices } from '../../devicemodel/core/config.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { pciDrivers as realDrivers } from '../../devicemodel/hw/registry.ts';
import { allDrivers, anyTextDriver } from '../cmd/drivers.ts';

const withHint = (hint: string) => expect.objectContaining({ hint: expect.stringContaining(hint) });

describe('-s grammar', () => {
  test.each([
    ['3,virtio-rnd', 0, 3, 0],
    ['3:1,virtio-rnd', 0, 3, 1],
    ['0:6:0,virtio-rnd', 0, 6, 0],
    ['0/2/7,virtio-rnd', 0, 2, 7],
    ['0.31.7,virtio-rnd', 0, 31, 7],
    ['255:0:0,virtio-rnd', 255, 0, 0],
    ['08,virtio-rnd', 0, 8, 0],
  ])('%s', (text, bus, device, func) => {
    expect(parseSlotText(text)).toEqual({ bdf: { bus, device, function: func }, driver: 'virtio-rnd', text: '' });
  });
  test('everything behind the driver is its option text', () => {
    expect(parseSlotText('5,ivshmem,hv:/shm,2,id=1').text).toBe('hv:/shm,2,id=1');
  });
  test('the old boot mark b, is dropped', () => {
    expect(parseSlotText('3,virtio-blk,b,/disk.img').text).toBe('/disk.img');
    expect(parseSlotText('3,virtio-blk,b').text).toBe('b');
  });
  test('an empty text is another thing than none', () => {
    expect(parseSlotText('8,xhci,')).toMatchObject({ text: '', isTextEmpty: true });
    expect(parseSlotText('8,xhci')).not.toHaveProperty('isTextEmpty');
    expect(formatSlotText(parseSlotText('8,xhci,'))).toBe('8,xhci,');
  });
  test.each([
    ['no driver', '3', 'the driver is missing'],
    ['an empty driver', '3,', 'the driver is missing'],
    ['an empty driver with options', '3,,x', 'the driver is missing'],
    ['text for a slot', 'abc,virtio-rnd', 'slot "abc" is not a number'],
    ['no slot', ',virtio-rnd', 'slot "" is not a number'],
    ['slot 32', '32,virtio-rnd', 'slot 32 does not exist, it is 0 to 31'],
    ['function 8', '3:8,virtio-rnd', 'function 8 does not exist, it is 0 to 7'],
    ['bus 256', '256:1:0,virtio-rnd', 'bus 256 does not exist'],
    ['a fourth number', '0:1:0:5,virtio-rnd', 'more than three numbers'],
    ['hexadecimal, as lspci has it', '0:1f:0,virtio-rnd', 'slot "1f" is hexadecimal, in decimal it is 31'],
    ['hexadecimal, as libvirt writes it', '0x04,virtio-rnd', 'slot "0x04" is hexadecimal, in decimal it is 4'],
    ['hexadecimal, a function', '4:0x1,virtio-rnd', 'function "0x1" is hexadecimal, in decimal it is 1'],
    ['hexadecimal, a bus', '0X0a:1:0,virtio-rnd', 'bus "0X0a" is hexadecimal, in decimal it is 10'],
    ['hexadecimal, with capitals', '1F,virtio-rnd', 'slot "1F" is hexadecimal, in decimal it is 31'],
    ['hexadecimal beyond all slots', '0x20,virtio-rnd', 'slot "0x20" is not a number'],
    ['a domain', '0000:00:04.0,virtio-rnd', '"0000:00:04.0" has more than three numbers'],
    ['trailing letters', '3x,virtio-rnd', 'slot "3x" is not a number'],
    ['a sign', '-1,virtio-rnd', 'slot "-1" is not a number'],
    ['nothing', '', 'the driver is missing'],
  ])('refuses %s', (_, text, message) => {
    expect(() => parseSlotText(text)).toThrow(message);
  });
  test('what is formatted is read back', () => {
    const slot = fc.record({
      bdf: fc.record({
        bus: fc.integer({ min: 0, max: 255 }),
        device: fc.integer({ min: 0, max: 31 }),
        function: fc.integer({ min: 0, max: 7 }),
      }),
      driver: fc.string({ minLength: 1 }).filter((s) => !s.includes(',')),
      text: fc.oneof(
        fc.string(),
        fc.string().map((s) => `b,${s}`),
      ),
    });
    fc.assert(
      fc.property(slot, (s) => {
        expect(parseSlotText(formatSlotText(s))).toEqual(s);
      }),
    );
  });
});

describe('-s', () => {
  const slotsOf = (...values: string[]) => parseSlots(values, allDrivers);

  test('options go through the schema of the driver', () => {
    expect(slotsOf('5,shm,hv:/a,16,id=3').pci).toEqual([
      {
        bdf: { bus: 0, device: 5, function: 0 },
        driver: 'shm',
        options: { name: 'hv:/a', size: 16, id: 3 },
        text: 'hv:/a,16,id=3',
      },
    ]);
  });
  test('an option that is wrong is named with its slot and the usage', () => {
    expect(() => slotsOf('5,shm,hv:/a,1024')).toThrow(
      expect.objectContaining({
        message: '-s 5,shm,hv:/a,1024: size: must be a whole number, 2 to 512, got "1024"',
        hint: 'usage: -s SLOT,shm,hv:/NAME,SIZE_MIB[,id=ID]',
      }),
    );
  });
  test('a missing option is named', () => {
    expect(() => slotsOf('5,shm')).toThrow('-s 5,shm: name: is missing');
  });
  test('an empty text is none to some drivers, and to others a device with nothing, as in C', () => {
    expect(parseSlots(['8,xhci,', '4,virtio-net,'], realDrivers).pci).toMatchObject([
      { driver: 'xhci', options: { ports: [], tablet: false } },
      { driver: 'virtio-net', options: { vhost: false } },
    ]);
    expect(parseSlots(['5,virtio-i2c'], realDrivers).pci).toHaveLength(1);
    for (const value of ['8,xhci', '4,virtio-net', '5,virtio-i2c,']) {
      expect(() => parseSlots([value], realDrivers), value).toThrow(ConfigError);
    }
  });
  test('a slot can be taken once', () => {
    expect(() => slotsOf('3,virtio-rnd', '0:3:0,virtio-net')).toThrow(
      'pci slot 3:0 is already occupied by -s 3,virtio-rnd',
    );
    expect(slotsOf('3,virtio-rnd', '3:1,virtio-rnd').pci).toHaveLength(2);
  });
  test.each([
    ['nosuchdev', '-s help lists the devices'],
    ['ivshmen', 'did you mean "ivshmem"?'],
    ['virtio-blck', 'did you mean "virtio-blk"?'],
    ['virto-net', 'did you mean "virtio-net"?'],
  ])('unknown device %s: %s', (name, hint) => {
    expect(() => slotsOf(`3,${name}`)).toThrow(
      expect.objectContaining({ message: `-s 3,${name}: unknown device "${name}"`, hint }),
    );
  });
  test('names of Object.prototype are unknown devices too', () => {
    expect(() => slotsOf('3,constructor')).toThrow('unknown device "constructor"');
  });
  test('a driver without options passes over what is given, and says so', () => {
    const { pci, ignored } = parseSlots(['2,wdt-i6300esb,of=any,kind'], realDrivers);
    expect(pci).toHaveLength(1);
    expect(ignored).toEqual(['-s 2,wdt-i6300esb,of=any,kind: wdt-i6300esb has no options, "of=any,kind" is ignored']);
  });

  test.each([
    ['3,virtio-net,tap0,vhost=1', '"vhost=1" is no option'],
    ['3,virtio-net,tap=tap0,vhosts', '"vhosts" is no option'],
    ['3,virtio-net,tap=tap0,tap=tap1', '"tap=tap0" counts, of'],
    ['3,virtio-net,tap=t,ofload,mac=52:54:00:00:00:01', '"ofload" is no option'],
    ['3,virtio-net,foo=bar', '"foo=bar" is no option'],
    ['3,virtio-net,mac=52:54:00:00:00:01', 'without tap=NAME the guest has no link'],
    ['3,virtio-blk,nodisk,ro', 'with nodisk "ro" means nothing'],
    ['3,virtio-blk,range=0/9,nodisk,mq=2', 'with nodisk "range=0/9,mq=2" means nothing'],
    ['3,virtio-gpu,geometry=0x0', 'geometry=0x0 cannot be: the screen has 1024x768'],
    ['3,virtio-gpu,geometry=3840x2160+0+0', 'geometry=3840x2160+0+0 cannot be: the screen has 1920x1080'],
    ['3,virtio-gpu,geometry=800x600,geometry=320x600', 'geometry=320x600 cannot be: the screen has 640x600'],
  ])('%s: what C passes over without a word is said', (value, what) => {
    expect(parseSlots([value], realDrivers).ignored.join('\n')).toContain(`-s ${value}: ${what}`);
  });
  test.each([
    '3,virtio-net,tap=t,mac_seed=a,b,vhost=1',
    '3,virtio-net,mac_seed=a,b',
    '3,virtio-net,tap0_kata,mac=52:54:00:00:00:01,vhost',
    '3,virtio-net,tap=t,vhost,offload,transport=modern',
    '3,virtio-blk,nodisk,transport=modern',
    '3,virtio-gpu,geometry=fullscreen',
  ])('%s: nothing to say', (value) => {
    expect(parseSlots([value], realDrivers).ignored).toEqual([]);
  });
  test.each([
    'vhost,tap=t,mac=52:54:00:00:00:01',
    'mac=52:54:00:00:00:01,tap=t,vhost',
    'tap=t,mac=52:54:00:00:00:01,vhost',
  ])('virtio-net,%s: options in any order', (text) => {
    const { pci, ignored } = parseSlots([`3,virtio-net,${text}`], realDrivers);
    expect(pci[0]?.options).toMatchObject({ tap: 't', vhost: true, mac: [0x52, 0x54, 0, 0, 0, 1] });
    expect(ignored).toEqual([]);
  });
  test.each([
    ['3,ahci,hd:d.img,writback', 'did you mean "writeback"?'],
    ['3,ahci,hd:d.img,ro=1', 'ro takes no value.'],
    ['3,virtio-blk,d.img,rw', 'a disk can be written without a word for it.'],
    ['3,virtio-blk,d.img,cache=unsafe', 'did you mean "writeback"?'],
    ['3,ahci-cd,d.iso,sectorsise=512', 'did you mean "sectorsize"?'],
    ['3,xhci,tablt', 'did you mean "tablet"?'],
    ['3,xhci,1-1,tablet=1', 'tablet takes no value.'],
    ['3,virtio-gpu,geometri=800x600', 'did you mean "geometry"?'],
    ['3,virtio-blk,d.img,writethrough', 'did you mean "writethru"?'],
    ['3,virtio-rpmb,pth=/x', 'did you mean "path"?'],
  ])('%s: %s', (value, hint) => {
    expect(() => parseSlots([value], realDrivers)).toThrow(withHint(hint));
  });
  test.each([
    ['virtio-vsock', 'vhost-vsock'],
    ['vsock', 'vhost-vsock'],
    ['virtio-uart', 'uart'],
    ['net', 'virtio-net'],
    ['virtio-ahci', 'ahci'],
  ])('device %s: did you mean %s?', (name, meant) => {
    expect(() => parseSlots([`3,${name}`], realDrivers)).toThrow(withHint(`did you mean "${meant}"?`));
  });

  test.each(['pci-gvt', 'npk', 'virtio-hdcp', 'virtio-coreu', 'virtio-hyper_dmabuf', 'virtio-ipu', 'virtio-audio'])(
    'obsolete %s is dropped with one line and leaves its slot free',
    (name) => {
      const { ignored, pci } = slotsOf(`2,${name}`, '2,virtio-rnd');
      expect(ignored).toEqual([expect.stringMatching(`^-s 2,${name}: ignored: device "${name}" is obsolete`)]);
      expect(pci).toHaveLength(1);
    },
  );
  test('an alias is the driver itself', () => {
    expect(parseSlots(['0,amd'], [anyTextDriver('hostbridge', { aliases: ['amd'] })]).pci[0]?.driver).toBe(
      'hostbridge',
    );
  });
  test('there is one LPC bridge', () => {
    expect(() => slotsOf('1:0,lpc', '2:0,lpc')).toThrow('-s 2:0,lpc: there can be one lpc only, it is at slot 1:0');
  });
  test('devices are on bus 0', () => {
    expect(() => slotsOf('1:4:0,virtio-rnd')).toThrow('-s 1:4:0,virtio-rnd: bus 1 does not exist');
  });
  test('or on the bus below a bridge, wherever that stands on the command line', () => {
    const parse = (...values: string[]) => parseSlots(values, realDrivers);
    const { pci } = parse('1:0:0,virtio-rnd', '6,root-port,ptm', '2:0:1,virtio-rnd', '9,root-port');
    expect(pci.map(({ bdf }) => [bdf.bus, bdf.device, bdf.function])).toEqual([
      [1, 0, 0],
      [0, 6, 0],
      [2, 0, 1],
      [0, 9, 0],
    ]);
    expect(() => parse('6,root-port', '2:0:0,virtio-rnd')).toThrow(
      '-s 2:0:0,virtio-rnd: bus 2 does not exist, there is bus 0 and 1 (below 6:0)',
    );
    expect(() => parse('6,root-port', '1:1:0,virtio-rnd')).toThrow('-s 1:1:0,virtio-rnd: slot 1 of bus 1 does not');
    expect(() => parse('6,root-port', '1:0:0,root-port')).toThrow('-s 1:0:0,root-port: a bridge is on bus 0');
    expect(() => parse('6,root-port,mtp')).toThrow('-s 6,root-port,mtp: unknown option "mtp"');
  });
  test('any texts end in slots or a ConfigError', () => {
    const text = fc.oneof(
      fc.string(),
      fc
        .tuple(fc.integer({ min: 0, max: 33 }), fc.constantFrom('shm', 'lpc', 'npk', 'xhci', 'x', ''), fc.string())
        .map(([slot, driver, rest]) => `${slot},${driver},${rest}`),
    );
    fc.assert(
      fc.property(fc.array(text, { maxLength: 5 }), (values) => {
        try {
          const { pci, ignored } = parseSlots(values, allDrivers);
          expect(pci.length).toBeLessThanOrEqual(values.length);
          expect(pci.length + ignored.length).toBeGreaterThanOrEqual(values.length);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
    );
  });
});

describe('-l', () => {
  test.each([
    ['com1', { index: 1, backend: '' }],
    ['com1,stdio', { index: 1, backend: 'stdio' }],
    ['COM2,tcp:4555', { index: 2, backend: 'tcp:4555' }],
    ['com3,/dev/pts/3', { index: 3, backend: '/dev/pts/3' }],
    ['com4,/dev/ttyS0,x', { index: 4, backend: '/dev/ttyS0,x' }],
    ['com1,tty:ttyS0', { index: 1, backend: 'tty:ttyS0' }],
    ['com5,/dev/pts/0,0x9000,5', { index: 5, backend: '/dev/pts/0', port: 0x9000, irq: 5 }],
    ['com5,/dev/pts/0', { index: 5, backend: '/dev/pts/0' }],
  ])('%s', (text, com) => {
    expect(parseLpc(text)).toEqual(com);
  });
  test.each([
    ['com9,stdio', 'there is no LPC device "com9"'],
    ['', 'there is no LPC device ""'],
    ['com1,', 'the back end behind the comma is empty'],
    ['com5,,0x9000,5', 'the back end behind the comma is empty'],
    ['com1,nowhere', 'back end "nowhere": unknown'],
    ['com1,tcp:99999', 'port must be 0 to 65535'],
    ['com5,pty,0x9000', 'the IRQ is missing'],
    ['com5,pty,0x10000,5', '"0x10000" is not an I/O port'],
    ['com5,pty,port,5', '"port" is not an I/O port'],
    ['com5,pty,0x9000,16', '"16" is not an interrupt from 1 to 15'],
    ['com5,pty,0x9000,5,6', '"6" is too much'],
  ])('refuses "%s"', (text, message) => {
    expect(() => parseLpc(text)).toThrow(message);
  });
  test('guesses a slip in the letters', () => {
    expect(() => parseLpc('con1,stdio')).toThrow(withHint('did you mean com1?'));
  });
  test('any text ends in a port or a ConfigError', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.string().map((s) => `com5,pty,${s}`),
        ),
        (text) => {
          try {
            expect(parseLpc(text).index).toBeGreaterThan(0);
          } catch (error) {
            expect(error).toBeInstanceOf(ConfigError);
          }
        },
      ),
    );
  });
});

describe('options of a device, in the words the user has', () => {
  const refused = (value: string) => {
    try {
      parseSlots([value], realDrivers);
    } catch (error) {
      const { message, hint } = error as ConfigError;
      return `${message}\n${hint}`;
    }
    return 'accepted';
  };
  const options = (value: string) => parseSlots([value], realDrivers).pci[0]?.options;

  test.each([
    ['3,virtio-blk,d.img,sectorsize=999', /: sectorsize: /],
    ['3,virtio-blk,d.img,mq=0', /"mq=0": /],
    ['3,virtio-net,tap=', /: tap: /],
    ['3,virtio-net,tap=t,mac=1', /: mac: must be XX/],
    ['3,virtio-blk,d.img,transport=newest', /: transport: /],
  ])('%s is named by its option', (value, words) => {
    expect(refused(value)).toMatch(words);
  });

  test.each([
    ['3,virtio-blk,d.img,writebak', 'writeback'],
    ['3,virtio-blk,d.img,writetru', 'writethru'],
    ['3,virtio-blk,d.img,nocahe', 'nocache'],
    ['3,virtio-blk,d.img,sectorsise=512', 'sectorsize'],
    ['3,virtio-blk,d.img,rnage=0/8', 'range'],
    ['3,virtio-blk,d.img,discrad', 'discard'],
  ])('%s: did you mean?', (value, word) => {
    expect(refused(value)).toContain(`did you mean "${word}"?`);
  });

  test.each(['ro=1', 'ro=0', 'nocache=yes', 'writeback=1', 'writethru=on'])('a value on a flag, %s', (item) => {
    expect(refused(`3,virtio-blk,d.img,${item}`)).toContain(`${item.split('=')[0]} takes no value`);
  });

  test.each(['writeback,writethru', 'writethru,writeback', 'writethru,ro,writeback'])(
    'a contradiction, %s',
    (items) => {
      expect(refused(`3,virtio-blk,d.img,${items}`)).toContain('contradict');
    },
  );
  test('the same twice is none', () => {
    expect(options('3,virtio-blk,d.img,writeback,writeback')).toMatchObject({ writeback: true });
  });

  test.each([
    ['mq=2,d.img', 'd.img,mq=2', { path: 'd.img', queues: 2 }],
    ['iothread,d.img', 'd.img,iothread', { path: 'd.img', iothread: { count: 1 } }],
    ['iothread,mq=4,d.img,ro', 'd.img,mq=4,ro,iothread', { path: 'd.img', queues: 4, ro: true }],
    ['mq=2,d.img,writeback', 'd.img,writeback,mq=2', { queues: 2, writeback: true }],
  ])('%s and %s are the same', (before, behind, expected) => {
    for (const text of [before, behind]) expect(options(`3,virtio-blk,${text}`)).toMatchObject(expected);
  });
});

// A hypervisor whose vCPUs have threads gives its devices one, too, if there are any.
test.each([
  ['5,ivshmem,hv:/shm,2', true],
  ['5,ivshmem,dm:/shm,2', false],
  ['6,uart,vuart_idx:1', true],
  ['6,uart,stdio', false],
  ['7,root-port', true],
  ['4,passthru,02/00/0,enable_ptm', true],
  ['4,passthru,02/00/0', false],
  ['3,virtio-rnd', false],
])('%s has a device of the hypervisor: %s', (text, isOne) => {
  expect(wantsHypervisorDevices(parseSlots([text], realDrivers))).toBe(isOne);
});
