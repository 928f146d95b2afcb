/**
 * What a User VM is made of, checked and typed: the command line and a configuration file both end here. Building one
 * touches nothing on the host.
 */
import type { Bdf } from './address.ts';

export interface VmConfig {
  /** 1..15 bytes. */
  readonly name: string;
  readonly hypervisor: 'auto' | 'acrn' | 'kvm' | 'soft';
  /** Scenario file of the embedded hypervisor, or undefined: derived from this configuration. */
  readonly scenarioPath: string | undefined;
  readonly memoryBytes: number;
  readonly boot: BootConfig | undefined;
  readonly pci: readonly PciSlotConfig[];
  readonly com: readonly ComConfig[];
  /** Local APIC ids of the Service VM CPUs given to this VM, as on the command line; empty: the scenario decides. */
  readonly cpuAffinity: readonly number[];
  readonly rtvm: boolean;
  readonly lapicPt: boolean;
  readonly trusty: boolean;
  /** virtio devices use Oracle's PCI ids. */
  readonly windows: boolean;
  readonly virtioMsi: boolean;
  readonly virtioPollNs: number | undefined;
  /** `--io-timeout`: how long storage may keep what it was lent before it counts as hung. Absent: 60 s. */
  readonly ioTimeoutMs?: number;
  /** `--api-socket`: where the program's API listens. Absent: in the VM's folder, once the guest runs. */
  readonly apiSocket?: ApiSocket;
  /** `--event-monitor`: where the program writes what happens. */
  readonly eventMonitor?: EventMonitorTarget;
  /** What becomes of the program once the guest is gone. Absent: it exits, and a guest that resets itself starts anew. */
  readonly afterEnd?: AfterEnd;
  /** `--crash-dump`: where the program writes what is known of a guest that was given up. */
  readonly crashDumpPath?: string;
  /** `--shutdown-timeout`: how long a guest that was asked to shut down may take before it is powered off. Absent: 20 s. */
  readonly shutdownTimeoutMs?: number;
  readonly debugExit: boolean;
  readonly cmdMonitorPath: string | undefined;
  /** `--socket-group`: who may connect to this VM's sockets beside its user, and whose VMs it meets where there is no ACRN. */
  readonly socketGroup?: string;
  /** `--display`. Absent: none was asked for. */
  readonly display?: DisplayConfig;
  readonly intrMonitor: IntrMonitorConfig | undefined;
  readonly logger: readonly LoggerConfig[];
  /** `--log-format`: what the console and the files of the log have. Absent: text. */
  readonly logFormat?: 'text' | 'json';
  readonly pmNotifyChannel: 'ioc' | 'power_button' | 'uart' | 'uart,allow_trigger_s5' | undefined;
  /** The serial line of channel `uart`, as back end text: `pty:LINK` or `tty:PATH`. */
  readonly pmByVuart?: string;
  /** Devices that options of their own put on the board, in the order given. */
  readonly platform: readonly PlatformDeviceConfig[];
}

/** Where the guest's screens are to be seen. */
export type DisplayConfig = { readonly kind: 'none' } | { readonly kind: 'sdl' } | VncConfig;

/** A VNC server at a Unix socket, or at an address where a password is needed. */
export type VncConfig = { readonly kind: 'vnc' } & (
  | { readonly path: string; readonly passwordFile?: string }
  | { readonly path?: undefined; readonly host: string; readonly port: number; readonly passwordFile: string }
);

export type ApiSocket =
  | { readonly kind: 'off' }
  | { readonly kind: 'path'; readonly path: string }
  /** A listening socket that the parent process made. */
  | { readonly kind: 'fd'; readonly fd: number };

export type EventMonitorTarget = { readonly path: string } | { readonly fd: number };

export interface AfterEnd {
  readonly onPoweroff?: 'exit' | 'stay';
  /** A reset of the guest's own accord; anything but `restart` ends the VM. */
  readonly onReboot?: 'restart' | 'exit' | 'stay';
  /** A triple fault. */
  readonly onCrash?: 'exit' | 'stay';
}

export type BootConfig =
  | {
      readonly kind: 'bzimage';
      readonly kernelPath: string;
      readonly ramdiskPath: string | undefined;
      readonly bootargs: string | undefined;
    }
  | {
      readonly kind: 'elf';
      readonly imagePath: string;
      readonly bootargs: string | undefined;
      /** Handed to a Multiboot image as its module. */
      readonly ramdiskPath?: string;
    }
  | { readonly kind: 'ovmf'; readonly image: OvmfImage }
  /** Firmware of a PC, as SeaBIOS. */
  | { readonly kind: 'bios'; readonly imagePath: string };

export type OvmfImage =
  | { readonly form: 'single'; readonly path: string; readonly writeBack: boolean }
  | { readonly form: 'split'; readonly codePath: string; readonly varsPath: string; readonly writeBack: boolean };

export interface PciSlotConfig {
  readonly bdf: Bdf;
  readonly driver: string;
  /** Checked by the driver's schema. */
  readonly options: unknown;
  /** The option text as given, for messages and for digests some drivers make of it. */
  readonly text: string;
}

/** A PCI function of the host that a slot asks for. */
export interface WantedHostFunction {
  /** As in sysfs: `0000:02:00.0`. */
  readonly name: string;
  /** It is bound to the driver it needs when the VM starts. */
  readonly isManaged: boolean;
}

/** For hypervisors, which know nothing of drivers' options. */
export function wantedHostFunctions({ pci }: Pick<VmConfig, 'pci'>): WantedHostFunction[] {
  return pci.flatMap(({ options }) => {
    if (typeof options !== 'object' || options === null || !('physical' in options)) return [];
    const { physical } = options;
    if (typeof physical !== 'string') return [];
    return [{ name: physical, isManaged: 'managed' in options && options.managed === true }];
  });
}

/** Whether a slot is a device that the hypervisor emulates. For hypervisors, as {@link wantedHostFunctions}. */
export function wantsHypervisorDevices({ pci }: Pick<VmConfig, 'pci'>): boolean {
  return pci.some(({ driver, options }) => {
    if (driver === 'root-port') return true;
    if (typeof options !== 'object' || options === null) return false;
    const begins = (key: string, text: string) => {
      const value = (options as Readonly<Record<string, unknown>>)[key];
      return typeof value === 'string' && value.startsWith(text);
    };
    // A region of the hypervisor, a vUART, a port above a function of the host.
    return (
      begins('name', 'hv:/') ||
      begins('backend', 'vuart_idx:') ||
      ('enablePtm' in options && options.enablePtm === true)
    );
  });
}

/** Back end of a serial port whose other end is the program that launched the VM. */
export const EVENTS_BACKEND = 'events';

export interface ComConfig {
  /** 1..5; 5 is the S5 vUART with a port and irq of its own. */
  readonly index: 1 | 2 | 3 | 4 | 5;
  /** `stdio`, `tcp:PORT`, `pty`, a TTY path…; empty: nothing is connected. */
  readonly backend: string;
  readonly port?: number;
  readonly irq?: number;
}

export interface IntrMonitorConfig {
  readonly thresholdPerSecond: number;
  readonly probePeriodS: number;
  readonly delayMs: number;
  readonly delayDurationMs: number;
}

export interface LoggerConfig {
  readonly sink: 'console' | 'kmsg' | 'disk';
  readonly level: number;
}

export interface PlatformDeviceConfig {
  /** Name of the option, which is that of the driver. */
  readonly driver: string;
  /** Checked by the driver's schema. */
  readonly options: unknown;
  /** As given, for messages. */
  readonly text: string;
}
