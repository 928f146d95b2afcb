/** From an endpoint's descriptors to a transfer of the device. */
import type { SetupPacket, UsbTransfer } from '../../usb/device.ts';

export type TransferKind = UsbTransfer['type'];

export interface TransferPlan {
  readonly kind: TransferKind;
  /** As doorbells count: 2·number, and one more for IN. */
  readonly endpointId: number;
  readonly streamId: number;
  readonly setup: SetupPacket | undefined;
  readonly isIn: boolean;
  /** What is sent; undefined for room of `totalBytes`. */
  readonly bytes: Uint8Array | undefined;
  readonly totalBytes: number;
  /** Of isochronous ones. */
  readonly packetBytes: readonly number[];
  readonly done: () => void;
}

export function newTransfer(plan: TransferPlan): UsbTransfer {
  const { kind, endpointId, isIn } = plan;
  return {
    type: kind,
    endpoint: kind === 'control' ? 0 : (endpointId >>> 1) | (isIn ? 0x80 : 0),
    isIn,
    streamId: plan.streamId,
    setup: plan.setup,
    buffer: plan.bytes ?? new Uint8Array(plan.totalBytes),
    packets:
      kind === 'isochronous'
        ? plan.packetBytes.map((lengthBytes) => ({ lengthBytes, actualBytes: 0, status: 'error' as const }))
        : [],
    status: 'cancelled',
    actualBytes: 0,
    done: plan.done,
  };
}
