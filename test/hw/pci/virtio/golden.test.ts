/**
 * The recorded guest of the C device model plays against ours: every value it read, every interrupt it got and every
 * IOEVENTFD must be the same. Needs the records (ACRN_GOLDEN_DIR).
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterEach, describe, expect, test } from 'vitest';
import type { AccessSize, Bdf } from '../../../../devicemodel/core/address.ts';
import type { Hsm, IoeventfdSpec, IrqLineOp } from '../../../../devicemodel/core/hsm/hsm.ts';
import { MmioBus, PioBus } from '../../../../devicemodel/core/io-bus.ts';
import { checkOptions, optionsFromText } from '../../../../devicemodel/core/options.ts';
import { definePciDriver, type PciDriver } from '../../../../devicemodel/hw/pci/driver.ts';
import { PciHost } from '../../../../devicemodel/hw/pci/host.ts';
import { virtioBlk } from '../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { virtioConsole } from '../../../../devicemodel/hw/pci/virtio/console/console.ts';
import { defaultMac, VirtioNet, virtioNet } from '../../../../devicemodel/hw/pci/virtio/net/net.ts';
import { virtioRnd } from '../../../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioPci } from '../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { MEMORY_DIR } from '../../../support/memory-dir.ts';
import { socketPair } from '../../../support/socket-pair.ts';
import { type FakeCharBackend, VirtioMachine } from '../../../support/virtio-driver.ts';

const goldenDir = process.env['ACRN_GOLDEN_DIR'] ?? join(import.meta.dirname, '../../../../../shared/golden');
const hasGolden = existsSync(join(goldenDir, 'README.md'));

type Fields = Readonly<Record<string, unknown>>;
interface Action extends Fields {
  readonly op: string;
  readonly volatile?: boolean;
}
interface Event extends Fields {
  readonly ev: string;
}

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A tap that takes everything and has nothing: the recorded guests only send. */
const netOnSocket = definePciDriver({
  ...virtioNet,
  create: (options, env) => {
    const [fd, peer] = socketPair();
    undo.push(() => peer.close());
    const mac = options.mac ?? defaultMac(env.bdf, options.macSeed);
    const device = new VirtioNet(options, { clock: env.clock, log: env.log, mac, openTap: () => fd });
    return new VirtioPci(device, env, {
      mode: 'legacy',
      identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000, hasWindowsId: true },
    });
  },
});
const drivers = [virtioBlk, virtioConsole, virtioRnd, netOnSocket] as unknown as PciDriver[];

function readCase(name: string): { argv: string[]; actions: Action[]; events: Event[] } {
  const dir = join(goldenDir, name);
  const plain = join(dir, 'trace.jsonl');
  const trace = existsSync(plain) ? readFileSync(plain, 'utf8') : gunzipSync(readFileSync(`${plain}.gz`)).toString();
  return {
    argv: (JSON.parse(readFileSync(join(dir, 'case.json'), 'utf8')) as { argv: string[] }).argv,
    actions: (JSON.parse(readFileSync(join(dir, 'script.json'), 'utf8')) as { actions: Action[] }).actions,
    events: trace
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as Event),
  };
}

/** The fixture generator's bytes: sha256 of a running label. */
function stream(label: string, size: number): Buffer {
  const blocks: Buffer[] = [];
  for (let i = 0; i * 32 < size; i++) blocks.push(createHash('sha256').update(`${label}:${i}`).digest());
  return Buffer.concat(blocks).subarray(0, size);
}

/** `($bio&~3)+0x10` and the like. */
function evaluate(expression: unknown, names: ReadonlyMap<string, number>): number {
  if (typeof expression === 'number') return expression;
  const text = String(expression).replace(/\$(\w+)/g, (_all, name: string) => String(names.get(name)));
  if (!/^[\dxa-fA-F()~*+<>&| -]+$/.test(text)) throw new Error(`not an expression: ${text}`);
  return Function(`return (${text}) >>> 0`)() as number;
}

class Replay {
  readonly machine: VirtioMachine;
  readonly host: PciHost;
  readonly pio = new PioBus();
  readonly mmio = new MmioBus();
  /** Since the last `irqs`. */
  #irqs: Fields[] = [];
  readonly ioctls: Fields[] = [];
  readonly #names = new Map<string, number>();
  readonly #kicks = new Map<string, IoeventfdSpec>();

  constructor(argv: readonly string[]) {
    this.machine = new VirtioMachine({
      ram: [[0, 0x1000_0000]],
      windows: argv.includes('--windows'),
      virtioMsi: argv.includes('--virtio_msi'),
      hasOvmf: argv.includes('--ovmf'),
    });
    undo.push(() => this.machine.dispose());
    const hsm = {
      setIrqLine: (gsi: number, op: IrqLineOp) => {
        this.#irqs.push({ kind: 'gsi', gsi, op: op === 'high' ? 0 : 1 });
        this.ioctls.push({ name: 'SET_IRQLINE', gsi, op });
      },
      ioeventfd: (spec: IoeventfdSpec, assign: boolean) => {
        if (assign) this.#kicks.set(`${spec.address}`, spec);
        else this.#kicks.delete(`${spec.address}`);
        this.ioctls.push({
          name: 'IOEVENTFD',
          flags:
            (spec.space === 'pio' ? 1 : 0) |
            (spec.dataMatch === undefined ? 0 : 2) |
            (assign ? 0 : 4) |
            (spec.asyncio === true ? 8 : 0),
          addr: spec.address,
          data: Number(spec.dataMatch ?? 0n),
        });
      },
    } as unknown as Hsm;
    let gsi = 16;
    let link = 0;
    const env = this.machine.env();
    const { bdf: _bdf, intx: _intx, ...wires } = env;
    this.host = new PciHost({
      ...wires,
      hsm,
      charBackend: (_user, spec) => env.charBackend(spec),
      msi: {
        signal: ({ address, data }) => {
          const hex = { addr: `0x${address.toString(16)}`, data: `0x${data.toString(16)}` };
          this.#irqs.push({ kind: 'msi', ...hex, via: 'inject' });
          this.ioctls.push({ name: 'INJECT_MSI', ...hex });
        },
      },
      pio: this.pio,
      mmio: this.mmio,
      router: {
        allocateGsi: () => gsi++,
        allocateLink: () => (link++ % 8) + 1,
        readLink: () => 0x80,
        writeLink: () => {},
        reset: () => {},
      },
    });
    for (let i = 0; i < argv.length; i++) {
      if (argv[i] === '-s') this.#add(argv[i + 1] as string);
    }
  }

  #add(slot: string): void {
    const [place, name, ...rest] = slot.split(',') as [string, string, ...string[]];
    const driver = drivers.find((d) => d.name === name);
    if (driver === undefined) return;
    if (rest[0] === 'b') rest.shift();
    const text = rest.join(',');
    const options = driver.parseText?.(text) ?? optionsFromText(driver.options, text);
    const bdf: Bdf = { bus: 0, device: Number(place.split(':').at(-1)), function: 0 };
    this.host.add({ bdf, driver: name, options: checkOptions(driver.options, options), text }, driver);
  }

  async start(): Promise<void> {
    this.host.configure();
    this.host.createVdevs();
    await this.host.start();
    undo.push(() => this.host.stop());
  }

  async act(action: Action): Promise<Fields | undefined> {
    const number = (key: string) => evaluate(action[key], this.#names);
    const size = Number(action['size'] ?? 4) as AccessSize;
    const { memory } = this.machine;
    const ones = 2 ** (8 * size) - 1;
    const named = (value: number): Fields => {
      if (typeof action['as'] === 'string') this.#names.set(action['as'], value);
      return { value: `0x${value.toString(16)}` };
    };
    switch (action.op) {
      case 'pio_read':
        return named(this.pio.read(number('port'), size) ?? ones);
      case 'pio_write':
        return await this.#pioWrite(number('port'), size, number('value'));
      case 'mmio_read':
        return named(this.mmio.read(number('addr'), size) ?? ones);
      case 'mmio_write':
        this.mmio.write(number('addr'), size, number('value'));
        return undefined;
      case 'cfg_read':
        return named(this.host.readConfig(this.#bdf(action), number('reg'), size));
      case 'cfg_write':
        this.host.writeConfig(this.#bdf(action), number('reg'), size, number('value'));
        return undefined;
      case 'mem_write':
        memory.write(number('gpa'), Buffer.from(String(action['hex']), 'hex'));
        return undefined;
      case 'mem_fill':
        memory.bytes(number('gpa'), number('len')).fill(Number(action['byte'] ?? 0));
        return undefined;
      case 'mem_read':
        return { hex: Buffer.from(memory.read(number('gpa'), number('len'))).toString('hex') };
      case 'poll_mem': {
        const value = size === 2 ? memory.readU16(number('gpa')) : memory.readU32(number('gpa'));
        return { hit: value === number('want'), value: `0x${value.toString(16)}` };
      }
      case 'irqs':
        return { list: this.#irqs.splice(0) };
      case 'bar_probe':
        return this.#probe(this.#bdf(action));
      case 'stdin':
        (this.machine.backends[0] as FakeCharBackend).type(String(action['text']));
        return undefined;
      case 'wait_stdout':
        return { ok: (this.machine.backends[0] as FakeCharBackend).written.includes(String(action['text'])) };
      default:
        return undefined;
    }
  }

  async #pioWrite(port: number, size: AccessSize, value: number): Promise<Fields> {
    const kick = this.#kicks.get(`${port}`);
    if (kick !== undefined && kick.dataMatch === BigInt(value)) {
      // The hypervisor would write the eventfd; the write is not seen by the device model.
      const { writeSync } = await import('node:fs');
      writeSync(kick.fd, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
      await new Promise((resolve) => setTimeout(resolve, 20));
    } else {
      this.pio.write(port, size, value);
    }
    return {};
  }

  #bdf(action: Action): Bdf {
    const [, device, fn] = /:(\w+)\.(\d)/.exec(String(action['bdf'])) as RegExpExecArray;
    return { bus: 0, device: Number.parseInt(device as string, 16), function: Number(fn) };
  }

  #probe(bdf: Bdf): Fields {
    const hex = (value: number) => `0x${value.toString(16)}`;
    const bars = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map((reg) => {
      const value = this.host.readConfig(bdf, reg, 4);
      this.host.writeConfig(bdf, reg, 4, 0xffffffff);
      const ones = this.host.readConfig(bdf, reg, 4);
      this.host.writeConfig(bdf, reg, 4, value);
      return { reg: hex(reg), value: hex(value), ones: hex(ones), restored: hex(this.host.readConfig(bdf, reg, 4)) };
    });
    return { bars };
  }

  /** All of a function's header and capabilities. */
  dump(bdf: Bdf): Buffer {
    const bytes = Buffer.alloc(256);
    for (let reg = 0; reg < 256; reg += 4) bytes.writeUInt32LE(this.host.readConfig(bdf, reg, 4), reg);
    return bytes;
  }
}

function arrange(name: string) {
  const { argv, actions, events } = readCase(name);
  const work = mkdtempSync(join(MEMORY_DIR, 'virtio-golden-'));
  undo.push(() => rmSync(work, { recursive: true }));
  writeFileSync(join(work, 'disk1'), stream('disk1', 1 << 20));
  const previous = process.cwd();
  process.chdir(work);
  undo.push(() => process.chdir(previous));
  // Options name files relative to the work directory: serial numbers are digests of the text.
  const named = argv.map((word) => word.replaceAll('@DISK1@', 'disk1').replaceAll('@WORK@', work));
  const only = (event: Event) => event['op'] !== undefined && event.ev === 'guest';
  return { replay: new Replay(named), actions, recorded: events.filter(only), events, work };
}

describe.skipIf(!hasGolden)(`recorded guests (${hasGolden ? 'found' : 'no golden directory'})`, () => {
  test.each([
    'blk_intx',
    'blk_ro',
    'blk_writeback',
    'blk_iothread',
    'con_file',
    'con_multi1',
    'con_stdio',
    'rnd_intx',
    'net_tap',
    'net_seed2',
  ])('%s', async (name) => {
    const { replay, actions, recorded, events, work } = arrange(name);
    await replay.start();
    for (const [i, action] of actions.entries()) {
      const result = await replay.act(action);
      const expected = recorded.find((e) => e['i'] === i);
      if (result === undefined || expected === undefined || action.volatile === true) continue;
      for (const [key, value] of Object.entries(result)) {
        expect({ i, op: action.op, [key]: value }).toEqual({ i, op: action.op, [key]: expected[key] });
      }
    }
    const digest = recorded.find((e) => String(e['cmd']).startsWith('sha256sum < disk1'));
    if (digest !== undefined) {
      const sum = createHash('sha256')
        .update(readFileSync(join(work, 'disk1')))
        .digest('hex');
      expect(digest['output']).toBe(`${sum}  -\n`);
    }
    const kicks = events
      .filter((e) => e['name'] === 'IOEVENTFD')
      .map((e) => e['arg'] as { flags: string; addr: string; data: string })
      .map(({ flags, addr, data }) => ({
        name: 'IOEVENTFD',
        flags: Number(flags),
        addr: Number(addr),
        data: Number(data),
      }));
    expect(replay.ioctls.filter((c) => c['name'] === 'IOEVENTFD')).toEqual(kicks);
  });

  test.each([
    'opt_virtio_msi',
    'devs_all',
    'boot_ovmf_devices',
    'dev_30_virtio_blk_disk1_ro',
    'dev_35_virtio_blk_nodisk',
    'dev_38_virtio_blk_disk1_discard',
  ])('%s: configuration space of the virtio functions', async (name) => {
    const { replay, recorded } = arrange(name);
    await replay.start();
    const functions = recorded.filter(
      (e) => e['op'] === 'pci_fn' && String(e['hex']).startsWith('f41a') && !String(e['id']).endsWith('1110'),
    );
    expect(functions.length).toBeGreaterThan(0);
    for (const fn of functions) {
      const device = Number.parseInt(String(fn['bdf']).slice(2), 16);
      const ours = replay.dump({ bus: 0, device, function: 0 });
      const theirs = Buffer.from(String(fn['hex']), 'hex');
      // Not virtio's: addresses depend on the other devices, the interrupt line on routing.
      for (const bytes of [ours, theirs]) {
        bytes.fill(0, 0x10, 0x28);
        bytes[0x3c] = 0;
      }
      expect(ours.subarray(0, theirs.length).toString('hex')).toBe(theirs.toString('hex'));
    }
  });
});
