/** What a connection to a client of the engine keeps of its driver. */
import { expect, test } from 'vitest';
import { EngineConnection } from '../../../../../devicemodel/hw/pci/virtio/heci/connection.ts';

function connect(maxMessageBytes: number) {
  const sent: number[][] = [];
  const connection = new EngineConnection(32, 1, maxMessageBytes);
  const send = (message: Uint8Array) => {
    sent.push([...message]);
    return 0;
  };
  connection.channel = { send, listen: () => {}, close: () => {} };
  return { connection, sent };
}

test('no piece of a message is kept, however many there are', () => {
  const { connection, sent } = connect(4);
  const piece = Uint8Array.of(1);
  expect(connection.add(piece, false)).toBe(true);
  // A driver can send these for ever: they may not be noted one by one.
  for (let i = 0; i < 1000; i++) expect(connection.add(piece.subarray(1), false)).toBe(true);
  piece[0] = 2;
  expect(connection.add(piece, true)).toBe(true);
  expect(connection.sendOutgoing()).toBe(0);
  expect(sent).toEqual([[1, 2]]);
});

test('a message ends at its limit, and the next begins anew', () => {
  const { connection, sent } = connect(4);
  expect(connection.add(Uint8Array.of(1, 2, 3, 4), true)).toBe(true);
  expect(connection.add(Uint8Array.of(5, 6, 7), false)).toBe(true);
  expect(connection.add(new Uint8Array(0), true)).toBe(true);
  expect(connection.add(new Uint8Array(0), true)).toBe(true);
  expect(connection.add(Uint8Array.of(8, 9, 10, 11), false)).toBe(true);
  expect(connection.add(Uint8Array.of(12), true)).toBe(false);
  expect(connection.sendOutgoing()).toBe(0);
  expect(sent).toEqual([[1, 2, 3, 4], [5, 6, 7], []]);
});
