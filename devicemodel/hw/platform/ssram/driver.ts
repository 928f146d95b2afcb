/** `--ssram`: software SRAM, parts of a cache that belong to vCPUs of a real-time VM. */
import { definePlatformDriver } from '../driver.ts';
import { checkGivesDevices } from '../host-devices.ts';
import { parseSsramText, SsramOptions, USAGE } from './options.ts';

export const ssram = definePlatformDriver({
  name: 'ssram',
  group: 'Real time',
  arg: USAGE,
  summary: 'software SRAM: cache reserved for vCPUs',
  options: SsramOptions,
  // Generated launch scripts have a bare --ssram, which must not swallow what follows.
  argPattern: /^[lL][23](,|$)/,
  parseText: parseSsramText,
  checkHypervisor: checkGivesDevices,
  create: async (options, env) => new (await import('./ssram.ts')).Ssram(options, env),
  // The guest loses nothing it could name.
  ignored: ({ regions }) => (regions.length === 0 ? 'it names no region (write L2|L3,vcpu=N,size=SIZE)' : undefined),
});
