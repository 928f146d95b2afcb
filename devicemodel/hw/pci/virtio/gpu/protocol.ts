/** Numbers and structures of virtio-gpu (Virtio 1.2 §5.7.6), little endian. */
import type { PixelFormat } from '../../../display/formats.ts';

/** Feature bits (§5.7.3). */
export const GpuFeature = { Edid: 1, ResourceBlob: 3 } as const;

/** struct virtio_gpu_config (§5.7.4). */
export const GpuConfig = { eventsRead: 0, eventsClear: 4, scanouts: 8, capsets: 12, size: 16 } as const;
/** Of eventsRead. */
export const DISPLAY_EVENT = 1 << 0;
/** VIRTIO_GPU_MAX_SCANOUTS. */
export const MAX_SCANOUTS = 16;

/** enum virtio_gpu_ctrl_type: requests (§5.7.6.7). */
export const Command = {
  GetDisplayInfo: 0x100,
  ResourceCreate2d: 0x101,
  ResourceUnref: 0x102,
  SetScanout: 0x103,
  ResourceFlush: 0x104,
  TransferToHost2d: 0x105,
  ResourceAttachBacking: 0x106,
  ResourceDetachBacking: 0x107,
  GetEdid: 0x10a,
  ResourceCreateBlob: 0x10c,
  SetScanoutBlob: 0x10d,
  UpdateCursor: 0x300,
  MoveCursor: 0x301,
} as const;

/** Answers. */
export const Answer = {
  Ok: 0x1100,
  OkDisplayInfo: 0x1101,
  OkEdid: 0x1104,
  Unspecified: 0x1200,
  OutOfMemory: 0x1201,
  InvalidScanout: 0x1202,
  InvalidResource: 0x1203,
  InvalidParameter: 0x1205,
} as const;
export type Answer = (typeof Answer)[keyof typeof Answer];

/** struct virtio_gpu_ctrl_hdr: u32 type, u32 flags, u64 fence_id, u32 ctx_id, u8 ring_idx, padding. */
export const HEADER_BYTES = 24;
export const FLAG_FENCE = 1 << 0;
/** struct virtio_gpu_display_one: a rectangle, u32 enabled, u32 flags. */
export const DISPLAY_ONE_BYTES = 24;
export const DISPLAY_INFO_BYTES = HEADER_BYTES + MAX_SCANOUTS * DISPLAY_ONE_BYTES;
/** struct virtio_gpu_resp_edid: u32 size, u32 padding, 1024 bytes. */
export const EDID_ANSWER_BYTES = HEADER_BYTES + 8 + 1024;
/** struct virtio_gpu_mem_entry: u64 address, u32 length, u32 padding. */
export const MEM_ENTRY_BYTES = 16;

/** Length of each request, without memory entries. */
export const requestBytes: Readonly<Record<number, number>> = {
  [Command.GetDisplayInfo]: HEADER_BYTES,
  [Command.ResourceCreate2d]: HEADER_BYTES + 16,
  [Command.ResourceUnref]: HEADER_BYTES + 8,
  [Command.SetScanout]: HEADER_BYTES + 24,
  [Command.ResourceFlush]: HEADER_BYTES + 24,
  [Command.TransferToHost2d]: HEADER_BYTES + 32,
  [Command.ResourceAttachBacking]: HEADER_BYTES + 8,
  [Command.ResourceDetachBacking]: HEADER_BYTES + 8,
  [Command.GetEdid]: HEADER_BYTES + 8,
  [Command.ResourceCreateBlob]: HEADER_BYTES + 32,
  [Command.SetScanoutBlob]: HEADER_BYTES + 72,
  [Command.UpdateCursor]: HEADER_BYTES + 32,
  [Command.MoveCursor]: HEADER_BYTES + 32,
};
export const MAX_REQUEST_BYTES = HEADER_BYTES + 72;

/** blob_mem and blob_flags of struct virtio_gpu_resource_create_blob (§5.7.6.8). */
export const BLOB_MEM_GUEST = 1;
export const BLOB_FLAG_SHAREABLE = 2;

/** enum virtio_gpu_formats: names give the bytes in their order. */
export const formats: Readonly<Record<number, PixelFormat>> = {
  1: { blue: 0, green: 1, red: 2, alpha: 3 },
  2: { blue: 0, green: 1, red: 2, alpha: undefined },
  3: { alpha: 0, red: 1, green: 2, blue: 3 },
  4: { red: 1, green: 2, blue: 3, alpha: undefined },
  67: { red: 0, green: 1, blue: 2, alpha: 3 },
  68: { blue: 1, green: 2, red: 3, alpha: undefined },
  121: { alpha: 0, blue: 1, green: 2, red: 3 },
  134: { red: 0, green: 1, blue: 2, alpha: undefined },
};
