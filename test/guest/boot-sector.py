#!/usr/bin/env python3
"""boot-sector.py FILE: a disk whose boot sector prints to COM1, reads sector 1 by INT 13h, prints it, and powers off by S5."""
import struct
import sys

code = bytearray()
fixups = []


def emit(*data):
    code.extend(data)


def reference(label, relative=False):
    fixups.append((len(code), label, relative))
    emit(0, 0)


def put(label=None):
    """mov si, label; call puts"""
    if label is None:
        emit(0xBE, 0x00, 0x7E)
    else:
        emit(0xBE)
        reference(label)
    emit(0xE8)
    reference('puts', True)


emit(0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0)  # cli; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
emit(0xBC, 0x00, 0x7C, 0xFB)  # mov sp, 7c00h; sti
put('hello')
emit(0xBE)  # mov si, packet
reference('packet')
emit(0xB2, 0x80, 0xB4, 0x42, 0xCD, 0x13)  # mov dl, 80h; mov ah, 42h; int 13h
emit(0x72, 0x06)  # jc off
put()
emit(0xBA, 0x04, 0x04, 0xB8, 0x00, 0x34, 0xEF)  # off: mov dx, 404h; mov ax, 3400h; out dx, ax
emit(0xF4, 0xEB, 0xFD)  # hlt; jmp $-1

labels = {'puts': len(code)}
# lodsb; or al, al; jz ret; push ax; mov dx, 3fdh; in al, dx; test al, 20h; jz -5; pop ax; mov dx, 3f8h; out dx, al; jmp puts
emit(0xAC, 0x08, 0xC0, 0x74, 0x10, 0x50, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x20, 0x74, 0xFB, 0x58, 0xBA, 0xF8, 0x03, 0xEE)
emit(0xEB, 0xEB, 0xC3)
labels['hello'] = len(code)
code += b'\r\nBOOT-SECTOR\r\n\0'
labels['packet'] = len(code)
code += struct.pack('<BBHHHQ', 16, 0, 1, 0x7E00, 0, 1)
for at, label, relative in fixups:
    if relative:
        struct.pack_into('<h', code, at, labels[label] - (at + 2))
    else:
        struct.pack_into('<H', code, at, 0x7C00 + labels[label])

image = bytearray(1 << 20)
image[: len(code)] = code
image[510:512] = b'\x55\xaa'
text = b'SECTOR-ONE\r\n\0'
image[512 : 512 + len(text)] = text
with open(sys.argv[1], 'wb') as file:
    file.write(image)
