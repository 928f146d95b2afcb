/** The control queue (Virtio 1.2 §5.7.6.8): one request, one answer. */
import { PIXEL_BYTES } from '../../../display/display.ts';
import { isEmpty, isInBounds, isWithin, type Rect, type Size } from '../../../display/rect.ts';
import type { Chain } from '../ring/chain.ts';
import { Backing } from './backing.ts';
import { EDID_BYTES, edidOf } from './edid.ts';
import {
  Answer,
  BLOB_FLAG_SHAREABLE,
  BLOB_MEM_GUEST,
  Command,
  DISPLAY_INFO_BYTES,
  DISPLAY_ONE_BYTES,
  EDID_ANSWER_BYTES,
  FLAG_FENCE,
  formats,
  GpuFeature,
  HEADER_BYTES,
  MAX_REQUEST_BYTES,
  requestBytes,
} from './protocol.ts';
import { BlobResource, ImageResource, type Resource, type Resources } from './resources.ts';
import { MAX_SCANOUT_AREA, MAX_SCANOUT_PIXELS, type Scanouts } from './scanouts.ts';

/** Bytes and rows of a transfer that are copied before other work has its turn. */
const PART_BYTES = 1024 * 1024;
const PART_ROWS = 4096;

export interface GpuState {
  readonly resources: Resources;
  readonly scanouts: Scanouts;
  /** Preferred size of each screen. */
  readonly sizes: readonly Size[];
  /** Whether the driver accepted the feature. */
  hasFeature(bit: number): boolean;
  /** A scanout was set: the VGA has the screen no longer. */
  onScanoutSet(): void;
}

/** How one request went. */
export interface Outcome {
  /** For the used ring. Compat: as with C, 0 after some errors, although the answer is there. */
  readonly usedBytes: number;
  /** What it cost, in bytes. */
  readonly cost: number;
  /** There is more to do: the request is to come again. */
  readonly isPart?: boolean;
}

export class GpuCommands {
  readonly #state: GpuState;
  readonly #request = new DataView(new ArrayBuffer(MAX_REQUEST_BYTES));
  readonly #requestBytes = new Uint8Array(this.#request.buffer);
  readonly #answer = new DataView(new ArrayBuffer(EDID_ANSWER_BYTES));
  readonly #answerBytes = new Uint8Array(this.#answer.buffer);

  constructor(state: GpuState) {
    this.#state = state;
  }

  execute(chain: Chain): Outcome {
    this.#requestBytes.fill(0);
    chain.copyOut(0, this.#requestBytes, 0, MAX_REQUEST_BYTES);
    const type = this.#u32(0);
    const wanted = requestBytes[type];
    // Compat: C takes what is missing from whatever is behind the request.
    if (wanted !== undefined && chain.readableBytes < wanted) return this.#finish(chain, Answer.InvalidParameter);
    switch (type) {
      case Command.GetDisplayInfo:
        return this.#displayInfo(chain);
      case Command.GetEdid:
        return this.#edid(chain);
      case Command.ResourceCreate2d:
        return this.#finish(chain, this.#createImage());
      case Command.ResourceUnref:
        return this.#finish(chain, this.#unref());
      case Command.ResourceAttachBacking:
        return this.#finish(chain, this.#attachBacking(chain));
      case Command.ResourceDetachBacking:
        return this.#finish(chain, this.#detachBacking());
      case Command.SetScanout:
        return this.#setScanout(chain);
      case Command.TransferToHost2d:
        return this.#transfer(chain);
      case Command.ResourceFlush:
        return this.#flush(chain);
      case Command.ResourceCreateBlob:
      case Command.SetScanoutBlob:
        return this.#finish(chain, this.#blobCommand(chain, type));
      default:
        return this.#finish(chain, Answer.Unspecified);
    }
  }

  // Answers.

  /** Write the header of the answer, and `bytes` of it in all. */
  #finish(chain: Chain, answer: Answer, { used = HEADER_BYTES, bytes = HEADER_BYTES, cost = 0 } = {}): Outcome {
    this.#answer.setUint32(0, answer, true);
    const isFenced = (this.#u32(4) & FLAG_FENCE) !== 0;
    this.#answer.setUint32(4, isFenced ? FLAG_FENCE : 0, true);
    this.#answer.setBigUint64(8, isFenced ? this.#request.getBigUint64(8, true) : 0n, true);
    this.#answer.setBigUint64(16, 0n, true);
    chain.copyIn(0, this.#answerBytes, 0, bytes);
    return { usedBytes: Math.min(used, chain.writableBytes), cost: cost + bytes };
  }

  #displayInfo(chain: Chain): Outcome {
    this.#answerBytes.fill(0);
    for (const [i, { width, height }] of this.#state.sizes.entries()) {
      const at = HEADER_BYTES + i * DISPLAY_ONE_BYTES;
      this.#answer.setUint32(at + 8, width, true);
      this.#answer.setUint32(at + 12, height, true);
      this.#answer.setUint32(at + 16, 1, true);
    }
    return this.#finish(chain, Answer.OkDisplayInfo, { used: DISPLAY_INFO_BYTES, bytes: DISPLAY_INFO_BYTES });
  }

  #edid(chain: Chain): Outcome {
    this.#answerBytes.fill(0);
    const size = this.#state.sizes[this.#u32(24)];
    const length = { used: EDID_ANSWER_BYTES, bytes: EDID_ANSWER_BYTES };
    if (size === undefined) return this.#finish(chain, Answer.InvalidScanout, length);
    this.#answer.setUint32(HEADER_BYTES, EDID_BYTES, true);
    this.#answerBytes.set(edidOf(size), HEADER_BYTES + 8);
    return this.#finish(chain, Answer.OkEdid, length);
  }

  // Resources.

  /** Compat: as with C, id 0 can be created, and never be shown. */
  #createImage(): Answer {
    const { resources } = this.#state;
    const id = this.#u32(24);
    if (resources.get(id) !== undefined) return Answer.InvalidResource;
    const size = { width: this.#u32(32), height: this.#u32(36) };
    return resources.createImage(id, size, this.#u32(28)) === undefined ? Answer.OutOfMemory : Answer.Ok;
  }

  #unref(): Answer {
    const resource = this.#resource(24);
    if (resource === undefined) return Answer.InvalidResource;
    this.#state.scanouts.forget(resource);
    this.#state.resources.remove(resource);
    return Answer.Ok;
  }

  #attachBacking(chain: Chain): Answer {
    const resource = this.#resource(24);
    const count = this.#u32(28);
    if (resource === undefined || count === 0) return Answer.InvalidResource;
    const backing = Backing.read(chain, HEADER_BYTES + 8, count, chain.ram);
    if (backing === undefined) return Answer.InvalidParameter;
    return this.#state.resources.attach(resource, backing) ? Answer.Ok : Answer.OutOfMemory;
  }

  #detachBacking(): Answer {
    const resource = this.#resource(24);
    if (resource !== undefined) this.#state.resources.detach(resource);
    return Answer.Ok;
  }

  // Scanouts and pixels.

  #setScanout(chain: Chain): Outcome {
    const { scanouts } = this.#state;
    const scanout = this.#u32(40);
    if (scanout >= scanouts.count) return this.#finish(chain, Answer.InvalidScanout, { used: 0 });
    if (this.#u32(44) === 0) {
      scanouts.hide(scanout);
      return this.#finish(chain, Answer.Ok, { used: 0 });
    }
    const resource = this.#resource(44);
    // Compat: with C a resource that is not there switches the scanout off.
    if (resource === undefined) return this.#finish(chain, Answer.InvalidResource);
    const rect = this.#rect(24);
    if (!(resource instanceof ImageResource)) return this.#finish(chain, Answer.InvalidParameter);
    if (isEmpty(rect) && isInBounds(rect, resource.size)) {
      // Compat: an empty rectangle of the resource is taken; nothing is to be seen of it.
      this.#state.onScanoutSet();
      scanouts.hide(scanout);
      return this.#finish(chain, Answer.Ok);
    }
    if (!isShowable(rect, resource.size)) return this.#finish(chain, Answer.InvalidParameter);
    this.#state.onScanoutSet();
    scanouts.show(scanout, resource, rect, resource.picture(rect));
    return this.#finish(chain, Answer.Ok);
  }

  #transfer(chain: Chain): Outcome {
    const resource = this.#resource(48);
    if (resource === undefined) return this.#finish(chain, Answer.InvalidResource, { used: 0 });
    // A blob is guest memory: there is nothing to be copied.
    if (!(resource instanceof ImageResource)) return this.#finish(chain, Answer.Ok, { used: 0 });
    const rect = this.#rect(24);
    // Compat: C answers an empty rectangle in bounds with success, and so does this.
    if (!isInBounds(rect, resource.size)) return this.#finish(chain, Answer.InvalidParameter);
    const rowBytes = Math.max(rect.width * PIXEL_BYTES, 1);
    const rows = Math.max(1, Math.min(PART_ROWS, Math.floor(PART_BYTES / rowBytes)));
    // `progress` counts rows; the driver may have changed the request since.
    const count = rect.width === 0 ? 0 : Math.min(rows, rect.height - chain.progress);
    const offset = this.#u32(44) * 0x1_0000_0000 + this.#u32(40);
    if (count > 0) resource.transfer(rect, offset, chain.progress, count);
    chain.progress += Math.max(count, 0);
    const cost = Math.max(count, 0) * rowBytes;
    if (rect.width > 0 && chain.progress < rect.height) return { usedBytes: 0, cost, isPart: true };
    return this.#finish(chain, Answer.Ok, { cost });
  }

  #flush(chain: Chain): Outcome {
    const resource = this.#resource(40);
    if (resource === undefined) return this.#finish(chain, Answer.InvalidResource, { used: 0 });
    this.#state.scanouts.flush(resource, this.#rect(24));
    return this.#finish(chain, Answer.Ok, { used: resource instanceof BlobResource ? 0 : HEADER_BYTES });
  }

  // Blobs.

  #blobCommand(chain: Chain, type: number): Answer {
    if (!this.#state.hasFeature(GpuFeature.ResourceBlob)) return Answer.Unspecified;
    return type === Command.ResourceCreateBlob ? this.#createBlob(chain) : this.#setScanoutBlob();
  }

  #createBlob(chain: Chain): Answer {
    const { resources } = this.#state;
    const id = this.#u32(24);
    if (id === 0) return Answer.InvalidResource;
    if (this.#u32(28) !== BLOB_MEM_GUEST || this.#u32(32) !== BLOB_FLAG_SHAREABLE) return Answer.InvalidParameter;
    if (resources.get(id) !== undefined) return Answer.InvalidResource;
    const count = this.#u32(36);
    const sizeBytes = this.#u32(52) * 0x1_0000_0000 + this.#u32(48);
    const backing = count === 0 ? undefined : Backing.read(chain, HEADER_BYTES + 32, count, chain.ram);
    if (count > 0 && backing === undefined) return Answer.InvalidParameter;
    return resources.createBlob(id, sizeBytes, backing) ? Answer.Ok : Answer.OutOfMemory;
  }

  #setScanoutBlob(): Answer {
    const { scanouts } = this.#state;
    const scanout = this.#u32(40);
    if (scanout >= scanouts.count) return Answer.InvalidScanout;
    if (this.#u32(44) === 0) {
      scanouts.hide(scanout);
      return Answer.Ok;
    }
    const resource = this.#resource(44);
    if (resource === undefined) return Answer.InvalidResource;
    const rect = this.#rect(24);
    const size = { width: this.#u32(48), height: this.#u32(52) };
    if (resource instanceof ImageResource) {
      if (!isShowable(rect, resource.size)) return Answer.InvalidParameter;
      this.#state.onScanoutSet();
      scanouts.show(scanout, resource, rect, resource.picture(rect));
      return Answer.Ok;
    }
    const format = formats[this.#u32(56)];
    if (format === undefined || !isShowable(rect, size) || !(resource instanceof BlobResource)) {
      return Answer.InvalidParameter;
    }
    const picture = resource.picture(rect, { format, strideBytes: this.#u32(64), offset: this.#u32(80) });
    if (picture === undefined) return Answer.InvalidParameter;
    this.#state.onScanoutSet();
    scanouts.show(scanout, resource, rect, picture);
    return Answer.Ok;
  }

  // Fields of the request.

  #u32(at: number): number {
    return this.#request.getUint32(at, true);
  }

  #rect(at: number): Rect {
    return { x: this.#u32(at), y: this.#u32(at + 4), width: this.#u32(at + 8), height: this.#u32(at + 12) };
  }

  #resource(at: number): Resource | undefined {
    return this.#state.resources.get(this.#u32(at));
  }
}

function isShowable(rect: Rect, size: Size): boolean {
  const isSmallEnough = rect.width <= MAX_SCANOUT_PIXELS && rect.height <= MAX_SCANOUT_PIXELS;
  return isWithin(rect, size) && isSmallEnough && rect.width * rect.height <= MAX_SCANOUT_AREA;
}
