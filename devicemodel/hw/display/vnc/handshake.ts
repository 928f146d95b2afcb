/** The beginning of a connection (RFC 6143 §7.1 to §7.3): version, security, and what there is to be seen. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { ProtocolError } from './client-messages.ts';
import { vncResponse } from './password.ts';
import { CHALLENGE_BYTES, SERVER_VERSION, Security, SecurityResult, VERSION_BYTES } from './protocol.ts';

/** Guessing is slow. */
const FAILURE_DELAY_MS = 2000;

type Step = 'version' | 'security' | 'response' | 'init' | 'waiting' | 'done';

export interface HandshakeParts {
  send(bytes: Uint8Array): void;
  /** Undefined: anyone who can connect may. */
  readonly password: string | undefined;
  /** The client is in. @param isShared others may stay */
  onDone(isShared: boolean): void;
  /** Say good-bye with what was sent. */
  onRefused(reason: string): void;
}

export class Handshake {
  readonly #parts: HandshakeParts;
  readonly #challenge = randomBytes(CHALLENGE_BYTES);
  #step: Step = 'version';
  /** Of protocol 3.x. */
  #minor = 8;
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: HandshakeParts) {
    this.#parts = parts;
    parts.send(Buffer.from(SERVER_VERSION, 'latin1'));
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#step = 'waiting';
  }

  /** Take one message from the front of `bytes`. @returns how long it was; 0: not whole yet. @throws ProtocolError */
  take(bytes: Buffer): number {
    switch (this.#step) {
      case 'version':
        return bytes.length < VERSION_BYTES ? 0 : this.#version(bytes.toString('latin1', 0, VERSION_BYTES));
      case 'security':
        if (bytes.length < 1) return 0;
        if (bytes[0] !== this.#security) throw new ProtocolError(`security type ${bytes[0]}, which was not offered`);
        this.#begin();
        return 1;
      case 'response':
        return bytes.length < CHALLENGE_BYTES ? 0 : this.#response(bytes.subarray(0, CHALLENGE_BYTES));
      case 'init':
        if (bytes.length < 1) return 0;
        this.#step = 'done';
        this.#parts.onDone(bytes[0] !== 0);
        return 1;
      default:
        return 0;
    }
  }

  get #security(): number {
    return this.#parts.password === undefined ? Security.None : Security.VncAuthentication;
  }

  /** §7.1.1: versions that are none of the three are 3.3. */
  #version(text: string): number {
    const [, minor] = /^RFB 003\.(\d{3})\n$/.exec(text) ?? [];
    if (minor === undefined) throw new ProtocolError('this is no RFB 3');
    this.#minor = Number(minor) >= 8 ? 8 : Number(minor) === 7 ? 7 : 3;
    if (this.#minor === 3) {
      this.#parts.send(u32(this.#security));
      this.#begin();
    } else {
      this.#parts.send(Uint8Array.of(1, this.#security));
      this.#step = 'security';
    }
    return VERSION_BYTES;
  }

  #begin(): void {
    if (this.#security === Security.VncAuthentication) {
      this.#parts.send(this.#challenge);
      this.#step = 'response';
      return;
    }
    if (this.#minor === 8) this.#parts.send(u32(SecurityResult.Ok));
    this.#step = 'init';
  }

  #response(response: Uint8Array): number {
    const right = vncResponse(this.#parts.password ?? '', this.#challenge);
    if (timingSafeEqual(right, response)) {
      this.#parts.send(u32(SecurityResult.Ok));
      this.#step = 'init';
      return CHALLENGE_BYTES;
    }
    this.#step = 'waiting';
    this.#timer = setTimeout(() => {
      this.#parts.send(u32(SecurityResult.Failed));
      if (this.#minor === 8) this.#parts.send(reasonOf('the password is wrong'));
      this.#parts.onRefused('a viewer gave a wrong password');
    }, FAILURE_DELAY_MS);
    this.#timer.unref();
    return CHALLENGE_BYTES;
  }
}

function u32(value: number): Uint8Array {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function reasonOf(text: string): Uint8Array {
  return Buffer.concat([u32(text.length), Buffer.from(text, 'latin1')]);
}
