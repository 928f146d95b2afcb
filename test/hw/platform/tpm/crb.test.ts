/** The command response buffer against its specification, hostile guests, and recorded runs of the C device model. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { AccessSize } from '../../../../devicemodel/core/address.ts';
import {
  plainResponse,
  ResponseCode,
  sizeOf,
  type TpmBackend,
} from '../../../../devicemodel/hw/platform/tpm/backend.ts';
import { CRB_BUFFER_BYTES, CRB_BYTES, Crb } from '../../../../devicemodel/hw/platform/tpm/crb.ts';
import { recordedDir, recordedTrace } from '../../../support/recorded-cases.ts';

const BASE = 0xf000_0000;
const GET_RANDOM = '80010000000c0000017b0010';

/** A TPM that answers when it is told to. */
class SlowTpm implements TpmBackend {
  isEstablished = false;
  readonly commands: Uint8Array[] = [];
  cancels = 0;
  powerCycles = 0;
  respond: (response: Uint8Array) => void = () => {};

  execute(command: Uint8Array): Promise<Uint8Array> {
    this.commands.push(command);
    return new Promise((resolve) => {
      this.respond = resolve;
    });
  }
  cancel(): void {
    this.cancels++;
  }
  powerCycle(): void {
    this.powerCycles++;
  }
}

function ready() {
  const tpm = new SlowTpm();
  const crb = new Crb(BASE, tpm);
  crb.write(0x08, 4, 1);
  crb.write(0x40, 4, 1);
  return { tpm, crb };
}

function put(crb: Crb, hex: string): void {
  Buffer.from(hex, 'hex').forEach((byte, i) => {
    crb.write(0x80 + i, 1, byte);
  });
}

const get = (crb: Crb, sizeBytes: number) =>
  Buffer.from(Array.from({ length: sizeBytes }, (_, i) => crb.read(0x80 + i, 1))).toString('hex');

describe('a command', () => {
  test('runs by START, which reads 1 until the response is there', async () => {
    const { tpm, crb } = ready();
    put(crb, GET_RANDOM);
    crb.write(0x4c, 4, 1);
    expect(Buffer.from(tpm.commands[0] as Uint8Array).toString('hex')).toBe(GET_RANDOM);
    expect(crb.read(0x4c, 4)).toBe(1);
    tpm.respond(Buffer.from('80010000000e00000000abcd1234', 'hex'));
    await Promise.resolve();
    expect(crb.read(0x4c, 4)).toBe(0);
    expect(get(crb, 14)).toBe('80010000000e00000000abcd1234');
  });

  test.each([
    ['no locality', (crb: Crb) => crb.write(0x08, 4, 2)],
    ['an idle TPM', (crb: Crb) => crb.write(0x40, 4, 2)],
  ])('does not run with %s', (_, spoil) => {
    const { tpm, crb } = ready();
    put(crb, GET_RANDOM);
    spoil(crb);
    crb.write(0x4c, 4, 1);
    expect(tpm.commands).toEqual([]);
    expect(crb.read(0x4c, 4)).toBe(0);
  });

  test('cannot be changed, started again or made idle while it runs; it can be cancelled', () => {
    const { tpm, crb } = ready();
    put(crb, GET_RANDOM);
    crb.write(0x48, 4, 1);
    expect(tpm.cancels).toBe(0);
    crb.write(0x4c, 4, 1);
    crb.write(0x4c, 4, 1);
    crb.write(0x80, 4, 0xffff_ffff);
    crb.write(0x40, 4, 2);
    crb.write(0x48, 4, 1);
    expect(tpm.commands).toHaveLength(1);
    expect(get(crb, 12)).toBe(GET_RANDOM);
    expect(crb.read(0x44, 4)).toBe(0);
    expect(tpm.cancels).toBe(1);
  });

  test.each([0, 9, CRB_BUFFER_BYTES + 1, 0xffff_ffff])('of %i bytes never reaches the TPM', (sizeBytes) => {
    const { tpm, crb } = ready();
    put(crb, `8001${sizeBytes.toString(16).padStart(8, '0')}0000017b`);
    crb.write(0x4c, 4, 1);
    expect(tpm.commands).toEqual([]);
    expect(crb.read(0x4c, 4)).toBe(0);
    expect(get(crb, 10)).toBe('80010000000a00000142');
  });

  test('of before a reset answers nobody', async () => {
    const { tpm, crb } = ready();
    put(crb, GET_RANDOM);
    crb.write(0x4c, 4, 1);
    const early = tpm.respond;
    crb.reset();
    expect([crb.read(0x00, 4), crb.read(0x44, 4), crb.read(0x4c, 4)]).toEqual([0x81, 2, 0]);
    crb.write(0x08, 4, 1);
    crb.write(0x40, 4, 1);
    put(crb, GET_RANDOM);
    crb.write(0x4c, 4, 1);
    early(plainResponse(0));
    await Promise.resolve();
    expect(crb.read(0x4c, 4)).toBe(1);
    expect(get(crb, 12)).toBe(GET_RANDOM);
  });
});

test('where the buffer is stands in the registers as an address, for command and response', () => {
  const { crb } = ready();
  for (const at of [0x5c, 0x68]) expect([crb.read(at, 4), crb.read(at + 4, 4)]).toEqual([BASE + 0x80, 0]);
});

test('a launch that was measured shows as a cleared bit', () => {
  const { tpm, crb } = ready();
  expect(crb.read(0, 1) & 1).toBe(1);
  tpm.isEstablished = true;
  expect(crb.read(0, 1) & 1).toBe(0);
});

test('any accesses: narrow reads are parts of wide ones, nothing throws, at most one command at a time', () => {
  const access = fc.record({
    offset: fc.oneof(fc.integer({ min: 0, max: 0x90 }), fc.integer({ min: 0, max: CRB_BYTES - 4 })),
    size: fc.constantFrom<AccessSize>(1, 2, 4),
    value: fc.oneof(fc.integer({ min: 0, max: 0xffff_ffff }), fc.constantFrom(0, 1, 2)),
    isAnswered: fc.boolean(),
  });
  fc.assert(
    fc.asyncProperty(fc.array(access, { maxLength: 60 }), async (accesses) => {
      const { tpm, crb } = ready();
      let answered = 0;
      for (const { offset, size, value, isAnswered } of accesses) {
        crb.write(offset, size, size === 4 ? value : value % 2 ** (8 * size));
        const bytes = [0, 1, 2, 3].map((i) => crb.read(offset + i, 1));
        expect(crb.read(offset, 4)).toBe(bytes.reduce((sum, byte, i) => sum + byte * 2 ** (8 * i), 0));
        expect(tpm.commands.length - answered).toBeLessThanOrEqual(1);
        expect(crb.read(0x4c, 4)).toBe(tpm.commands.length - answered);
        if (isAnswered && tpm.commands.length > answered) {
          answered++;
          tpm.respond(plainResponse(ResponseCode.Failure));
          await Promise.resolve();
        }
        for (const command of tpm.commands) expect(sizeOf(command)).toBe(command.length);
      }
    }),
    { numRuns: 200 },
  );
});

/** What is different on purpose, by offset and width: what is read here. */
const DIFFERENT: Readonly<Record<string, Readonly<Record<string, number | bigint>>>> = {
  vtpm2: { '5c/4': 0xf000_0080, '68/4': 0xf000_0080, '30/8': 0x0000_8086_0002_5811n },
  vtpm2_regs: {
    // Addresses of the buffer,
    ...{ '5c/4': 0xf000_0080, '68/4': 0xf000_0080, '5c/8': 0xf000_0080n, '68/8': 0xf000_0080n },
    // bytes out of the middle of a register, and more than one register.
    ...{ '1/1': 0, '2/2': 0, '31/1': 0x58, '32/2': 0x2 },
    ...{ '30/8': 0x0000_8086_0002_5811n, '58/8': 0xf000_0080_0000_4f80n, '64/8': 0xf000_0080_0000_4f80n },
  },
  // A TPM in failure mode answers as one of version 2.0, and the interface is well.
  vtpm2_dies: { '80/4': 0x180, '88/4': 0x0001_0101, '44/4': 0 },
};

describe.skipIf(recordedDir === undefined)('recorded', () => {
  test.each(['vtpm2', 'vtpm2_regs', 'vtpm2_dies'])('%s', async (name) => {
    let isGone = false;
    const tpm: TpmBackend = {
      isEstablished: false,
      execute: async () => plainResponse(isGone ? ResponseCode.Failure : 0),
      cancel: () => {},
      powerCycle: () => {},
    };
    const crb = new Crb(BASE, tpm);
    const differences: Record<string, number | bigint> = {};
    let compared = 0;
    for (const event of recordedTrace(name)) {
      if (event.ev !== 'guest') continue;
      if (event.op === 'exec') isGone = true;
      if (event.op === 'exec' || event.op === 'poll_io') await new Promise((resolve) => setImmediate(resolve));
      if (event.op !== 'mmio_read' && event.op !== 'mmio_write') continue;
      const offset = Number(event.addr) - BASE;
      const value = BigInt(event.value);
      if (event.op === 'mmio_write') {
        crb.write(offset, Math.min(event.size, 4) as AccessSize, Number(value & 0xffff_ffffn));
        if (event.size === 8) crb.write(offset + 4, 4, Number(value >> 32n));
        continue;
      }
      compared++;
      const low = BigInt(crb.read(offset, Math.min(event.size, 4) as AccessSize));
      const read = event.size === 8 ? low | (BigInt(crb.read(offset + 4, 4)) << 32n) : low;
      const key = `${offset.toString(16)}/${event.size}`;
      if (read !== value) differences[key] = event.size === 8 ? read : Number(read);
    }
    expect(differences).toEqual(DIFFERENT[name]);
    expect(compared).toBeGreaterThan(12);
  });
});
