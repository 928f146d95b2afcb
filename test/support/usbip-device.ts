/**
 * A USB device that is a program: the server's side of USB/IP (Documentation/usb/usbip_protocol.rst) on a socket of Linux's
 * vhci_hcd. It answers what a host asks of a device with one bulk endpoint each way, and keeps all bulk transfers until the
 * test gives them back; that one is to be taken back it hears, and says nothing until the test does.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { native } from '../../devicemodel/core/host/libc.ts';

const VHCI = '/sys/devices/platform/vhci_hcd.0';
const [AF_UNIX, SOCK_STREAM] = [1, 1];
const HEADER_BYTES = 48;
const Command = { Submit: 1, Unlink: 2, Submitted: 3, Unlinked: 4 } as const;
const HIGH_SPEED = 3;
const [EPIPE, ECONNRESET] = [32, 104];
const GET_DESCRIPTOR = 0x8006;

const device = [18, 1, 0x00, 0x02, 0xff, 0, 0, 64, 0x09, 0x12, 0xef, 0xbe, 0, 1, 0, 0, 0, 1];
const bulk = (address: number) => [7, 5, address, 2, 0x00, 0x02, 0];
const configuration = [9, 2, 32, 0, 1, 1, 0, 0x80, 50, 9, 4, 0, 0, 2, 0xff, 0, 0, 0, ...bulk(0x81), ...bulk(0x02)];

export const hasVhci = existsSync(VHCI);

export class UsbIpDevice {
  static readonly id = '1209:beef';
  readonly #socket: Socket;
  #input = Buffer.alloc(0);
  /** Sequence numbers of bulk transfers, by the request that takes them back where there is one. */
  readonly kept = new Set<number>();
  readonly askedBack = new Map<number, number>();
  /** Requests of its control endpoint are kept, too. */
  keepsControl = false;

  /** @param port of the virtual host controller */
  constructor(port = 0) {
    const fds = new Int32Array(2);
    if (native('int socketpair(int, int, int, void *)')(AF_UNIX, SOCK_STREAM, 0, fds) !== 0) {
      throw new Error('no socket pair');
    }
    const [ours = -1, kernels = -1] = fds;
    this.#socket = new Socket({ fd: ours, readable: true, writable: true });
    this.#socket.on('data', (bytes: Buffer) => this.#take(bytes)).on('error', () => {});
    writeFileSync(`${VHCI}/attach`, `${port} ${kernels} ${(1 << 16) | (port + 2)} ${HIGH_SPEED}`);
    closeFd(kernels);
  }

  unplug(): void {
    this.#socket.destroy();
  }

  /** The oldest transfer is done: one from the device to the host, of so many zeros. */
  complete(bytes: number): void {
    const [number] = this.kept;
    if (number === undefined) throw new Error('nothing is in flight');
    this.kept.delete(number);
    this.#answer(Command.Submitted, number, 0, Buffer.alloc(bytes));
  }

  /** What was asked back is given back. */
  comeToItself(): void {
    this.keepsControl = false;
    for (const [request, transfer] of this.askedBack) {
      this.kept.delete(transfer);
      this.#answer(Command.Unlinked, request, -ECONNRESET);
    }
    this.askedBack.clear();
  }

  #take(bytes: Buffer): void {
    this.#input = Buffer.concat([this.#input, bytes]);
    while (this.#input.length >= HEADER_BYTES) {
      const header = this.#input;
      const isOut = header.readUInt32BE(12) === 0;
      const isSubmit = header.readUInt32BE(0) === Command.Submit;
      const dataBytes = isSubmit && isOut ? header.readInt32BE(24) : 0;
      if (header.length < HEADER_BYTES + dataBytes) return;
      this.#input = header.subarray(HEADER_BYTES + dataBytes);
      const number = header.readUInt32BE(4);
      if (!isSubmit) this.askedBack.set(number, header.readUInt32BE(20));
      else if (header.readUInt32BE(16) !== 0 || this.keepsControl) this.kept.add(number);
      else this.#control(number, header.subarray(40, 48));
    }
  }

  #control(number: number, setup: Buffer): void {
    const [requestType = 0, request = 0] = setup;
    const roomBytes = setup.readUInt16LE(6);
    const descriptors: Readonly<Record<number, readonly number[]>> = { 1: device, 2: configuration };
    const isDescriptor = ((requestType << 8) | request) === GET_DESCRIPTOR;
    const answer = isDescriptor ? descriptors[setup[3] ?? 0] : requestType < 0x80 ? [] : new Array(roomBytes).fill(0);
    if (answer === undefined) this.#answer(Command.Submitted, number, -EPIPE);
    else this.#answer(Command.Submitted, number, 0, Buffer.from(answer.slice(0, roomBytes)));
  }

  #answer(command: number, number: number, status: number, data = Buffer.alloc(0)): void {
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32BE(command, 0);
    header.writeUInt32BE(number, 4);
    header.writeInt32BE(status, 20);
    if (command === Command.Submitted) header.writeInt32BE(data.length, 24);
    this.#socket.write(Buffer.concat([header, data]));
  }
}
