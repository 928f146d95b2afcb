import { describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { describeVm, formatDryRun, type VmPlan } from '../../cmd/dry-run.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { GiB, MiB } from '../../devicemodel/core/units.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { decodeVdev } from '../support/decode-vdev.ts';

/** Addresses the C program gives these devices (recorded), files that do not exist anywhere. */
const argv = [
  ...['-m', '3G', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio', '-l', 'com5,pty,0x9100,5'],
  ...['-s', '5,ivshmem,hv:/shm0,2', '-s', '7,uart,vuart_idx:1', '-s', '8,uart,tcp:4555'],
  ...['-k', '/nonexistent/bzImage', '-B', 'quiet', '--cpu_affinity', '0,2', 'vm1'],
];

async function planOf(...words: string[]): Promise<VmPlan> {
  const order = parseCommandLine(words, pciDrivers) as VmOrder;
  return describeVm(order.config);
}
const textOf = async (...words: string[]) => formatDryRun(await planOf(...words)).join('\n');

describe('plan', () => {
  test('memory is low up to 2 GiB and goes on at 4 GiB', async () => {
    const { memory } = await planOf(...argv);
    expect(memory).toEqual([
      { what: 'RAM', base: 0, sizeBytes: 2 * GiB },
      { what: 'RAM', base: 4 * GiB, sizeBytes: GiB },
    ]);
    expect((await planOf('vm')).memory).toEqual([{ what: 'RAM', base: 0, sizeBytes: 256 * MiB }]);
  });
  test.each(['255', '256', '0,300', '1000000', '65536'])(
    "--cpu_affinity %s: the mistake is the user's",
    async (ids) => {
      await expect(planOf('-k', 'k', '--cpu_affinity', ids, 'vm')).rejects.toThrow(
        expect.objectContaining({ message: expect.stringContaining('local APIC id'), exitCode: ExitCode.Unavailable }),
      );
    },
  );
  // Mutation: attach the devices of options behind the serial ports: an internal error.
  test.each([
    ['0x510', ['--fw_cfg', 'opt/x,string=y'], 'of its ports, 0x510 to 0x517, fw_cfg has 0x510'],
    ['0xf4', ['--testdev'], 'of its ports, 0xf4 to 0xfb, test device exit has 0xf4'],
    ['0x2000', ['--testdev'], 'of its ports, 0x2000 to 0x2007, test device lines has 0x2000'],
    ['0xf0', ['--debugexit'], 'of its ports, 0xf0 to 0xf7, debug exit has 0xf4'],
  ])('com5 at %s beside %s is refused', async (port, options, why) => {
    const words = ['-s', '1:0,lpc', '-l', `com5,null,${port},5`, ...options, '-k', 'k', 'vm'];
    await expect(planOf(...words)).rejects.toThrow(
      expect.objectContaining({ message: expect.stringContaining(why), exitCode: ExitCode.Usage }),
    );
  });
  // Mutation: let BARs be placed on COM5: the device behind them is not decoded.
  test('no BAR is placed on the ports of com5', async () => {
    const rnd = ['-s', '3,virtio-rnd', '-k', 'k', 'vm'];
    const place = async (port: string) =>
      (await planOf('-s', '1:0,lpc', '-l', `com5,null,${port},5`, ...rnd)).pci
        .find(({ bdf }) => bdf === '00:03.0')
        ?.bars.find(({ index }) => index === 0)?.address;
    expect(await place('0x9000')).toBe(0x2000);
    expect(await place('0x2010')).toBe(0x3000);
  });
  test('BARs are where the PCI host places them', async () => {
    const { pci } = await planOf(...argv);
    const addresses = (bdf: string) => pci.find((fn) => fn.bdf === bdf)?.bars.map((bar) => bar.address);
    expect(addresses('00:05.0')).toEqual([0x80000000, 0x80001000, 0x80200000]);
    expect(addresses('00:07.0')).toEqual([0x80400000, 0x80401000]);
    expect(addresses('00:08.0')).toEqual([0x2000]);
  });
  test('with firmware the shared memory goes above 4 GiB', async () => {
    const { pci } = await planOf('-s', '5,ivshmem,hv:/a,2', '--ovmf', 'f', 'vm');
    expect(pci[0]?.bars[2]?.address).toBe(0x40_0000_0000);
  });
  test('devices of the hypervisor come with the 192 bytes of CREATE_VDEV', async () => {
    const { pci } = await planOf(...argv);
    const vdevs = pci.flatMap((fn) => (fn.vdev === null ? [] : [fn.vdev]));
    expect(vdevs.map((vdev) => vdev.fields.type)).toEqual(['ivshmem', 'vuart']);
    for (const { bytes, fields } of vdevs) {
      const raw = Buffer.from(bytes, 'hex');
      expect(raw).toHaveLength(192);
      expect(decodeVdev(raw)).toMatchObject(fields);
    }
  });
  test('the bus below a root port is named, with what is on it', async () => {
    const slots = ['-s', '6,root-port,ptm', '-s', '1:0:0,virtio-rnd', '-s', '0:0,hostbridge', 'vm'];
    const { pci } = await planOf(...slots);
    expect(pci.map((fn) => [fn.bdf, fn.secondaryBus])).toEqual([
      ['00:00.0', null],
      ['00:06.0', 1],
      ['01:00.0', null],
    ]);
    expect(await textOf(...slots)).toContain('bus 1 is below it: -s 1:0:0,DRIVER puts a device there');
    await expect(planOf('--hypervisor', 'acrn', ...slots)).rejects.toThrow(
      /^-s 0:6:0,root-port: a root port of ACRN stands for a physical one/,
    );
  });
  test('serial ports have their place and their back end', async () => {
    expect((await planOf(...argv)).com).toEqual([
      { name: 'com1', port: 0x3f8, irq: 4, backend: 'stdio' },
      { name: 'com5', port: 0x9100, irq: 5, backend: 'pty' },
    ]);
  });
  test('all tables are listed', async () => {
    const { tables } = await planOf(...argv);
    const signatures = ['_MP_', 'PCMP', 'RSD', 'RSDT', 'XSDT', 'APIC', 'FACP', 'HPET', 'MCFG', 'FACS', 'DSDT'];
    expect(tables.map((t) => t.signature)).toEqual(signatures);
  });
  test('devices of the board are listed, and in the tables if these tell of them', async () => {
    const gpio = [
      '--acpidev_pt',
      'INTC1055,type=memory,min=fd6e0000,len=1000',
      '--acpidev_pt',
      'INTC1055,type=irq,irq=14',
    ];
    const plan = await planOf('--mmiodev_pt', 'fe000000,4000', ...gpio, '--acpidev_pt', 'MSFT0101,9', 'vm');
    expect(plan.board).toEqual([
      '--mmiodev_pt fe000000,4000',
      '--acpidev_pt INTC1055,type=memory,min=fd6e0000,len=1000 INTC1055,type=irq,irq=14',
      '--acpidev_pt MSFT0101,9',
    ]);
    const dsdtBytes = (tables: VmPlan['tables']) => tables.find((t) => t.signature === 'DSDT')?.sizeBytes as number;
    expect(dsdtBytes(plan.tables)).toBeGreaterThan(dsdtBytes((await planOf('vm')).tables));
    expect(formatDryRun(plan).join('\n')).toContain('\nBoard\n  --mmiodev_pt fe000000,4000\n');
  });
  test('is plain data: JSON gives it back', async () => {
    const plan = await planOf(...argv);
    expect(JSON.parse(JSON.stringify(plan))).toEqual(plan);
  });
  test('is the same every time', async () => {
    expect(await planOf(...argv)).toEqual(await planOf(...argv));
  });
});

describe('text', () => {
  test('shows the shared memory device whole', async () => {
    expect(await textOf('-s', '5,ivshmem,hv:/shm0,2', 'vm')).toContain(`\
  00:05.0  1af4:1110  class 0500  ivshmem  (hv:/shm0,2)
           bar0  0x80000000-0x800000ff  mem32, 256 bytes
           bar1  0x80001000-0x80001fff  mem32, 4 KiB
           bar2  0x80200000-0x803fffff  mem64, 2 MiB
           CREATE_VDEV ivshmem, struct acrn_vdev (rows of zeros left out):
             00  f4 1a 10 11 00 00 00 00 28 00 00 00 00 00 00 00
             10  00 00 00 80 00 10 00 80 0c 00 20 80 00 00 00 00
             30  00 00 20 00 00 00 00 00 00 00 00 00 00 00 00 00
             40  68 76 3a 2f 73 68 6d 30 00 00 00 00 00 00 00 00`);
  });
  test('shows what boots', async () => {
    expect(await textOf(...argv)).toMatch(/Boot\n {2}bzImage {7}\/nonexistent\/bzImage\n {2}command line {2}quiet\n/);
    expect(await textOf('--ovmf', 'w,f', 'vm')).toContain('f, ends at 0x100000000, variables are written back');
    expect(await textOf('--ovmf', 'code=c,vars=v', 'vm')).toContain('variables     v');
    expect(await textOf('-E', 'e', 'vm')).toContain('ELF           e');
    expect(await textOf('vm')).toContain('nothing: give --kernel');
  });
  test('shows flags', async () => {
    expect(await textOf('--rtvm', '--debugexit', 'vm')).toContain(
      'VM vm, hypervisor auto, real-time, local APIC passed through, debug exit port',
    );
  });
});
