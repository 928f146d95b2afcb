/**
 * `--intr_monitor THRESHOLD,PERIOD,DELAY,DURATION`: watches the interrupt counts of passed-through devices and, when
 * one of them storms, has the hypervisor delay every injection for a while, so that the guest and its neighbours get
 * to run (C: core/monitor.c).
 */
import type { Clock, Timer } from './clock.ts';
import type { IntrMonitorConfig } from './config.ts';
import { type Mapping, map } from './host/mapping.ts';
import { AcrnIntrMonitor } from './hsm/abi.ts';
import type { IntrMonitorAbility } from './hsm/hsm.ts';
import type { Log } from './log.ts';

/** MAX_PTDEV_NUM * 2, acrn_common.h: pairs of interrupt number and count. */
const BUFFER_WORDS = 48;
const Command = { GetData: 0, DelayInterrupts: 1 } as const;

const MS_NS = 1_000_000;
const SECOND_NS = 1_000_000_000;
/** After a storm the counts are taken afresh when things have calmed down [TIME_TO_CHECK_AGAIN]. */
const SETTLE_NS = 2 * SECOND_NS;
/** The hypervisor pins one page; a buffer on its own page cannot straddle two. */
const PAGE_BYTES = 4096;

type Step = 'first-look' | 'probe' | 'end-delay' | 'look-again';

export interface IntrMonitorOptions {
  readonly config: IntrMonitorConfig;
  readonly ability: IntrMonitorAbility;
  readonly clock: Clock;
  readonly log: Log;
  /** Where the request is built; default: a page of its own. */
  readonly page?: Mapping;
}

export class IntrMonitor {
  readonly #options: IntrMonitorOptions;
  readonly #timer: Timer;
  /** Per probe period; a uint32 product in C. */
  readonly #threshold: bigint;
  readonly #periodNs: number;
  #page: Mapping | undefined;
  #view: DataView | undefined;
  #step: Step = 'first-look';
  readonly #before = new BigUint64Array(BUFFER_WORDS);
  #isDelaying = false;

  constructor(options: IntrMonitorOptions) {
    this.#options = options;
    this.#timer = options.clock.createTimer(() => this.#run());
    const { thresholdPerSecond, probePeriodS } = options.config;
    const periodS = Math.max(1, probePeriodS);
    this.#periodNs = periodS * SECOND_NS;
    this.#threshold = BigInt(thresholdPerSecond) * BigInt(periodS);
  }

  /** The first look is one period from now. @throws HostError without a page. */
  start(): void {
    if (this.#page !== undefined) return;
    this.#page = this.#options.page ?? map(PAGE_BYTES, 'interrupt monitor');
    const { buffer, byteOffset } = this.#page.bytes;
    this.#view = new DataView(buffer, byteOffset, AcrnIntrMonitor.size);
    this.#next('first-look', this.#periodNs);
  }

  /** While injections are delayed: ends that. Before the VM is destroyed, which ends it as well. Safe twice. */
  stop(): void {
    this.#timer.cancel();
    if (this.#isDelaying) this.#delay(0);
    this.#page?.dispose();
    this.#page = undefined;
    this.#view = undefined;
  }

  #next(step: Step, inNs: number): void {
    this.#step = step;
    const { clock } = this.#options;
    this.#timer.arm(clock.nowNs() + inNs);
  }

  #run(): void {
    const { config } = this.#options;
    switch (this.#step) {
      case 'first-look':
      case 'look-again':
        this.#put(AcrnIntrMonitor.offsets.bufCnt, BUFFER_WORDS);
        if (!this.#look()) return;
        this.#remember();
        this.#next('probe', this.#periodNs);
        return;
      case 'probe':
        if (!this.#look()) return;
        if (!this.#findStorm()) {
          this.#remember();
          this.#next('probe', this.#periodNs);
          return;
        }
        this.#delay(config.delayMs);
        this.#next('end-delay', config.delayDurationMs * MS_NS);
        return;
      case 'end-delay':
        this.#delay(0);
        this.#next('look-again', SETTLE_NS);
    }
  }

  /** Fetch the counts. @returns false when the hypervisor cannot tell; the monitor is over then. */
  #look(): boolean {
    const view = this.#view as DataView;
    this.#put(AcrnIntrMonitor.offsets.cmd, Command.GetData);
    for (let i = 0; i < this.#wordCount; i++) view.setBigUint64(AcrnIntrMonitor.offsets.buffer + 8 * i, 0n, true);
    return this.#call('interrupt counts cannot be read, storms are not watched any more');
  }

  #delay(ms: number): void {
    this.#isDelaying = ms !== 0;
    this.#put(AcrnIntrMonitor.offsets.cmd, Command.DelayInterrupts);
    (this.#view as DataView).setBigUint64(AcrnIntrMonitor.offsets.buffer, BigInt(ms), true);
    this.#call('interrupts cannot be delayed');
  }

  #call(failure: string): boolean {
    try {
      this.#options.ability.intrMonitor((this.#page as Mapping).address);
      return true;
    } catch (error) {
      this.#options.log.warn(`${failure}: ${(error as Error).message}`);
      return false;
    }
  }

  /** A line whose number moved is left out until the next probe: devices come and go. */
  #findStorm(): boolean {
    for (let i = 0; i + 1 < this.#wordCount; i += 2) {
      const count = this.#word(i + 1);
      const before = this.#before[i + 1] as bigint;
      if (this.#word(i) !== this.#before[i] || count < before) continue;
      if (count - before > this.#threshold) {
        this.#options.log.notice(`interrupt storm: irq ${this.#word(i)} came ${count - before} times`);
        return true;
      }
    }
    return false;
  }

  #remember(): void {
    for (let i = 0; i < this.#wordCount; i++) this.#before[i] = this.#word(i);
  }

  #word(index: number): bigint {
    return (this.#view as DataView).getBigUint64(AcrnIntrMonitor.offsets.buffer + 8 * index, true);
  }

  /** `buf_cnt`: room on the way in, words that mean something on the way out; handed back as it is, as C does. */
  get #wordCount(): number {
    return Math.min(BUFFER_WORDS, (this.#view as DataView).getUint32(AcrnIntrMonitor.offsets.bufCnt, true));
  }

  #put(offset: number, value: number): void {
    (this.#view as DataView).setUint32(offset, value, true);
  }
}
