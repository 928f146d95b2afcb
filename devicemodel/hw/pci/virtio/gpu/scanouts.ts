/** Scanouts (Virtio 1.2 §5.7.1): which part of which resource each screen shows. */
import type { Picture, Screen } from '../../../display/display.ts';
import { intersection, type Rect } from '../../../display/rect.ts';
import type { Resource } from './resources.ts';

/** Larger pictures are not shown: a viewer cannot have them. Linux asks for 8192 at most. */
export const MAX_SCANOUT_PIXELS = 8192;
/** Of all of it: 8K, since a viewer's memory is the host's. A blob of any size costs its guest next to nothing. */
export const MAX_SCANOUT_AREA = 8192 * 4320;

interface Scanout {
  readonly resource: Resource;
  readonly rect: Rect;
}

export class Scanouts {
  readonly count: number;
  readonly #shown: Array<Scanout | undefined>;
  #screens: readonly Screen[] = [];

  constructor(count: number) {
    this.count = count;
    this.#shown = new Array<Scanout | undefined>(count).fill(undefined);
  }

  /** @param screens one each; none while unplugged */
  plugIn(screens: readonly Screen[]): void {
    this.#screens = screens;
  }

  show(scanout: number, resource: Resource, rect: Rect, picture: Picture): void {
    this.#shown[scanout] = { resource, rect };
    this.#screens[scanout]?.show(picture);
  }

  hide(scanout: number): void {
    if (this.#shown[scanout] === undefined) return;
    this.#shown[scanout] = undefined;
    this.#screens[scanout]?.show(undefined);
  }

  hideAll(): void {
    for (let i = 0; i < this.count; i++) this.hide(i);
  }

  /** The resource is no more. */
  forget(resource: Resource): void {
    for (let i = 0; i < this.count; i++) if (this.#shown[i]?.resource === resource) this.hide(i);
  }

  /** Part of the resource is to be seen as it is now. */
  flush(resource: Resource, rect: Rect): void {
    for (let i = 0; i < this.count; i++) {
      const shown = this.#shown[i];
      if (shown?.resource !== resource) continue;
      const part = intersection(rect, shown.rect);
      if (part !== undefined) this.#screens[i]?.damage({ ...part, x: part.x - shown.rect.x, y: part.y - shown.rect.y });
    }
  }
}
