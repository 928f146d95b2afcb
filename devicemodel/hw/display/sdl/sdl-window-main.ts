/**
 * The thread of a window. It alone waits for the display server; the device thread only sends and hears messages. It
 * owns the window, from its first line to `close`. When the display server goes away in the middle of a call the thread
 * says so, and stays in that call until the process ends.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { HostError } from '../../../core/errors.ts';
import { SdlWindow } from '../../../core/host/sdl.ts';
import type { Rect } from '../rect.ts';
import type { FromWindow, ToWindow, WindowSetup } from './messages.ts';

/** Between two looks at what the user did: 60 a second. */
const POLL_MS = 16;

const tell = (message: FromWindow) => parentPort?.postMessage(message);

function run({ title, width, height }: WindowSetup): void {
  const lost = (how: string) => tell({ kind: 'failed', message: `the window is ${how}`, hint: undefined });
  const serverIsGone = () => lost('gone with its display server');
  const window = new SdlWindow(title, width, height, serverIsGone);
  tell({ kind: 'open' });
  let pixels: Uint8Array = new Uint8Array(0);
  let size = { width, height };
  const whole = (): Rect => ({ x: 0, y: 0, ...size });
  const draw = (rects: readonly Rect[]) => {
    if (pixels.length > 0) window.show(pixels, size.width, size.height, rects);
  };

  const timer = setInterval(() => {
    const events = window.takeEvents();
    if (window.loss !== undefined) {
      end();
      if (window.loss === 'server') serverIsGone();
      else lost('destroyed by another program');
      parentPort?.close();
      return;
    }
    if (events.some(({ kind }) => kind === 'exposed')) draw([whole()]);
    const news = events.filter(({ kind }) => kind !== 'exposed');
    if (news.length > 0) tell({ kind: 'events', events: news });
  }, POLL_MS);
  const end = () => {
    clearInterval(timer);
    window.close();
    if (window.loss !== 'server') tell({ kind: 'closed' });
  };

  parentPort?.on('message', (message: ToWindow) => {
    switch (message.kind) {
      case 'picture':
        pixels = new Uint8Array(message.pixels);
        if (message.width !== size.width || message.height !== size.height) {
          window.setSize(message.width, message.height);
        }
        size = { width: message.width, height: message.height };
        break;
      case 'show':
        draw(message.rects);
        tell({ kind: 'shown' });
        break;
      case 'cursor':
        window.setCursor(message.cursor);
        break;
      case 'close':
        end();
        parentPort?.close();
        break;
    }
  });
}

try {
  run(workerData as WindowSetup);
} catch (error) {
  const hint = error instanceof HostError ? error.hint : undefined;
  tell({ kind: 'closed' });
  tell({ kind: 'failed', message: (error as Error).message, hint });
  parentPort?.close();
}
