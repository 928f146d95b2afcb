import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteQueue } from '../../../../devicemodel/hw/uart/backends/byte-queue.ts';

test('is a queue of the newest bytes, whatever is pushed and taken', () => {
  const limit = 512;
  const step = fc.oneof(
    fc.record({ push: fc.array(fc.nat({ max: 255 }), { maxLength: 400 }) }),
    fc.record({ take: fc.nat({ max: 600 }) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const queue = new ByteQueue(limit);
      let model: number[] = [];
      for (const s of steps) {
        if ('push' in s) {
          for (const byte of s.push) {
            expect(queue.push(byte)).toBe(model.length < limit);
            model.push(byte);
            model = model.slice(-limit);
          }
        } else {
          const part = [...queue.peek(s.take)];
          expect(part).toEqual(model.slice(0, part.length));
          queue.drop(part.length);
          model = model.slice(part.length);
        }
        expect(queue.length).toBe(model.length);
      }
    }),
  );
});
