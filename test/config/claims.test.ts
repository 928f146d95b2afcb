import { execFileSync } from 'node:child_process';
import { linkSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { claimFindings, pipeWarnings } from '../../config/claims.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { scratchDirectory } from '../support/pty.ts';

const scratch = scratchDirectory();
const at = (name: string) => scratch.file(name);

beforeAll(() => {
  for (const name of ['d.img', 'e.img']) {
    writeFileSync(at(name), '');
    truncateSync(at(name), 1 << 20);
  }
  symlinkSync('d.img', at('link.img'));
  linkSync(at('d.img'), at('twin.img'));
  mkdirSync(at('folder'));
  symlinkSync('folder', at('door'));
});

afterAll(() => scratch.remove());

function findings(...args: string[]) {
  const order = parseCommandLine(['--dry-run', ...args, '-k', 'x', 'vm'], pciDrivers);
  if (order.action !== 'dry-run') throw new Error('no VM');
  const { problems, warnings } = claimFindings(order.config);
  return { problems: problems.map(({ message }) => message), warnings };
}

const slots = (...texts: string[]) => texts.flatMap((text, i) => ['-s', `${i + 3},${text}`]);
const d = at('d.img');

describe('what two devices cannot both have', () => {
  test.each<[string, string[], RegExp]>([
    [
      'one disk',
      slots(`virtio-blk,${d}`, `virtio-blk,${d}`),
      /^-s 4,virtio-blk,.*: -s 3,.* has the image .*d.img already$/,
    ],
    ['one disk by a link', slots(`virtio-blk,${d}`, `ahci,hd:${at('link.img')}`), /has the image .*link.img already/],
    ['one disk by another name', slots(`ahci,hd:${d},hd:${at('twin.img')}`), /has the image .*twin.img already/],
    ['a disk and a reader of it', slots(`virtio-blk,${d},ro`, `virtio-blk,${d}`), /has the image/],
    ['a disk and a CD of it', slots(`virtio-blk,${d}`, `ahci-cd,${d}`), /has the image/],
    ['parts that overlap', slots(`virtio-blk,${d},range=0/9`, `virtio-blk,${d},range=8/8`), /has the image/],
    [
      'parts in other sectors',
      slots(`virtio-blk,${d},range=0/9`, `virtio-blk,${d},sectorsize=4096,range=1/8`),
      /has the/,
    ],
    ['a part and the whole', slots(`virtio-blk,${d},range=0/9`, `virtio-blk,${d}`), /has the image/],
    [
      'a socket',
      ['-l', `com1,unix:${at('s')}`, '-l', `com2,unix:${at('s')}`],
      /^-l com2,.*: -l com1,.* has socket .* already/,
    ],
    ['a socket in two ports', slots(`virtio-console,socket:a=${at('s')},socket:b=${at('s')}:server`), /has socket/],
    [
      'a socket by a link of its folder',
      ['-l', `com1,unix:${at('folder/s')}`, '--cmd_monitor', at('door/s')],
      /has socket/,
    ],
    [
      'sockets of managers',
      ['--api-socket', at('s'), '--cmd_monitor', at('s')],
      /^--api-socket: --cmd_monitor has socket/,
    ],
    [
      'a display',
      [...slots('virtio-gpu,geometry=640x480'), '--display', `vnc=unix:${at('s')}`, '-l', `com1,unix:${at('s')}`],
      /^--display: -l com1/,
    ],
    ['a link', ['-l', `com1,pty:${at('l')}`, ...slots(`virtio-console,pty:a=${at('l')}`)], /has pty link .* already/],
    [
      'a link of the life manager',
      ['-l', `com2,pty:${at('l')}`, '--pm_notify_channel', 'uart', '--pm_by_vuart', `pty,${at('l')}`],
      /^--pm_by_vuart: -l com2/,
    ],
    ['a port', ['-l', 'com1,tcp:5000', '-l', 'com2,tcp:localhost:5000'], /has tcp port 5000 of 127.0.0.1 already/],
    [
      'a port of a UART',
      ['-l', 'com1,tcp:5000', ...slots('uart,tcp:5000')],
      /^-s 3,uart,tcp:5000: -l com1,tcp:5000 has/,
    ],
    ['an address of guests', slots('vhost-vsock,cid=3', 'vhost-vsock,cid=3'), /has cid 3 already/],
    [
      'an input device',
      slots('virtio-input,/dev/input/event0', 'virtio-input,/dev/input/event0,x'),
      /has \/dev\/input\/event0/,
    ],
    ['a vUART', slots('uart,vuart_idx:1', 'uart,vuart_idx:1'), /has vUART 1 of this VM already/],
    ['a region', slots('ivshmem,hv:/a,2', 'ivshmem,hv:/a,2,7'), /has the region hv:\/a already/],
    ['memory with two sizes', slots('ivshmem,dm:/a,2', 'ivshmem,dm:/a,4'), /has the shared memory dm:\/a already/],
    [
      'device memory',
      ['--mmiodev_pt', '0xfed40000,0x2000', '--mmiodev_pt', 'fed41000,1000'],
      /has device memory at 0xfed41000 already/,
    ],
  ])('%s', (_, args, message) => {
    const { problems, warnings } = findings(...args);
    expect(problems).toEqual([expect.stringMatching(message)]);
    expect(warnings).toEqual([]);
  });
});

test.each<[string, string[], RegExp]>([
  [
    'a tap',
    slots('virtio-net,tap=a', 'virtio-net,a'),
    /^-s 4,virtio-net,a: -s 3,.* has the interface a as well: only one/,
  ],
  [
    'an address',
    slots('virtio-net,tap=a,mac=2:0:0:0:0:1', 'virtio-net,tap=b,mac=02:00:00:00:00:01'),
    /02:00:00:00:00:01 as well/,
  ],
  ['a file', ['-l', `com1,file:${at('f')}`, '--crash-dump', at('f')], /^--crash-dump: .* mixed/],
  ['a terminal', ['-l', 'com1,/dev/tty1', '-l', 'com2,tty:/dev/../dev/tty1'], /^-l com2,.* part of what is typed/],
  ['memory', slots('ivshmem,dm:/a,2', 'ivshmem,dm:/a,2'), /both show the same memory/],
  ['an I2C client', slots('virtio-i2c,0:20', 'virtio-i2c,0:0x20@x'), /the guest sees the client twice/],
])('%s of two devices is no obstacle, and is said', (_, args, message) => {
  const { problems, warnings } = findings(...args);
  expect(problems).toEqual([]);
  expect(warnings).toEqual([expect.stringMatching(message)]);
});

test.each<[string, string[]]>([
  ['disks', slots(`virtio-blk,${d}`, `virtio-blk,${at('e.img')}`)],
  ['readers of one disk', slots(`virtio-blk,${d},ro`, `ahci-cd,${d}`)],
  ['parts side by side', slots(`virtio-blk,${d},range=0/8`, `virtio-blk,${d},range=8/8`)],
  ['sockets to be connected to', slots(`virtio-console,socket:a=${at('s')}:client,socket:b=${at('s')}:client`)],
  ['ports that the system chooses', ['-l', 'com1,tcp:0', '-l', 'com2,tcp:0']],
  ['ports of two addresses', ['-l', 'com1,tcp:127.0.0.1:5', '-l', 'com2,tcp:127.0.0.2:5']],
  ['drives without a medium', slots('ahci-cd,nodisk', 'virtio-blk,nodisk', 'virtio-blk,nodisk')],
  ['ports of the display', slots('virtio-input,display:tablet', 'virtio-input,display:tablet')],
  [
    'the line of a life manager and its port',
    ['-l', `com2,${at('line')}`, '--pm_notify_channel', 'uart', '--pm_by_vuart', `pty,${at('line')}`],
  ],
  ['taps', slots('virtio-net,tap=a', 'virtio-net,tap=b', 'virtio-net,,')],
])('%s that are not the same', (_, args) => {
  expect(findings(...args)).toEqual({ problems: [], warnings: [] });
});

describe('an option that is given twice', () => {
  const notices = (...args: string[]) => {
    const order = parseCommandLine([...args, '-k', 'x', 'vm'], pciDrivers);
    return order.action === 'run' ? order.notices.map(({ text }) => text) : [];
  };
  test.each<[slot: string, line: string]>([
    ['virtio-net,tap=a,mac=02:0:0:0:0:1,mac=02:0:0:0:0:2', '"mac=02:0:0:0:0:2" counts, of "mac=02:0:0:0:0:1" and'],
    ['virtio-net,tap=a,vhost,vhost', '"vhost" is given twice'],
    ['virtio-net,tap=a,tap=b', '"tap=a" counts, of "tap=a" and "tap=b"'],
    ['virtio-net,tap=a,transport=legacy,transport=modern', '"transport=modern" counts'],
    ['virtio-blk,x.img,mq=1,mq=2', '"mq=2" counts, of "mq=1" and "mq=2"'],
    ['virtio-blk,mq=1,x.img,mq=2', '"mq=2" counts'],
    ['virtio-blk,x.img,ro,ro,ro', '"ro" is given 3 times'],
    ['virtio-blk,x.img,sectorsize=512,sectorsize=4096', '"sectorsize=4096" counts'],
    ['virtio-blk,x.img,writethru,writethru', '"writethru" is given twice'],
    ['virtio-blk,x.img,iothread,iothread=2', '"iothread=2" counts, of "iothread" and "iothread=2"'],
    ['ahci,hd:x.img,ro,hd:y.img,ro,nocache,nocache', '"nocache" is given twice'],
    ['ahci-cd,x.iso,range=0/1,range=0/2', '"range=0/2" counts'],
    ['virtio-rnd,transport=modern,transport=legacy', '"transport=legacy" counts'],
    ['virtio-rpmb,path=/a,path=/b', '"path=/b" counts'],
    ['virtio-console,stdio:a,transport=modern,transport=modern', '"transport=modern" is given twice'],
    ['virtio-console,pty:a,file:a=/x', 'two ports are named "a"'],
    ['virtio-gpio,@gpiochip0{1:2:1}', 'line 1 of gpiochip0 is given twice'],
    ['xhci,1-1:1-1', '"1-1" is given twice'],
    ['xhci,tablet:tablet', '"tablet" is given twice'],
    ['xhci,log=D,1-1:log=I', '"log=I" counts'],
    ['passthru,0/2/0,no_reset,no_reset', '"no_reset" is given twice'],
    ['passthru,0/2/0,vmsix_on_msi,1,vmsix_on_msi,2', '"vmsix_on_msi" is given twice'],
    ['passthru,0/2/0,irq=3,irq=4', '"irq=4" counts'],
    ['ivshmem,dm:/a,2,1,2', 'region id "1,2" is not 0 to 65535, 1 is used'],
  ])('of -s 3,%s', (slot, line) => {
    expect(notices('-s', `3,${slot}`)).toContainEqual(expect.stringContaining(`-s 3,${slot}: ${line}`));
  });

  test.each<[slot: string, guess: string]>([
    ['virtio-net,tap0,vhsot', '(did you mean "vhost"?)'],
    ['virtio-net,tap0,vhost=on', '(vhost takes no value)'],
    ['virtio-net,tap0,macc=02:00:00:00:00:01', '(did you mean "mac"?)'],
    ['virtio-net,ifname=tap0', '(did you mean "tap"?)'],
    ['virtio-net,tap0,ofload', '(did you mean "offload"?)'],
  ])('a word that is passed over in -s 3,%s has a guess', (slot, guess) => {
    expect(notices('-s', `3,${slot}`).join('\n')).toContain(guess);
  });

  test.each<[slot: string, guess: string]>([
    ['virtio-blk,x.img,readonly', 'did you mean "ro"?'],
    ['virtio-blk,x.img,read-only=on', 'did you mean "ro"?'],
    ['virtio-blk,x.img,cache=writeback', 'did you mean "writeback"?'],
    ['virtio-blk,x.img,cache=writethrough', 'did you mean "writethru"?'],
    ['virtio-blk,x.img,cache=none', 'did you mean "nocache"?'],
    ['virtio-blk,x.img,num_queues=2', 'did you mean "mq"?'],
    ['ahci,hd:x.img,readonly', 'did you mean "ro"?'],
  ])('a word of other programs in -s 3,%s is refused with ours', (slot, guess) => {
    expect(() => notices('-s', `3,${slot}`)).toThrow(
      expect.objectContaining({ hint: expect.stringContaining(guess), exitCode: 64 }),
    );
  });

  test.each([
    'virtio-net,tap=a,mac_seed=x,mac=02:00:00:00:00:01,vhost,vhost',
    'virtio-blk,x.img,ro,writeback,mq=1,range=0/8',
    'ahci,hd:x.img,ro,hd:y.img,ro',
    'ivshmem,dm:/a,2,2',
    'virtio-gpu,geometry=640x480,geometry=640x480',
  ])('but nothing is twice in %s', (slot) => {
    expect(notices('-s', `3,${slot}`).filter((line) => /twice|counts|times/.test(line))).toEqual([]);
  });

  test.each<[string[], string | undefined]>([
    [['-m', '128M', '-m', '256M'], '-m 256M: replaces "128M" of an earlier -m'],
    [['--ovmf', 'a', '--ovmf=b'], '--ovmf b: replaces "a"'],
    [['--cmd_monitor', '/a', '--cmd_mon', '/b'], '--cmd_monitor /b: replaces "/a"'],
    [['--virtio_poll', '1', '--virtio_poll', '2'], '--virtio_poll 2: replaces "1"'],
    [['--vtpm2', 'sock_path=/a', '--vtpm2', 'sock_path=/b'], '--vtpm2 sock_path=/b: replaces "sock_path=/a"'],
    [['--vtpm2', 'sock_path=/a,b=c'], '--vtpm2: the path ends at the comma, "b=c" is ignored'],
    [['--intr_monitor', '1,1,1,1', '--intr_monitor', '2,1,1,1'], '--intr_monitor 2,1,1,1: replaces'],
    [['--logger_setting', 'disk,level=1;disk,level=2'], '--logger_setting: disk is given twice'],
    [['--crash-dump', '/a', '--crash-dump', '/b'], '--crash-dump /b: replaces "/a"'],
    [['-m', '256M', '-m', '256M'], undefined],
    [['--debugexit', '--debugexit'], undefined],
    [['--cpu_affinity', '1', '--cpu_affinity', '2'], undefined],
    [['--logger_setting', 'disk,level=1', '--logger_setting', 'kmsg,level=2'], undefined],
    [['--fw_cfg', 'opt/a,string=b', '--fw_cfg', 'opt/c,string=d'], undefined],
  ])('%j', (args, line) => {
    const said = notices(...args).filter((text) => !text.startsWith('--kernel: ignored'));
    expect(said).toEqual(line === undefined ? [] : [expect.stringContaining(line)]);
  });
});

describe('output to a named pipe is said by a dry run, which cannot see its reader', () => {
  beforeAll(() => execFileSync('mkfifo', [at('pipe')]));
  test.each([
    ['-l com1,file:', 1, ['-s', '1,lpc', '-l', `com1,file:${at('pipe')}`]],
    ['a console', 1, slots(`virtio-console,file:a=${at('pipe')}`)],
    ['a vUART', 1, slots(`uart,file:${at('pipe')}`)],
    ['--event-monitor', 1, ['--event-monitor', `path=${at('pipe')}`]],
    ['--crash-dump', 1, ['--crash-dump', at('pipe')]],
    ['a file', 0, ['-s', '1,lpc', '-l', `com1,file:${at('d.img')}`]],
    ['what is not there yet', 0, ['--event-monitor', `path=${at('none')}`]],
  ])('%s', (_what, count, args) => {
    const order = parseCommandLine(['--dry-run', ...args, '-k', 'x', 'vm'], pciDrivers);
    if (order.action !== 'dry-run') throw new Error('no VM');
    const warnings = pipeWarnings(order.config);
    expect(warnings).toHaveLength(count);
    for (const line of warnings) expect(line).toContain(`${at('pipe')} is a named pipe`);
  });
});
