/** What vhost-vsock offers its driver, given what the kernel has. */
import { expect, test } from 'vitest';
import { silentLog } from '../../../../../devicemodel/core/log.ts';
import { VhostVsock } from '../../../../../devicemodel/hw/pci/virtio/vsock/vsock.ts';

type Vhost = ConstructorParameters<typeof VhostVsock>[2];
const bits = (...all: number[]) => all.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);

test.each([
  ['everything', ~0n & (2n ** 64n - 1n), bits(24, 27, 28, 29, 32)],
  // A kernel that logs dirty pages (26) does so for its owner, not for the guest.
  ['what Linux 6.1 has', bits(24, 26, 27, 28, 29, 32, 33), bits(24, 27, 28, 29, 32)],
  ['no event index', bits(24, 27, 28, 32), bits(24, 27, 28, 32)],
])('of %s', (_, features, offered) => {
  const vhost = { features, setVsockCid: () => {}, close: () => {} } as unknown as NonNullable<Vhost>;
  const device = new VhostVsock(5, silentLog, vhost);
  device.start();
  expect(device.features).toBe(offered);
});
