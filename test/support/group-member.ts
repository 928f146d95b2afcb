/**
 * A VM's part in the place of a group, in a process of its own and of another user: `FOLDER GROUP-ID NAME`. It does what lines of
 * its standard input say, `[word, ...arguments]`, one at a time, and answers each with a line; what happens to it is a line, too.
 */
import { createInterface } from 'node:readline';
import { signalEventfd, takeSharedEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import type { SharedMapping } from '../../devicemodel/core/host/shared-memory.ts';
import { Log } from '../../devicemodel/core/log.ts';
import { Neighbours } from '../../hypervisor/embedded/neighbours.ts';
import { forgetSharedRegions, openSharedRegion } from '../../hypervisor/embedded/shared-region.ts';

const [folder = '', groupId = '', name = ''] = process.argv.slice(2);
const place = { folder, groupId: Number(groupId) };
const say = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const log = new Log([{ maxLevel: 5, write: (level, line) => say({ log: `${level}: ${line}` }) }]);
const neighbours = new Neighbours(place, log, { hasBells: true });
const peers = new Map<number, readonly number[]>();
const regions = new Map<string, SharedMapping>();
let release = () => {};

const words: Record<string, (...args: never[]) => unknown> = {
  region: (region: string, sizeBytes: number) => {
    const mapping = openSharedRegion(region, sizeBytes, place);
    if (mapping === undefined) return 'another size';
    regions.set(region, mapping);
    neighbours.onDoorbell(region, (vector) => say({ rung: vector }));
    const bells = neighbours.bells(region, 8);
    bells?.onPeers((peer, fds) => {
      if (fds === undefined) peers.delete(peer);
      else peers.set(peer, fds);
      say({ bells: [...peers.keys()] });
    });
    for (const [vector, fd] of bells?.own.entries() ?? []) {
      watchFd(fd, () => {
        if (takeSharedEventfd(fd) !== 0) say({ signalled: vector });
      });
    }
    return 'there';
  },
  write: (region: string, at: number, value: number) => {
    const { bytes } = regions.get(region) as SharedMapping;
    bytes[at] = value;
  },
  read: (region: string, at: number) => regions.get(region)?.bytes[at],
  ring: (region: string, vmid: number, vector: number) => neighbours.ring(region, vmid, vector),
  signal: (vmid: number, vector: number) => signalEventfd(peers.get(vmid)?.[vector] as number),
  vuart: (index: number) => {
    const wire = neighbours.wire(index, undefined);
    wire.attach({ receive: (byte) => say({ byte }), changed: () => say({ isConnected: wire.isConnected }) });
    words['send'] = (byte: number) => wire.send(byte);
  },
  leave: () => {
    for (const mapping of regions.values()) mapping.dispose();
    release();
    forgetSharedRegions();
    setImmediate(() => process.exit(0));
  },
};

try {
  const claim = await neighbours.join(name);
  ({ release } = claim);
  say({ vmid: claim.vmid });
} catch (error) {
  say({ failed: `${(error as Error).message} (${(error as { hint?: string }).hint})` });
  process.exit(1);
}
for await (const line of createInterface({ input: process.stdin })) {
  const [word, ...args] = JSON.parse(line) as [string, ...never[]];
  try {
    say({ did: words[word]?.(...args) ?? null });
  } catch (error) {
    say({ failed: (error as Error).message });
  }
}
