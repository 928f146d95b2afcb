/**
 * Which key of a US keyboard has a keysym on it, and the other way round.
 * Spec: <linux/input-event-codes.h> for KEY_*; X11's keysymdef.h for keysyms. Loaded with a front end.
 */

/** KEY_* from 1 in the order of the keyboard: the characters without and with Shift. */
const CHARACTERS: readonly (readonly [code: number, characters: string])[] = [
  [2, '1!'],
  [3, '2@'],
  [4, '3#'],
  [5, '4$'],
  [6, '5%'],
  [7, '6^'],
  [8, '7&'],
  [9, '8*'],
  [10, '9('],
  [11, '0)'],
  [12, '-_'],
  [13, '=+'],
  [16, 'qQ'],
  [17, 'wW'],
  [18, 'eE'],
  [19, 'rR'],
  [20, 'tT'],
  [21, 'yY'],
  [22, 'uU'],
  [23, 'iI'],
  [24, 'oO'],
  [25, 'pP'],
  [26, '[{'],
  [27, ']}'],
  [30, 'aA'],
  [31, 'sS'],
  [32, 'dD'],
  [33, 'fF'],
  [34, 'gG'],
  [35, 'hH'],
  [36, 'jJ'],
  [37, 'kK'],
  [38, 'lL'],
  [39, ';:'],
  [40, '\'"'],
  [41, '`~'],
  [43, '\\|'],
  [44, 'zZ'],
  [45, 'xX'],
  [46, 'cC'],
  [47, 'vV'],
  [48, 'bB'],
  [49, 'nN'],
  [50, 'mM'],
  [51, ',<'],
  [52, '.>'],
  [53, '/?'],
  [57, ' '],
];

/** KEY_*, and the keysyms of the key; the first one is its name. */
const NAMED: readonly (readonly [code: number, ...keysyms: number[]])[] = [
  [1, 0xff1b], // Escape
  [14, 0xff08], // BackSpace
  [15, 0xff09, 0xfe20], // Tab, ISO_Left_Tab
  [28, 0xff0d], // Return
  [29, 0xffe3], // Control_L
  [42, 0xffe1], // Shift_L
  [54, 0xffe2], // Shift_R
  [55, 0xffaa], // KP_Multiply
  [56, 0xffe9, 0xffe7], // Alt_L, Meta_L
  [58, 0xffe5], // Caps_Lock
  [59, 0xffbe], // F1
  [60, 0xffbf],
  [61, 0xffc0],
  [62, 0xffc1],
  [63, 0xffc2],
  [64, 0xffc3],
  [65, 0xffc4],
  [66, 0xffc5],
  [67, 0xffc6],
  [68, 0xffc7], // F10
  [69, 0xff7f], // Num_Lock
  [70, 0xff14], // Scroll_Lock
  [71, 0xffb7, 0xff95], // KP_7, KP_Home
  [72, 0xffb8, 0xff97],
  [73, 0xffb9, 0xff9a],
  [74, 0xffad], // KP_Subtract
  [75, 0xffb4, 0xff96],
  [76, 0xffb5, 0xff9d],
  [77, 0xffb6, 0xff98],
  [78, 0xffab], // KP_Add
  [79, 0xffb1, 0xff9c],
  [80, 0xffb2, 0xff99],
  [81, 0xffb3, 0xff9b],
  [82, 0xffb0, 0xff9e],
  [83, 0xffae, 0xff9f], // KP_Decimal, KP_Delete
  [87, 0xffc8], // F11
  [88, 0xffc9], // F12
  [96, 0xff8d], // KP_Enter
  [97, 0xffe4], // Control_R
  [98, 0xffaf], // KP_Divide
  [99, 0xff61, 0xff15], // Print, Sys_Req
  [100, 0xffea, 0xfe03, 0xff7e, 0xffe8], // Alt_R, ISO_Level3_Shift, Mode_switch, Meta_R
  [102, 0xff50], // Home
  [103, 0xff52], // Up
  [104, 0xff55], // Page_Up
  [105, 0xff51], // Left
  [106, 0xff53], // Right
  [107, 0xff57], // End
  [108, 0xff54], // Down
  [109, 0xff56], // Page_Down
  [110, 0xff63], // Insert
  [111, 0xffff], // Delete
  [119, 0xff13, 0xff6b], // Pause, Break
  [125, 0xffeb], // Super_L
  [126, 0xffec], // Super_R
  [127, 0xff67], // Menu
];

const codes = new Map<number, number>();
const keysyms = new Map<number, number>();
for (const [code, characters] of CHARACTERS) {
  for (const character of characters) codes.set(character.charCodeAt(0), code);
  keysyms.set(code, characters.charCodeAt(0));
}
for (const [code, ...names] of NAMED) {
  for (const keysym of names) codes.set(keysym, code);
  keysyms.set(code, names[0] as number);
}

/** KEY_* of the key that has it, 0 for none. */
export function keyOfKeysym(keysym: number): number {
  return codes.get(keysym) ?? 0;
}

/** What is on the key without Shift, 0 for none. */
export function keysymOfKey(code: number): number {
  return keysyms.get(code) ?? 0;
}

/** Keys whose set 1 scan code has the prefix e0: by the code. */
const EXTENDED: Readonly<Record<number, number>> = {
  28: 96, // KP_Enter
  29: 97, // Control_R
  53: 98, // KP_Divide
  55: 99, // Print
  56: 100, // Alt_R
  70: 119, // Break
  71: 102, // Home
  72: 103, // Up
  73: 104, // Page_Up
  75: 105, // Left
  77: 106, // Right
  79: 107, // End
  80: 108, // Down
  81: 109, // Page_Down
  82: 110, // Insert
  83: 111, // Delete
  91: 125, // Super_L
  92: 126, // Super_R
  93: 127, // Menu
};
/** The last code of set 1 that is the number of its key: F12. */
const LAST_SAME = 88;

/** KEY_* of a scan code of set 1, as remote displays send it: 0x80 stands for the prefix e0. 0 for none. */
export function keyOfScanCode(scanCode: number): number {
  const code = scanCode & 0x7f;
  if (scanCode > 0xff) return 0;
  if ((scanCode & 0x80) !== 0) return EXTENDED[code] ?? 0;
  return code <= LAST_SAME ? code : 0;
}
