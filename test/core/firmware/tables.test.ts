import { describe, expect, it } from 'vitest';
import { checksum } from '../../../devicemodel/core/firmware/tables.ts';

describe('checksum', () => {
  const bytes = Uint8Array.from({ length: 600 }, (_, i) => (i * 167 + 251) & 0xff);

  it.each([0, 1, 2, 3, 4])('makes any number of bytes from offset %i sum up to zero', (offset) => {
    for (let length = 0; length <= bytes.length - offset; length++) {
      const part = bytes.subarray(offset, offset + length);
      const sum = part.reduce((total, byte) => total + byte, 0);
      expect((sum + checksum(part)) & 0xff, `${length} bytes`).toBe(0);
    }
  });

  it('does not lose a carry between bytes that are all ones', () => {
    expect(checksum(new Uint8Array(4 * 1024).fill(0xff))).toBe(0);
    expect(checksum(new Uint8Array(4 * 1024 + 1).fill(0xff))).toBe(1);
  });
});
