/**
 * A VM's window, as a program of its own: between it and the X server of DISPLAY is a relay, which stands still from one
 * request on, and then is gone. Arguments: where the window's thread is, after how many messages of Xlib the relay stands
 * still, or `end` for the end of the window. It says `the VM goes on` and what was logged, and ends by itself: with another
 * status than 0 something ended it.
 */
import { rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { Display } from '../../devicemodel/hw/display/display.ts';
import { SdlFrontEnd } from '../../devicemodel/hw/display/sdl/window.ts';
import { WindowClaim } from '../../devicemodel/hw/display/sdl/window-claim.ts';
import { Canvas } from './canvas.ts';
import { memoryLog } from './memory-log.ts';

const [, , worker = '', cutAfter = ''] = process.argv;
/** The server stands still for so long. */
const STILL_MS = 200;
const isAtEnd = cutAfter === 'end';

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const socketOf = (name: string | undefined) => `/tmp/.X11-unix/X${name?.slice(1)}`;
const serverSocket = socketOf(process.env['DISPLAY']);
const name = `:${100_000 + process.pid}`;
const sockets = new Set<Socket>();
let left = isAtEnd ? Number.POSITIVE_INFINITY : Number(cutAfter);
let standsStill: () => void = () => {};
const stillness = new Promise<void>((resolve) => (standsStill = resolve));

const relay = createServer((client) => {
  const server = connect(serverSocket);
  const pass = (from: Socket, to: Socket, isRequest: boolean) => {
    sockets.add(from);
    from.on('error', () => {}).on('close', () => to.destroy());
    from.on('data', (bytes) => {
      if (isRequest && --left <= 0) standsStill();
      if (left > 0) to.write(bytes);
    });
  };
  pass(client, server, true);
  pass(server, client, false);
}).listen(socketOf(name));
await new Promise((resolve) => relay.once('listening', resolve));
process.env['DISPLAY'] = name;

const display = new Display();
const { screens, setCursor } = display.plugIn([{ width: 100, height: 80 }], () => {});
const { log, lines } = memoryLog();
const window = new SdlFrontEnd({
  display,
  name: 'vm1',
  claim: new WindowClaim(),
  log,
  workerUrl: new URL(worker),
  openTimeoutMs: 60_000,
});
const opened = window.start();
let count = 0;
/** A guest that changes everything all the time. */
const storm = setInterval(() => {
  const canvas = new Canvas({ width: 50 + ((count * 37) % 300), height: 50 + ((count * 53) % 200) });
  screens[0]?.show(canvas);
  const side = 1 + (count++ % 64);
  setCursor({ width: side, height: side, hotX: 0, hotY: 0, pixels: new Uint8Array(4 * side * side) });
}, 2);

if (isAtEnd) {
  await opened;
  clearInterval(storm);
  await pause(STILL_MS);
  left = 0;
  await window.close();
} else {
  await stillness;
}
await pause(STILL_MS);
relay.close();
for (const socket of sockets) socket.destroy();
while (!isAtEnd && !lines.some((line) => line.includes('the VM goes on'))) await pause(10);
await pause(STILL_MS);
clearInterval(storm);
rmSync(socketOf(name), { force: true });
process.stdout.write(`${lines.join('\n')}\nat its end, in good order\n`);
process.exit(0);
