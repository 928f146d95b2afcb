/** Options several virtio devices share. */
import type { TransportMode } from './transport.ts';

/** `transport=`: legacy is what guests of the C device model expect and the default. */
export const transportModes = ['legacy', 'transitional', 'modern'] as const satisfies readonly TransportMode[];
