/** Two devices of one VM that want the same socket, disk, tap or port of the host: refused, or said, before it starts. */
import { statSync } from 'node:fs';
import { UART_REGISTER_COUNT } from '../devicemodel/chips/ns16550.ts';
import { hex } from '../devicemodel/core/address.ts';
import { type ComConfig, EVENTS_BACKEND, type VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { areCompatible, type HostClaim, outputClaim, socketClaim } from '../devicemodel/core/host-claims.ts';
import type { HostFindings } from '../devicemodel/hw/pci/driver.ts';
import { comResources } from '../devicemodel/hw/pci/lpc.ts';
import { pciDrivers, platformDriver } from '../devicemodel/hw/registry.ts';
import { charBackendClaims, tcpClaim } from '../devicemodel/hw/uart/backends/claims.ts';
import { parseCharBackend } from '../devicemodel/hw/uart/backends/spec.ts';
import { formatSlotText } from './slot.ts';

interface Holder {
  /** As it was ordered: `-s 3,virtio-blk,disk.img`. */
  readonly where: string;
  readonly claim: HostClaim;
}

/** Looks at files of the host, by their names only. */
export function claimFindings(config: VmConfig): HostFindings {
  const problems: ConfigError[] = [];
  const warnings: string[] = [];
  const holders: Holder[] = [];
  for (const { where, claim } of claimsOf(config)) {
    const other = holders.find((holder) => !areCompatible(holder.claim, claim));
    holders.push({ where, claim });
    if (other === undefined) continue;
    const isMild = claim.variant === other.claim.variant;
    const consequence = isMild ? (claim.consequence ?? other.claim.consequence) : undefined;
    if (consequence !== undefined) {
      warnings.push(`${where}: ${other.where} has ${claim.what} as well: ${consequence}`);
      continue;
    }
    const hint = claim.hint ?? 'give each its own';
    const holder = other.where === where ? 'another part of it' : other.where;
    problems.push(new ConfigError(`${where}: ${holder} has ${claim.what} already`, { hint }));
  }
  return { problems, warnings };
}

/**
 * Output to a named pipe, one line each: a start fails without its reader, and whether there is one shows to nobody who
 * does not open it, which would end the reader's wait.
 */
export function pipeWarnings(config: VmConfig): string[] {
  return [...claimsOf(config)].flatMap(({ where, claim: { outputPath } }) =>
    outputPath !== undefined && isPipe(outputPath)
      ? [`${where}: ${outputPath} is a named pipe: its reader has to be there when the VM starts`]
      : [],
  );
}

function isPipe(path: string): boolean {
  try {
    return statSync(path).isFIFO();
  } catch {
    return false;
  }
}

/** `com1,stdio` as it was ordered. */
function formatLpcText({ index, backend, port, irq }: ComConfig): string {
  const place = port === undefined || irq === undefined ? '' : `,${hex(port)},${irq}`;
  return `-l com${index}${backend === '' && place === '' ? '' : `,${backend}`}${place}`;
}

/** The ports of COM5 are the user's to choose. */
function portsClaim(com: ComConfig): HostClaim {
  const { port } = comResources(com);
  return {
    what: `one of the I/O ports from ${hex(port)} on`,
    key: 'I/O ports of the guest',
    range: { base: port, sizeBytes: UART_REGISTER_COUNT },
    hint: 'give com5 other ports, as in -l com5,BACKEND,0x9000,5',
  };
}

function* claimsOf(config: VmConfig): Generator<Holder> {
  for (const com of config.com) {
    const where = formatLpcText(com);
    yield { where, claim: portsClaim(com) };
    if (com.backend === EVENTS_BACKEND) continue;
    for (const claim of charBackendClaims(parseCharBackend(com.backend))) yield { where, claim };
  }
  for (const slot of config.pci) {
    const driver = pciDrivers.find(({ name }) => name === slot.driver);
    const claims: readonly HostClaim[] = driver?.claims?.(slot.options) ?? [];
    for (const claim of claims) yield { where: `-s ${formatSlotText(slot)}`, claim };
  }
  for (const { driver, options, text } of config.platform) {
    const claims: readonly HostClaim[] = platformDriver(driver).claims?.(options) ?? [];
    for (const claim of claims) yield { where: `--${driver} ${text}`, claim };
  }
  yield* frontDoorClaims(config);
}

function* frontDoorClaims(config: VmConfig): Generator<Holder> {
  const { apiSocket, cmdMonitorPath, crashDumpPath, display, eventMonitor, pmByVuart } = config;
  if (pmByVuart !== undefined) {
    for (const claim of charBackendClaims(parseCharBackend(pmByVuart))) yield { where: '--pm_by_vuart', claim };
  }
  if (cmdMonitorPath !== undefined) yield { where: '--cmd_monitor', claim: socketClaim(cmdMonitorPath) };
  if (apiSocket?.kind === 'path') yield { where: '--api-socket', claim: socketClaim(apiSocket.path) };
  if (crashDumpPath !== undefined) yield { where: '--crash-dump', claim: outputClaim(crashDumpPath) };
  if (eventMonitor !== undefined && 'path' in eventMonitor) {
    yield { where: '--event-monitor', claim: outputClaim(eventMonitor.path) };
  }
  if (display?.kind !== 'vnc') return;
  if (display.path !== undefined) yield { where: '--display', claim: socketClaim(display.path) };
  else if (display.host !== undefined && display.port !== undefined) {
    yield { where: '--display', claim: tcpClaim(display.host, display.port) };
  }
}
