/**
 * viewer.ts SOCKET COMMAND: a viewer of a VM's display without a window, for scripts.
 *
 *   shot FILE            the picture, as a binary PPM
 *   resize WxH           asks for another size of the first screen
 *   keys CODE...         presses and releases keys, by their number in <linux/input-event-codes.h>
 *   point X Y [BUTTONS]  moves the pointer there, and presses buttons and lets them go
 */
import { writeFileSync } from 'node:fs';
import { keysymOfKey } from '../../devicemodel/hw/input/keysyms.ts';
import { Rfb, RfbClient } from '../support/rfb-client.ts';

const [path = '', command, ...words] = process.argv.slice(2);
const client = await RfbClient.join({ path });
client.setEncodings(Rfb.Zrle, Rfb.ExtendedDesktopSize);
await client.refresh();
const numbers = words.map(Number);
switch (command) {
  case 'shot': {
    const head = Buffer.from(`P6\n${client.width} ${client.height}\n255\n`);
    writeFileSync(words[0] ?? '', Buffer.concat([head, client.pixels]));
    break;
  }
  case 'resize': {
    const [width = 0, height = 0] = (words[0] ?? '').split('x').map(Number);
    client.setDesktopSize(width, height, [[0, 0, 0, width, height]]);
    break;
  }
  case 'keys':
    for (const code of numbers) for (const isDown of [true, false]) client.key(isDown, keysymOfKey(code));
    break;
  case 'point': {
    const [x = 0, y = 0, buttons = 0] = numbers;
    for (const pressed of [0, buttons, 0]) client.pointer(x, y, pressed);
    break;
  }
  default:
    throw new Error('what?');
}
// An answer comes after everything before it was taken.
await client.refresh();
console.log(`${client.width}x${client.height}`);
client.close();
