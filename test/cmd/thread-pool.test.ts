import { afterEach, describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { hangingCallsOf, sizeThreadPool } from '../../cmd/thread-pool.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';

const before = process.env['UV_THREADPOOL_SIZE'];
afterEach(() => {
  if (before === undefined) delete process.env['UV_THREADPOOL_SIZE'];
  else process.env['UV_THREADPOOL_SIZE'] = before;
});

/** What is asked of Node for a VM with these slots. */
function sizeFor(...slots: string[]): string | undefined {
  delete process.env['UV_THREADPOOL_SIZE'];
  const words = slots.flatMap((slot) => ['-s', slot]);
  const order = parseCommandLine([...words, '-k', 'kernel', 'vm1'], pciDrivers) as VmOrder;
  sizeThreadPool(hangingCallsOf(order.config));
  return process.env['UV_THREADPOOL_SIZE'];
}

// Mutation: a size that does not count the disks lets seventeen that hang keep the eighteenth from its flush.
describe("Node's threads for calls that may hang", () => {
  test('a VM where nothing may hang makes no more than Node does by itself, as they are made before its first request', () => {
    expect(sizeFor('0:0,hostbridge', '1:0,lpc', '5,ivshmem,hv:/shm0,2', '8,xhci,tablet')).toBeUndefined();
  });
  test('with disks there is one for each, and some for everything else', () => {
    expect(sizeFor('3,virtio-blk,a.img')).toBe('16');
    expect(sizeFor('3,virtio-blk,nodisk')).toBe('16');
    const many = [3, 4, 5, 6, 7, 8].map((slot) => `${slot},ahci,hd:a${slot},hd:b${slot},hd:c${slot}`);
    expect(sizeFor(...many)).toBe('22');
  });
  test('a management engine and USB devices of the host count, too', () => {
    expect(sizeFor('5,virtio-heci')).toBe('16');
    expect(sizeFor('8,xhci,1-2')).toBe('16');
    const ports = Array.from({ length: 14 }, (_, i) => `1-${i + 1}`);
    expect(sizeFor('5,virtio-heci', `8,xhci,${ports.join(':')}`, '3,virtio-blk,a.img')).toBe('20');
  });
  test('where it is not known what will come there are as many as for disks', () => {
    delete process.env['UV_THREADPOOL_SIZE'];
    sizeThreadPool();
    expect(process.env['UV_THREADPOOL_SIZE']).toBe('16');
  });
  test("the user's own number stays", () => {
    process.env['UV_THREADPOOL_SIZE'] = '7';
    sizeThreadPool(20);
    expect(process.env['UV_THREADPOOL_SIZE']).toBe('7');
  });
});
