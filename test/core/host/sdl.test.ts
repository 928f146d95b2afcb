/** What a window leaves behind in SDL and Xlib. Skipped where there is none of either. */
import koffi from 'koffi';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { SdlWindow } from '../../../devicemodel/core/host/sdl.ts';

const load = (name: string) => {
  try {
    return koffi.load(name);
  } catch {
    return undefined;
  }
};
const xlib = load('libX11.so.6');
const sdl = load('libSDL2-2.0.so.0');

afterEach(() => vi.unstubAllEnvs());

describe.skipIf(xlib === undefined || sdl === undefined)('a window that cannot be opened', () => {
  // A server that is lost later is told of by the handler: of a thread that has ended, it ends the process by SIGSEGV.
  test('takes its handler of a lost server with it, and leaves the one that was there', () => {
    const getpid = BigInt(koffi.address(koffi.load(null).symbol('getpid', 'void')));
    const setHandler = xlib?.func('uintptr_t XSetIOErrorHandler(uintptr_t)') as unknown as (to: bigint) => bigint;
    const before = setHandler(getpid);
    vi.stubEnv('DISPLAY', ':nowhere');
    vi.stubEnv('SDL_VIDEODRIVER', 'x11');
    expect(() => new SdlWindow('vm1', 100, 80, () => {})).toThrow(/no window: SDL_InitSubSystem: /);
    expect(BigInt(setHandler(BigInt(before)))).toBe(getpid);
  });

  test('gives back what SDL had begun', () => {
    vi.stubEnv('SDL_VIDEODRIVER', 'dummy');
    expect(() => new SdlWindow('vm1', 1 << 20, 1 << 20, () => {})).toThrow(/no window: SDL_CreateWindow: /);
    expect(sdl?.func('uint32_t SDL_WasInit(uint32_t)')(0)).toBe(0);
  });
});
