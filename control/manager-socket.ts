/**
 * The binary socket that acrnctl and acrnd speak: `/run/acrn/mngr/<vm>.monitor.<pid>.socket`, fixed-size messages, each
 * answered by one of the same kind (C: core/monitor.c, misc/services/acrn_manager/acrn_mngr.h).
 */
import { rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { ensureOwnFolder, FolderMode } from '../devicemodel/core/host/folders.ts';
import { listenUnix, type UnixListener } from '../devicemodel/core/host/unix-listener.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { bytes, struct, u32, u64 } from '../devicemodel/core/struct.ts';
import { Clients } from './clients.ts';
import type { FrontDoor } from './front-doors.ts';
import { deadManagerSockets, managerFolder, managerSockets } from './manager-folder.ts';
import type { VmCommands } from './vm-commands.ts';

/** MNGR_MSG_MAGIC: "vmm msg" as seen in memory. */
export const MANAGER_MAGIC = 0x67736d206d6d76n;

/** Message kinds; 1 to 2, 8 and 15 are the borders between the enums of the header. */
export const ManagerMessageId = {
  Text: 1,
  DmStop: 3,
  DmSuspend: 4,
  DmResume: 5,
  DmQuery: 6,
  DmBlkrescan: 7,
  AcrndTimer: 9,
  AcrndReason: 10,
  DmNotify: 11,
  AcrndStop: 12,
  AcrndResume: 13,
  AcrndSuspend: 14,
  WakeupReason: 16,
  RtcTimer: 17,
} as const;

/** struct mngr_msg: 280 bytes. `data` is a union. */
export const ManagerMessage = struct({ magic: u64, id: u32, timestamp: u64, data: bytes(256) });

/** What DM_QUERY answers: the suspend mode [enum vm_suspend_how, pm.h], of which a VM that answers has these. */
const VmStateCode = { running: 0, suspended: 4 } as const;

/** What DM_STOP carries: whether the guest is asked. */
const StopKind = { askGuest: 0 } as const;

/** The result of what was not done; acrnctl shows it. */
const FAILED = -1;

/** Clients at a time [MNGR_MAX_CLIENT]; further ones wait, as in C, but not without end. */
const MAX_CLIENTS = 4;
const MAX_WAITING = 28;

function argumentText(data: Uint8Array): string {
  const end = data.indexOf(0);
  return Buffer.from(data.subarray(0, end < 0 ? data.length : end)).toString();
}

export interface ManagerSocketOptions {
  readonly vmName: string;
  /** Who may connect beside this user. */
  readonly socketGroup?: string | undefined;
  readonly commands: VmCommands;
  readonly log: Log;
  /** Default: where acrnctl looks. */
  readonly directory?: string;
}

export class ManagerSocket implements FrontDoor {
  readonly #options: ManagerSocketOptions;
  readonly #clients: Clients;
  #listener: UnixListener | undefined;

  constructor(options: ManagerSocketOptions) {
    this.#options = options;
    this.#clients = new Clients({
      maxClients: MAX_CLIENTS,
      maxWaiting: MAX_WAITING,
      onCut: (why) => options.log.rationed('debug', () => `manager socket: ${why}`),
    });
  }

  /** Where it listens, or undefined. */
  get path(): string | undefined {
    return this.#listener?.path;
  }

  /** Listen. Where that is not possible (no rights for /run/acrn) the VM runs without it: no script depends on it. */
  async start(): Promise<void> {
    if (this.#listener !== undefined) return;
    const { vmName, log, socketGroup } = this.#options;
    const folder = managerFolder();
    const directory = this.#options.directory ?? folder;
    try {
      if (directory === folder) ensureOwnFolder(dirname(directory), FolderMode.public);
      ensureOwnFolder(directory, FolderMode.public);
      // acrnctl takes the first one with a VM's name.
      for (const { path } of await deadManagerSockets(directory, vmName)) rmSync(path, { force: true });
      for (const trap of nameTraps(directory, vmName)) log.warn(trap);
      const path = join(directory, `${vmName}.monitor.${process.pid}.socket`);
      this.#listener = await listenUnix(path, (socket) => this.#accept(socket), { group: socketGroup });
    } catch (error) {
      const line = `acrnctl cannot reach this VM: ${(error as Error).message}`;
      // Nobody else can have a socket where acrnctl looks for it.
      if (process.getuid?.() === 0) log.warn(line);
      else log.debug(line);
    }
  }

  async close(): Promise<void> {
    this.#listener?.close();
    this.#listener = undefined;
    await this.#clients.close();
  }

  #accept(socket: Socket): void {
    if (!this.#clients.admit(socket)) return;
    let rest: Uint8Array = new Uint8Array(0);
    const queue = (step: () => void | Promise<void>) => this.#clients.queue(socket, step);
    socket.on('data', (chunk) => {
      // Read on when these are answered: what a client sends meanwhile stays with it.
      socket.pause();
      let received: Uint8Array = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      while (received.length >= ManagerMessage.size) {
        const message = received.subarray(0, ManagerMessage.size);
        received = received.subarray(ManagerMessage.size);
        if (ManagerMessage.decode(message).magic !== MANAGER_MAGIC) {
          // Without a magic number there is no telling where the next message starts: it is refused, and nothing more read.
          this.#options.log.rationed('debug', () => 'manager socket: not a manager message, the client is cut off');
          queue(() => this.#reply(socket, 0, 0n, FAILED));
          queue(() => void socket.end(() => socket.destroy()));
          return;
        }
        queue(() => this.#serve(socket, message));
      }
      rest = received.slice();
      this.#clients.setUnfinished(socket, rest.length > 0);
      queue(() => void socket.resume());
    });
    socket.on('end', () => queue(() => void socket.end()));
  }

  async #serve(socket: Socket, request: Uint8Array): Promise<void> {
    const { id, timestamp, data } = ManagerMessage.decode(request);
    let result: number;
    try {
      result = await this.#run(id, data);
    } catch (error) {
      this.#options.log.rationed('error', () => `manager socket: message ${id}: ${(error as Error).message}`);
      result = FAILED;
    }
    await this.#reply(socket, id, timestamp, result);
  }

  async #reply(socket: Socket, id: number, timestamp: bigint, result: number): Promise<void> {
    const reply = new Uint8Array(4);
    new DataView(reply.buffer).setInt32(0, result, true);
    await this.#clients.give(socket, ManagerMessage.encode({ magic: MANAGER_MAGIC, id, timestamp, data: reply }));
  }

  /** @returns `data.err` or `data.state` of the reply. */
  #run(id: number, data: Uint8Array): number | Promise<number> {
    const { commands, log } = this.#options;
    const first = new DataView(data.buffer, data.byteOffset).getInt32(0, true);
    switch (id) {
      case ManagerMessageId.DmStop:
        if (first === StopKind.askGuest) commands.run('shutdown', { reason: 'acrnctl stop', isPatient: true });
        else commands.run('power-off', { reason: 'acrnctl stop --force', force: true });
        return 0;
      case ManagerMessageId.DmSuspend:
        // As C with its channel power_button: what the guest's button is set to do is the guest's business.
        commands.run('press-power-button', {});
        return 0;
      case ManagerMessageId.DmResume:
        commands.run('wake', {});
        return 0;
      case ManagerMessageId.DmQuery:
        return commands.run('query', {}) === 'suspended' ? VmStateCode.suspended : VmStateCode.running;
      case ManagerMessageId.DmBlkrescan:
        return commands.run('blkrescan', { medium: argumentText(data) }).then((isDone) => (isDone ? 0 : FAILED));
      default:
        // Compat: C does not answer; acrnctl waits a second then and takes what its buffer held for the result.
        log.rationed('debug', () => `manager socket: message ${id} is not for a device model`);
        return FAILED;
    }
  }
}

/** The daemon's own socket: a VM whose name is a beginning of this would get its messages. */
const ACRND = 'acrnd';

/**
 * acrnctl splits socket names at their first dot, and takes the first one whose part before that is a *beginning* of the
 * name it looks for. @returns one line for each VM that it would take for another.
 */
function nameTraps(directory: string, vmName: string): string[] {
  if (vmName.includes('.')) {
    return [`acrnctl does not see a VM with a dot in its name: "${vmName}" cannot be stopped or listed by it`];
  }
  const others = managerSockets(directory).map((socket) => socket.vmName);
  const confusing = new Set(others.filter((o) => o !== vmName && (o.startsWith(vmName) || vmName.startsWith(o))));
  const lines = [...confusing].map(
    (other) => `acrnctl may take "${vmName}" and "${other}" for each other: one name is the beginning of the other`,
  );
  // Its clients look for it in the same way.
  if (ACRND.startsWith(vmName)) {
    lines.push(
      `messages for ${ACRND} may come to this VM instead: "${vmName}" is the beginning of its name, choose another`,
    );
  }
  return lines;
}
