/** Wires that remember what was put on them. */
import type { Gsi } from '../../devicemodel/core/address.ts';
import type { InterruptLine, MsiMessage, MsiSink, PowerControl, PowerEvent } from '../../devicemodel/core/device.ts';

export class FakeLine implements InterruptLine {
  readonly gsi: Gsi;
  /** The level now. */
  asserted = false;
  /** Changes from deasserted to asserted. */
  edges = 0;
  /** Every `set`, in order, repeated levels included. */
  readonly calls: boolean[] = [];

  constructor(gsi: Gsi = 0) {
    this.gsi = gsi;
  }

  set(asserted: boolean): void {
    if (asserted && !this.asserted) this.edges++;
    this.asserted = asserted;
    this.calls.push(asserted);
  }

  /** Forget history, keep the level. */
  clear(): void {
    this.edges = 0;
    this.calls.length = 0;
  }
}

export class FakeMsi implements MsiSink {
  readonly messages: MsiMessage[] = [];

  signal(message: MsiMessage): void {
    this.messages.push({ ...message });
  }

  clear(): void {
    this.messages.length = 0;
  }
}

export class FakePower implements PowerControl {
  readonly events: PowerEvent[] = [];

  request(event: PowerEvent): void {
    this.events.push(event);
  }

  get kinds(): string[] {
    return this.events.map((e) => e.kind);
  }
}
