/**
 * AML of devices that need more than their PCI identity: controllers whose children cannot be enumerated, and
 * passed-through functions whose drivers look for objects that the host's firmware has. For `PciBusInput.functions`.
 */
import type { Bdf, Port } from '../address.ts';
import {
  type Aml,
  add,
  and,
  arg,
  buffer,
  call,
  concatenate,
  concatenateResources,
  createDWordField,
  device,
  equal,
  FieldAccess,
  field,
  ifElse,
  local,
  method,
  name,
  operationRegion,
  pkg,
  RegionSpace,
  ret,
  scope,
  shiftLeft,
  store,
  terms,
  text,
  toInteger,
  unicode,
  uuid,
} from './aml.ts';
import {
  gpioInput,
  gpioInterruptBothEdges,
  i2cDevice,
  memory32Fixed,
  qwordMemoryReadOnlyAcpi,
  resourceTemplate,
} from './aml-resources.ts';
import { type PciFunctionAml, pciAddress } from './dsdt.ts';

const SERIALIZED = { serialized: true } as const;
const present = (): Aml => method('_STA', 0, [ret(0x0f)]);
const emptyResources = (): Aml => resourceTemplate([]);

// ---- virtio GPIO ----------------------------------------------------------------------------------------------

/** Path of the virtio GPIO controller, for resources that name it. */
const GPIO_CONTROLLER = '\\_SB_.PCI0.AGPI';

/**
 * The virtio GPIO controller with methods to read and write lines from AML: `\_SB.GPCG(line)`, `\_SB.GPCS(line, value)`.
 * @param lineBase port of the first line's register in the device's I/O BAR; lines are 4 ports apart.
 */
export function virtioGpio(bdf: Bdf, lineBase: Port): PciFunctionAml {
  const lineRegister = (bits: number) => [
    add(lineBase, shiftLeft(arg(0), 2), local(0)),
    operationRegion('GPOR', RegionSpace.SystemIo, local(0), 4),
    field('GPOR', { access: FieldAccess.DWord }, [{ name: 'TEMP', bits }]),
  ];
  return {
    bdf,
    aml: () =>
      terms([
        device('AGPI', [
          name('_ADR', pciAddress(bdf)),
          name('_DDN', text('Virtio GPIO Controller ')),
          name('_UID', 1),
          name('LINK', text(GPIO_CONTROLLER)),
          // Compat: C has a method _CRS that returns nothing, which ACPI forbids (§6.2.2).
          name('_CRS', emptyResources()),
        ]),
        scope('\\_SB', [
          method('GPCS', 2, [...lineRegister(2), store(arg(1), 'TEMP')], SERIALIZED),
          method('GPCG', 1, [...lineRegister(1), ret('TEMP')], SERIALIZED),
        ]),
      ]),
  };
}

// ---- I2C controllers and what is known to sit behind them -----------------------------------------------------

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

function i2cHeader(bdf: Bdf, speedName: string, number: number, path: string): Aml[] {
  return [
    name('_ADR', pciAddress(bdf)),
    name('_DDN', text(`Intel(R) I2C Controller #${number}`)),
    name('_UID', 1),
    name('LINK', text(path)),
    name('RBUF', emptyResources()),
    ...clockFrequency(speedName),
  ];
}

/** A camera bridge (ADV7481) of the reference board; `_DSM` tells its driver lanes, address and layout. */
function camera(which: 1 | 2, controller: string): Aml {
  const id = which === 1 ? 'ADV7481A' : 'ADV7481B';
  const address = which === 1 ? 0x70 : 0x71;
  const interfaceType = which === 1 ? 0x40 : 0x14;
  const answer = (question: string, body: Aml[]) => ifElse(equal(arg(0), uuid(question)), body);
  // Compat: C gives it an _ADR besides the _HID; a device has one or the other (ACPI 6.4 §6.1).
  return device(`CAM${which}`, [
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
function audioCodec(controller: string): Aml {
  return device('HDAC', [
    name('_HID', text('INT34C3')),
    name('_CID', text('INT34C3')),
    name('_DDN', text('Intel(R) Smart Sound Technology Audio Codec')),
    name('_UID', 1),
    method('_INI', 0, []),
    method(
      '_CRS',
      0,
      [
        name('SBFB', resourceTemplate([i2cDevice(controller, 0x6c, I2C_SPEED_HZ)])),
        name('SBFI', emptyResources()),
        ret(concatenateResources('SBFB', 'SBFI')),
      ],
      SERIALIZED,
    ),
    present(),
  ]);
}

/**
 * A virtio I2C adapter and the clients it was given AML for.
 * @param number counts the adapters of the machine, from 0.
 */
export function virtioI2c(bdf: Bdf, number: number, clients: readonly I2cClient[]): PciFunctionAml {
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

// ---- passed-through functions ---------------------------------------------------------------------------------

/** A method that returns three timing values of an I2C controller (Windows "I2C controller timing" objects). */
function timing(object: string, values: readonly number[]): Aml {
  return method(object, 0, [name('PKG', pkg(values)), ret('PKG')], SERIALIZED);
}

function hostI2c(bdf: Bdf, number: number, speedName: string, children: (controller: string) => Aml[]): Aml {
  const path = `\\_SB.PCI0.I2C${number}`;
  return device(`I2C${number}`, [
    ...i2cHeader(bdf, speedName, number, path),
    timing('FMCN', [0x64, 0xd6, 0x1c]),
    timing('FPCN', [0x26, 0x50, 0x0c]),
    timing('HSCN', [0x05, 0x18, 0x0c]),
    timing('SSCN', [0x0244, 0x02da, 0x1c]),
    method('_CRS', 0, [ret('RBUF')]),
    ...children(path),
  ]);
}

/** Time-sensitive network controller and, beside the host bridge, the window on its PCS that its driver asks for. */
function tsn(bdf: Bdf, object: string, pcs: number): Aml {
  // Base address of a Memory32Fixed descriptor: behind tag, length and flags.
  const baseOf = (descriptor: number) => 12 * descriptor + 4;
  const setBase = (offset: number, into: string) => add(and(`^^PCI0.${object}.TADL`, 0xffff_f000), offset, into);
  return terms([
    device(object, [
      name('_ADR', pciAddress(bdf)),
      operationRegion('TSRT', RegionSpace.PciConfig, 0, 0x100),
      field('TSRT', {}, [
        { name: 'DVID', bits: 16 },
        { offset: 0x10 },
        { name: 'TADL', bits: 32 },
        { name: 'TADH', bits: 32 },
      ]),
    ]),
    scope('\\_SB', [
      device(`PCS${pcs}`, [
        name('_HID', text('INTC1033')),
        name('_UID', 0),
        present(),
        method(
          '_CRS',
          0,
          [
            name('PCSR', resourceTemplate([memory32Fixed(0, 4), memory32Fixed(0, 4)])),
            createDWordField('PCSR', baseOf(0), 'MAL0'),
            setBase(0x200, 'MAL0'),
            createDWordField('PCSR', baseOf(1), 'MDL0'),
            setBase(0x204, 'MDL0'),
            ret('PCSR'),
          ],
          SERIALIZED,
        ),
      ]),
    ]),
  ]);
}

/** The HD audio controller: its driver fetches the NHLT by `_DSM`, and asks which features the platform has. */
function audioController(bdf: Bdf, nhlt: { readonly base: number; readonly sizeBytes: number }): Aml {
  const features: readonly (readonly [string, number])[] = [
    ['b489c2de-0f96-42e1-8a2d-c25b5091ee49', 0x1],
    ['e1284052-8664-4fe4-a353-3878f72704c3', 0x2],
    ['7c708106-3aff-40fe-88be-8c999b3f7445', 0x4],
    ['e0e018a8-3550-4b54-a8d0-a8e05d0fcba2', 0x8],
    ['202badb5-8870-4290-b536-f2380c63f55d', 0x10],
    ['eb3fea76-394b-495d-a14d-8425092d5cb7', 0x20],
    ['f1c69181-329a-45f0-8eef-d8bddf81e036', 0x40],
    ['b3573eff-6441-4a75-91f7-4281eec4597d', 0x80],
    ['ec774fa9-28d3-424a-90e4-69f984f1eeb7', 0x100],
    ['f101fef0-ff5a-4ad4-8710-43592a6f7948', 0x200],
    ['f3578986-4400-4adf-ae7e-cd433cd3f26e', 0x400],
    ['13b5e4d7-a91a-4059-8290-605b01ccb650', 0x800],
  ];
  const custom: readonly (readonly [string, string, number])[] = [
    ['AG1L', 'AG1H', 0x2000_0000],
    ['AG2L', 'AG2H', 0x4000_0000],
    ['AG3L', 'AG3H', 0x8000_0000],
  ];
  const log = (line: string) => call('ADBG', text(line));
  const byte = (value: number) => ret(buffer([value]));
  const question = local(0);
  return terms([
    name('ADFM', 0x2a),
    name('ADPM', 0),
    ...custom.flatMap(([low, high]) => [name(low, 0), name(high, 0)]),
    method('ADBG', 1, [ret(0)], SERIALIZED),
    device('HDAS', [
      name('_ADR', pciAddress(bdf)),
      operationRegion('HDAR', RegionSpace.PciConfig, 0, 0x100),
      field('HDAR', { access: FieldAccess.Byte }, [
        { name: 'VDID', bits: 32 },
        { offset: 0x48 },
        { skipBits: 6 },
        { name: 'MBCG', bits: 1 },
        { offset: 0x54 },
        { offset: 0x55 },
        { name: 'PMEE', bits: 1 },
        { skipBits: 6 },
        { name: 'PMES', bits: 1 },
      ]),
      name('NBUF', resourceTemplate([qwordMemoryReadOnlyAcpi(nhlt.base, nhlt.sizeBytes)])),
      name('_S0W', 3),
      method('_DSW', 3, [store(arg(0), 'PMEE')]),
      name('_PRW', pkg([0x0e, 0x03])),
      method('_PS0', 0, [log('HD-A Ctrlr D0')], SERIALIZED),
      method('_PS3', 0, [log('HD-A Ctrlr D3')], SERIALIZED),
      method('_INI', 0, [log('HDAS _INI')]),
      method(
        '_DSM',
        4,
        [
          log('HDAS _DSM'),
          ifElse(equal(arg(0), uuid('a69f886e-6ceb-4594-a41f-7b5dce24c553')), [
            toInteger(arg(2), question),
            ifElse(equal(question, 0), [byte(0x0f)]),
            ifElse(equal(question, 1), [log('_DSM Fun 1 NHLT'), ret('NBUF')]),
            ifElse(equal(question, 2), [log('_DSM Fun 2 FMSK'), ret('ADFM')]),
            ifElse(equal(question, 3), [
              log('_DSM Fun 3 PPMS'),
              ...features.map(([id, bit]) => ifElse(equal(arg(3), uuid(id)), [ret(and('ADPM', bit))])),
              ...custom.map(([low, high, bit]) =>
                ifElse(equal(arg(3), call('ACCG', low, high)), [ret(and('ADPM', bit))]),
              ),
              ret(0),
            ]),
            log('_DSM Fun NOK'),
            byte(0),
          ]),
          log('_DSM UUID NOK'),
          byte(0),
        ],
        SERIALIZED,
      ),
      method('ACCG', 2, [name('GBUF', buffer([], 16)), concatenate(arg(0), arg(1), 'GBUF'), ret('GBUF')], SERIALIZED),
    ]),
  ]);
}

export interface PassthroughAmlOptions {
  /** Where the guest finds the NHLT; only audio controllers need it. */
  readonly nhlt?: { readonly base: number; readonly sizeBytes: number };
}

const INTEL = 0x8086;

/**
 * What a passed-through function needs in the DSDT, by its PCI ids.
 * @returns undefined for the many that need nothing.
 */
export function passthroughAml(
  bdf: Bdf,
  vendorId: number,
  deviceId: number,
  options: PassthroughAmlOptions = {},
): PciFunctionAml | undefined {
  if (vendorId !== INTEL) return undefined;
  const make = (): Aml | undefined => {
    switch (deviceId) {
      case 0x4b32:
        return tsn(bdf, 'GTSN', 0);
      case 0x4ba0:
        return tsn(bdf, 'OTN0', 1);
      case 0x4bb0:
        return tsn(bdf, 'OTN1', 2);
      case 0x5aaa: // USB device controller
        return device('XDCI', [
          name('_ADR', pciAddress(bdf)),
          name('_DDN', text('Broxton XDCI controller')),
          name('_STR', unicode('Broxton XDCI controller')),
        ]);
      case 0x5ab4: // I2C with the audio codec
        return hostI2c(bdf, 0, 'IC4S', (controller) => [audioCodec(controller)]);
      case 0x5aac: // I2C with the cameras
        return hostI2c(bdf, 1, 'IC0S', (controller) => [camera(1, controller), camera(2, controller)]);
      case 0x5a98:
        return options.nhlt === undefined ? undefined : audioController(bdf, options.nhlt);
      case 0x5abc: // UART for Bluetooth
        return device('URT1', [
          name('_ADR', pciAddress(bdf)),
          name('_DDN', text('Intel(R) HS-UART Controller #1')),
          name('_UID', 1),
          name('RBUF', emptyResources()),
          method('_CRS', 0, [ret('RBUF')]),
        ]);
      case 0x5aca: // SD card: detect and power by virtio GPIO
        return device('SDC', [
          name('_ADR', pciAddress(bdf)),
          name('_DDN', text('Intel(R) SD Card Controller')),
          name('_UID', 1),
          method(
            '_CRS',
            0,
            [
              // Compat: C writes the second path as \_SB._PCI0.AGPI, which nobody has.
              name(
                'RBUF',
                resourceTemplate([
                  gpioInterruptBothEdges({ controller: GPIO_CONTROLLER, pins: [0] }),
                  gpioInput({ controller: GPIO_CONTROLLER, pins: [0] }),
                ]),
              ),
              ret('RBUF'),
            ],
            SERIALIZED,
          ),
        ]);
      default:
        return undefined;
    }
  };
  const aml = make();
  return aml === undefined ? undefined : { bdf, aml: () => aml };
}
