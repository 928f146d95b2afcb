/** ATA commands by number, and what disks and CD drives carry out alike. */
import type { Command } from './command.ts';
import type { DrivePort } from './drive.ts';
import { AtaStatus, Fis } from './registers.ts';

/** Commands (ACS-3 annex B; old ones ATA-7). */
export const Ata = {
  Nop: 0x00,
  DataSetManagement: 0x06,
  ReadSectors: 0x20,
  ReadSectorsExt: 0x24,
  ReadDmaExt: 0x25,
  ReadMultipleExt: 0x29,
  ReadLogExt: 0x2f,
  WriteSectors: 0x30,
  WriteSectorsExt: 0x34,
  WriteDmaExt: 0x35,
  WriteMultipleExt: 0x39,
  ReadVerify: 0x40,
  ReadVerifyExt: 0x42,
  ReadLogDmaExt: 0x47,
  ReadFpdmaQueued: 0x60,
  WriteFpdmaQueued: 0x61,
  SendFpdmaQueued: 0x64,
  Packet: 0xa0,
  IdentifyPacketDevice: 0xa1,
  Smart: 0xb0,
  ReadMultiple: 0xc4,
  WriteMultiple: 0xc5,
  SetMultiple: 0xc6,
  ReadDma: 0xc8,
  WriteDma: 0xca,
  StandbyImmediate: 0xe0,
  IdleImmediate: 0xe1,
  Standby: 0xe2,
  Idle: 0xe3,
  CheckPowerMode: 0xe5,
  Sleep: 0xe6,
  FlushCache: 0xe7,
  FlushCacheExt: 0xea,
  IdentifyDevice: 0xec,
  SetFeatures: 0xef,
  SecurityFreezeLock: 0xf5,
} as const;

/** A command went well, or did not. */
export const READY = AtaStatus.Ready | AtaStatus.SeekComplete;
export const FAILED = AtaStatus.Ready | AtaStatus.Error;
const POWER_MODE_ACTIVE = 0xff;

/** Power management (ACS-3 §4.16): the drive is always active. @returns whether the command was of that kind. */
export function servePowerCommand(port: DrivePort, command: Command): boolean {
  switch (command.code) {
    case Ata.CheckPowerMode:
      command.fis[Fis.Count] = POWER_MODE_ACTIVE;
      break;
    case Ata.StandbyImmediate:
    case Ata.IdleImmediate:
    case Ata.Standby:
    case Ata.Idle:
    case Ata.Sleep:
      break;
    default:
      return false;
  }
  port.finish(command, READY, 0);
  return true;
}
