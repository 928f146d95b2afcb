import { expect, test } from 'vitest';
import { BugError, ConfigError } from '../../../devicemodel/core/errors.ts';
import { encodeVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { PciBuses } from '../../../devicemodel/hw/pci/buses.ts';
import type { PciEnv } from '../../../devicemodel/hw/pci/driver.ts';
import { RootPort, rootPort } from '../../../devicemodel/hw/pci/root-port.ts';
import { bdf, PciHsm, PciMachine } from '../../support/pci-machine.ts';

const physicalBdf = { bus: 0, device: 0x1c, function: 0 };
const at = (device: number) => ({ bdf: { bus: 0, device, function: 0 } });
const portAt = (device: number, ptmCapOffset?: number) =>
  new RootPort({ physicalBdf, maxPayload: 1, bus: new PciBuses().open(at(device).bdf), ptmCapOffset });

test('describes itself as the recorded port of PTM passthrough did', () => {
  const port = portAt(6, 0x150);
  const bytes = Buffer.from(encodeVdev(port.describe(at(6)))).toString('hex');
  // vendor, device, slot 0x30 and struct vrp_config as C sends them for 00:1c.0 with PTM at 0x150.
  expect(bytes.slice(0, 32)).toBe('8680149d000000003000000000000000');
  expect(bytes.slice(128, 128 + 24)).toBe('e00001000101010050010000');
  expect(port.endpointBdf).toEqual({ bus: 1, device: 0, function: 0 });
});

test('a port without PTM says so', () => {
  expect(portAt(6).describe(at(6))).toMatchObject({ ptmCapOffset: undefined, primaryBus: 0, subordinateBus: 1 });
});

test('a bridge that is not on bus 0 is a mistake of ours', () => {
  expect(() => new PciBuses().open({ bus: 1, device: 0, function: 0 })).toThrow(BugError);
});

test('a port inside another function’s slot is created, destroyed once, and keeps its bus over a reset', () => {
  const hsm = new PciHsm();
  const port = portAt(6, 0x150);
  port.destroy(hsm);
  port.create(hsm, at(6));
  port.destroy(hsm);
  port.destroy(hsm);
  port.create(hsm, at(6));
  expect(hsm.names).toEqual(['CREATE_VDEV', 'DESTROY_VDEV', 'CREATE_VDEV']);
  expect(hsm.calls[2]).toEqual(hsm.calls[0]);
});

test('a port that could not be created is not destroyed', () => {
  const hsm = new PciHsm();
  const port = portAt(6);
  hsm.failing = 'CREATE_VDEV';
  expect(() => port.create(hsm, at(6))).toThrow();
  port.destroy(hsm);
  expect(hsm.names).toEqual(['CREATE_VDEV']);
});

test('a function keeps one bus until it gives it back', () => {
  const seen: number[] = [];
  const owner = {
    ...rootPort,
    isBridge: false,
    create(_options: { ptm: boolean }, env: PciEnv) {
      const bus = env.secondaryBus();
      seen.push(bus.number, env.secondaryBus().number);
      bus.release();
      seen.push(env.secondaryBus().number);
      return new RootPort({ physicalBdf, maxPayload: 0, bus: env.secondaryBus(), ptmCapOffset: undefined });
    },
  };
  const machine = new PciMachine().plug('0:6.0', owner, { ptm: true }).plug('0:7.0', owner, { ptm: true }).power();
  expect(seen).toEqual([1, 1, 1, 2, 2, 2]);
  // Passthrough's buses are the hypervisor's: the tables do not speak of them, as C's do not.
  expect([machine.host.report().map((fn) => fn.secondaryBus), machine.host.lastBus]).toEqual([[1, 2], 0]);
});

test('a port by itself is created with a bus below it, and destroyed with what is there', () => {
  const machine = new PciMachine().plug('0:6.0', rootPort, { ptm: true }).power();
  expect(machine.hsm.calls).toEqual([
    {
      name: 'CREATE_VDEV',
      vdev: {
        type: 'root-port',
        bdf: bdf('0:6.0'),
        physicalBdf: bdf('0:6.0'),
        maxPayload: 0,
        primaryBus: 0,
        secondaryBus: 1,
        subordinateBus: 1,
        ptmCapOffset: 0x100,
      },
    },
  ]);
  machine.host.destroyVdevs();
  expect(machine.hsm.names).toEqual(['CREATE_VDEV', 'DESTROY_VDEV']);
});

test('where ports stand for physical ones there is none by itself', () => {
  const machine = new PciMachine().plug('0:6.0', rootPort, { ptm: false });
  Object.assign(machine.hsm, { ownRootPorts: undefined });
  const configure = () => machine.host.configure();
  expect(configure).toThrow(ConfigError);
});
