/**
 * A made-up `/sys/bus/pci` in a directory of its own: functions with configuration space, resources and reset file, as
 * a host has them. Nothing of it is a device.
 *
 *   using host = new FakeHostPci();
 *   host.add('02:00.0', { vendorId: 0x8086, bars: [{ kind: 'mem32', address: 0xa1200000, sizeBytes: 0x100000 }] });
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface FakeBar {
  readonly kind: 'io' | 'mem32' | 'mem64';
  readonly address: number;
  readonly sizeBytes: number;
  readonly prefetchable?: boolean;
  /** Default: the next free register. */
  readonly index?: number;
}

export interface FakeHostFunction {
  readonly vendorId?: number;
  readonly deviceId?: number;
  readonly classCode?: number;
  readonly headerType?: number;
  readonly bars?: readonly FakeBar[];
  /** Interrupt Line and Pin. */
  readonly interrupt?: readonly [line: number, pin: number];
  readonly hasMsi?: boolean;
  /** Device/port type of a PCI Express capability, and the low bits of its device capabilities. */
  readonly express?: { readonly type: number; readonly maxPayload?: number };
  readonly hasPowerManagement?: boolean;
  /** PTM capability and control registers. */
  readonly ptm?: readonly [capability: number, control: number];
  readonly secondaryBus?: number;
  readonly hasReset?: boolean;
  readonly driver?: string;
  readonly iommuGroup?: string;
  readonly isVirtualFunction?: boolean;
  /** Laid over the configuration space at last: offset and dwords. */
  readonly registers?: readonly (readonly [offset: number, ...dwords: number[]])[];
}

const CONFIG_BYTES = 4096;
const At = { power: 0x40, msi: 0x90, express: 0xa0, ptm: 0x100 } as const;
const Resource = { io: 0x100, mem32: 0x200, mem64: 0x10_0200, prefetch: 0x2000 } as const;

export class FakeHostPci {
  /** Give it to whoever takes a host tree. */
  readonly root = mkdtempSync(join(tmpdir(), 'host-pci-'));

  constructor() {
    for (const directory of ['devices', 'drivers/pci-stub']) mkdirSync(join(this.#bus, directory), { recursive: true });
    for (const file of ['bind', 'unbind']) writeFileSync(join(this.#bus, 'drivers/pci-stub', file), '');
  }

  /** @param at `02:00.0`, or with a domain before it. */
  add(at: string, fn: FakeHostFunction): this {
    const path = this.path(at);
    mkdirSync(path, { recursive: true });
    const config = configSpace(fn);
    const { isVirtualFunction = false } = fn;
    const view = new DataView(config.buffer);
    const hex = (value: number, digits: number) => `0x${value.toString(16).padStart(digits, '0')}\n`;
    const text: Record<string, string> = {
      vendor: hex(view.getUint16(0, true), 4),
      device: hex(view.getUint16(2, true), 4),
      subsystem_vendor: hex(view.getUint16(0x2c, true), 4),
      subsystem_device: hex(view.getUint16(0x2e, true), 4),
      class: hex(view.getUint32(8, true) >>> 8, 6),
      irq: `${view.getUint8(0x3c)}\n`,
      resource: resources(fn.bars ?? []),
      driver_override: '(null)\n',
    };
    if (isVirtualFunction) {
      // SR-IOV 1.1 §3.4.1: neither ids nor base addresses.
      config.fill(0xff, 0, 4).fill(0, 0x10, 0x28);
      symlinkSync('../0000:00:00.0', join(path, 'physfn'));
    }
    for (const [file, content] of Object.entries(text)) writeFileSync(join(path, file), content);
    writeFileSync(join(path, 'config'), config);
    if (fn.hasReset !== false) writeFileSync(join(path, 'reset'), '');
    if (fn.driver !== undefined) this.bind(at, fn.driver);
    if (fn.iommuGroup !== undefined) this.#group(at, fn.iommuGroup);
    return this;
  }

  /** The kernel's part of binding: the link to the driver. */
  bind(at: string, driver: string): void {
    const drivers = join(this.#bus, 'drivers', driver);
    mkdirSync(drivers, { recursive: true });
    for (const file of ['bind', 'unbind']) {
      if (!existsSync(join(drivers, file))) writeFileSync(join(drivers, file), '');
    }
    rmSync(join(this.path(at), 'driver'), { force: true });
    symlinkSync(`../../drivers/${driver}`, join(this.path(at), 'driver'));
  }

  /** Pulled out. */
  remove(at: string): void {
    rmSync(this.path(at), { recursive: true });
  }

  path(at: string): string {
    return join(this.#bus, 'devices', at.split(':').length === 3 ? at : `0000:${at}`);
  }

  /** Of a file of a function, or below `drivers`. */
  read(at: string, file: string): string {
    return readFileSync(join(this.path(at), file), 'latin1');
  }
  readDriver(driver: string, file: string): string {
    return readFileSync(join(this.#bus, 'drivers', driver, file), 'latin1');
  }
  config(at: string): Buffer {
    return readFileSync(join(this.path(at), 'config'));
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
  dispose(): void {
    rmSync(this.root, { recursive: true, force: true });
  }

  get #bus(): string {
    return join(this.root, 'sys/bus/pci');
  }

  #group(at: string, group: string): void {
    const members = join(this.root, 'sys/kernel/iommu_groups', group, 'devices');
    mkdirSync(members, { recursive: true });
    const name = this.path(at).split('/').at(-1) as string;
    symlinkSync(this.path(at), join(members, name));
    symlinkSync(join(this.root, 'sys/kernel/iommu_groups', group), join(this.path(at), 'iommu_group'));
  }
}

function configSpace(fn: FakeHostFunction): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CONFIG_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, fn.vendorId ?? 0x8086, true);
  view.setUint16(2, fn.deviceId ?? 0x1234, true);
  view.setUint16(4, 6, true);
  view.setUint32(8, (((fn.classCode ?? 0x020000) << 8) | 3) >>> 0, true);
  bytes[0x0e] = fn.headerType ?? 0;
  let next = 0;
  for (const bar of fn.bars ?? []) {
    const index = bar.index ?? next;
    const flags = bar.kind === 'io' ? 1 : (bar.kind === 'mem64' ? 4 : 0) | (bar.prefetchable === true ? 8 : 0);
    view.setUint32(0x10 + 4 * index, ((bar.address % 0x1_0000_0000) | flags) >>> 0, true);
    if (bar.kind === 'mem64' && index < 5)
      view.setUint32(0x14 + 4 * index, Math.floor(bar.address / 0x1_0000_0000), true);
    next = index + (bar.kind === 'mem64' ? 2 : 1);
  }
  const [line, pin] = fn.interrupt ?? [0, 0];
  bytes[0x3c] = line;
  bytes[0x3d] = pin;
  if (fn.secondaryBus !== undefined) bytes.set([0, fn.secondaryBus, fn.secondaryBus], 0x18);
  addCapabilities(fn, bytes, view);
  for (const [offset, ...dwords] of fn.registers ?? []) {
    for (const [i, value] of dwords.entries()) view.setUint32(offset + 4 * i, value, true);
  }
  return bytes;
}

function addCapabilities(fn: FakeHostFunction, bytes: Uint8Array, view: DataView): void {
  const list: (readonly [offset: number, id: number])[] = [];
  if (fn.hasPowerManagement !== false) list.push([At.power, 0x01]);
  if (fn.hasMsi === true) list.push([At.msi, 0x05]);
  if (fn.express !== undefined) list.push([At.express, 0x10]);
  if (list.length > 0) {
    bytes[0x06] = 0x10;
    bytes[0x34] = (list[0] as readonly [number, number])[0];
  }
  for (const [i, [offset, id]] of list.entries()) {
    bytes[offset] = id;
    bytes[offset + 1] = list[i + 1]?.[0] ?? 0;
  }
  if (fn.express !== undefined) {
    view.setUint16(At.express + 2, 2 | (fn.express.type << 4), true);
    view.setUint32(At.express + 4, fn.express.maxPayload ?? 0, true);
  }
  if (fn.ptm !== undefined) {
    view.setUint32(At.ptm, 0x0001_001f, true);
    view.setUint32(At.ptm + 4, fn.ptm[0], true);
    view.setUint32(At.ptm + 8, fn.ptm[1], true);
  }
}

function resources(bars: readonly FakeBar[]): string {
  const lines = new Array<string>(7).fill('0x0000000000000000 0x0000000000000000 0x0000000000000000');
  const hex = (value: number) => `0x${value.toString(16).padStart(16, '0')}`;
  let next = 0;
  for (const bar of bars) {
    const index = bar.index ?? next;
    const flags = Resource[bar.kind] | (bar.prefetchable === true ? Resource.prefetch : 0);
    lines[index] = `${hex(bar.address)} ${hex(bar.address + bar.sizeBytes - 1)} ${hex(flags)}`;
    next = index + (bar.kind === 'mem64' ? 2 : 1);
  }
  return `${lines.join('\n')}\n`;
}
