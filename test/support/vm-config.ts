/** A VM without anything: no devices, nothing to boot, a mebibyte of RAM. */
import type { VmConfig } from '../../devicemodel/core/config.ts';

export const bareVmConfig: VmConfig = {
  name: 'vm1',
  hypervisor: 'auto',
  scenarioPath: undefined,
  memoryBytes: 1 << 20,
  boot: undefined,
  pci: [],
  com: [],
  cpuAffinity: [],
  rtvm: false,
  lapicPt: false,
  trusty: false,
  windows: false,
  virtioMsi: false,
  virtioPollNs: undefined,
  debugExit: false,
  cmdMonitorPath: undefined,
  intrMonitor: undefined,
  logger: [],
  pmNotifyChannel: undefined,
  platform: [],
};
