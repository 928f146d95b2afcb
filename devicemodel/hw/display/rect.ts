/** Rectangles of pixels: left, top, width and height. */
export interface Rect {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export interface Size {
  readonly width: number;
  readonly height: number;
}

/** What two rectangles have in common, undefined if nothing. */
export function intersection(a: Rect, b: Rect): Rect | undefined {
  const x = Math.max(a.x, b.x);
  const y = Math.max(a.y, b.y);
  const width = Math.min(a.x + a.width, b.x + b.width) - x;
  const height = Math.min(a.y + a.height, b.y + b.height) - y;
  return width > 0 && height > 0 ? { x, y, width, height } : undefined;
}

export function isEmpty(rect: Rect): boolean {
  return rect.width <= 0 || rect.height <= 0;
}

/** Empty ones included. */
export function isInBounds(rect: Rect, size: Size): boolean {
  return rect.x + rect.width <= size.width && rect.y + rect.height <= size.height;
}

/** Whether a rectangle that a guest wrote is one, and all of it within `size`. */
export function isWithin(rect: Rect, size: Size): boolean {
  return !isEmpty(rect) && isInBounds(rect, size);
}
