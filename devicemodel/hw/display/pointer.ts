/** The pointer of a front end, as the hub hears of it. */
import { POINTER_MAX, type PointerEvent } from '../input/input-hub.ts';
import type { Size } from './rect.ts';

/** @param x in pixels of the desktop. @param size of the desktop */
export function pointerAt(x: number, y: number, size: Size, buttons: number, wheel: number): PointerEvent {
  return {
    x: Math.round((x * POINTER_MAX) / Math.max(1, size.width - 1)),
    y: Math.round((y * POINTER_MAX) / Math.max(1, size.height - 1)),
    xPixels: x,
    yPixels: y,
    buttons,
    wheel,
  };
}
