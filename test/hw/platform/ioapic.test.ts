import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { IoapicPins, PirqRouter } from '../../../devicemodel/hw/platform/ioapic.ts';

describe('IOAPIC pins', () => {
  test('start after the ISA interrupts and end with the 48th', () => {
    const pins = new IoapicPins();
    const taken = Array.from({ length: 32 }, () => pins.allocate());
    expect([taken[0], taken.at(-1)]).toEqual([16, 47]);
    expect(() => pins.allocate()).toThrow(ConfigError);
  });
});

describe('PIRQ links', () => {
  /** As the board does it: keyboard, mouse, SCI, then COM ports. */
  function makeRouter(...comIrqs: number[]) {
    const router = new PirqRouter();
    for (const irq of [1, 12]) router.reserve(irq);
    router.use(9);
    for (const irq of comIrqs) router.reserve(irq);
    return router;
  }
  const allocate = (router: PirqRouter, count: number) =>
    Array.from({ length: count }, () => {
      const link = router.allocate();
      return [link, router.irqOf(link)];
    });

  test('are disabled at first', () => {
    const router = new PirqRouter();
    expect([1, 8, 0, 9].map((link) => router.read(link))).toEqual([0x80, 0x80, 0x80, 0x80]);
  });

  test('are taken in turn, each with the next free interrupt, the SCI’s last', () => {
    expect(allocate(makeRouter(), 10)).toEqual([
      [1, 3],
      [2, 4],
      [3, 5],
      [4, 6],
      [5, 7],
      [6, 10],
      [7, 11],
      [8, 14],
      [1, 3],
      [2, 4],
    ]);
  });

  test('stay off the interrupts of COM ports', () => {
    expect(allocate(makeRouter(4, 3), 3)).toEqual([
      [1, 5],
      [2, 6],
      [3, 7],
    ]);
  });

  test('reservations come before routing, or not at all', () => {
    const router = makeRouter();
    router.allocate();
    router.reserve(4);
    expect(router.irqOf(router.allocate())).toBe(4);
  });

  test('share when interrupts run out, and fail when there are none', () => {
    const router = new PirqRouter();
    for (const irq of [3, 4, 5, 6, 7, 9, 10, 11, 12, 14]) router.reserve(irq);
    expect(allocate(router, 2)).toEqual([
      [1, 15],
      [2, 15],
    ]);
    const none = new PirqRouter();
    for (const irq of [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15]) none.reserve(irq);
    expect(() => none.allocate()).toThrow(ConfigError);
  });

  test('a guest’s write keeps the disable bit and the number; reset brings back the first routing', () => {
    const router = makeRouter();
    router.allocate();
    router.write(1, 0x7f);
    expect(router.read(1)).toBe(0x0f);
    router.write(2, 0xff);
    expect(router.read(2)).toBe(0x8f);
    router.write(9, 0x03);
    router.reset();
    expect([router.read(1), router.read(2)]).toEqual([0x03, 0x80]);
  });
});
