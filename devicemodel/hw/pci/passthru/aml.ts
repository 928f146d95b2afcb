/**
 * AML of passed-through functions whose drivers look for objects that the host's firmware has. The set is that of the C
 * device model (passthrough.c, write_dsdt_*).
 */
import type { Bdf } from '../../../core/address.ts';
import {
  type Aml,
  add,
  and,
  arg,
  breakLoop,
  buffer,
  call,
  concatenate,
  createDWordField,
  device,
  equal,
  FieldAccess,
  field,
  ifElse,
  method,
  name,
  operationRegion,
  PRESENT,
  pkg,
  RegionSpace,
  ret,
  SERIALIZED,
  scope,
  store,
  terms,
  text,
  toInteger,
  unicode,
  uuid,
  whileLoop,
} from '../../../core/firmware/aml.ts';
import {
  gpioInput,
  gpioInterruptBothEdges,
  memory32Fixed,
  qwordMemoryReadOnlyAcpi,
  resourceTemplate,
} from '../../../core/firmware/aml-resources.ts';
import { type PciFunctionAml, pciAddress } from '../../../core/firmware/contribution.ts';
import { GPIO_CONTROLLER } from '../virtio/gpio/aml.ts';
import { audioCodec, camera, i2cHeader } from '../virtio/i2c/aml.ts';

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
    // The one name is looked for upwards, as in C.
    scope('_SB', [
      device(`PCS${pcs}`, [
        name('_HID', text('INTC1033')),
        name('_UID', 0),
        PRESENT,
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

/** Where iasl keeps what a Switch looks at: guests have been given it so. */
const SWITCH_VALUE = '_T_0';

/** `Switch (value) {Case (0) … Default}` as iasl compiles it. @param cases by value, from 0 */
function switchOn(value: Aml, cases: readonly (readonly Aml[])[], otherwise: readonly Aml[]): Aml {
  const chain = cases.reduceRight<readonly Aml[]>(
    (rest, body, number) => [ifElse(equal(SWITCH_VALUE, number), body, rest)],
    otherwise,
  );
  return whileLoop(1, [store(value, SWITCH_VALUE), ...chain, breakLoop]);
}

/** Features the driver asks for, and their bits in ADPM. */
const FEATURES: readonly (readonly [string, number])[] = [
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
/** Features without fixed ids: names of the halves of each, and its bit. */
const CUSTOM_FEATURES: readonly (readonly [string, string, number])[] = [
  ['AG1L', 'AG1H', 0x2000_0000],
  ['AG2L', 'AG2H', 0x4000_0000],
  ['AG3L', 'AG3H', 0x8000_0000],
];

const log = (line: string) => call('ADBG', text(line));

/** `_DSM`: which functions there are, the NHLT, and which features the platform has. */
function audioDsm(): Aml {
  const byte = (value: number) => ret(buffer([value]));
  return method(
    '_DSM',
    4,
    [
      name(SWITCH_VALUE, 0),
      log('HDAS _DSM'),
      ifElse(equal(arg(0), uuid('a69f886e-6ceb-4594-a41f-7b5dce24c553')), [
        switchOn(
          toInteger(arg(2)),
          [
            [byte(0x0f)],
            [log('_DSM Fun 1 NHLT'), ret('NBUF')],
            [log('_DSM Fun 2 FMSK'), ret('ADFM')],
            [
              log('_DSM Fun 3 PPMS'),
              ...FEATURES.map(([id, bit]) => ifElse(equal(arg(3), uuid(id)), [ret(and('ADPM', bit))])),
              ...CUSTOM_FEATURES.map(([low, high, bit]) =>
                ifElse(equal(arg(3), call('ACCG', low, high)), [ret(and('ADPM', bit))]),
              ),
              ret(0),
            ],
          ],
          [log('_DSM Fun NOK'), byte(0)],
        ),
      ]),
      log('_DSM UUID NOK'),
      byte(0),
    ],
    SERIALIZED,
  );
}

/** The HD audio controller: its driver fetches the NHLT by `_DSM`, and asks which features the platform has. */
function audioController(bdf: Bdf, nhlt: { readonly base: number; readonly sizeBytes: number }): Aml {
  return terms([
    name('ADFM', 0x2a),
    name('ADPM', 0),
    ...CUSTOM_FEATURES.flatMap(([low, high]) => [name(low, 0), name(high, 0)]),
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
      audioDsm(),
      method('ACCG', 2, [name('GBUF', buffer([], 16)), concatenate(arg(0), arg(1), 'GBUF'), ret('GBUF')], SERIALIZED),
    ]),
  ]);
}

export interface PassthroughAmlOptions {
  /** Where the guest finds the NHLT; only audio controllers need it. */
  readonly nhlt?: { readonly base: number; readonly sizeBytes: number };
}

const INTEL = 0x8086;
/** HD audio of Apollo Lake. */
const AUDIO_CONTROLLER = 0x5a98;

/** Whether its driver asks for the host's NHLT. */
export function isAudioController(vendorId: number, deviceId: number): boolean {
  return vendorId === INTEL && deviceId === AUDIO_CONTROLLER;
}

/** By device id. What needs the NHLT gets nothing without. */
const known: Readonly<Record<number, (bdf: Bdf, options: PassthroughAmlOptions) => Aml | undefined>> = {
  19250: (bdf) => tsn(bdf, 'GTSN', 0),
  19360: (bdf) => tsn(bdf, 'OTN0', 1),
  19376: (bdf) => tsn(bdf, 'OTN1', 2),
  [AUDIO_CONTROLLER]: (bdf, { nhlt }) => (nhlt === undefined ? undefined : audioController(bdf, nhlt)),
  23210: usbDeviceController,
  // I2C with the cameras, and with the audio codec.
  23212: (bdf) => hostI2c(bdf, 1, 'IC0S', (controller) => [camera(1, controller), camera(2, controller)]),
  23220: (bdf) => hostI2c(bdf, 0, 'IC4S', (controller) => [audioCodec(controller)]),
  23228: bluetoothUart,
  23242: sdCard,
};

function usbDeviceController(bdf: Bdf): Aml {
  return device('XDCI', [
    name('_ADR', pciAddress(bdf)),
    name('_DDN', text('Broxton XDCI controller')),
    name('_STR', unicode('Broxton XDCI controller')),
  ]);
}

function bluetoothUart(bdf: Bdf): Aml {
  return device('URT1', [
    name('_ADR', pciAddress(bdf)),
    name('_DDN', text('Intel(R) HS-UART Controller #1')),
    name('_UID', 1),
    name('RBUF', resourceTemplate([])),
    method('_CRS', 0, [ret('RBUF')]),
  ]);
}

/** Card detection and power by virtio GPIO. */
function sdCard(bdf: Bdf): Aml {
  const line = { controller: GPIO_CONTROLLER, pins: [0] };
  return device('SDC', [
    name('_ADR', pciAddress(bdf)),
    name('_DDN', text('Intel(R) SD Card Controller')),
    name('_UID', 1),
    method('_CRS', 0, [
      // Compat: C writes the second path as \_SB._PCI0.AGPI, which nobody has.
      name('RBUF', resourceTemplate([gpioInterruptBothEdges(line), gpioInput(line)])),
      ret('RBUF'),
    ]),
  ]);
}

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
  const aml = vendorId === INTEL ? known[deviceId]?.(bdf, options) : undefined;
  return aml === undefined ? undefined : { bdf, aml: () => aml };
}
