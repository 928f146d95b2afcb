/** What User VMs of different processes tell each other: one JSON object a line. */
import type { VuartAddress } from './scenario.ts';

/** Ids a User VM can have; ACRN counts them from the Service VM's 0. */
export const MAX_VMID = 255;
/** The largest number in a message: an index, a vector, a count. */
export const MAX_NUMBER = 0xffff;
/** Characters of a VM's or a region's name: what a VM says is kept as long as it is there. */
const MAX_NAME = 255;

/** What VMs tell each other. */
export type Message =
  | { readonly kind: 'hello'; readonly vmid: number; readonly name: string }
  | { readonly kind: 'doorbell'; readonly region: string; readonly vector: number }
  /** A vUART is here, and whom it is wired to, if that is fixed. */
  | { readonly kind: 'vuart'; readonly index: number; readonly wants: VuartAddress | null }
  | { readonly kind: 'vuart-gone'; readonly index: number }
  /** Be my peer; answered by `paired` or `busy`. `to` is the receiver's index. */
  | { readonly kind: 'pair' | 'paired' | 'busy'; readonly from: number; readonly to: number }
  | { readonly kind: 'data'; readonly to: number; readonly bytes: readonly number[] }
  /** The guest took so many bytes. */
  | { readonly kind: 'taken'; readonly to: number; readonly count: number };

/** @throws Error for anything that is not a message of ours. */
export function parseMessage(line: string): Message {
  const message = JSON.parse(line) as Record<string, unknown>;
  const isIndex = (value: unknown) =>
    Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_NUMBER;
  const isVmid = (value: unknown) => isIndex(value) && value !== 0 && (value as number) <= MAX_VMID;
  const isName = (value: unknown) => typeof value === 'string' && value.length <= MAX_NAME;
  const isAddress = (value: unknown) =>
    value === null ||
    (typeof value === 'object' &&
      isName((value as { vm?: unknown }).vm) &&
      isIndex((value as { index?: unknown }).index));
  const isRight = () => {
    switch (message['kind']) {
      case 'hello':
        return isVmid(message['vmid']) && isName(message['name']);
      case 'doorbell':
        return isName(message['region']) && isIndex(message['vector']);
      case 'vuart':
        return isIndex(message['index']) && isAddress(message['wants']);
      case 'vuart-gone':
        return isIndex(message['index']);
      case 'pair':
      case 'paired':
      case 'busy':
        return isIndex(message['from']) && isIndex(message['to']);
      case 'data':
        return isIndex(message['to']) && Array.isArray(message['bytes']) && message['bytes'].every(isIndex);
      case 'taken':
        return isIndex(message['to']) && isIndex(message['count']);
      default:
        return false;
    }
  };
  if (typeof message !== 'object' || message === null || !isRight()) throw new Error('not a message of a User VM');
  return message as unknown as Message;
}
