"""fake-mei.py FOLDER: a management engine interface at FOLDER/mei0, by FUSE: a file with the calls of /dev/meiN.
fake-mei.py --cuse: a character device of the kernel's at /dev/mei0, by CUSE.

A connection is an open file (IOCTL_MEI_CONNECT_CLIENT_VTAG), a message a read or a write. What is written comes back
reversed; "later" comes a moment later, "busy" once refuses the next write, "reset" resets the engine: all that is open
answers ENODEV. A connection to the slow client is answered when there is a line on standard input. Prints what it
hears; ends with its standard input.
"""
import ctypes
import errno
import os
import select
import stat
import struct
import sys
import time

CONNECT_VTAG = 0xC0144804
UUID = bytes.fromhex('15676a8ebc9a434088ef9e39c6f63e0f')
SLOW_UUID = bytes(15) + b'\x02'
IN_HEADER, OUT_HEADER = struct.Struct('<IIQQIIII'), struct.Struct('<IiQ')
(LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FLUSH) = (1, 2, 3, 4, 14, 15, 16, 18, 25)
(INIT, INTERRUPT, DESTROY, IOCTL, POLL, BATCH_FORGET) = (26, 36, 38, 39, 40, 42)
# Of a character device the first request is another one.
CUSE_INIT = 4096
NOTIFY_POLL = 1
DIRECT_IO = 1
POLLIN, POLLOUT, POLLERR = 1, 4, 8
ROOT, FILE = 1, 2
NAME = b'mei0'

folder = sys.argv[1]
is_cuse = folder == '--cuse'
libc = ctypes.CDLL(None, use_errno=True)
if is_cuse:
    fuse = os.open('/dev/cuse', os.O_RDWR)
else:
    fuse = os.open('/dev/fuse', os.O_RDWR)
    options = f'fd={fuse},rootmode=40755,user_id=0,group_id=0'
    if libc.mount(b'fake-mei', folder.encode(), b'fuse.fake-mei', 0, options.encode()) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))

connections = {}
due = []
withheld = []
next_handle = 1


class Connection:
    def __init__(self):
        self.is_connected = self.is_lost = self.is_busy = False
        self.messages, self.poller = [], None

    def events(self):
        if self.is_lost:
            return POLLIN | POLLERR
        return POLLOUT | (POLLIN if self.messages else 0)

    def wake(self):
        if self.poller is not None:
            send(0, NOTIFY_POLL, struct.pack('<Q', self.poller))
            self.poller = None


def send(unique, error, body=b''):
    os.write(fuse, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


def say(*words):
    print(*words, flush=True)


def attributes(node):
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o666
    return struct.pack('<QQQQQQIIIIIIIIII', node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def connect(connection, argument):
    uuid, vtag = argument[:16], argument[16]
    say('connect', uuid.hex(), vtag)
    if uuid not in (UUID, SLOW_UUID):
        return -errno.ENOTTY, b''
    connection.is_connected = True
    # struct mei_client: the longest message, the version of the protocol.
    return 0, struct.pack('<IB3x', 1500, 3).ljust(20, b'\0')


def write(connection, message):
    if connection.is_lost:
        return -errno.ENODEV
    if not connection.is_connected:
        return -errno.ENOTCONN
    if connection.is_busy:
        connection.is_busy = False
        return -errno.EAGAIN
    say('write', message.decode('latin1'))
    if message == b'reset':
        for one in connections.values():
            one.is_lost = True
            one.wake()
    elif message == b'busy':
        connection.is_busy = True
    else:
        due.append((time.monotonic() + (0.3 if message == b'later' else 0), connection, message[::-1]))
    return len(message)


def answer(opcode, node, body):
    """What is answered: an error, and the body."""
    global next_handle
    if opcode == INIT:
        return 0, struct.pack('<IIIIHHIIHHI7I', 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
    if opcode == CUSE_INIT:
        return 0, struct.pack('<18I', 7, 31, 0, 0, 65536, 65536, 0, 0, *[0] * 10) + b'DEVNAME=' + NAME + b'\0'
    if opcode == LOOKUP:
        if body.rstrip(b'\0') != NAME:
            return -errno.ENOENT, b''
        return 0, struct.pack('<QQQQII', FILE, 0, 0, 0, 0, 0) + attributes(FILE)
    if opcode in (GETATTR, SETATTR):
        return 0, struct.pack('<QII', 0, 0, 0) + attributes(node)
    if opcode == OPEN:
        handle, next_handle = next_handle, next_handle + 1
        connections[handle] = Connection()
        return 0, struct.pack('<QII', handle, DIRECT_IO, 0)
    if opcode == FLUSH:
        return 0, b''
    handle = struct.unpack_from('<Q', body)[0] if len(body) >= 8 else 0
    connection = connections.get(handle)
    if connection is None:
        return -errno.ENOSYS, b''
    if opcode == RELEASE:
        del connections[handle]
        say('release', len(connections))
        return 0, b''
    if opcode == READ:
        if connection.is_lost:
            return -errno.ENODEV, b''
        return (0, connection.messages.pop(0)) if connection.messages else (-errno.EAGAIN, b'')
    if opcode == WRITE:
        size = struct.unpack_from('<I', body, 16)[0]
        result = write(connection, body[40 : 40 + size])
        return (result, b'') if result < 0 else (0, struct.pack('<II', result, 0))
    if opcode == IOCTL:
        command = struct.unpack_from('<I', body, 12)[0]
        if command != CONNECT_VTAG:
            return -errno.ENOTTY, b''
        result, out = connect(connection, body[32:])
        return 0, struct.pack('<iIII', result, 0, 0, 0) + (out or bytes(20))
    if opcode == POLL:
        kernel_handle, flags = struct.unpack_from('<QI', body, 8)
        connection.poller = kernel_handle if flags & 1 else connection.poller
        return 0, struct.pack('<II', connection.events(), 0)
    return -errno.ENOSYS, b''


say('ready')
while True:
    wait = max(0, min(at for at, _, _ in due) - time.monotonic()) if due else None
    ready, _, _ = select.select([fuse, sys.stdin], [], [], wait)
    if sys.stdin in ready:
        if os.read(sys.stdin.fileno(), 4096) == b'':
            break
        while withheld:
            send(*withheld.pop())
    for entry in [entry for entry in due if entry[0] <= time.monotonic()]:
        due.remove(entry)
        entry[1].messages.append(entry[2])
        entry[1].wake()
    if fuse in ready:
        request = os.read(fuse, 1 << 20)
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT, DESTROY):
            continue
        body = request[IN_HEADER.size :]
        is_slow = opcode == IOCTL and SLOW_UUID in body
        reply = (unique, *answer(opcode, node, body))
        if is_slow:
            withheld.append(reply)
        else:
            send(*reply)
if not is_cuse:
    libc.umount2(folder.encode(), 2)
