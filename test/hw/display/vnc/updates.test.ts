/** When updates of one viewer are sent, and of what form they are. */
import { expect, onTestFinished, test } from 'vitest';
import { Display } from '../../../../devicemodel/hw/display/display.ts';
import { PixelWriter, SERVER_FORMAT } from '../../../../devicemodel/hw/display/vnc/pixel-format.ts';
import { Updates } from '../../../../devicemodel/hw/display/vnc/updates.ts';

const HIGH_COLOR = {
  ...SERVER_FORMAT,
  bitsPerPixel: 16,
  depth: 16,
  max: { red: 31, green: 63, blue: 31 },
  shift: { red: 11, green: 5, blue: 0 },
} as const;
const HEAD_BYTES = 4;
const RECTANGLE_BYTES = 12;

test('a format that is asked for while an update is on its way is that of the next one', async () => {
  const display = new Display();
  display.plugIn([{ width: 8, height: 8 }], () => {});
  const sent: Uint8Array[] = [];
  let isTaken = () => {};
  const updates = new Updates({
    display,
    // A viewer that is slow to take the head of an update, and answers to it at once.
    send: (bytes) => {
      sent.push(bytes);
      if (sent.length > 1) return undefined;
      return new Promise((resolve) => (isTaken = resolve));
    },
    onError: (error) => {
      throw error;
    },
  });
  onTestFinished(() => updates.close());
  const whole = { x: 0, y: 0, width: 8, height: 8 };
  updates.request(false, whole);
  await expect.poll(() => sent.length).toBe(1);
  updates.format = new PixelWriter(HIGH_COLOR);
  updates.request(false, whole);
  isTaken();
  await expect.poll(() => sent.length).toBe(4);
  expect(sent.map(({ length }) => length)).toEqual([
    HEAD_BYTES,
    RECTANGLE_BYTES + 4 * 64,
    HEAD_BYTES,
    RECTANGLE_BYTES + 2 * 64,
  ]);
});
