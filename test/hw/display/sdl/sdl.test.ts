/** SDL itself, on an X server without a screen (Xvfb). Skipped where there is none of either. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { Display } from '../../../../devicemodel/hw/display/display.ts';
import { SdlFrontEnd } from '../../../../devicemodel/hw/display/sdl/window.ts';
import { WindowClaim } from '../../../../devicemodel/hw/display/sdl/window-claim.ts';
import type { KeyEvent, PointerEvent } from '../../../../devicemodel/hw/input/input-hub.ts';
import { bundledWorker } from '../../../support/bundle-worker.ts';
import { Canvas } from '../../../support/canvas.ts';
import { memoryLog } from '../../../support/memory-log.ts';

const has = (command: string) => {
  try {
    return execFileSync('sh', ['-c', command], { encoding: 'utf8' }) !== '';
  } catch {
    return false;
  }
};
const isHere = has('command -v Xvfb && command -v xwd && command -v xdotool && ldconfig -p | grep libSDL2-2.0.so.0');
const worker = bundledWorker('devicemodel/hw/display/sdl/sdl-window-main.ts');
const lostDisplay = bundledWorker('test/support/lost-display.ts');
const [SCREEN_WIDTH, SCREEN_HEIGHT] = [640, 480];

/** An X server with a number of its own choice. */
async function startServer(): Promise<{ server: ChildProcess; name: string }> {
  const screen = `${SCREEN_WIDTH}x${SCREEN_HEIGHT}x24`;
  const args = ['-displayfd', '3', '-screen', '0', screen, '-nolisten', 'tcp', '-noreset'];
  const server = spawn('Xvfb', args, { stdio: ['ignore', 'ignore', 'ignore', 'pipe'] });
  const number = await new Promise<string>((resolve, reject) => {
    server.stdio[3]?.once('data', (bytes) => resolve(String(bytes).trim()));
    server.once('exit', () => reject(new Error('Xvfb does not start')));
  });
  return { server, name: `:${number}` };
}

/** The X server's whole screen: red, green, blue of each pixel. X11's XWDFile.h. */
function screenshot(): { width: number; height: number; rgb: (x: number, y: number) => number } {
  const file = execFileSync('xwd', ['-silent', '-root'], { maxBuffer: 1 << 24 });
  const field = (n: number) => file.readUInt32BE(4 * n);
  const [start, pixelBytes, bytesPerLine] = [field(0) + 12 * field(19), field(11) / 8, field(12)];
  const rgb = (x: number, y: number) => file.readUIntLE(start + y * bytesPerLine + pixelBytes * x, 3);
  return { width: field(4), height: field(5), rgb };
}

describe.skipIf(!isHere)('a window', () => {
  let server: ChildProcess | undefined;
  /** Of all tests, as they are one process: each has the window that the one before has given back. */
  const claim = new WindowClaim();
  beforeAll(async () => {
    await worker.build();
    await lostDisplay.build();
    const started = await startServer();
    server = started.server;
    vi.stubEnv('DISPLAY', started.name);
    vi.stubEnv('SDL_VIDEODRIVER', 'x11');
  });
  afterAll(() => {
    vi.unstubAllEnvs();
    server?.kill();
    worker.remove();
    lostDisplay.remove();
  });

  async function open(size: { width: number; height: number }, name = 'vm1') {
    const display = new Display();
    const [screen] = display.plugIn([size], () => {}).screens;
    const keys: KeyEvent[] = [];
    const pointers: PointerEvent[] = [];
    display.input.addKeySink({ rank: 0, isReady: true, key: (event) => void keys.push(event) });
    display.input.addPointerSink({ rank: 0, isReady: true, pointer: (event) => void pointers.push(event) });
    const log = memoryLog();
    const window = new SdlFrontEnd({
      display,
      name,
      claim,
      log: log.log,
      workerUrl: worker.url,
      openTimeoutMs: 60_000,
    });
    await window.start();
    const id = execFileSync('xdotool', ['search', '--sync', '--onlyvisible', '--name', name], {
      encoding: 'utf8',
      timeout: 20_000,
    });
    const place = execFileSync('xdotool', ['getwindowgeometry', '--shell', id.trim()], { encoding: 'utf8' });
    const [x, y] = ['X', 'Y'].map((name) => Number(new RegExp(`^${name}=(-?\\d+)$`, 'm').exec(place)?.[1]));
    return { display, screen, window, keys, pointers, log, id: id.trim(), x: x as number, y: y as number };
  }

  /** Gradients and noise, so that no pixel is like its neighbours. */
  function drawn(width: number, height: number, seed: number): Canvas {
    const canvas = new Canvas({ width, height });
    for (let i = 0; i < width * height; i++) {
      const value = (Math.imul(i + seed, 2654435761) >>> 8) & 0xff_ffff;
      canvas.bytes.set([value & 0xff, (value >>> 8) & 0xff, value >>> 16, 0x55], 4 * i);
    }
    return canvas;
  }

  function isShown(canvas: Canvas, at: { x: number; y: number }): boolean {
    const shot = screenshot();
    for (let y = 0; y < canvas.height; y++) {
      for (let x = 0; x < canvas.width; x++) {
        const [blue = 0, green = 0, red = 0] = canvas.bytes.subarray(4 * (y * canvas.width + x));
        if (shot.rgb(at.x + x, at.y + y) !== ((red << 16) | (green << 8) | blue)) return false;
      }
    }
    return true;
  }

  test('shows what the guest draws pixel by pixel, also in another mode; keys and the pointer come back', async () => {
    const { screen, window, keys, pointers, id, x, y } = await open({ width: 200, height: 150 });
    const first = drawn(200, 150, 1);
    screen?.show(first);
    await vi.waitFor(() => expect(isShown(first, { x, y })).toBe(true), { timeout: 20_000, interval: 200 });

    const second = drawn(123, 101, 77);
    screen?.show(second);
    await vi.waitFor(() => expect(isShown(second, { x, y })).toBe(true), { timeout: 20_000, interval: 200 });

    const act = (...words: string[]) => execFileSync('xdotool', words);
    act('windowfocus', id, 'mousemove', String(x + 122), String(y + 50), 'click', '3', 'key', 'a');
    await vi.waitFor(
      () =>
        expect(keys.map(({ code, isDown }) => [code, isDown])).toEqual([
          [30, true],
          [30, false],
        ]),
      20_000,
    );
    await vi.waitFor(
      () => expect(pointers.at(-1)).toMatchObject({ x: 0x7fff, y: Math.round(0x7fff / 2), buttons: 0 }),
      20_000,
    );
    expect(pointers.some(({ buttons }) => buttons === 4)).toBe(true);
    await window.close();
    expect(screenshot().rgb(x + 5, y + 5)).toBe(0);
  }, 120_000);

  /** As fast as the window takes it, other modes and other pointers. @returns how to stop. */
  function storm({ display, screen }: Awaited<ReturnType<typeof open>>): () => void {
    const pointers = display.plugIn([{ width: 16, height: 16 }], () => {});
    const next = (i: number) => {
      screen?.show(drawn(50 + ((i * 37) % 300), 50 + ((i * 53) % 200), i));
      const side = 1 + (i % 64);
      const pixels = new Uint8Array(4 * side * side);
      pointers.setCursor({ width: side, height: side, hotX: 0, hotY: 0, pixels });
    };
    let count = 0;
    const timer = setInterval(() => next(count++), 2);
    return () => clearInterval(timer);
  }

  // SDL_Quit of one closes the connection that the other draws by, and SIGSEGV ends both.
  test('a second VM of the process is refused, and the window of the first goes on', async () => {
    const first = await open({ width: 100, height: 80 });
    let seed = 0;
    const drawing = setInterval(() => first.screen?.show(drawn(100, 80, seed++)), 2);
    await expect(async () => {
      const second = await open({ width: 100, height: 80 }, 'vm2');
      await second.window.close();
    }).rejects.toThrow('no window: this process shows the screens of vm1 in one');
    clearInterval(drawing);
    const picture = drawn(100, 80, 7);
    first.screen?.show(picture);
    await vi.waitFor(() => expect(isShown(picture, first)).toBe(true), { timeout: 20_000, interval: 200 });
    await first.window.close();
    const next = await open({ width: 100, height: 80 }, 'vm2');
    await next.window.close();
  }, 120_000);

  // Every client of an X server may do that, and Xlib ends the process at the first request for a window that is not there.
  test('another program destroys the window while the guest changes modes: the VM goes on, with one line', async () => {
    const opened = await open({ width: 100, height: 80 });
    const stop = storm(opened);
    execFileSync('xdotool', ['windowclose', opened.id]);
    const { log, window } = opened;
    await vi.waitFor(
      () => expect(log.lines.join('\n')).toContain('the window is destroyed by another program; the VM goes on'),
      { timeout: 20_000 },
    );
    stop();
    await window.close();
    // The next one has all that a window needs.
    const next = await open({ width: 100, height: 80 });
    const picture = drawn(100, 80, 3);
    next.screen?.show(picture);
    await vi.waitFor(() => expect(isShown(picture, next)).toBe(true), { timeout: 20_000, interval: 200 });
    await next.window.close();
  }, 120_000);

  test('a display server that stands still in the middle of it keeps the VM half a second at its end', async () => {
    const opened = await open({ width: 100, height: 80 });
    const stop = storm(opened);
    server?.kill('SIGSTOP');
    await new Promise((resolve) => setTimeout(resolve, 500));
    await opened.window.close();
    stop();
    server?.kill('SIGCONT');
    // What its thread was left with is done, and the window goes.
    await vi.waitFor(
      () => expect(() => execFileSync('xdotool', ['getwindowname', opened.id], { stdio: 'ignore' })).toThrow(),
      { timeout: 20_000 },
    );
    await vi.waitFor(
      () => {
        const hold = claim.take('vm2');
        expect(hold).toBeDefined();
        hold?.giveBack();
      },
      { timeout: 20_000 },
    );
  }, 120_000);

  // From the first message, over opening two connections, to pictures; and while the window is closed.
  test.each(['1', '2', '4', '8', '16', '32', '64', '128', '256', 'end'])(
    'a display server that stands still, and then goes away, ends no process, after message %s',
    (cutAfter) => {
      const args = [fileURLToPath(lostDisplay.url), worker.url.href, cutAfter];
      const { status, stdout } = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: 60_000 });
      expect(stdout).toContain('at its end, in good order');
      expect(stdout.match(/the VM goes on/g) ?? []).toHaveLength(cutAfter === 'end' ? 0 : 1);
      expect(status).toBe(0);
    },
    120_000,
  );

  test('a display server that goes away takes the window with it, and nothing else', async () => {
    const opened = await open({ width: 100, height: 80 });
    const { log, window, screen, x, y } = opened;
    const picture = drawn(100, 80, 5);
    screen?.show(picture);
    await vi.waitFor(() => expect(isShown(picture, { x, y })).toBe(true), { timeout: 20_000, interval: 200 });
    const stop = storm(opened);
    server?.kill('SIGKILL');
    await vi.waitFor(
      () => expect(log.lines.join('\n')).toContain('the window is gone with its display server; the VM goes on'),
      { timeout: 20_000 },
    );
    stop();
    await window.close();
    // SDL would draw by the connection that is gone, to whatever server.
    const next = new SdlFrontEnd({ display: new Display(), name: 'vm2', claim, log: log.log, workerUrl: worker.url });
    await next.start();
    expect(log.lines.at(-1)).toMatch(
      /no window: the display server of an earlier one is gone, .*; the VM goes on, its screens are not shown$/,
    );
    await next.close();
  }, 120_000);
});

describe('no window', () => {
  test('without a display server the line names the variable', async () => {
    await worker.build();
    for (const name of ['DISPLAY', 'WAYLAND_DISPLAY', 'SDL_VIDEODRIVER']) vi.stubEnv(name, '');
    const log = memoryLog();
    const display = new Display();
    const claim = new WindowClaim();
    const window = new SdlFrontEnd({
      display,
      name: 'vm1',
      claim,
      log: log.log,
      workerUrl: worker.url,
      openTimeoutMs: 60_000,
    });
    await window.start();
    expect(log.lines).toHaveLength(1);
    expect(log.lines[0]).toMatch(/no window: neither DISPLAY nor WAYLAND_DISPLAY is set; the VM goes on/);
    await window.close();
    expect(claim.take('vm2')).toBeDefined();
    vi.unstubAllEnvs();
    worker.remove();
  });
});
