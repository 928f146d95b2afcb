"""fake-swtpm.py PATH [REFUSED]: a swtpm that does as its commands say, and prints the orders it gets.

A command's code is what becomes of it: 1 is answered with success and 32 bytes, 2 ends the process, 3 is answered with
a size that cannot be, 4 with a byte too many, 5 waits for the order to cancel, 6 is answered with half a response
and nothing more, cancelled or not. The order of number REFUSED gets error 9.
"""
import os
import select
import socket
import struct
import sys

path = sys.argv[1]
refused = int(sys.argv[2], 0) if len(sys.argv) > 2 else None
if os.path.exists(path):
    os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
PAYLOAD = {2: 4, 5: 4, 0x11: 4}
is_silent = False


def say(line):
    print(line, flush=True)


def respond(data, code, body=b'', size=None):
    size = 10 + len(body) if size is None else size
    data.sendall(struct.pack('>HII', 0x8001, size, code) + body)


def run(data, command):
    code = struct.unpack('>I', command[6:10])[0]
    say(f'command {code} {len(command)}')
    if code == 2:
        os._exit(0)
    if code == 3:
        respond(data, 0, size=5)
    elif code == 4:
        respond(data, 0, b'x', size=10)
    elif code == 6:
        global is_silent
        is_silent = True
        data.sendall(struct.pack('>HII', 0x8001, 42, 0)[:7])
    elif code != 5:
        # In two pieces, as a stream may have it.
        response = struct.pack('>HII', 0x8001, 42, 0) + bytes(range(32))
        data.sendall(response[:7])
        data.sendall(response[7:])


def order(control, data, number):
    payload = control.recv(PAYLOAD[number]) if number in PAYLOAD else b''
    say(f'order {number:#x} {payload.hex()}')
    if number == refused:
        control.sendall(struct.pack('>I', 9))
        return
    if number == 4:
        control.sendall(struct.pack('>IBBBB', 0, 1, 0, 0, 0))
    elif number == 0x11:
        control.sendall(struct.pack('>IIII', 0, 0x4f80, 1024, 0x8000))
    else:
        control.sendall(struct.pack('>I', 0))
    if number == 9 and data is not None and not is_silent:
        respond(data, 0x909)
    if number == 3:
        os._exit(0)


say('listening')
while True:
    control, _ = server.accept()
    data = None
    is_silent = False
    while True:
        ready = select.select([s for s in (control, data) if s is not None], [], [])[0]
        if data in ready:
            command = data.recv(65536)
            if not command:
                data = None
                continue
            run(data, command)
        if control in ready:
            head, fds, _, _ = socket.recv_fds(control, 4, 1)
            if not head:
                break
            if fds:
                data = socket.socket(fileno=fds[0])
            order(control, data, struct.unpack('>I', head)[0])
    say('left')
