/**
 * Device slots and the commands about them. Spec: xHCI 1.0 §4.5 (slots), §4.6 (commands).
 *
 * A slot refers to the device of a root port from Address Device on, until it is disabled or the controller is reset; the
 * port owns the device. The endpoints are the slot's.
 */
import type { Timer } from '../../../core/clock.ts';
import { GuestFault } from '../../../core/errors.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import type { UsbDevice } from '../../usb/device.ts';
import {
  DeviceContext,
  type EndpointSettings,
  EndpointState,
  InputContext,
  isBulk,
  SlotState,
  suits,
} from './context.ts';
import { Endpoint, type EndpointWires, SLICE_BLOCKS } from './endpoint.ts';
import { LatestAnswer } from './latest-answer.ts';
import { MAX_ENDPOINT_ID, MAX_PRIMARY_STREAMS_EXPONENT, MAX_SLOTS } from './registers.ts';
import { streamRings, TransferRing } from './transfer-ring.ts';
import { addressOf, CompletionCode, endpointOf, slotOf, type Trb, TrbControl, TrbType, typeOf } from './trb.ts';

const CONTROL_ENDPOINT = 1;
const NO_SLOT = 0;

interface Slot {
  readonly id: number;
  state: number;
  device: UsbDevice | undefined;
  context: DeviceContext | undefined;
  readonly endpoints: Map<number, Endpoint>;
}

/** A slot with a device that has an address, or is about to get one. */
interface LiveSlot extends Slot {
  readonly device: UsbDevice;
  readonly context: DeviceContext;
}

function isLive(slot: Slot | undefined): slot is LiveSlot {
  return slot?.device !== undefined && slot.context !== undefined;
}

/** How a command ended, for its completion event. */
export interface CommandResult {
  readonly code: number;
  readonly slot: number;
}

export interface SlotWires extends EndpointWires {
  deviceAt(port: number): UsbDevice | undefined;
  /** DCBAAP (§5.4.6), as far as the guest wrote it. */
  contextArray(): number;
}

/** As for a reset of a port; Linux aborts a command after five seconds. */
const OPEN_PATIENCE_NS = 3_000_000_000;

type MaybeLater<T> = T | Promise<T>;

export class Slots {
  readonly #slots = new Map<number, Slot>();
  readonly #wires: SlotWires;
  /** Of the one Address Device that is under way. */
  readonly #openAnswer = new LatestAnswer<boolean>();
  /** Runs while the guest waits for that, and ends it. */
  readonly #openTimer: Timer;
  #openEnded: (isThere: boolean) => void = () => {};

  constructor(wires: SlotWires) {
    this.#wires = wires;
    this.#openTimer = wires.clock.createTimer(() => this.#endOpen(false));
  }

  get #memory(): GuestMemory {
    return this.#wires.memory;
  }

  get #endpoints(): Endpoint[] {
    return [...this.#slots.values()].flatMap(({ endpoints }) => [...endpoints.values()]);
  }

  /** Reset of the controller. */
  reset(): void {
    for (const slot of this.#slots.values()) letGoEndpoints(slot);
    this.#slots.clear();
    this.#openAnswer.forget();
    this.#openTimer.cancel();
  }

  /** §5.6. */
  ringDoorbell(id: number, endpoint: number, stream: number): void {
    this.#slots.get(id)?.endpoints.get(endpoint)?.ring(stream);
  }

  pump(): void {
    let left = SLICE_BLOCKS;
    for (const endpoint of this.#endpoints) left -= endpoint.pump(Math.max(left, 0));
  }

  recall(): void {
    for (const endpoint of this.#endpoints) endpoint.recall();
  }

  /** Do what a TRB of the command ring says. Compat: as with C types that are no command succeed. */
  execute(trb: Trb): MaybeLater<CommandResult> {
    const type = typeOf(trb);
    if (type === TrbType.EnableSlot) return this.#enable();
    const command = this.#commandOf(type);
    if (command === undefined) return { code: CompletionCode.Success, slot: NO_SLOT };
    const id = slotOf(trb);
    // Compat: C answers with code 0, which is none.
    if (id === NO_SLOT || id > MAX_SLOTS) return { code: CompletionCode.SlotNotEnabled, slot: NO_SLOT };
    const code = this.#guarded(() => command(id, { ...trb }));
    return typeof code === 'number' ? { code, slot: id } : code.then((later) => ({ code: later, slot: id }));
  }

  /** Contexts that are not in RAM are no contexts. */
  #guarded(command: () => MaybeLater<number>): MaybeLater<number> {
    const onFault = (error: unknown) => {
      if (error instanceof GuestFault) return CompletionCode.Trb;
      throw error;
    };
    try {
      const code = command();
      return typeof code === 'number' ? code : code.catch(onFault);
    } catch (error) {
      return onFault(error);
    }
  }

  #commandOf(type: number): ((id: number, trb: Trb) => MaybeLater<number>) | undefined {
    switch (type) {
      case TrbType.DisableSlot:
        return (id) => this.#disable(id);
      case TrbType.AddressDevice:
        return (id, trb) => this.#address(id, trb);
      case TrbType.ConfigureEndpoint:
        return (id, trb) => this.#configure(id, trb);
      case TrbType.EvaluateContext:
        return (id, trb) => this.#evaluate(id, trb);
      case TrbType.ResetEndpoint:
        return (id, trb) => this.#resetEndpoint(id, trb);
      case TrbType.StopEndpoint:
        return (id, trb) => this.#stopEndpoint(id, trb);
      case TrbType.SetTrDequeue:
        return (id, trb) => this.#setDequeue(id, trb);
      case TrbType.ResetDevice:
        return (id) => this.#resetDevice(id);
      default:
        return undefined;
    }
  }

  /** §4.6.3. */
  #enable(): CommandResult {
    for (let id = 1; id <= MAX_SLOTS; id++) {
      if (this.#slots.has(id)) continue;
      const endpoints = new Map<number, Endpoint>();
      this.#slots.set(id, { id, state: SlotState.Enabled, device: undefined, context: undefined, endpoints });
      return { code: CompletionCode.Success, slot: id };
    }
    return { code: CompletionCode.NoSlots, slot: NO_SLOT };
  }

  /** §4.6.4. Compat: C gives up only slots whose device has an address, and then shows its port as empty. */
  #disable(id: number): number {
    const slot = this.#slots.get(id);
    if (slot === undefined) return CompletionCode.SlotNotEnabled;
    letGoEndpoints(slot);
    this.#slots.delete(id);
    slot.context?.setSlotState(SlotState.Enabled, 0);
    return CompletionCode.Success;
  }

  /** §4.6.5. The device's address is the slot's number. */
  #address(id: number, trb: Trb): MaybeLater<number> {
    const input = new InputContext(this.#memory, addressOf(trb));
    if (input.drops !== 0 || !input.adds(0) || !input.adds(CONTROL_ENDPOINT)) return CompletionCode.Trb;
    const slot = this.#slots.get(id);
    if (slot === undefined) return CompletionCode.SlotNotEnabled;
    const isBlocked = (trb.control & TrbControl.BlockSetAddress) !== 0;
    if (slot.state !== SlotState.Enabled && (slot.state !== SlotState.Default || isBlocked)) {
      return CompletionCode.ContextState;
    }
    const device = this.#wires.deviceAt(input.rootHubPort);
    if (device === undefined) return CompletionCode.Trb;
    const context = this.#contextOf(id);
    if (context === undefined) return CompletionCode.ContextState;
    const settings = input.endpoint(CONTROL_ENDPOINT);
    if (!isPossible(CONTROL_ENDPOINT, settings)) return CompletionCode.Parameter;
    const opened = device.open();
    const addressed = (isThere: boolean) => {
      // The controller may have been reset or halted, or the device pulled out, while it was opened.
      if (!isThere || this.#slots.get(id) !== slot || !this.#wires.isRunning()) return CompletionCode.Transaction;
      slot.device = device;
      slot.context = context;
      context.copy(0, input);
      context.copy(CONTROL_ENDPOINT, input);
      slot.state = isBlocked ? SlotState.Default : SlotState.Addressed;
      context.setSlotState(slot.state, isBlocked ? 0 : id);
      this.#addEndpoint(slot as LiveSlot, CONTROL_ENDPOINT, settings);
      return CompletionCode.Success;
    };
    if (typeof opened === 'boolean') return addressed(opened);
    this.#openTimer.arm(this.#wires.clock.nowNs() + OPEN_PATIENCE_NS);
    return new Promise<boolean>((resolve) => {
      this.#openEnded = resolve;
      this.#openAnswer.listen(opened, (isThere) => this.#endOpen(isThere));
    }).then(addressed);
  }

  /** The device answered, or a host whose device hangs was given its time: as on a bus where nobody answers. */
  #endOpen(isThere: boolean): void {
    this.#openTimer.cancel();
    this.#openAnswer.forget();
    this.#openEnded(isThere);
  }

  #contextOf(id: number): DeviceContext | undefined {
    const entry = this.#memory.readU64(this.#wires.contextArray() + 8 * id);
    const address = Number(entry & ~0x3fn);
    return address === 0 ? undefined : new DeviceContext(this.#memory, address);
  }

  #addEndpoint(slot: LiveSlot, id: number, settings: EndpointSettings): void {
    slot.endpoints.get(id)?.letGo();
    const { primaryStreams, dequeue } = settings;
    const rings =
      primaryStreams === 0 ? [new TransferRing(dequeue)] : streamRings(this.#memory, dequeue.address, primaryStreams);
    const owner = { slot: slot.id, device: slot.device, context: slot.context };
    slot.endpoints.set(id, new Endpoint(id, settings.type, rings, owner, this.#wires));
    slot.context.setEndpointState(id, EndpointState.Running);
  }

  /** §4.6.6. */
  #configure(id: number, trb: Trb): number {
    const slot = this.#slots.get(id);
    if (!isLive(slot)) return CompletionCode.SlotNotEnabled;
    if (slot.state !== SlotState.Addressed && slot.state !== SlotState.Configured) return CompletionCode.ContextState;
    if ((trb.control & TrbControl.Deconfigure) !== 0) {
      this.#deconfigure(slot, SlotState.Addressed);
      return CompletionCode.Success;
    }
    const input = new InputContext(this.#memory, addressOf(trb));
    const ids = Array.from({ length: MAX_ENDPOINT_ID - 1 }, (_, i) => i + 2);
    const added = ids.filter((endpoint) => input.adds(endpoint));
    const settings = new Map(added.map((endpoint) => [endpoint, input.endpoint(endpoint)]));
    for (const [endpoint, wanted] of settings) if (!isPossible(endpoint, wanted)) return CompletionCode.Parameter;
    for (const endpoint of ids) if (((input.drops >>> endpoint) & 1) !== 0) dropEndpoint(slot, endpoint);
    for (const [endpoint, wanted] of settings) {
      slot.context.copy(endpoint, input);
      this.#addEndpoint(slot, endpoint, wanted);
    }
    slot.state = SlotState.Configured;
    slot.context.setSlotState(SlotState.Configured);
    slot.context.setContextEntries(input.contextEntries);
    return CompletionCode.Success;
  }

  #deconfigure(slot: LiveSlot, state: number): void {
    for (const endpoint of [...slot.endpoints.keys()]) if (endpoint !== CONTROL_ENDPOINT) dropEndpoint(slot, endpoint);
    slot.state = state;
    slot.context.setSlotState(state, state === SlotState.Default ? 0 : slot.id);
    slot.context.setContextEntries(1);
  }

  /** §4.6.7. */
  #evaluate(id: number, trb: Trb): number {
    const input = new InputContext(this.#memory, addressOf(trb));
    if (input.drops !== 0 || (!input.adds(0) && !input.adds(CONTROL_ENDPOINT))) return CompletionCode.Trb;
    const slot = this.#slots.get(id);
    if (!isLive(slot)) return slot === undefined ? CompletionCode.SlotNotEnabled : CompletionCode.ContextState;
    slot.context.evaluate(input);
    return CompletionCode.Success;
  }

  /** The endpoint a command is about, or why there is none. */
  #endpointFor(id: number, trb: Trb): Endpoint | number {
    const slot = this.#slots.get(id);
    if (!isLive(slot)) return slot === undefined ? CompletionCode.SlotNotEnabled : CompletionCode.ContextState;
    const endpoint = endpointOf(trb);
    if (endpoint === 0) return CompletionCode.Trb;
    return slot.endpoints.get(endpoint) ?? CompletionCode.EndpointNotEnabled;
  }

  /** §4.6.8. */
  #resetEndpoint(id: number, trb: Trb): MaybeLater<number> {
    const endpoint = this.#endpointFor(id, trb);
    if (typeof endpoint === 'number') return endpoint;
    if (endpoint.state !== EndpointState.Halted) return CompletionCode.ContextState;
    return endpoint.reset()?.then(() => CompletionCode.Success) ?? CompletionCode.Success;
  }

  /** §4.6.9. */
  #stopEndpoint(id: number, trb: Trb): MaybeLater<number> {
    const endpoint = this.#endpointFor(id, trb);
    if (typeof endpoint === 'number') return endpoint;
    const result = () =>
      endpoint.state === EndpointState.Stopped ? CompletionCode.Success : CompletionCode.ContextState;
    if (endpoint.state !== EndpointState.Running) return result();
    return endpoint.stop()?.then(result) ?? result();
  }

  /** §4.6.10. */
  #setDequeue(id: number, trb: Trb): number {
    if (!isLive(this.#slots.get(id))) return CompletionCode.SlotNotEnabled;
    const endpoint = this.#endpointFor(id, trb);
    if (typeof endpoint === 'number') return endpoint;
    if (endpoint.state !== EndpointState.Stopped && endpoint.state !== EndpointState.Error) {
      return CompletionCode.ContextState;
    }
    const position = { address: addressOf(trb), cycle: trb.parameterLow & 1 };
    return endpoint.setDequeue(trb.status >>> 16, position) ? CompletionCode.Success : CompletionCode.Trb;
  }

  /** §4.6.11. */
  #resetDevice(id: number): number {
    const slot = this.#slots.get(id);
    if (!isLive(slot)) return CompletionCode.SlotNotEnabled;
    if (slot.state !== SlotState.Addressed && slot.state !== SlotState.Configured) return CompletionCode.ContextState;
    this.#deconfigure(slot, SlotState.Default);
    return CompletionCode.Success;
  }
}

/** Streams are for bulk endpoints (§4.12), and their array is as large as the guest says: it is read whole. */
function isPossible(id: number, { type, primaryStreams, hasLinearStreams }: EndpointSettings): boolean {
  if (!suits(type, id)) return false;
  return primaryStreams === 0 || (isBulk(type) && primaryStreams <= MAX_PRIMARY_STREAMS_EXPONENT && hasLinearStreams);
}

function dropEndpoint(slot: LiveSlot, id: number): void {
  slot.endpoints.get(id)?.letGo();
  slot.endpoints.delete(id);
  slot.context.setEndpointState(id, EndpointState.Disabled);
}

function letGoEndpoints({ endpoints }: Slot): void {
  for (const endpoint of endpoints.values()) endpoint.letGo();
  endpoints.clear();
}
