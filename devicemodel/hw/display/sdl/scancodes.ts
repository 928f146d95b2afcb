/** Keys by their USB HID usage (HID Usage Tables 1.12, keyboard page), as SDL numbers them. <linux/input-event-codes.h> */

/** KEY_* of the usages from 4, A. */
const FROM_A: readonly number[] = [
  ...[30, 48, 46, 32, 18, 33, 34, 35, 23, 36, 37, 38, 50, 49, 24, 25, 16, 19, 31, 20, 22, 47, 17, 45, 21, 44], // A to Z
  ...[2, 3, 4, 5, 6, 7, 8, 9, 10, 11], // 1 to 0
  ...[28, 1, 14, 15, 57], // Enter, Escape, Backspace, Tab, space
  ...[12, 13, 26, 27, 43, 43, 39, 40, 41, 51, 52, 53, 58], // - = [ ] \ # ; ' ` , . / Caps Lock
  ...[59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 87, 88], // F1 to F12
  ...[99, 70, 119, 110, 102, 104, 111, 107, 109], // Print, Scroll Lock, Pause, Insert, Home, PgUp, Delete, End, PgDn
  ...[106, 105, 108, 103], // right, left, down, up
  ...[69, 98, 55, 74, 78, 96, 79, 80, 81, 75, 76, 77, 71, 72, 73, 82, 83], // Num Lock, keypad / * - + Enter 1 to 0 .
  ...[86, 127, 116, 117], // the one beside Shift, Menu, Power, keypad =
  ...[183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194], // F13 to F24
];
const FIRST = 4;
/** Control, Shift, Alt, Super on the left, then on the right. */
const MODIFIERS: readonly number[] = [29, 42, 56, 125, 97, 54, 100, 126];
const FIRST_MODIFIER = 0xe0;

/** KEY_*, 0 for none. */
export function keyOfUsage(usage: number): number {
  return FROM_A[usage - FIRST] ?? MODIFIERS[usage - FIRST_MODIFIER] ?? 0;
}
