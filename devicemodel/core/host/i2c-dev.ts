/** One I2C bus of the host (<linux/i2c-dev.h>). */
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';
import { type Mapping, map } from './mapping.ts';

const Ioctl = { Slave: 0x0703, Funcs: 0x0705, Rdwr: 0x0707 } as const;
const FUNC_I2C = 1n;
const READ = 0x0001;
/** What the kernel takes in one message. */
export const MAX_MESSAGE = 8192;
/** struct i2c_rdwr_ioctl_data, then its one struct i2c_msg, then the data. */
const MESSAGE_AT = 16;
const DATA_AT = 32;

/** What an I2C controller needs of a bus. */
export interface I2cBus {
  /** Data of the next transfer, `MAX_MESSAGE` bytes. */
  readonly data: Uint8Array;
  /** One message; what was read is in `data`. @returns whether the client answered. */
  transfer(address: number, length: number, isRead: boolean): boolean;
  close(): void;
}

export class LinuxI2cBus implements I2cBus {
  readonly data: Uint8Array;
  readonly #fd: number;
  readonly #memory: Mapping;
  readonly #view: DataView;
  readonly #at: bigint;
  #open = true;

  /** @throws HostError if the bus or a client is not there, or a driver of the host has the client. */
  constructor(bus: number, addresses: readonly number[]) {
    const path = `/dev/i2c-${bus}`;
    this.#fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    try {
      this.#memory = map(DATA_AT + MAX_MESSAGE, `${path} messages`);
    } catch (error) {
      closeFd(this.#fd);
      throw error;
    }
    this.#view = new DataView(this.#memory.bytes.buffer);
    this.#at = this.#memory.address;
    this.data = this.#memory.bytes.subarray(DATA_AT);
    try {
      const funcs = new BigUint64Array(1);
      this.#check(ioctlBytes(this.#fd, Ioctl.Funcs, funcs), `${path}: functions`);
      if (((funcs[0] as bigint) & FUNC_I2C) === 0n) throw new HostError(`${path}: only does SMBus`, 0);
      for (const address of addresses) {
        const result = ioctlNumber(this.#fd, Ioctl.Slave, address);
        this.#check(result, `${path}: client 0x${address.toString(16)}`);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #check(result: number, what: string): void {
    if (result >= 0) return;
    throw new HostError(`${what}: ${describeErrno(-result)}`, -result);
  }

  transfer(address: number, length: number, isRead: boolean): boolean {
    const view = this.#view;
    view.setBigUint64(0, this.#at + BigInt(MESSAGE_AT), true);
    view.setUint32(8, 1, true);
    view.setUint16(MESSAGE_AT, address, true);
    view.setUint16(MESSAGE_AT + 2, isRead ? READ : 0, true);
    view.setUint16(MESSAGE_AT + 4, length, true);
    view.setBigUint64(MESSAGE_AT + 8, this.#at + BigInt(DATA_AT), true);
    return ioctlBytes(this.#fd, Ioctl.Rdwr, this.#memory.bytes) >= 0;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeFd(this.#fd);
    this.#memory.dispose();
  }
}
