/**
 * The library: what it takes to run a User VM from another program, or to write a device for one.
 *
 *   const hypervisor = await chooseHypervisor(config, log);
 *   const vm = new Vm(config, { openHsm: () => hypervisor.open(config, log), loop: hypervisor.loop(), makeBoard: pcBoard({ … }), … });
 *   await vm.run();
 *
 * `cmd/run.ts` shows the parts put together.
 */

export { type ChooseOptions, chooseHypervisor } from '../hypervisor/choose.ts';
export type { GuestLoop, Hypervisor, VcpuPlacement } from '../hypervisor/hypervisor.ts';
export type { BarSpec } from './chips/pci-config-space.ts';
export type { AccessSize, Bdf, Gpa, Gsi, Port } from './core/address.ts';
export type { Board, BoardFactory, BoardParts } from './core/board.ts';
export { openSoftware, splitRam } from './core/boot/loader.ts';
export type { Clock, Timer } from './core/clock.ts';
export type { BootConfig, ComConfig, PciSlotConfig, VmConfig } from './core/config.ts';
export type { Device, InterruptLine, IoRegion, MsiMessage, MsiSink, PowerControl, PowerEvent } from './core/device.ts';
export { Disposer } from './core/disposer.ts';
export { BugError, ConfigError, DmError, ExitCode, GuestFault, HostError } from './core/errors.ts';
export { HsmError } from './core/hsm/errors.ts';
export type { Hsm, VcpuRegs, VmSpec } from './core/hsm/hsm.ts';
export { decodeVdev, encodeVdev, type HvVdev } from './core/hsm/vdev.ts';
export { Log, LogLevel, type LogSink } from './core/log.ts';
export { GuestMemory } from './core/memory.ts';
export { integer } from './core/options.ts';
export { Vm, type VmParts, type VmState } from './core/vm.ts';
export { pcBoard } from './hw/board.ts';
export { definePciDriver, type PciDriver, type PciEnv } from './hw/pci/driver.ts';
export type { EmulatedPciFunction, HypervisorPciFunction, PciFunction } from './hw/pci/function.ts';
export { type PciDriverEntry, pciDrivers } from './hw/registry.ts';
export { CharBackendPool } from './hw/uart/backends/pool.ts';
