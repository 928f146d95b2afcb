/** What can be found wrong with an order as a whole before a VM is asked for. */
import { accessSync, constants, fstatSync, type Stats, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { checkSoftware, splitRam } from '../devicemodel/core/boot/loader.ts';
import { EVENTS_BACKEND, type VmConfig } from '../devicemodel/core/config.ts';
import { attributed, ConfigError, DmError, ExitCode } from '../devicemodel/core/errors.ts';
import type { HypervisorOffers } from '../devicemodel/core/hsm/hsm.ts';
import { readPassword } from '../devicemodel/hw/display/vnc/password-file.ts';
import type { HostFindings, HostTree } from '../devicemodel/hw/pci/driver.ts';
import { type PciDriverEntry, pciDrivers, platformDriver } from '../devicemodel/hw/registry.ts';
import { inspectCharBackend } from '../devicemodel/hw/uart/backends/inspect.ts';
import { parseCharBackend } from '../devicemodel/hw/uart/backends/spec.ts';
import { claimFindings } from './claims.ts';
import { limitProblems } from './limits.ts';
import { formatSlotText, located } from './slot.ts';

/** Reasons why this VM cannot be run, however the host looks. Empty: it can. */
export function problemsOf(config: VmConfig): DmError[] {
  const problems: DmError[] = [];
  if (config.boot === undefined) {
    problems.push(
      new ConfigError(`VM "${config.name}" has no boot image`, {
        hint: 'give --kernel FILE, --ovmf FILE, --bios FILE or --elf_file FILE; acrn-dm --help lists all options',
      }),
    );
  }
  return problems;
}

/**
 * Refuse a VM whose devices name files or devices that this host does not have.
 * Compat: C finds out while the VM exists already.
 * @throws ConfigError
 */
export function checkHostPaths(config: VmConfig, drivers: readonly PciDriverEntry[] = pciDrivers): void {
  for (const slot of config.pci) {
    const driver = drivers.find((d) => d.name === slot.driver);
    for (const path of driver?.hostPaths?.(slot.options) ?? []) checkPath(path, `-s ${formatSlotText(slot)}`);
    try {
      driver?.inspectHost?.(slot.options);
    } catch (error) {
      throw located(`-s ${formatSlotText(slot)}`, error);
    }
  }
  for (const { name, inspectAll } of drivers) {
    const slots = config.pci.filter(({ driver }) => driver === name);
    if (slots.length === 0) continue;
    try {
      inspectAll?.(slots.map(({ options }) => options));
    } catch (error) {
      throw located(slots.map((slot) => `-s ${formatSlotText(slot)}`).join(' '), error);
    }
  }
  for (const { index, backend } of config.com) {
    try {
      if (backend !== EVENTS_BACKEND && !isLifeManagerLine(backend, config)) {
        inspectCharBackend(parseCharBackend(backend));
      }
    } catch (error) {
      throw attributed(`com${index}`, error);
    }
  }
  checkFrontDoors(config);
  for (const { driver, options, text } of config.platform) {
    try {
      platformDriver(driver).inspectHost?.(options);
    } catch (error) {
      throw located(`--${driver} ${text}`, error);
    }
  }
}

/**
 * Launch scripts of ACRN 2.x connect a serial port of the guest to its life manager by the link that `--pm_by_vuart` is
 * told to make: it is there when the port is opened.
 */
function isLifeManagerLine(backend: string, { pmByVuart }: Pick<VmConfig, 'pmByVuart'>): boolean {
  const [port, line] = [parseCharBackend(backend), parseCharBackend(pmByVuart)];
  return (
    port.kind === 'tty' &&
    line.kind === 'pty' &&
    line.linkPath !== undefined &&
    resolve(port.path) === resolve(line.linkPath)
  );
}

/**
 * Refuse a VM whose devices the hypervisor does not offer, before it is asked for a VM.
 * @throws ConfigError
 */
export function checkHypervisor(config: Pick<VmConfig, 'pci' | 'platform'>, offers: HypervisorOffers): void {
  for (const slot of config.pci) {
    try {
      pciDrivers.find((d) => d.name === slot.driver)?.checkHypervisor?.(offers);
    } catch (error) {
      throw located(`-s ${formatSlotText(slot)}`, error);
    }
  }
  for (const { driver, text } of config.platform) {
    try {
      platformDriver(driver).checkHypervisor?.(offers);
    } catch (error) {
      throw located(`--${driver} ${text}`, error);
    }
  }
}

/** Sockets that are to be made, descriptors that were handed down, and the files beside them. @throws DmError */
function checkFrontDoors(config: VmConfig): void {
  const { apiSocket, cmdMonitorPath, crashDumpPath, display, eventMonitor, pmByVuart } = config;
  const at = (option: string, check: () => void) => {
    try {
      check();
    } catch (error) {
      throw located(option, error);
    }
  };
  const socket = (path: string) => inspectCharBackend({ kind: 'unix', path, role: 'server' });
  if (pmByVuart !== undefined) at('--pm_by_vuart', () => inspectCharBackend(parseCharBackend(pmByVuart)));
  if (cmdMonitorPath !== undefined) at('--cmd_monitor', () => socket(cmdMonitorPath));
  if (apiSocket?.kind === 'path') at('--api-socket', () => socket(apiSocket.path));
  if (apiSocket?.kind === 'fd') at('--api-socket', () => checkListener(apiSocket.fd));
  if (crashDumpPath !== undefined) at('--crash-dump', () => inspectCharBackend({ kind: 'file', path: crashDumpPath }));
  if (eventMonitor !== undefined) {
    at('--event-monitor', () => {
      if ('fd' in eventMonitor) checkDescriptor(eventMonitor.fd);
      else inspectCharBackend({ kind: 'file', path: eventMonitor.path });
    });
  }
  if (display?.kind !== 'vnc') return;
  const { path, passwordFile } = display;
  at('--display', () => {
    if (path !== undefined) socket(path);
    if (passwordFile !== undefined) readPassword(passwordFile);
  });
}

/** @throws ConfigError */
function checkListener(fd: number): void {
  if (checkDescriptor(fd).isSocket()) return;
  throw new ConfigError(`fd=${fd}: is no listening socket`, {
    hint: 'the parent process makes the socket and leaves its descriptor open',
  });
}

/** @throws ConfigError */
function checkDescriptor(fd: number): Stats {
  try {
    return fstatSync(fd);
  } catch (cause) {
    throw new ConfigError(`fd=${fd}: this process has no such descriptor (${(cause as NodeJS.ErrnoException).code})`, {
      cause,
      hint: 'the parent process opens it and leaves it open, without close-on-exec',
    });
  }
}

/** @throws ConfigError with the status of its kind: 66, or 77 where it is a matter of rights. */
function checkPath(path: string, option: string): void {
  try {
    statSync(path);
    accessSync(path, constants.R_OK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const isForbidden = code === 'EACCES' || code === 'EPERM';
    const why = `${WORDS[code ?? ''] ?? 'cannot be looked at'} (${code})`;
    throw new ConfigError(`${option}: ${path}: ${why}`, {
      ...pathHint(path),
      exitCode: isForbidden ? ExitCode.NoPermission : ExitCode.NoInput,
      cause,
    });
  }
}

/** As other programs have it: `file=disk.img`. */
function pathHint(path: string): { readonly hint?: string } {
  const [, word, rest] = /^(file|path|filename|image|img|disk|dev|drive)[=:](.+)$/.exec(path) ?? [];
  return word === undefined ? {} : { hint: `the path stands alone, without "${word}" before it: ${rest}` };
}

const WORDS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or device',
  ENOTDIR: 'a part of the path is no directory',
  EACCES: 'it may not be read, or a part of the path not be entered',
  ELOOP: 'its symbolic links go round in a circle',
  ENAMETOOLONG: 'the name is too long',
};

/** What a start finds wrong on this host before it looks at what the drivers find, in that order. Reads only. */
export async function hostProblems(config: VmConfig): Promise<DmError[]> {
  return [
    ...limitProblems(config),
    ...(await groupProblems(config)),
    ...problemIn(() => checkHostPaths(config)),
    ...claimFindings(config).problems,
  ];
}

/** What a start finds wrong with boot images: last, once it knows that the hypervisor could run the VM. Reads only. */
export function imageProblems({ boot, memoryBytes }: Pick<VmConfig, 'boot' | 'memoryBytes'>): DmError[] {
  return boot === undefined ? [] : problemIn(() => checkSoftware(boot, splitRam(memoryBytes)));
}

/** What a check throws, if it is a mistake of the user's or of the host's. */
export function problemIn(check: () => void): DmError[] {
  try {
    check();
    return [];
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    return [error];
  }
}

/** A group that does not exist here. The C library knows, which takes a while to load: only for who named one. */
async function groupProblems({ socketGroup }: Pick<VmConfig, 'socketGroup'>): Promise<DmError[]> {
  if (socketGroup === undefined) return [];
  const { groupId } = await import('../devicemodel/core/host/groups.ts');
  if (groupId(socketGroup) !== undefined) return [];
  return [new ConfigError(`--socket-group: there is no group "${socketGroup}"`, { hint: 'getent group lists them' })];
}

/** A saved tree that is none. @param root of `--host-root` */
export function hostTreeProblems(root: string): DmError[] {
  try {
    checkPath(join(root, 'sys'), `--host-root: ${root}`);
    return [];
  } catch (error) {
    if (error instanceof DmError) return [error];
    throw error;
  }
}

/** What the drivers find on the host for this VM, beyond paths. Reads only. */
export async function checkHost(
  config: VmConfig,
  hostTree: HostTree,
  drivers: readonly PciDriverEntry[] = pciDrivers,
): Promise<HostFindings> {
  const problems: ConfigError[] = [];
  const warnings: string[] = [];
  for (const driver of drivers) {
    const slots = config.pci.filter((slot) => slot.driver === driver.name);
    if (slots.length === 0 || driver.checkHost === undefined) continue;
    const findings = await driver.checkHost(slots, { isRtvm: config.rtvm, hostTree, hypervisor: config.hypervisor });
    problems.push(...findings.problems);
    warnings.push(...findings.warnings);
  }
  return { problems, warnings };
}

/**
 * Everything that shows before a VM is asked for, whichever door the order came through.
 * @param warn gets what the drivers think worth a line.
 * @throws DmError the first problem
 */
export async function checkStart(config: VmConfig, warn: (text: string) => void): Promise<void> {
  const [problem] = [...problemsOf(config), ...limitProblems(config), ...(await groupProblems(config))];
  if (problem !== undefined) throw problem;
  checkHostPaths(config);
  const claims = claimFindings(config);
  const found = await checkHost(config, { root: '', isPlan: false });
  for (const warning of [...claims.warnings, ...found.warnings]) warn(warning);
  const [other] = [...claims.problems, ...found.problems];
  if (other !== undefined) throw other;
}
