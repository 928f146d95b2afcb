/** A GPIO line without a chip: levels, edges and what the device did to it. */
import { type Drive, Edge, type GpioLine } from '../../devicemodel/core/host/gpio.ts';

export class FakeGpioLine implements GpioLine {
  readonly name: string;
  isOutput = false;
  isClosed = false;
  /** The kernel refuses everything from now on. */
  isGone = false;
  level: 0 | 1 = 0;
  drive: Drive = 'push-pull';
  /** Edges the kernel reports, as asked for last. */
  edges = 0;
  onEdge: (() => void) | undefined;
  readonly #waiting: number[] = [];

  constructor(name = '') {
    this.name = name;
  }

  read(): 0 | 1 | undefined {
    return this.isGone ? undefined : this.level;
  }

  write(value: 0 | 1): boolean {
    if (!this.isOutput || this.isGone) return false;
    this.level = value;
    return true;
  }

  makeInput(edges: number): boolean {
    if (this.isGone) return false;
    this.isOutput = false;
    this.edges = edges;
    return true;
  }

  makeOutput(value: 0 | 1, drive: Drive): boolean {
    if (this.isGone) return false;
    this.isOutput = true;
    this.edges = 0;
    this.level = value;
    this.drive = drive;
    return true;
  }

  nextEdge(): number {
    return this.isGone ? -1 : (this.#waiting.shift() ?? 0);
  }

  watch(onEdge: () => void): () => void {
    this.onEdge = onEdge;
    return () => {
      this.onEdge = undefined;
    };
  }

  close(): void {
    this.isClosed = true;
  }

  /** Somebody outside sets the level. */
  drives(level: 0 | 1): void {
    if (level === this.level) return;
    this.level = level;
    const edge = level === 1 ? Edge.Rising : Edge.Falling;
    if ((this.edges & edge) === 0) return;
    this.#waiting.push(edge);
    this.onEdge?.();
  }
}
