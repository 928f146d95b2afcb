/** What the device thread and the window's thread say to each other. Pixels are in memory that both have. */
import type { SdlEvent } from '../../../core/host/sdl.ts';
import type { CursorImage } from '../display.ts';
import type { Rect } from '../rect.ts';

export interface WindowSetup {
  readonly title: string;
  readonly width: number;
  readonly height: number;
}

export type ToWindow =
  /** From now on the picture is there, and of this size; {@link PIXEL_BYTES} each, without gaps. */
  | { readonly kind: 'picture'; readonly pixels: SharedArrayBuffer; readonly width: number; readonly height: number }
  /** Show these parts of it, maybe none, and say so: until then they are not touched, and nothing more is sent. */
  | { readonly kind: 'show'; readonly rects: readonly Rect[] }
  | { readonly kind: 'cursor'; readonly cursor: CursorImage | undefined }
  | { readonly kind: 'close' };

export type FromWindow =
  | { readonly kind: 'open' }
  /** There is no window, or none any more. */
  | { readonly kind: 'failed'; readonly message: string; readonly hint: string | undefined }
  /** Nothing of SDL is left behind: there may be another window. */
  | { readonly kind: 'closed' }
  | { readonly kind: 'shown' }
  | { readonly kind: 'events'; readonly events: readonly SdlEvent[] };
