# A keyboard with one key and one light. A line on standard input presses the key; what happens to the light is printed.
import fcntl, os, struct, sys, threading
fd = os.open('/dev/uinput', os.O_RDWR)
for request, value in (0x40045564, 1), (0x40045565, 30), (0x40045564, 17), (0x40045569, 1):
    fcntl.ioctl(fd, request, value)
fcntl.ioctl(fd, 0x405c5503, struct.pack('HHHH80sI', 3, 0x1234, 0x5678, 1, b'rig keyboard', 0))
fcntl.ioctl(fd, 0x5501)
print('ready', flush=True)
def lights():
    while True:
        kind, code, value = struct.unpack('16xHHi', os.read(fd, 24))
        print('event', kind, code, value, flush=True)
threading.Thread(target=lights, daemon=True).start()
for _ in sys.stdin:
    for kind, code, value in (1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0):
        os.write(fd, struct.pack('16xHHi', kind, code, value))
