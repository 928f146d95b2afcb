// node manager.mjs VM query|resume|stop|stop-force|suspend: what acrnctl sends to the monitor socket of a VM; prints the
// answer (the state, or 0). node manager.mjs PATH.sock TEXT: sends TEXT to a command monitor, prints its answer.
import { readdirSync } from 'node:fs';
import { createConnection } from 'node:net';

const MAGIC = 0x67736d206d6d76n;
const MESSAGE_BYTES = 280;
const requests = { query: [6, 0], resume: [5, 3], suspend: [4, 0], stop: [3, 0], 'stop-force': [3, 1] };
const directory = '/run/acrn/mngr';

const [vm, request] = process.argv.slice(2);
const isJson = vm.includes('/');
const path = isJson ? vm : `${directory}/${readdirSync(directory).find((name) => name.startsWith(`${vm}.monitor.`))}`;

const message = Buffer.alloc(MESSAGE_BYTES);
if (!isJson) {
  const [id, argument] = requests[request];
  message.writeBigUInt64LE(MAGIC, 0);
  message.writeUInt32LE(id, 8);
  message.writeBigUInt64LE(BigInt(Date.now()), 16);
  message.writeInt32LE(argument, 24);
}
const socket = createConnection(path, () => socket.write(isJson ? request : message));
socket.once('data', (answer) => {
  console.log(isJson ? JSON.stringify(JSON.parse(answer)) : answer.readInt32LE(24));
  socket.destroy();
});
socket.once('error', (error) => {
  console.error(error.message);
  process.exit(1);
});
