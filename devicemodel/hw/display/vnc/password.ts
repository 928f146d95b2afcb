/** VNC's password (RFC 6143 §7.2.2): weak, and what every viewer has. */
import { createCipheriv } from 'node:crypto';
import { PASSWORD_BYTES } from './password-file.ts';

/**
 * What a viewer with this password makes of the challenge: DES, whose key is the password filled with zeros, the bits of
 * each byte mirrored. OpenSSL 3 has no DES by itself, but three times DES with one key is that.
 */
export function vncResponse(password: string, challenge: Uint8Array): Uint8Array {
  const key = new Uint8Array(PASSWORD_BYTES);
  for (const [i, byte] of [...Buffer.from(password).subarray(0, PASSWORD_BYTES)].entries()) key[i] = mirrored(byte);
  const cipher = createCipheriv('des-ede3-ecb', Buffer.concat([key, key, key]), null).setAutoPadding(false);
  return Buffer.concat([cipher.update(challenge), cipher.final()]);
}

function mirrored(byte: number): number {
  let out = 0;
  for (let bit = 0; bit < 8; bit++) out |= ((byte >> bit) & 1) << (7 - bit);
  return out;
}
