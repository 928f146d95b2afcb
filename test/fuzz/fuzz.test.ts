/** Hostile guests for a few seconds, the same ones every time. Longer and other ones: npm run fuzz. */
import { expect, test } from 'vitest';
import { whyNoSoftHypervisor } from '../support/program.ts';
import { fuzzAhci } from './ahci.ts';
import { fuzzFaults } from './faults.ts';
import { fuzzPlatform } from './platform.ts';
import { Random } from './random.ts';
import { fuzzVirtio } from './virtio.ts';
import { fuzzXhci } from './xhci.ts';

const VIRTIO_STEPS = 150_000;
const XHCI_STEPS = 100_000;
const PLATFORM_STEPS = 200_000;
const AHCI_STEPS = 40_000;

test('the same seed gives the same numbers, all of them in range', () => {
  const numbers = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 1000 }, () => random.value());
  };
  expect(numbers(1)).toEqual(numbers(1));
  expect(numbers(1)).not.toEqual(numbers(2));
  expect(numbers(3).every((n) => Number.isInteger(n) && n >= 0 && n <= 0xffff_ffff)).toBe(true);
});

test(`${VIRTIO_STEPS} steps of hostile virtio drivers`, { timeout: 120_000 }, async () => {
  const { steps, served } = await fuzzVirtio(1, VIRTIO_STEPS);
  expect(steps).toBe(VIRTIO_STEPS);
  // A fuzzer that breaks everything at once gets nowhere.
  expect(served).toBeGreaterThan(VIRTIO_STEPS / 10);
});

test(`${XHCI_STEPS} steps of a hostile guest at the USB controller`, { timeout: 120_000 }, async () => {
  const { interrupts } = await fuzzXhci(1, XHCI_STEPS);
  expect(interrupts).toBeGreaterThan(XHCI_STEPS / 1000);
});

test(`${PLATFORM_STEPS} requests of a hostile guest to the whole board`, { timeout: 120_000 }, async () => {
  const { lives } = await fuzzPlatform(1, PLATFORM_STEPS);
  expect(lives).toBeGreaterThan(3);
});

test(`${AHCI_STEPS} steps of hostile drivers of ahci`, { timeout: 120_000 }, async () => {
  const { interrupts } = await fuzzAhci(1, AHCI_STEPS);
  expect(interrupts).toBeGreaterThan(AHCI_STEPS / 50);
});

test.skipIf(whyNoSoftHypervisor() !== undefined)(
  'calls of the host that fail: twenty of them',
  { timeout: 300_000 },
  async () => {
    const { faults, reached } = await fuzzFaults({ seed: 1, count: 20, only: 'small' });
    expect([faults, reached > 15]).toEqual([20, true]);
  },
);
