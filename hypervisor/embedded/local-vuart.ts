/** A vUART's wire to that of another process's VM. */
import { MAX_NUMBER } from './neighbour-messages.ts';
import type { Peer } from './neighbour-peer.ts';
import type { VuartAddress } from './scenario.ts';
import { VUART_FIFO_BYTES, VUART_FIFO_RESERVE, type VuartWire } from './vpci/vuart.ts';

/**
 * A guest that sends without looking for room makes the other side lose its oldest bytes, as in ACRN; that side says so
 * many were taken. Further bytes on the way than these mean that its process does not read.
 */
const MAX_UNTAKEN_BYTES = 16 * VUART_FIFO_BYTES;

/** This VM's end of a wire. */
export class LocalVuart implements VuartWire {
  readonly index: number;
  readonly wants: VuartAddress | undefined;
  peer: Peer | undefined;
  peerIndex = 0;
  /** Who was asked to be the peer and has not answered. */
  asked: { readonly peer: Peer; readonly index: number } | undefined;
  /** Who had a peer already. */
  readonly refused = new Set<string>();
  readonly #gone: () => void;
  #handlers: { receive(byte: number): void; changed(): void } | undefined;
  /** Bytes sent that the other guest has not taken. */
  #inFlight = 0;
  /** Bytes collected in this turn of the event loop, one message for all. */
  #outgoing: number[] = [];
  #taken = 0;
  #isFlushDue = false;

  constructor(index: number, wants: VuartAddress | undefined, gone: () => void) {
    this.index = index;
    this.wants = wants;
    this.#gone = gone;
  }

  get isConnected(): boolean {
    return this.peer !== undefined;
  }
  get hasRoom(): boolean {
    return this.#inFlight <= VUART_FIFO_BYTES - VUART_FIFO_RESERVE;
  }

  attach(handlers: { receive(byte: number): void; changed(): void }): void {
    this.#handlers = handlers;
  }

  send(byte: number): void {
    // The other process is not there to lose it, as a full FIFO does.
    if (this.#inFlight >= MAX_UNTAKEN_BYTES) return;
    this.#outgoing.push(byte);
    this.#inFlight++;
    this.#flushSoon();
  }

  consumed(): void {
    if (this.peer === undefined) return;
    this.#taken++;
    this.#flushSoon();
  }

  dispose(): void {
    this.disconnect();
    this.#handlers = undefined;
    this.#gone();
  }

  connect(peer: Peer, index: number): void {
    this.peer = peer;
    this.peerIndex = index;
    this.asked = undefined;
    this.#inFlight = 0;
    this.#taken = 0;
    this.#outgoing = [];
    this.#handlers?.changed();
  }

  disconnect(): void {
    this.peer = undefined;
    this.asked = undefined;
    this.#inFlight = 0;
    this.#handlers?.changed();
  }

  receive(peer: Peer, bytes: readonly number[]): void {
    if (peer !== this.peer) return;
    for (const byte of bytes) this.#handlers?.receive(byte & 0xff);
  }

  acknowledge(peer: Peer, count: number): void {
    if (peer !== this.peer) return;
    const hadRoom = this.hasRoom;
    this.#inFlight = Math.max(0, this.#inFlight - count);
    if (!hadRoom && this.hasRoom) this.#handlers?.changed();
  }

  #flushSoon(): void {
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    setImmediate(() => {
      this.#isFlushDue = false;
      if (this.#outgoing.length > 0) this.peer?.send({ kind: 'data', to: this.peerIndex, bytes: this.#outgoing });
      this.#outgoing = [];
      for (; this.#taken > 0; this.#taken -= Math.min(this.#taken, MAX_NUMBER)) {
        this.peer?.send({ kind: 'taken', to: this.peerIndex, count: Math.min(this.#taken, MAX_NUMBER) });
      }
    });
  }
}
