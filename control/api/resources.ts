/** What a VM has beside Cloud Hypervisor's dialect: `/v1`. */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import * as v from 'valibot';
import { formatSlot } from '../../devicemodel/core/address.ts';
import { monotonicMs } from '../../devicemodel/core/monotonic.ts';
import type { StreamEvent } from '../event-stream.ts';
import { logRoutes } from './log-routes.ts';
import { metricsOf, metricsText } from './metrics.ts';
import { HttpProblem, problemAnswer, problemOf } from './problem.ts';
import {
  type Answer,
  decoded,
  done,
  json,
  OLDEST,
  parsed,
  type Route,
  STREAM_TYPE,
  sinceMembers,
  sinceOf,
  targetOf,
} from './routes.ts';
import { bounded, serveEvents } from './server-sent.ts';
import { Give, Take } from './shapes.ts';
import type { ThreadLag } from './thread-lag.ts';
import { type RunningGuest, stateOf, type Vmm } from './vmm.ts';

const REASON = 'asked by the API';

const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

function route(
  method: Route['method'],
  path: string,
  summary: string,
  run: Route['run'],
  more: Partial<Route> = {},
): Route {
  return { method, path, summary, run, ...more };
}

/** @param openApi the document about all routes. */
export function ownRoutes(vmm: Vmm, lag: Pick<ThreadLag, 'ask'>, openApi: () => Promise<object>): Route[] {
  return [
    route('GET', '/v1/vm', 'The VM: name, state, hypervisor, memory, process.', () => json(describe(vmm)), {
      answer: Give.vm,
    }),
    route('PUT', '/v1/vm/power', 'shutdown asks the guest, off does not; reset, wake and button.', power(vmm), {
      body: Take.power,
    }),
    route(
      'GET',
      '/v1/vm/crash',
      'What is known of the guest that was given up last.',
      () => {
        if (vmm.crash === undefined) throw new HttpProblem(404, 'no-crash', 'no guest was given up here');
        return json(vmm.crash);
      },
      { answer: Give.crash },
    ),
    route('PUT', '/v1/vm/pause', 'The guest stands still.', () => {
      needGuest(vmm).commands.run('pause', {});
      return done;
    }),
    route('PUT', '/v1/vm/resume', 'A guest that is paused goes on.', () => {
      needGuest(vmm).commands.run('resume', {});
      return done;
    }),
    ...deviceRoutes(vmm),
    ...consoleRoutes(vmm),
    route('GET', '/v1/events', 'Events as they come (server-sent), or those that are kept.', events(vmm), {
      type: STREAM_TYPE,
      answer: Give.events,
      query: { ...sinceMembers.query, wait: '0: no more than there are, as JSON' },
      headers: sinceMembers.headers,
    }),
    route(
      'GET',
      '/v1/metrics',
      "Prometheus' text format; JSON where Accept asks for it.",
      ({ request }) =>
        (request.headers.accept ?? '').includes('application/json')
          ? json(metricsOf(vmm, lag.ask()))
          : { status: 200, body: metricsText(vmm, lag.ask()), type: METRICS_TYPE },
      { type: 'text/plain', answer: Give.metrics },
    ),
    ...logRoutes(vmm),
    route('GET', '/v1/openapi.json', 'This document.', async () => json(await openApi()), {
      answer: v.looseObject({}),
    }),
  ];
}

function deviceRoutes(vmm: Vmm): Route[] {
  return [
    route('GET', '/v1/devices', 'PCI devices, as they were ordered.', () => json(devices(needGuest(vmm))), {
      answer: Give.devices,
    }),
    route(
      'DELETE',
      '/v1/devices/{slot}/disk',
      'Take the medium out of a CD drive of ahci, SLOT[@PORT].',
      ejectDisk(vmm),
    ),
    route(
      'PUT',
      '/v1/devices/{slot}/disk',
      'Put a medium into a CD drive, or into a virtio-blk that was started with nodisk: SLOT[@PORT].',
      insertDisk(vmm),
      { body: Take.medium },
    ),
    route(
      'PUT',
      '/v1/devices/{slot}/size',
      'Make the image of a virtio-blk larger; without sizeBytes, take note of the size it has on the host.',
      resizeDisk(vmm),
      { body: Take.size, answer: Give.size },
    ),
    route('PUT', '/v1/devices/{slot}/link', 'The cable of a virtio-net, in or out.', setLink(vmm), { body: Take.link }),
    route(
      'GET',
      '/v1/counters',
      'What disks, networks and consoles have moved, and accesses of the guest.',
      () => json(needGuest(vmm).counters.all.map((each) => ({ kind: each.kind, id: each.id, ...each.values() }))),
      { answer: Give.counters },
    ),
  ];
}

function consoleRoutes(vmm: Vmm): Route[] {
  return [
    route(
      'GET',
      '/v1/consoles',
      'Serial ports and consoles, and where each is connected.',
      () => json(needGuest(vmm).lines.map(({ id, backend }) => ({ id, backend }))),
      { answer: Give.consoles },
    ),
    route(
      'GET',
      '/v1/consoles/{id}',
      'The newest output of a console, as text.',
      ({ parameters }) => {
        const line = lineOf(needGuest(vmm), parameters['id']);
        return { status: 200, body: Buffer.from(line.history()).toString('utf8') };
      },
      { type: 'text/plain' },
    ),
    route(
      'GET',
      '/v1/consoles/{id}/stream',
      'With Upgrade: acrn-console, the bytes of a console both ways.',
      () => {
        throw new HttpProblem(400, 'upgrade', 'a console is attached to by Upgrade: acrn-console');
      },
      { type: 'application/octet-stream', query: { history: '1: what is kept comes first' } },
    ),
  ];
}

function needGuest({ guest }: Vmm): RunningGuest {
  if (guest !== undefined) return guest;
  throw new HttpProblem(409, 'not-booted', 'no VM runs here');
}

function describe(vmm: Vmm): object {
  const { guest, version, events: stream } = vmm;
  const state = stateOf(vmm);
  const process_ = { pid: process.pid, version, events: stream.seq };
  if (guest === undefined) return { state, ...process_ };
  return {
    name: guest.config.name,
    state,
    hypervisor: guest.hypervisor,
    memoryBytes: guest.config.memoryBytes,
    uptimeS: Math.round((monotonicMs() - guest.launchedMs) / 1000),
    ...process_,
  };
}

function power(vmm: Vmm): Route['run'] {
  return ({ body }) => {
    const { action, force } = parsed(Take.power, body);
    if (force !== undefined && action !== 'off')
      throw new HttpProblem(422, 'member', `force: goes with off, not ${action}`);
    const guest = needGuest(vmm);
    const { commands, state } = guest;
    switch (action) {
      case 'shutdown':
        commands.run('shutdown', { reason: REASON, isPatient: state !== 'suspended' });
        break;
      case 'off':
        commands.run('power-off', { reason: REASON, force: force ?? false });
        break;
      case 'reset':
        commands.run('reset', { reason: REASON });
        break;
      case 'wake':
        if (state !== 'suspended')
          throw new HttpProblem(409, 'wrong-state', `the guest does not sleep, it is ${state}`);
        commands.run('wake', {});
        break;
      case 'button':
        pressPowerButton(guest);
        break;
    }
    vmm.events.emit('api', action);
    return done;
  };
}

/** @throws HttpProblem where no guest would hear of it. */
export function pressPowerButton({ commands, state }: RunningGuest, status = 409): void {
  if (state !== 'running') {
    const hint = { suspended: 'wake it first', paused: 'resume it first' }[state as string];
    throw new HttpProblem(status, 'wrong-state', `the guest is ${state}, and does not see its power button`, {
      ...(hint === undefined ? {} : { hint }),
    });
  }
  commands.run('press-power-button', {});
}

function devices({ config }: RunningGuest): object[] {
  return config.pci.map(({ bdf, driver, text }) => ({
    slot: formatSlot(bdf),
    driver,
    options: text,
  }));
}

/** `SLOT[@PORT]`, and whether that is a drive whose medium comes out again, or a disk that is given one once. */
function driveOf({ config }: RunningGuest, asked = '') {
  const [, slot, port] = /^([\d:]+)(?:@(\d+))?$/.exec(asked) ?? [];
  if (slot === undefined) throw new HttpProblem(422, 'member', `"${asked}" is not SLOT[@PORT]`);
  const isHere = ({ bdf }: RunningGuest['config']['pci'][number]) =>
    slot === formatSlot(bdf) || (bdf.bus === 0 && bdf.function === 0 && slot === `${bdf.device}`);
  const driver = config.pci.find(isHere)?.driver;
  if (driver === undefined) throw new HttpProblem(404, 'no-such-device', `there is nothing in slot ${slot}`);
  return { slot, port: Number(port ?? 0), isDrive: driver.startsWith('ahci') };
}

function insertDisk(vmm: Vmm): Route['run'] {
  return async ({ parameters, body }): Promise<Answer> => {
    const guest = needGuest(vmm);
    const { slot, port } = driveOf(guest, parameters['slot']);
    const { path } = parsed(Take.medium, body);
    await guest.commands.run('insert', { slot, port, medium: path });
    vmm.events.emit('disk', 'inserted', { slot: parameters['slot'] });
    return done;
  };
}

function ejectDisk(vmm: Vmm): Route['run'] {
  return async ({ parameters }): Promise<Answer> => {
    const guest = needGuest(vmm);
    const { slot, port, isDrive } = driveOf(guest, parameters['slot']);
    if (!isDrive) throw new HttpProblem(501, 'impossible', `the medium of slot ${slot} cannot be taken out`);
    await guest.commands.run('eject', { slot, port });
    vmm.events.emit('disk', 'ejected', { slot: parameters['slot'] });
    return done;
  };
}

function resizeDisk(vmm: Vmm): Route['run'] {
  return async ({ parameters, body }): Promise<Answer> => {
    const guest = needGuest(vmm);
    const { slot } = driveOf(guest, parameters['slot']);
    const { sizeBytes } = parsed(Take.size, body);
    return json({ sizeBytes: await resized(vmm, guest, slot, sizeBytes) });
  };
}

/** @returns bytes. */
export async function resized(vmm: Vmm, { commands }: RunningGuest, slot: string, asked: number | undefined) {
  const sizeBytes = await commands.run('resize-disk', { slot, ...(asked === undefined ? {} : { sizeBytes: asked }) });
  vmm.events.emit('disk', 'resized', { slot, sizeBytes });
  return sizeBytes;
}

function setLink(vmm: Vmm): Route['run'] {
  return async ({ parameters, body }): Promise<Answer> => {
    const guest = needGuest(vmm);
    const { slot } = driveOf(guest, parameters['slot']);
    const { up: isUp } = parsed(Take.link, body);
    await guest.commands.run('set-link', { slot, isUp });
    vmm.events.emit('net', isUp ? 'link-up' : 'link-down', { slot });
    return done;
  };
}

function lineOf({ lines }: RunningGuest, id: string | undefined): RunningGuest['lines'][number] {
  const line = lines.find((candidate) => candidate.id === id);
  if (line !== undefined) return line;
  const hint = lines.length === 0 ? 'this VM has none' : `there are ${lines.map((l) => l.id).join(', ')}`;
  throw new HttpProblem(404, 'no-such-console', `there is no console "${id}"`, { hint });
}

function events(vmm: Vmm): Route['run'] {
  return ({ query, request, response, becomeStream }): Answer | 'streams' => {
    const isWaiting = query.get('wait') !== '0';
    const since =
      sinceOf(query.get('since') ?? request.headers['last-event-id']) ?? (isWaiting ? vmm.events.seq : OLDEST);
    const kept = since === OLDEST ? [...vmm.events.kept] : vmm.events.since(since);
    if (kept === undefined) {
      throw new HttpProblem(
        410,
        'too-old',
        Number(since) > vmm.events.seq
          ? `event ${since} is of a process before this one, whose newest is ${vmm.events.seq}`
          : `events behind ${since} are not kept any more`,
        { hint: 'since=oldest: all that are kept' },
      );
    }
    if (!isWaiting) return json(kept.map(shown));
    const write = serveEvents({ response, becomeStream });
    const tell = (event: StreamEvent) => write(event.seq, shown(event));
    for (const event of kept) tell(event);
    const stop = vmm.events.listen(tell);
    response.once('close', stop);
    return 'streams';
  };
}

function shown({ seq, timeMs, source, event, data }: StreamEvent): object {
  return { seq, time: new Date(timeMs).toISOString(), source, event, ...(data === undefined ? {} : { data }) };
}

/** A request with an Upgrade, as the server has it. */
export interface AskedUpgrade {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  /** What came behind the request. */
  readonly head: Buffer;
  readonly becomeStream: () => void;
}

/** Any other Upgrade is none that is known here. */
export function isForConsole({ headers }: IncomingMessage): boolean {
  return headers.upgrade?.split(',').some((each) => each.trim().toLowerCase() === 'acrn-console') === true;
}

/** @throws HttpProblem */
function askedLine(vmm: Vmm, { request, becomeStream }: AskedUpgrade) {
  const { pathname, searchParams } = targetOf(request.url ?? '/');
  const id = /^\/v1\/consoles\/([^/]+)\/stream$/.exec(pathname)?.[1];
  if (id === undefined) throw new HttpProblem(404, 'no-such-path', `there is no console at ${pathname}`);
  const line = lineOf(needGuest(vmm), decoded(id));
  becomeStream();
  return { line, withHistory: searchParams.get('history') === '1' };
}

/** `GET /v1/consoles/ID/stream` with an Upgrade: from the blank line on, bytes both ways. */
export function attachConsole(vmm: Vmm, asked: AskedUpgrade): void {
  const { socket, head } = asked;
  socket.on('error', () => {});
  let found: ReturnType<typeof askedLine>;
  try {
    found = askedLine(vmm, asked);
  } catch (error) {
    socket.end(problemAnswer(problemOf(error)));
    return;
  }
  const { line, withHistory } = found;
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: acrn-console\r\n\r\n');
  if (withHistory) socket.write(line.history());
  const write = bounded(socket, () => socket.destroy());
  const tap = line.tap(write);
  vmm.events.emit('console', 'attached', { id: line.id });
  let untyped: Uint8Array = head;
  const type = (): void => {
    untyped = untyped.subarray(tap.type(untyped));
    if (untyped.length === 0) {
      socket.resume();
      return;
    }
    // The guest does not read: what the client sends meanwhile stays with it.
    socket.pause();
    setTimeout(type, RETRY_MS).unref();
  };
  socket.on('data', (data) => {
    untyped = data;
    type();
  });
  if (head.length > 0) type();
  let isOpen = true;
  socket.on('close', () => {
    if (!isOpen) return;
    isOpen = false;
    untyped = new Uint8Array(0);
    tap.detach();
    vmm.events.emit('console', 'detached', { id: line.id });
  });
  socket.on('end', () => socket.end());
}

/** How soon a guest that does not read its console is asked again. */
const RETRY_MS = 20;
