import { type Bdf, hex } from '../../devicemodel/core/address.ts';
import { BugError } from '../../devicemodel/core/errors.ts';
import { AcrnVdev, type HvVdev, VrpConfig } from '../../devicemodel/core/hsm/vdev.ts';

/** The inverse of `bdfToNumber`; only the low 16 bits count. */
function bdfFromNumber(value: number): Bdf {
  return { bus: (value >>> 8) & 0xff, device: (value >>> 3) & 0x1f, function: value & 7 };
}

/** The inverse of `encodeVdev`. @throws BugError for an id no hypervisor device has. */
export function decodeVdev(input: Uint8Array): HvVdev {
  const raw = AcrnVdev.decode(input);
  const bdf = bdfFromNumber(raw.slot);
  const bar = (index: number) => raw.ioAddr[index] ?? 0;
  const id = raw.legacyId === 0 ? ((raw.device << 16) | raw.vendor) >>> 0 : Number.NaN;
  switch (id) {
    case 0x11101af4: {
      const end = raw.args.indexOf(0);
      return {
        type: 'ivshmem',
        bdf,
        registersBar: bar(0),
        msixBar: bar(1),
        memoryBar: bar(3) * 0x1_0000_0000 + ((bar(2) & ~0xf) >>> 0),
        regionName: new TextDecoder().decode(raw.args.subarray(0, end < 0 ? raw.args.length : end)),
        sizeBytes: raw.ioSize[2] ?? 0,
      };
    }
    case 0x99009710:
      return {
        type: 'vuart',
        bdf,
        registersBar: bar(0),
        msixBar: bar(1),
        vuartIndex: (raw.args[0] ?? 0) | ((raw.args[1] ?? 0) << 8),
      };
    case 0x9d148086: {
      const config = VrpConfig.decode(raw.args);
      return {
        type: 'root-port',
        bdf,
        physicalBdf: bdfFromNumber(config.physicalBdf),
        maxPayload: config.maxPayload,
        primaryBus: config.primaryBus,
        secondaryBus: config.secondaryBus,
        subordinateBus: config.subordinateBus,
        ptmCapOffset: config.ptmCapable === 0 ? undefined : config.ptmCapOffset,
      };
    }
    default:
      throw new BugError(
        `no hypervisor device has id ${hex(raw.device, 4)}:${hex(raw.vendor, 4)} legacy ${raw.legacyId}`,
      );
  }
}
