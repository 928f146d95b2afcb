/** Which devices can be served by a data thread: one line each. */
import { blockServer } from '../block/server.ts';
import { netServer } from '../net/server.ts';
import type { ServerFactory } from './words.ts';

/** By the `kind` of the service. */
export const servers: Readonly<Record<string, ServerFactory>> = { block: blockServer, net: netServer };
