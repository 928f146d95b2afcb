/** A VM whose board is a few ports, on the fake hypervisor: for what core/vm.ts does by itself. */
import type { Board, BoardParts } from '../../devicemodel/core/board.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { Log } from '../../devicemodel/core/log.ts';
import { Vm } from '../../devicemodel/core/vm.ts';
import { FakeHsm, type HsmMethod } from './fake-hsm.ts';
import { TestLoop } from './test-loop.ts';
import { bareVmConfig } from './vm-config.ts';

const config: VmConfig = {
  ...bareVmConfig,
  boot: { kind: 'bzimage', kernelPath: 'unused', ramdiskPath: undefined, bootargs: undefined },
};

const vuart: HvVdev = {
  type: 'vuart',
  bdf: { bus: 0, device: 5, function: 0 },
  registersBar: 0x8000_0000,
  msixBar: 0x8000_1000,
  vuartIndex: 1,
};

/** Called in the middle of what they are named after. */
export interface SmallVmHooks {
  readonly onOpen?: (life: number) => void | Promise<void>;
  readonly onStart?: (parts: BoardParts) => void | Promise<void>;
  readonly onReset?: () => void | Promise<void>;
  readonly onSuspend?: () => void;
  readonly onFlush?: () => void;
  /** @returns whether the guest listens. */
  readonly onPowerButton?: () => boolean;
}

/** Port 0x10: power off; 0x11: system reset; 0x12: full reset; 0x13: suspend. Reads count. */
function makeBoard(parts: BoardParts, trace: string[], hooks: SmallVmHooks): Board {
  let reads = 0;
  let isPlugged = false;
  const plug = () => {
    parts.hsm.createVdev(vuart);
    isPlugged = true;
  };
  const unplug = () => {
    if (!isPlugged) return;
    isPlugged = false;
    parts.hsm.destroyVdev(vuart);
  };
  const kinds = ['poweroff', 'system-reset', 'full-reset', 'suspend'] as const;
  parts.undo.add(
    parts.pio.register(
      { base: 0x10, size: 4, name: 'test' },
      {
        read: () => reads++,
        write: (offset) => parts.power.request({ kind: kinds[offset] as (typeof kinds)[number], reason: 'the guest' }),
      },
    ),
  );
  return {
    pciConfig: { readConfig: () => 0x1234, writeConfig: () => {} },
    start: async () => {
      await hooks.onStart?.(parts);
      plug();
      parts.undo.defer(unplug);
    },
    writeTables: () => void trace.push('tables'),
    flush: () => hooks.onFlush?.(),
    settle: () => undefined,
    reset: async () => {
      await hooks.onReset?.();
      trace.push('reset');
      reads = 0;
      unplug();
    },
    restore: plug,
    suspend: () => {
      trace.push('suspend');
      hooks.onSuspend?.();
    },
    resume: () => void trace.push('resume'),
    pressPowerButton: () => hooks.onPowerButton?.() ?? false,
    rescanBlockDevice: async () => false,
    changeMedium: async () => {},
    resizeDisk: async () => 0,
    setLink: async () => {},
  };
}

export function makeVm(
  prepare: (hsm: FakeHsm, life: number) => void,
  hooks: SmallVmHooks = {},
  changed: Partial<VmConfig> = {},
) {
  const trace: string[] = [];
  const errors: string[] = [];
  const lives: FakeHsm[] = [];
  let ramOut = 0;
  const loop = new TestLoop();
  const vm = new Vm(
    { ...config, ...changed },
    {
      openHsm: async () => {
        await hooks.onOpen?.(lives.length + 1);
        const hsm = new FakeHsm({ serving: lives.length % 2 === 0 ? 'from-page' : 'inside' });
        lives.push(hsm);
        prepare(hsm, lives.length);
        return hsm;
      },
      makeBoard: async (parts) => makeBoard(parts, trace, hooks),
      software: {
        regions: [],
        save: () => {},
        load: (memory) => {
          trace.push('load');
          memory.writeU32(0xf27cc, 0x9a010); // FACS waking vector
          return {
            rip: 0x100_0000n,
            cr0: 0x31n,
            cs: { selector: 0x10, base: 0n, limit: 0xffffffff, attributes: 0xc09b },
          };
        },
      },
      cpuAffinity: 0n,
      allocateRam: (regions) => {
        ramOut++;
        return {
          chunks: regions.map((r) => ({ base: r.base, bytes: new Uint8Array(r.sizeBytes), hostAddress: 0n })),
          segments: regions.map((r) => ({
            gpa: r.base,
            sizeBytes: r.sizeBytes,
            bytes: new Uint8Array(r.sizeBytes),
            hostAddress: 0x1000n,
            writable: true,
          })),
          dispose: () => void ramOut--,
        };
      },
      loop,
      log: new Log([{ maxLevel: 1, write: (_level, line) => void errors.push(line) }]),
    },
  );
  return { vm, loop, trace, errors, lives, ramOut: () => ramOut };
}

/** What was asked of the hypervisor, in order. */
export const methods = (hsm: FakeHsm | undefined) => (hsm as FakeHsm).calls.map((c) => c.method);
export const START: HsmMethod[] = ['createVm', 'mapRam', 'createVdev', 'setVcpuRegs', 'createIoreqClient', 'startVm'];
export const END: HsmMethod[] = ['pauseVm', 'destroyIoreqClient', 'destroyVdev', 'pauseVm', 'destroyVm', 'close'];
