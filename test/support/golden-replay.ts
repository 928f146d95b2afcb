/**
 * Play the recorded guest of a golden case against a PCI host, and compare what it reads and what the hypervisor is
 * asked. Only what PCI and the serial ports answer is played; a case that has other devices is not for here.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { expect } from 'vitest';
import { type AccessSize, allOnes, hex } from '../../devicemodel/core/address.ts';
import type { ComConfig } from '../../devicemodel/core/config.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import { encodeVdev, encodeVdevForDestroy } from '../../devicemodel/core/hsm/vdev.ts';
import { silentLog } from '../../devicemodel/core/log.ts';
import { checkOptions, optionsFromText } from '../../devicemodel/core/options.ts';
import { InterruptWiring } from '../../devicemodel/hw/interrupts.ts';
import { attachComPort, comResources } from '../../devicemodel/hw/pci/lpc.ts';
import { lookupPciDriver } from '../../devicemodel/hw/registry.ts';
import { FakeCharBackend } from './fake-char-backend.ts';
import { PciMachine } from './pci-machine.ts';

export const goldenDir = process.env['ACRN_GOLDEN_DIR'] ?? join(import.meta.dirname, '../../../shared/golden');

/** Why a case cannot be replayed here, or undefined. */
export function whyNot(name: string): string | undefined {
  if (!existsSync(join(goldenDir, name, 'case.json'))) return `no ${goldenDir}/${name}`;
  return undefined;
}

interface TraceEvent {
  readonly ev: string;
  readonly op?: string;
  readonly name?: string;
  readonly i?: number;
  readonly bdf?: string;
  readonly reg?: string;
  readonly port?: string;
  readonly addr?: string;
  readonly size?: number;
  readonly value?: string;
  readonly hex?: string;
  readonly by?: string;
  readonly in?: string;
  readonly arg?: { readonly gsi: number; readonly op: number; readonly user_vm_pa?: string; readonly attr?: string };
  readonly bars?: ReadonlyArray<{
    readonly reg: string;
    readonly value: string;
    readonly ones: string;
    readonly restored: string;
  }>;
  readonly sig?: string;
}

interface ScriptAction {
  readonly op: string;
  readonly text?: string;
  readonly req?: { readonly op: string; readonly port?: string; readonly addr?: string; readonly size: number };
}

function readCase(name: string) {
  const file = (base: string) => {
    const path = join(goldenDir, name, base);
    return existsSync(path) ? readFileSync(path, 'utf8') : gunzipSync(readFileSync(`${path}.gz`)).toString('utf8');
  };
  const { argv } = JSON.parse(file('case.json')) as { argv: string[] };
  const { actions } = JSON.parse(file('script.json')) as { actions: ScriptAction[] };
  const trace = file('trace.jsonl')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as TraceEvent);
  return { argv, actions, trace };
}

const IRQ_OPS = { high: 0, low: 1, 'rising-pulse': 2, 'falling-pulse': 3 } as const;
const IOCTLS = new Set(['SET_IRQLINE', 'CREATE_VDEV', 'DESTROY_VDEV']);

/** Build the machine a command line describes. Options with a value this suite does not need are skipped. */
export async function machineOf(argv: readonly string[]): Promise<{ machine: PciMachine; com: FakeCharBackend[] }> {
  const valuesOf = (option: string) => argv.flatMap((arg, i) => (arg === option ? [argv[i + 1] as string] : []));
  const machine = new PciMachine({
    hasOvmf: argv.includes('--ovmf'),
    virtioMsi: argv.includes('--virtio_msi'),
    windows: argv.includes('--windows'),
  });
  const com: FakeCharBackend[] = [];
  for (const text of valuesOf('-l')) {
    const [name = '', backend = ''] = text.split(',');
    const config: ComConfig = { index: Number(name.slice(3)) as ComConfig['index'], backend };
    const { irq } = comResources(config);
    machine.pirq.reserve(irq);
    const end = backend === '' ? undefined : new FakeCharBackend(backend);
    const line = new InterruptWiring(machine.hsm as unknown as Hsm, silentLog).edge(irq);
    const { uart } = attachComPort(config, { pio: machine.pio, irq: line, backend: end });
    await uart.start();
    if (end !== undefined) com.push(end);
  }
  for (const text of valuesOf('-s')) {
    const [place = '', name = '', ...rest] = text.split(',');
    const found = lookupPciDriver(name);
    if (found.kind !== 'driver') throw new Error(`${text}: no such driver here`);
    const driver = await found.entry.load();
    const optionText = rest.join(',').replaceAll('@DISK1@', '/dev/null');
    const options = driver.parseText?.(optionText) ?? optionsFromText(driver.options, optionText);
    const numbers = place.split(':').map(Number);
    const [bus, device, fn] = numbers.length === 3 ? numbers : [0, numbers[0], numbers[1] ?? 0];
    const at = { bus: bus as number, device: device as number, function: fn as number };
    machine.host.add(
      { bdf: at, driver: name, options: checkOptions(driver.options, options), text: optionText },
      driver,
    );
  }
  return { machine, com };
}

/** @throws if any read or any hypervisor call differs. @returns how many things were compared. */
export async function replay(name: string): Promise<number> {
  const { argv, actions, trace } = readCase(name);
  const { machine, com } = await machineOf(argv);
  machine.power();
  let compared = 0;
  const same = (what: string, got: unknown, want: unknown) => {
    compared++;
    expect(got, `${name}: ${what}`).toEqual(want);
  };
  const wanted: string[] = [];
  for (const event of trace) {
    if (event.ev === 'ioctl' && IOCTLS.has(event.name ?? '')) {
      wanted.push(
        event.name === 'SET_IRQLINE' ? `SET_IRQLINE ${event.arg?.gsi} ${event.arg?.op}` : `${event.name} ${event.in}`,
      );
    }
    if (event.ev === 'finish') machine.host.destroyVdevs();
    if (event.ev !== 'guest' || event.by !== undefined) continue;
    const what = `${event.op} ${event.bdf ?? ''} ${event.reg ?? event.port ?? event.addr ?? ''} size ${event.size}`;
    play(machine, com, event, actions[event.i as number], (got, want) => same(what, got, want));
  }
  const got = machine.hsm.calls.flatMap((c) => {
    if (c.name === 'SET_IRQLINE') return [`SET_IRQLINE ${c.gsi} ${IRQ_OPS[c.op]}`];
    if (c.name === 'CREATE_VDEV') return [`CREATE_VDEV ${Buffer.from(encodeVdev(c.vdev)).toString('hex')}`];
    if (c.name === 'DESTROY_VDEV') return [`DESTROY_VDEV ${Buffer.from(encodeVdevForDestroy(c.vdev)).toString('hex')}`];
    return [];
  });
  same('hypervisor calls', got, wanted);
  return compared;
}

function play(
  machine: PciMachine,
  com: FakeCharBackend[],
  event: TraceEvent,
  action: ScriptAction | undefined,
  same: (got: unknown, want: unknown) => void,
): void {
  const size = event.size as AccessSize;
  const value = Number(event.value);
  const at = event.bdf as string;
  switch (event.op) {
    case 'pci_fn':
      same(machine.cfgDump(at), event.hex);
      return;
    case 'bar_probe':
      same(probeBars(machine, at), event.bars);
      return;
    case 'cfg_read':
      same(hex(machine.cfgRead(at, Number(event.reg), size)), event.value);
      return;
    case 'cfg_write':
      machine.cfgWrite(at, Number(event.reg), value, size);
      return;
    case 'pio_read':
      if (event.bdf !== undefined) same(hex(machine.cfgRead(at, Number(event.reg), size)), event.value);
      else same(hex(machine.pio.read(Number(event.port), size) ?? allOnes(size)), event.value);
      return;
    case 'pio_write':
      machine.pio.write(Number(event.port), size, value);
      return;
    case 'mmio_read':
      if (event.size === 8) same(hex(machine.mmio.readU64(Number(event.addr)) ?? 0xffff_ffff_ffff_ffffn), event.value);
      else same(hex(machine.mmioRead(Number(event.addr), size)), event.value);
      return;
    case 'mmio_write':
      machine.mmio.write(Number(event.addr), size, value);
      return;
    case 'stdin':
      com[0]?.type(action?.text ?? '');
      return;
    case 'poll_io':
      if (action?.req?.port !== undefined) machine.pio.read(Number(action.req.port), action.req.size as AccessSize);
      return;
    case 'wait_stdout':
      same(com[0]?.output.includes(action?.text ?? '\0'), true);
      return;
    default:
      return;
  }
}

/** As the recorded guest sizes BARs: decoding off, all ones, back, decoding on. */
function probeBars(machine: PciMachine, at: string): TraceEvent['bars'] {
  const command = machine.cfgRead(at, 0x04, 2);
  machine.cfgWrite(at, 0x04, command & ~3, 2);
  const bars = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map((reg) => {
    const value = machine.cfgRead(at, reg);
    machine.cfgWrite(at, reg, 0xffffffff);
    const ones = machine.cfgRead(at, reg);
    machine.cfgWrite(at, reg, value);
    return { reg: hex(reg), value: hex(value), ones: hex(ones), restored: hex(machine.cfgRead(at, reg)) };
  });
  machine.cfgWrite(at, 0x04, command, 2);
  return bars;
}
