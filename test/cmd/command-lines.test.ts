/**
 * Command lines found in launch scripts, documents and issue threads of ACRN, with their shell variables filled in. All
 * of them must be understood; what is obsolete in them costs one warning each.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { goRound } from '../support/go-round.ts';
import { recordedDir } from '../support/recorded-cases.ts';
import { allDrivers } from './drivers.ts';

/** Words of a shell command: spaces separate, quotes group. */
function words(line: string): string[] {
  return [...line.matchAll(/(?:[^\s"']|"[^"]*"|'[^']*')+/g)].map((m) => m[0].replace(/"([^"]*)"|'([^']*)'/g, '$1$2'));
}

function order(line: string): VmOrder {
  const parsed = parseCommandLine(words(line), allDrivers);
  if (parsed.action !== 'run') throw new Error(`parsed as ${parsed.action}`);
  return parsed;
}

const ovmf = '--ovmf /usr/share/acrn/bios/OVMF.fd';
const logger = '--logger_setting "console,level=4;kmsg,level=3;disk,level=5"';
const xhci = '-s 7,xhci,1-1:1-2:1-3:2-1:2-2:2-3:cap=apl';
const legacyBootargs = '-B "root=/dev/vda2 rw rootwait maxcpus=3 nohpet console=hvc0 console=ttyS0 no_timer_check"';

interface Case {
  readonly what: string;
  readonly line: string;
  readonly name: string;
  readonly slots: number;
  readonly warnings: number;
}

const cases: readonly Case[] = [
  {
    what: 'generated script of a Windows VM',
    line: `--windows --cpu_affinity 0,2 -m 4096M ${ovmf} -s 1:0,lpc -s 0:0,hostbridge -s 3,virtio-console,@stdio:stdio_port -s 4,virtio-net,tap=WaaG,mac_seed=00:16:3e:5d:f8:8e-POST_STD_VM1 -s 5,virtio-blk,./win10-ltsc.img -s 2,passthru,0/2/0 ${logger} POST_STD_VM1`,
    name: 'POST_STD_VM1',
    slots: 6,
    warnings: 0,
  },
  {
    what: 'generated script of a real-time VM',
    line: `--cpu_affinity 4,6 -m 1024M ${ovmf} -s 0:0,hostbridge --virtio_poll 1000000 -s 3,virtio-console,@stdio:stdio_port -s 4,virtio-net,tap=RT,mac_seed=00:16:3e:5d:f8:8e-POST_RT_VM1 -s 5,virtio-blk,./core-image.wic --rtvm --lapic_pt ${logger} POST_RT_VM1`,
    name: 'POST_RT_VM1',
    slots: 4,
    warnings: 0,
  },
  {
    what: 'device model design document',
    line: `-m 2048M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,virtio-console,@pty:pty_port -s 3,virtio-blk,/home/acrn/UserVM.img -s 4,virtio-net,tap=LaaG --acpidev_pt MSFT0101,00 --intr_monitor 10000,10,1,100 ${legacyBootargs} vm1`,
    name: 'vm1',
    slots: 5,
    warnings: 0,
  },
  {
    what: 'hyper_dmabuf document',
    line: `-m 2048M -s 0:0,hostbridge -s 5,virtio-console,@stdio:stdio_port -s 6,virtio-hyper_dmabuf -s 3,virtio-blk,/home/acrn/UserVM.img -s 4,virtio-net,tap=tap0,mac_seed=x-y -s 7,virtio-rnd ${ovmf} ${logger} vm1`,
    name: 'vm1',
    slots: 5,
    warnings: 1,
  },
  {
    what: 'ACRN on QEMU tutorial, with a log level that does not exist',
    line: '-m 1024M -s 0:0,hostbridge -s 3,virtio-blk,~/UserVM.img -s 4,virtio-net,tap=tap0 --cpu_affinity 1 -s 5,virtio-console,@stdio:stdio_port --ovmf ~/OVMF.fd --logger_setting "console,level=5;kmsg,level=6;disk,level=5" vm1',
    name: 'vm1',
    slots: 4,
    warnings: 1,
  },
  {
    what: 'Windows tutorial',
    line: '-m 4096M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 2,passthru,0/2/0 -s 8,virtio-net,tap=tap0 -s 4,virtio-blk,/images/win10-ltsc.img -s 5,ahci,cd:/images/Windows10.iso -s 6,ahci,cd:/images/winvirtio.iso -s 7,passthru,0/14/0,d3hot_reset --ovmf /images/OVMF.fd --windows vm1',
    name: 'vm1',
    slots: 8,
    warnings: 0,
  },
  {
    what: 'legacy Linux script',
    line: `-m 2048M -c 3 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,virtio-console,@pty:pty_port -s 6,virtio-hyper_dmabuf -s 8,wdt-i6300esb -s 3,virtio-blk,/data/a/a.img -s 4,virtio-net,tap=t,mac_seed=s ${xhci} -s 9,passthru,0/15/1 -s 10,virtio-heci,0/0f/0 --intr_monitor 10000,10,1,100 -s 12,virtio-ipu,0x80 ${legacyBootargs} vm1`,
    name: 'vm1',
    slots: 9,
    // -c, virtio-hyper_dmabuf, virtio-ipu
    warnings: 3,
  },
  {
    what: 'legacy Android script',
    line: `-m 2048M -c 3 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 8,npk,8/2 -s 9,virtio-net,tap=t,mac_seed=s -s 3,virtio-blk,/data/a/a.img ${xhci} -s 8,passthru,0/15/1 -s 13,virtio-rpmb -s 10,virtio-hyper_dmabuf -s 11,wdt-i6300esb -s 14,virtio-audio -s 27,passthru,0/1b/0 -s 24,passthru,0/18/0 -s 18,passthru,3/0/0,keep_gsi -i /run/acrn/ioc_vm1,0x20 --enable_trusty -B "androidboot.x=1" vm1`,
    name: 'vm1',
    slots: 11,
    // -c, npk, virtio-hyper_dmabuf, virtio-audio, -i
    warnings: 5,
  },
  {
    what: 'libvirt, issue 5936',
    line: `-A --cpu_affinity 2 -m 512M -U d2795438-25d6-11e8-864e-cb7a18b34643 --lapic_pt --virtio_poll 1000000 -s 0:0,hostbridge -s 0:6:0,virtio-blk,/var/lib/libvirt/images/rtvm.raw -s 0:3:0,virtio-net,tap0,mac=00:11:22:33:44:55 -s 0:4:0,virtio-net,tap1,mac=00:11:22:33:44:56 -s 0:5:0,virtio-net,tap2,mac=00:11:22:33:44:57 -s 0:2:0,passthru,1/0/0 -s 0:8:0,virtio-console,@pty:pty_port --pm_notify_channel uart --pm_by_vuart tty,/dev/ttyS1 --logger_setting '"kmsg,level=3"' ${ovmf} rtvm`,
    name: 'rtvm',
    slots: 7,
    // -A, -U, --lapic_pt without --rtvm
    warnings: 3,
  },
  {
    what: 'generated script with a vUART, pull request 7561',
    line: `--cpu_affinity 4,6 -m 1024M ${ovmf} -s 0:0,hostbridge -s 3,uart,vuart_idx:1 --virtio_poll 1000000 vm2`,
    name: 'vm2',
    slots: 2,
    warnings: 0,
  },
  {
    what: 'hard real-time script',
    line: `-m 1024M -c 2 -k /root/rt_uos_kernel --lapic_pt --virtio_poll 1000000 -s 2,passthru,0/17/0 -s 3,virtio-console,@stdio:stdio_port ${legacyBootargs} hard_rtvm`,
    name: 'hard_rtvm',
    slots: 2,
    warnings: 2,
  },
  {
    what: 'privileged VM script',
    line: `-m 1024M -c 2 -k /root/kernel --privil_vm -s 2,passthru,0/17/0 ${legacyBootargs} privil_vm`,
    name: 'privil_vm',
    slots: 1,
    warnings: 2,
  },
  {
    what: 'Zephyr sample',
    line: `-A -m 128M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,virtio-console,@pty:pty_port -s 3,virtio-blk,./zephyr.img ${ovmf} vm1`,
    name: 'vm1',
    slots: 4,
    warnings: 1,
  },
  {
    what: 'VxWorks sample',
    line: '-A -m 2048M -c 2 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,virtio-console,@pty:pty_port -s 3,virtio-blk,./VxWorks.img --ovmf ./OVMF.fd vm1',
    name: 'vm1',
    slots: 4,
    warnings: 2,
  },
  {
    what: 'Clear Linux draft with a boot mark, pull request 3905',
    line: `-A -m 2048M -c 3 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,virtio-console,@pty:pty_port -s 3,virtio-blk,b,/data/clearlinux/clearlinux.img ${ovmf} vm1`,
    name: 'vm1',
    slots: 4,
    warnings: 2,
  },
  {
    what: 'GVT-g, issue 2854',
    line: `-A -m 4096M -c 2 -s 0:0,hostbridge -s 1:0,lpc -s 2,pci-gvt -G "64 448 8" -k /home/clear/bzImage ${legacyBootargs} vm1`,
    name: 'vm1',
    slots: 2,
    warnings: 4,
  },
  {
    what: 'shared memory, issue 8234',
    line: `-m 1024M -s 0:0,hostbridge -s 1:0,lpc -s 8,ivshmem,hv:/shm_region_0,2 ${ovmf} vm1`,
    name: 'vm1',
    slots: 3,
    warnings: 0,
  },
  {
    what: 'UUID era, issue 6499',
    line: `-A -m 1024M -s 0:0,hostbridge -U 615db82a-e189-4b4f-8dbb-d321343e4ab3 --mac_seed 00:16:3e-vm1 ${ovmf} vm1`,
    name: 'vm1',
    slots: 1,
    warnings: 3,
  },
  {
    what: 'life manager, issue 4212',
    line: `-m 1024M --pm_notify_channel uart --pm_by_vuart pty,/run/acrn/life_mngr_vm1 -s 1:0,lpc -l com2,/run/acrn/life_mngr_vm1 ${ovmf} vm1`,
    name: 'vm1',
    slots: 1,
    warnings: 0,
  },
  {
    what: 'option examples of the documents',
    line: '-s 9,virtio-blk,/root/test.img -s 10,virtio-gpio,@gpiochip0{1:6:reset=shutdown}@gpiochip1{0=reset} -s 19,virtio-i2c,0:70@cam1:2F,4:1C -s 7,xhci,1-2,2-2,cap=apl --cpu_affinity 1,3 --mmiodev_pt 0xFED40000,0x00005000 -s 14,passthru,0/e/0,keep_gsi -s 23,passthru,0/17/0 vm1',
    name: 'vm1',
    slots: 6,
    warnings: 0,
  },
  {
    what: 'AGL cluster document, GVT-g and mediators of 2019',
    line: `-A -m 2048M -c 1 -s 0:0,hostbridge -s 2,pci-gvt -G "64 448 8" -s 3,virtio-blk,/root/agl.wic -s 4,virtio-net,tap0 -s 5,virtio-console,@stdio:stdio_port -s 6,virtio-hyper_dmabuf -s 7,xhci,1-4 ${logger} --mac_seed aa-vm1 -k /root/bzImage ${legacyBootargs} vm1`,
    name: 'vm1',
    slots: 5,
    // -A, -c, -G, --mac_seed, pci-gvt, virtio-hyper_dmabuf
    warnings: 6,
  },
  {
    what: 'Windows document with graphics marked as such, and two CDs',
    line: `-A -m 4096M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 2,passthru,0/2/0,gpu -s 8,virtio-net,tap0 -s 4,virtio-blk,/images/win.img -s 5,ahci,cd:/images/w.iso -s 6,ahci,cd:/images/v.iso -s 7,passthru,0/14/0,d3hot_reset ${ovmf} --windows win_vm1`,
    name: 'win_vm1',
    slots: 8,
    warnings: 1,
  },
  {
    what: 'getting started with a real-time VM, of the UUID era',
    line: `-A -m 1024M -s 0:0,hostbridge --lapic_pt --rtvm --virtio_poll 1000000 -U 495ae2e5-2603-4d64-af76-d4bc5a8ec0e5 -s 2,passthru,02/0/0 -s 3,virtio-console,@stdio:stdio_port -s 8,virtio-net,tap0 --pm_notify_channel uart --pm_by_vuart tty,/dev/ttyS1 ${ovmf} hard_rtvm`,
    name: 'hard_rtvm',
    slots: 4,
    warnings: 2,
  },
  {
    what: 'unit tests of the guest side',
    line: '-A -m 4096M --debugexit -E /root/test.elf -s 0:0,hostbridge -s 1:0,lpc -l com2,stdio kvm_test',
    name: 'kvm_test',
    slots: 2,
    warnings: 1,
  },
  {
    what: 'Android and the virtual bootloader, one serial port said twice',
    line: `-A -m 2048M -c 3 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -l com1,stdio -s 9,virtio-net,tap1 -s 3,virtio-blk,b,/data/a/a.img -s 13,virtio-rpmb -s 7,passthru,0/14/0 -s 8,passthru,0/14/1 -s 10,virtio-hyper_dmabuf -s 11,wdt-i6300esb --vsbl /root/VSBL.bin ${legacyBootargs} vm1`,
    name: 'vm1',
    slots: 8,
    // -A, -c, the second com1, --vsbl, virtio-hyper_dmabuf
    warnings: 5,
  },
  {
    what: 'Yocto image with the life manager, release 1.6',
    line: `-A -m 2048M -s 0:0,hostbridge -s 2,passthru,0/2/0,gpu -s 5,virtio-console,@stdio:stdio_port -s 6,virtio-hyper_dmabuf -s 3,virtio-blk,/var/lib/machines/sato.wic -s 4,virtio-net,tap0 -s 7,virtio-rnd ${ovmf} --pm_notify_channel uart --pm_by_vuart pty,/run/acrn/life_mngr_vm1 -s 1:0,lpc -l com2,/run/acrn/life_mngr_vm1 ${logger} --mac_seed a vm1`,
    name: 'vm1',
    slots: 7,
    // -A, --mac_seed, virtio-hyper_dmabuf
    warnings: 3,
  },
  {
    what: 'shared memory of a remote display, pull request 8611',
    line: `--cpu_affinity 64,66 -m 1024M ${ovmf} -s 0:0,hostbridge -s 8,ivshmem,dm:/looking_glass,32 --virtio_poll 1000000 -s 3,virtio-console,@stdio:stdio_port -s 4,virtio-net,tap=RT,mac_seed=90:49:fa:07:9a:69-RT -s 5,virtio-blk,/root/rt/c.wic --rtvm --lapic_pt ${logger} POST_RT_VM1`,
    name: 'POST_RT_VM1',
    slots: 5,
    warnings: 0,
  },
  {
    what: 'nothing but functions of the host, issue 4983',
    line: `-A -m 1024M -s 0:0,hostbridge --lapic_pt --rtvm -U 495ae2e5-2603-4d64-af76-d4bc5a8ec0e5 -s 7,passthru,00/17/0 -s 4,passthru,04/00/0 -s 6,passthru,00/1f/3 ${ovmf} rt`,
    name: 'rt',
    slots: 4,
    warnings: 2,
  },
  {
    what: 'options of releases before 1.0, flags in a row',
    line: '-AYW -m1024M -c2 -s0:0,hostbridge -s1:0,lpc -lcom1,stdio --vsbl /x/VSBL.bin --part_info /x/p.bin -i /run/acrn/ioc_vm1,0x20 -kb vm1',
    name: 'vm1',
    slots: 2,
    // -A, -Y, -W, -c, --vsbl, --part_info, -i
    warnings: 7,
  },
  {
    what: 'everything the configurator can emit',
    line: `--windows --cpu_affinity 0,2 -m 1024M --ssram ${ovmf} -s 1:0,lpc -l com1,stdio -s 0:0,hostbridge -s 3,ivshmem,dm:/shm_a,2 -s 4,uart,vuart_idx:1 -s 5,xhci,1-1,2-2 -s 6,virtio-input,/dev/input/event3,kbd -s 7,virtio-console,@stdio:p -s 8,virtio-net,tap=t,vhost,mac_seed=m -s 9,virtio-blk,d.img,writeback -s 10,virtio-gpu,geometry=1920x1080+0+0 -s 11,vhost-vsock,cid=3 -s 12,passthru,2/0/0,enable_ptm --intr_monitor 10000,10,1,100 --rtvm --lapic_pt --virtio_poll 1000000 ${logger} vm1`,
    name: 'vm1',
    slots: 12,
    // --ssram without a value; screens that nobody sees
    warnings: 2,
  },
];

describe('command lines in the wild', () => {
  test.each(cases)('$what', ({ line, name, slots, warnings }) => {
    const { config, notices } = order(line);
    expect(config.name).toBe(name);
    expect(config.pci).toHaveLength(slots);
    expect(notices.filter((n) => n.level === 'warn').map((n) => n.text)).toHaveLength(warnings);
  });

  // Spaces where commas belong, as scripts generated by release 3.0 had them (pull request 7626). C has no name for it either.
  test.each([
    '-s 7,passthru,0/14/0,no_reset d3hot_reset -k b vm1',
    '-s 2,passthru,0/2/0,gpu d3hot_reset -k b vm1',
    '-s 2, virtio-console,@pty:pty_port -k b vm1',
    '--cpu_affinity 0 2 -k b vm1',
    '-s 3,virtio-blk, a.img -k b vm1',
  ])('%s: refused with what is missing', (line) => {
    expect(() => order(line)).toThrow(
      expect.objectContaining({ hint: expect.stringContaining('commas between them') }),
    );
  });

  test('the passthrough document forgets the name of the VM', () => {
    const line = `-m 2048M -s 0:0,hostbridge -s 3,virtio-blk,user-vm-test.img -s 6,passthru,a9/00/0,enable_ptm ${ovmf}`;
    expect(() => order(line)).toThrow('the name of the VM is missing');
    expect(order(`${line} vm1`).config.pci).toHaveLength(3);
  });
});

describe('a command line, the file of it, and the command line of that', () => {
  test.each(cases)('$what', ({ line }) => goRound(words(line), allDrivers));

  const recorded =
    recordedDir === undefined
      ? []
      : readdirSync(recordedDir)
          .map((name) => join(recordedDir ?? '', name, 'case.json'))
          .filter((path) => existsSync(path))
          .map((path) => JSON.parse(readFileSync(path, 'utf8')) as { name: string; argv: string[] });
  test.skipIf(recorded.length === 0)('of every recorded case', () => {
    for (const { name, argv } of recorded) {
      try {
        goRound(argv, pciDrivers);
      } catch (error) {
        throw new Error(`${name}: ${argv.join(' ')}`, { cause: error });
      }
    }
    expect(recorded.length).toBeGreaterThan(100);
  });
});
