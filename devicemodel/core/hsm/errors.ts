/** What an HSM ioctl's errno means to the person who has to fix it. */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import { type DmErrorOptions, ExitCode, HostError } from '../errors.ts';

const E = constants.errno;

export interface HsmErrorOptions extends DmErrorOptions {
  /** What it was about: `ivshmem hv:/shm_region_0 (2 MiB) at 00:08.0`. */
  readonly what?: string;
}

/** An ioctl of the HSM failed. The hint names the likely cause for this ioctl and errno. */
export class HsmError extends HostError {
  override readonly name: string = 'HsmError';
  readonly ioctl: string;
  constructor(ioctl: string, errno: number, options: HsmErrorOptions = {}) {
    const [name, text] = getSystemErrorMap().get(-errno) ?? [`errno ${errno}`, 'unknown error'];
    const what = options.what === undefined ? '' : ` ${options.what}`;
    const hint = options.hint ?? likelyCause(ioctl, errno);
    super(`${ioctl}${what}: ${name}: ${text}`, errno, {
      exitCode: ExitCode.Software,
      ...options,
      ...(hint === undefined ? {} : { hint }),
    });
    this.ioctl = ioctl;
  }
}

/** Errnos come from three places: the driver, the hypervisor (passed through), and a plain -1 that reads as EPERM. */
function likelyCause(ioctl: string, errno: number): string | undefined {
  if (errno === E.ENOTTY && ioctl.endsWith('_PIO_REGION'))
    return 'only the HSM driver of ACRN release 3.3 passes I/O ports through: leave type=io_port out';
  if (errno === E.ENOTTY)
    return `the Service VM kernel does not know ${ioctl}: it is too old or built without this HSM feature`;
  if (errno === E.ENOSYS) return 'the hypervisor no longer offers this operation';
  switch (ioctl) {
    case 'CREATE_VM':
      return errno === E.EINVAL || errno === E.EPERM
        ? 'the hypervisor refused: is the VM name in the scenario or a dynamic slot free, are the CPUs of --cpu_affinity allowed and unused, is a VM of this name still running? (its console or `dmesg` says which)'
        : undefined;
    case 'CREATE_VDEV':
      return errno === E.EINVAL
        ? "the hypervisor has no such device for this VM: the VM name must equal the scenario's, the region or vUART must belong to this VM, and the size must be exact"
        : undefined;
    case 'SET_MEMSEG':
      return errno === E.ENOMEM
        ? 'too many memory segments, or one of 4 KiB pages is 512 MiB or more: reserve huge pages'
        : undefined;
    case 'ASSIGN_MMIODEV':
      return errno === E.EINVAL ? 'the hypervisor takes whole pages, of a VM that was not started yet' : undefined;
    case 'ASSIGN_PCIDEV':
      if (errno === E.EINVAL) return 'the hypervisor takes devices only before the VM is started';
      if (errno === E.EIO) return 'an I/O BAR of the device is not at the same ports in the guest';
      return 'does the Service VM have the device, is it no bridge, and has no other VM got it? bind it to pci-stub';
    case 'SET_PTDEV_INTR':
      return 'the interrupt line may belong to the hypervisor or to another VM: give the function without keep_gsi if it has MSI, or another line by irq=N';
    default:
      return errno === E.EPERM
        ? 'the hypervisor refused; EPERM is its generic error, permissions are not the cause'
        : undefined;
  }
}
