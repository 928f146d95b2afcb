"""The life-cycle service of the Service VM, as acrnd meets it: says why the machine woke (argument 1: the reason), and
prints each message it gets as `ID [NUMBER]`."""
import os
import socket
import struct
import sys

reason = int(sys.argv[1], 0)
server = socket.socket(socket.AF_UNIX)
server.bind(f'/run/acrn/mngr/service-vm-lcs.{os.getpid()}.socket')
server.listen(8)
while True:
    client, _ = server.accept()
    client.settimeout(2)
    try:
        request = client.recv(280)
        magic, number, stamp = struct.unpack_from('<QI4xQ', request)
        value = struct.unpack_from('<q', request, 40)[0] if number == 17 else struct.unpack_from('<i', request, 24)[0]
        print(number, value, flush=True)
        if number in (16, 17):
            client.send(struct.pack('<QI4xQ', magic, number, stamp) + struct.pack('<I', reason if number == 16 else 0).ljust(256, b'\0'))
    except (OSError, struct.error):
        pass
    client.close()
