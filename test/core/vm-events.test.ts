import { EventEmitter } from 'eventemitter3';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { signalEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { viewOf } from '../../devicemodel/core/host/mapping.ts';
import { VmEventSource } from '../../devicemodel/core/vm-event-source.ts';
import { EVENT_PAGE_BYTES, type VmEvent, type VmEventMap, VmEventRing } from '../../devicemodel/core/vm-events.ts';
import { memoryLog } from '../support/memory-log.ts';
import { until } from '../support/pty.ts';

// struct shared_buf and struct vm_event (acrn_common.h): the hypervisor's view of the page.
const HEAD = 16;
const TAIL = 20;
const RING = 64;
const EVENT_BYTES = 32;
const EVENTS = 126;

class Hypervisor {
  readonly #view: DataView;
  constructor(page: Uint8Array) {
    this.#view = new DataView(page.buffer, page.byteOffset, page.length);
  }
  get head(): number {
    return this.#view.getUint32(HEAD, true);
  }
  get tail(): number {
    return this.#view.getUint32(TAIL, true);
  }
  setTail(value: number): void {
    this.#view.setUint32(TAIL, value, true);
  }
  setHead(value: number): void {
    this.#view.setUint32(HEAD, value, true);
  }
  /** @returns false when the ring is full, as sbuf_put. */
  put(type: number, data: readonly bigint[] = []): boolean {
    const next = (this.tail + EVENT_BYTES) % (EVENTS * EVENT_BYTES);
    if (next === this.head) return false;
    const at = RING + this.tail;
    this.#view.setUint32(at, type, true);
    data.forEach((value, i) => {
      this.#view.setBigInt64(at + 4 + 8 * i, value, true);
    });
    this.setTail(next);
    return true;
  }
}

function ring() {
  const page = new Uint8Array(EVENT_PAGE_BYTES);
  const { log, lines } = memoryLog();
  const consumer = new VmEventRing(page, log);
  const drain = () => {
    const events: VmEvent[] = [];
    consumer.drain((event) => events.push(event));
    return events;
  };
  return { page, hypervisor: new Hypervisor(page), drain, lines };
}

describe('ring page', () => {
  test('is formatted as the hypervisor expects it', () => {
    const { page } = ring();
    const head = new DataView(page.buffer, 0, 40);
    expect(head.getBigUint64(0, true)).toBe(0x5aa57aa71aa13aa3n);
    // 126 elements of 32 bytes, 4032 in all; everything else 0: recorded from the C device model.
    expect([8, 12, 16, 20, 24, 28, 32, 36].map((at) => head.getUint32(at, true))).toEqual([
      126, 32, 0, 0, 0, 0, 0, 4032,
    ]);
  });

  test('events come out in order, over the end of the ring', () => {
    const { hypervisor, drain } = ring();
    const seen: VmEvent[] = [];
    for (let i = 0; i < 300; i++) {
      hypervisor.put(i % 2 === 0 ? 0 : 2, [BigInt(i), -3600n]);
      if (i % 100 === 99) seen.push(...drain());
    }
    expect(seen).toHaveLength(300);
    expect(seen[200]).toEqual({ type: 'rtc-change', lastTimeS: 200, deltaS: -3600 });
    expect(seen[299]).toEqual({ type: 'triple-fault' });
    expect(hypervisor.head).toBe(hypervisor.tail);
  });

  test('unknown types are skipped', () => {
    const { hypervisor, drain, lines } = ring();
    hypervisor.put(77);
    hypervisor.put(1);
    expect(drain()).toEqual([{ type: 'poweroff' }]);
    expect(lines.join()).toContain('77');
  });

  test('a damaged page loses events, never control', () => {
    fc.assert(
      fc.property(fc.nat({ max: 0xffffffff }), fc.nat({ max: 0xffffffff }), (head, tail) => {
        const { hypervisor, drain } = ring();
        hypervisor.setHead(head);
        hypervisor.setTail(tail);
        expect(drain().length).toBeLessThan(EVENTS);
        hypervisor.setTail(hypervisor.head % 4032 === hypervisor.head ? hypervisor.head : 0);
        drain();
        expect(hypervisor.put(1)).toBe(true);
        expect(drain()).toEqual([{ type: 'poweroff' }]);
      }),
    );
  });
});

test('a source hands on what the hypervisor announces through the eventfd, until it is stopped', async () => {
  const events: VmEvent[] = [];
  let registered: { page: Uint8Array; fd: number } | undefined;
  const stream = new EventEmitter<VmEventMap>();
  stream.on('event', (event) => events.push(event));
  const source = new VmEventSource({ log: memoryLog().log, events: stream });
  const setup = (address: bigint, fd: number) => {
    registered = { page: viewOf(address, EVENT_PAGE_BYTES), fd };
    return true;
  };
  expect(source.start({ setup })).toBe(true);
  const { page, fd } = registered as unknown as { page: Uint8Array; fd: number };
  const hypervisor = new Hypervisor(page);
  for (const type of [2, 1]) {
    hypervisor.put(type);
    signalEventfd(fd);
    await until(() => events.at(-1)?.type === (type === 2 ? 'triple-fault' : 'poweroff'), 'event');
  }
  source.stop();
  source.stop();
});

test('a kernel without events is no error', () => {
  const source = new VmEventSource({ log: memoryLog().log, events: { emit: () => false } });
  expect(source.start({ setup: () => false })).toBe(false);
  source.stop();
});
