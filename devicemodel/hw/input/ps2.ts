/** The PS/2 keyboard and mouse as what a display feeds where the guest has nothing better. */
import type { Disposable } from '../../core/disposer.ts';
import type { Ps2Keyboard } from '../platform/ps2-keyboard.ts';
import { MouseButton, type Ps2Mouse } from '../platform/ps2-mouse.ts';
import { type InputHub, InputRank, PointerButton } from './input-hub.ts';

export function plugInPs2(
  { keyboard, mouse }: { readonly keyboard: Ps2Keyboard; readonly mouse: Ps2Mouse },
  hub: InputHub,
): Disposable[] {
  const always = { rank: InputRank.Ps2, isReady: true };
  return [
    hub.addKeySink({ ...always, key: ({ keysym, isDown }) => void keyboard.key(keysym, isDown) }),
    hub.addPointerSink({
      ...always,
      pointer: ({ xPixels, yPixels, buttons }) => mouse.pointer(xPixels, yPixels, mouseButtons(buttons)),
    }),
  ];
}

function mouseButtons(buttons: number): number {
  return (
    ((buttons & PointerButton.Left) !== 0 ? MouseButton.Left : 0) |
    ((buttons & PointerButton.Middle) !== 0 ? MouseButton.Middle : 0) |
    ((buttons & PointerButton.Right) !== 0 ? MouseButton.Right : 0)
  );
}
