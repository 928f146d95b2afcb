/** The cursor queue (Virtio 1.2 §5.7.6.10). Viewers draw the cursor themselves, where their own pointer is. */
import type { PluggedScreens } from '../../../display/display.ts';
import type { Chain } from '../ring/chain.ts';
import { Command, requestBytes } from './protocol.ts';
import type { Resources } from './resources.ts';

/** Offsets of struct virtio_gpu_update_cursor. */
const Field = { resource: 40, hotX: 44, hotY: 48 } as const;

/** There is no answer, and what is not right is passed over. @returns what it cost, in bytes */
export function executeCursor(chain: Chain, resources: Resources, display: PluggedScreens | undefined): number {
  const type = chain.readU32(0);
  // A move says where the pointer is that the viewer itself moved.
  if (type !== Command.UpdateCursor || chain.readableBytes < (requestBytes[type] as number)) return 0;
  const id = chain.readU32(Field.resource);
  const cursor = id === 0 ? undefined : resources.get(id)?.cursor(chain.readU32(Field.hotX), chain.readU32(Field.hotY));
  if (id === 0 || cursor !== undefined) display?.setCursor(cursor);
  return cursor?.pixels.length ?? 0;
}
