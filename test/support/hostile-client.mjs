/**
 * node hostile-client.mjs ATTACK SOCKET: a client of a VM's API (or, by their names, of its command monitor or of acrnctl's
 * socket) that does what no client should, until it is killed. One line for each round.
 */
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const [attack, path] = process.argv.slice(2);
const MIB = 1 << 20;
const request = (line, headers = '', body = '') => `${line} HTTP/1.1\r\nHost: vm\r\n${headers}\r\n${body}`;
/** An acrnctl message of this kind. */
const message = (kind) => {
  const bytes = Buffer.alloc(280, 0xa5);
  bytes.writeBigUInt64LE(0x67736d206d6d76n, 0);
  bytes.writeUInt32LE(kind, 8);
  return bytes;
};

/** @returns a connection that nobody has to look after. */
function open() {
  const socket = connect(path);
  socket.on('error', () => {});
  return socket;
}
const gone = (socket) =>
  socket.destroyed ? Promise.resolve() : new Promise((resolve) => socket.once('close', resolve));

/** As much as the other side takes, of the same bytes again and again. @returns bytes taken */
async function pour(socket, chunk, limitBytes) {
  let sent = 0;
  const over = gone(socket);
  while (!socket.destroyed && sent < limitBytes) {
    sent += chunk.length;
    if (!socket.write(chunk)) {
      const drained = new Promise((resolve) => socket.once('drain', resolve));
      const isLate = await Promise.race([
        drained.then(() => false),
        over.then(() => false),
        sleep(1000).then(() => true),
      ]);
      if (isLate) break;
    }
  }
  socket.destroy();
  return sent;
}

/** Many connections at once, each with these bytes, held for a moment. */
async function held(count, bytes, holdMs = 500) {
  const sockets = Array.from({ length: count }, () => {
    const socket = open();
    if (bytes !== undefined) socket.write(bytes);
    return socket;
  });
  await sleep(holdMs);
  for (const socket of sockets) socket.destroy();
  await Promise.all(sockets.map(gone));
  return `${count} connections`;
}

/** The same request so many times on one connection, answers not read. */
async function unread(bytes, count) {
  const socket = open();
  socket.pause();
  const sent = await pour(
    socket,
    Buffer.concat(Array.from({ length: 100 }, () => Buffer.from(bytes))),
    (bytes.length * count) / 1,
  );
  await gone(socket);
  return `${Math.floor(sent / bytes.length)} requests`;
}

/** And read. */
async function answered(bytes, count, mark) {
  const socket = open();
  let answers = 0;
  const all = new Promise((resolve) => {
    socket.on('data', (data) => {
      for (let at = data.indexOf(mark); at >= 0; at = data.indexOf(mark, at + 1)) answers++;
      if (answers >= count) resolve();
    });
    socket.on('close', resolve);
  });
  for (let i = 0; i < count && !socket.destroyed; i += 100) {
    const isTaken = socket.write(Buffer.concat(Array.from({ length: 100 }, () => Buffer.from(bytes))));
    if (!isTaken) await Promise.race([new Promise((resolve) => socket.once('drain', resolve)), gone(socket)]);
  }
  await Promise.race([all, sleep(60_000)]);
  socket.destroy();
  return `${answers} answers`;
}

/** A byte now and then. */
async function slow(bytes, count) {
  const sockets = Array.from({ length: count }, open);
  for (const byte of Buffer.from(bytes).subarray(0, 40)) {
    for (const socket of sockets) if (!socket.destroyed) socket.write(Buffer.of(byte));
    await sleep(25);
  }
  for (const socket of sockets) socket.destroy();
  return `${count} slow connections`;
}

/** Streams that nobody reads, and what fills them. */
async function streams() {
  const sockets = Array.from({ length: 60 }, () => {
    const socket = open();
    socket.pause();
    socket.write(request('GET /v1/events'));
    return socket;
  });
  for (let i = 0; i < 500; i++) {
    const console = open();
    console.resume();
    console.write(request('GET /v1/consoles/com1/stream', 'Connection: Upgrade\r\nUpgrade: acrn-console\r\n'));
    await sleep(2);
    console.destroy();
  }
  for (const socket of sockets) socket.destroy();
  return '60 streams, 1000 events';
}

const put = (sizeBytes) => request('PUT /api/v1/vm.create', `Content-Length: ${sizeBytes}\r\n`, '{');
const attacks = {
  garbage: () => held(100, randomBytes(4096)),
  'half-requests': () => held(500, request('PUT /v1/vm/power', 'Content-Length: 100\r\n', '{')),
  connections: () => held(500),
  requests: () => answered(request('GET /v1/vm'), 10_000, 'HTTP/1.1 200'),
  'unread-requests': () => unread(request('GET /v1/openapi.json'), 10_000),
  'huge-body': async () => {
    const socket = open();
    socket.write(put(1 << 30));
    return `${(await pour(socket, Buffer.alloc(MIB, 0x20), 1 << 30)) >> 20} MiB of a body`;
  },
  'chunked-body': async () => {
    const socket = open();
    socket.write(request('PUT /api/v1/vm.create', 'Transfer-Encoding: chunked\r\n'));
    return `${(await pour(socket, Buffer.from(`10000\r\n${' '.repeat(65_536)}\r\n`), 1 << 30)) >> 20} MiB of a body`;
  },
  'long-head': async () => {
    const socket = open();
    socket.write('GET /v1/vm HTTP/1.1\r\nX: ');
    return `${(await pour(socket, Buffer.alloc(MIB, 0x78), 1 << 30)) >> 20} MiB of a head`;
  },
  'slow-bytes': () => slow(request('GET /v1/vm'), 100),
  'deep-json': async () => {
    const text = '['.repeat(120_000) + ']'.repeat(120_000);
    return await answered(
      request('PUT /api/v1/vm.create', `Content-Length: ${text.length}\r\n`, text),
      100,
      'HTTP/1.1 4',
    );
  },
  streams,
  'monitor-garbage': () => held(100, randomBytes(4096)),
  'monitor-half': () => held(500, '{"command": "des'),
  'monitor-requests': () => answered('{"command":"nothing"}', 10_000, '"ack"'),
  'monitor-unread': () => unread('{"command":"nothing"}', 100_000),
  'monitor-endless': async () => `${(await pour(open(), Buffer.alloc(MIB, 0x7b), 1 << 30)) >> 20} MiB of braces`,
  'acrnctl-garbage': () => held(100, randomBytes(4096)),
  'acrnctl-half': () => held(500, message(6).subarray(0, 100)),
  'acrnctl-queries': () => answered(message(6), 10_000, Buffer.from('vmm msg')),
  'acrnctl-unread': () => unread(message(6), 100_000),
};

if (attack === '--list') console.log(Object.keys(attacks).join('\n'));
else for (;;) console.log(await attacks[attack]());
