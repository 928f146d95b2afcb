/**
 * A data thread on storage that hangs: the real loop and the real disk, but every transfer first opens `IMAGE.stall`, if
 * that is there. A FIFO keeps it in open(2) until somebody else opens the other end, as a dead NFS server would. With
 * `IMAGE.crash` it throws in the middle of a request.
 */
import { existsSync, readFileSync } from 'node:fs';
import { ImageIo } from '../../devicemodel/hw/storage/image-io.ts';

const { transfer } = ImageIo.prototype;

ImageIo.prototype.transfer = function (...request) {
  const { path } = this.image;
  if (existsSync(`${path}.stall`)) readFileSync(`${path}.stall`);
  if (existsSync(`${path}.crash`)) throw new Error('a bug in the thread');
  return transfer.apply(this, request);
};
