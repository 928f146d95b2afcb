/** AML of I2C controllers and of what is known to sit behind them, since an I2C bus cannot be enumerated. */
import type { Bdf } from '../../../../core/address.ts';
import {
  type Aml,
  arg,
  concatenateResources,
  device,
  equal,
  ifElse,
  method,
  name,
  PRESENT,
  pkg,
  ret,
  SERIALIZED,
  scope,
  terms,
  text,
  uuid,
} from '../../../../core/firmware/aml.ts';
import { gpioInput, i2cDevice, resourceTemplate } from '../../../../core/firmware/aml-resources.ts';
import { type PciFunctionAml, pciAddress } from '../../../../core/firmware/contribution.ts';

/** Devices behind an I2C controller that AML is known for. */
export const i2cClients = ['cam1', 'cam2', 'hdac'] as const;
export type I2cClient = (typeof i2cClients)[number];

/** Device Properties UUID for _DSD (ACPI 6.4 §6.2.5). */
const DEVICE_PROPERTIES = 'daffd814-6eba-4d8c-8a91-bc9bbf4aa301';
const I2C_SPEED_HZ = 400_000;

function clockFrequency(speedName: string): Aml[] {
  const property = pkg([text('clock-frequency'), speedName]);
  return [name(speedName, I2C_SPEED_HZ), name('_DSD', pkg([uuid(DEVICE_PROPERTIES), pkg([property])]))];
}

/** What every I2C controller begins with. */
export function i2cHeader(bdf: Bdf, speedName: string, number: number, path: string): Aml[] {
  return [
    name('_ADR', pciAddress(bdf)),
    name('_DDN', text(`Intel(R) I2C Controller #${number}`)),
    name('_UID', 1),
    name('LINK', text(path)),
    name('RBUF', resourceTemplate([])),
    ...clockFrequency(speedName),
  ];
}

/** A camera bridge (ADV7481) of the reference board; `_DSM` tells its driver lanes, address and layout. */
export function camera(which: 1 | 2, controller: string): Aml {
  const id = which === 1 ? 'ADV7481A' : 'ADV7481B';
  const address = which === 1 ? 0x70 : 0x71;
  const interfaceType = which === 1 ? 0x40 : 0x14;
  const answer = (question: string, body: Aml[]) => ifElse(equal(arg(0), uuid(question)), body);
  return device(`CAM${which}`, [
    // Beside a _HID it means nothing (ACPI 6.4 §6.1), but guests have always been given it.
    name('_ADR', 0),
    name('_HID', text(id)),
    name('_CID', text(id)),
    name('_UID', 1),
    method(
      '_CRS',
      0,
      [
        name(
          'SBUF',
          resourceTemplate([
            gpioInput({ controller: '\\_SB.GPO0', pins: [0x1e] }),
            i2cDevice(controller, address, I2C_SPEED_HZ),
          ]),
        ),
        ret('SBUF'),
      ],
      SERIALIZED,
    ),
    method('_DSM', 4, [
      answer('377ba76a-f390-4aff-ab38-9b1bf33a3015', [ret(text(id))]),
      answer('ea3b7bd8-e09b-4239-ad6e-ed525f3f26ab', [ret(interfaceType)]),
      answer('8dbe2651-70c1-4c6f-ac87-a37cb46e4af6', [ret(0xff)]),
      answer('26257549-9271-4ca4-bb43-c4899d5a4881', [
        ifElse(equal(arg(2), 1), [ret(2)]),
        ifElse(equal(arg(2), 2), [ret(0x0200_1000)]),
        ifElse(equal(arg(2), 3), [ret(0x0200_0e01)]),
      ]),
      ret(0),
    ]),
  ]);
}

/** The audio codec of the reference board. */
export function audioCodec(controller: string): Aml {
  return device('HDAC', [
    name('_HID', text('INT34C3')),
    name('_CID', text('INT34C3')),
    name('_DDN', text('Intel(R) Smart Sound Technology Audio Codec')),
    name('_UID', 1),
    method('_INI', 0, []),
    method('_CRS', 0, [
      name('SBFB', resourceTemplate([i2cDevice(controller, 0x6c, I2C_SPEED_HZ)])),
      name('SBFI', resourceTemplate([])),
      ret(concatenateResources('SBFB', 'SBFI')),
    ]),
    PRESENT,
  ]);
}

/**
 * A virtio I2C adapter and the clients it was given AML for.
 * @param number counts the adapters of the machine, from 0.
 */
export function i2cAml(bdf: Bdf, number: number, clients: readonly I2cClient[]): PciFunctionAml {
  const object = `I2C${number}`;
  const path = `\\_SB.PCI${bdf.bus}.${object}`;
  const client = { cam1: () => camera(1, path), cam2: () => camera(2, path), hdac: () => audioCodec(path) };
  return {
    bdf,
    aml: () =>
      terms([
        device(object, i2cHeader(bdf, 'IC0S', number, path)),
        ...clients.map((which) => scope(object, [client[which]()])),
      ]),
  };
}
