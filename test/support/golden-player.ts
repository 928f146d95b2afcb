/**
 * Plays the guest of a recorded case against devices on a port and an MMIO bus, and compares what it reads with what
 * the C device model gave. Accesses only: what needs a whole VM (memory, signals, sockets) is passed over.
 */
import type { AccessSize } from '../../devicemodel/core/address.ts';
import { allOnes } from '../../devicemodel/core/address.ts';
import type { PciConfigAccess } from '../../devicemodel/core/device.ts';
import type { IrqLineOp } from '../../devicemodel/core/hsm/hsm.ts';
import type { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import type { FakeClock } from './fake-clock.ts';
import { recordedFile, recordedTrace } from './recorded-cases.ts';

/** One action of script.json; fields depend on `op`. */
interface Action {
  readonly op: string;
  readonly port?: string | number;
  readonly addr?: string | number;
  readonly bdf?: string;
  readonly reg?: string | number;
  readonly size?: number;
  readonly value?: string | number;
  readonly ms?: number;
  readonly volatile?: boolean;
  readonly as?: string;
  readonly reqs?: readonly Action[];
}

/** An interrupt of the `irqs` list. */
export interface PlayedIrq {
  readonly gsi: number;
  readonly op: IrqLineOp;
}

export interface Machine {
  readonly pio: PioBus;
  readonly mmio: MmioBus;
  readonly clock: FakeClock;
  /** Interrupts since the last call, oldest first; calling forgets them. */
  takeIrqs(): PlayedIrq[];
  readonly pciConfig?: PciConfigAccess;
}

/** A read (or interrupt list) that can be compared: what was recorded, what came here. */
export interface Comparison {
  readonly action: number;
  readonly what: string;
  readonly recorded: string;
  readonly played: string;
}

/** Order of the numbers in SET_IRQLINE. */
const IRQ_OPS: readonly IrqLineOp[] = ['high', 'low', 'rising-pulse', 'falling-pulse'];

/** Time between two guest accesses, about what the recorder took. */
const ACCESS_NS = 20_000;

/** A number, or an expression over `$name`, `+`, `&`, `~`, `-`, parentheses as the recorder's scripts have them. */
export function evaluate(text: string | number | undefined, variables: ReadonlyMap<string, bigint>): bigint {
  if (text === undefined) return 0n;
  if (typeof text === 'number') return BigInt(text);
  const tokens = text.match(/\$\w+|0x[0-9a-fA-F]+|\d+|<<|>>|[()~+\-*&|]/g) ?? [];
  let at = 0;
  const unary = (): bigint => {
    const token = tokens[at++];
    if (token === '(') {
      const value = or();
      at++;
      return value;
    }
    if (token === '~') return ~unary();
    if (token === '-') return -unary();
    if (token === undefined) throw new Error(`"${text}" ends early`);
    return token.startsWith('$') ? (variables.get(token.slice(1)) ?? 0n) : BigInt(token);
  };
  const level = (operators: Record<string, (a: bigint, b: bigint) => bigint>, next: () => bigint) => () => {
    let value = next();
    for (let apply = operators[tokens[at] ?? '']; apply !== undefined; apply = operators[tokens[at] ?? '']) {
      at++;
      value = apply(value, next());
    }
    return value;
  };
  const product = level({ '*': (a, b) => a * b }, unary);
  const sum = level({ '+': (a, b) => a + b, '-': (a, b) => a - b }, product);
  const shift = level({ '<<': (a, b) => a << b, '>>': (a, b) => a >> b }, sum);
  const and = level({ '&': (a, b) => a & b }, shift);
  const or = level({ '|': (a, b) => a | b }, and);
  return or();
}

/**
 * Play a case to its end.
 * @param only which of its accesses the machine can answer; others are passed over. Default: all.
 */
export function playRecordedCase(
  caseName: string,
  machine: Machine,
  only: (action: Action) => boolean = () => true,
): Comparison[] {
  const bytes = recordedFile(caseName, 'script.json');
  if (bytes === undefined) throw new Error(`${caseName} has no script`);
  const actions: readonly Action[] = JSON.parse(new TextDecoder().decode(bytes)).actions;
  const events = recordedTrace(caseName).filter((e) => e.ev === 'guest');
  const isIrqVolatile = JSON.parse(new TextDecoder().decode(recordedFile(caseName, 'case.json'))).irq_volatile === true;
  const variables = new Map<string, bigint>();
  const comparisons: Comparison[] = [];

  const compare = (index: number, action: Action, nth: number) => {
    const event = events.filter((e) => e.i === index)[nth];
    const played = perform(machine, action, variables);
    if (played === undefined) return;
    if (action.as !== undefined) variables.set(action.as, played);
    if (event?.value === undefined || action.volatile === true || event.volatile === true) return;
    comparisons.push({
      action: index,
      what: `${action.op} ${action.port ?? action.addr ?? `${action.bdf} ${action.reg}`} ${action.size}`,
      recorded: event.value,
      played: `0x${played.toString(16)}`,
    });
  };

  for (const [index, action] of actions.entries()) {
    machine.clock.advance(ACCESS_NS);
    if (action.op === 'sleep') {
      machine.clock.advance((action.ms ?? 0) * 1e6);
    } else if (action.op === 'irqs') {
      const played = machine.takeIrqs();
      const event = events.find((e) => e.i === index);
      if (isIrqVolatile || action.volatile === true || event === undefined) continue;
      // Pins from 16 up were set by the PCI host before the guest ran: not a platform device's.
      const isaOnly = event.list.filter((irq: { gsi?: number }) => (irq.gsi ?? 0) < 16);
      comparisons.push({
        action: index,
        what: 'interrupts',
        recorded: JSON.stringify(isaOnly.map((i: { gsi: number; op: number }) => ({ gsi: i.gsi, op: IRQ_OPS[i.op] }))),
        played: JSON.stringify(played),
      });
    } else if (action.op === 'par') {
      for (const [nth, request] of (action.reqs ?? []).entries()) {
        if (only(request)) compare(index, request, nth);
      }
    } else if (only(action)) {
      compare(index, action, 0);
    }
  }
  return comparisons;
}

/** @returns the value read; undefined for writes and for what is no access. */
function perform(machine: Machine, action: Action, variables: ReadonlyMap<string, bigint>): bigint | undefined {
  const size = (action.size ?? 1) as AccessSize | 8;
  const value = evaluate(action.value, variables);
  const port = Number(evaluate(action.port, variables));
  const addr = Number(evaluate(action.addr, variables));
  switch (action.op) {
    case 'pio_read':
      return BigInt(machine.pio.read(port, size as AccessSize) ?? allOnes(size as AccessSize));
    case 'pio_write':
      machine.pio.write(port, size as AccessSize, Number(value));
      return undefined;
    case 'mmio_read':
      if (size === 8) return machine.mmio.readU64(addr) ?? 0xffffffffffffffffn;
      return BigInt(machine.mmio.read(addr, size) ?? allOnes(size));
    case 'mmio_write':
      if (size === 8) machine.mmio.writeU64(addr, value);
      else machine.mmio.write(addr, size, Number(value));
      return undefined;
    case 'cfg_read':
    case 'cfg_write': {
      const pciConfig = machine.pciConfig;
      const match = /^([0-9a-f]+):([0-9a-f]+)\.([0-7])$/i.exec(action.bdf ?? '');
      if (pciConfig === undefined || match === null) return undefined;
      const [bus = 0, device = 0, fn = 0] = match.slice(1).map((n) => Number.parseInt(n, 16));
      const bdf = { bus, device, function: fn };
      const register = Number(evaluate(action.reg, variables));
      if (action.op === 'cfg_read') return BigInt(pciConfig.readConfig(bdf, register, size as AccessSize));
      pciConfig.writeConfig(bdf, register, size as AccessSize, Number(value));
      return undefined;
    }
    default:
      return undefined;
  }
}
